//! How much better the aligned model is than its base.

use std::fmt;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::bootstrap::{quantile, resampled_means, sign_flip_p_value};
use crate::error::{Error, Result};

/// A mean and the 95 % percentile interval of its bootstrap.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean of the scores as they are.
    pub mean: f64,
    /// 2.5 % of the resampled means lie below.
    pub low: f64,
    /// 2.5 % of the resampled means lie above.
    pub high: f64,
}

/// The outcome of comparing an aligned model with its base on the same prompts.
///
/// Prompts are resampled as pairs, because a hard prompt is hard for both models; the interval of the difference is
/// therefore narrower than those of the two means would suggest. With one prompt every interval is a point and says
/// nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WinRate {
    /// Number of prompts.
    pub n: usize,
    /// Scores of the base model.
    pub base: Estimate,
    /// Scores of the aligned model.
    pub aligned: Estimate,
    /// Aligned minus base.
    pub difference: Estimate,
    /// Prompts where the aligned model scores higher.
    pub wins: usize,
    /// Prompts where both score exactly the same.
    pub ties: usize,
    /// Prompts where the base model scores higher.
    pub losses: usize,
    /// Wins plus half the ties, over all prompts.
    pub win_rate: f64,
    /// Where 95 % of the resampled win rates lie: from, to.
    pub win_rate_interval: [f64; 2],
    /// Two-sided p-value of the paired sign-flip permutation test on the mean difference.
    pub p_value: f64,
    /// Resamples behind the intervals.
    pub bootstrap_samples: usize,
    /// Source of the resamples.
    pub seed: u64,
}

impl WinRate {
    /// Compares the scores of two models; the same place in both lists is the same prompt (and the same seed of the
    /// images).
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::NoScores`], [`Error::NotFinite`] with the side and place, and
    /// [`Error::InvalidConfig`] for 0 `bootstrap_samples`.
    pub fn compare(base: &[f64], aligned: &[f64], seed: u64, bootstrap_samples: usize) -> Result<Self> {
        check(base, aligned, bootstrap_samples)?;
        let differences: Vec<f64> = aligned.iter().zip(base).map(|(aligned, base)| aligned - base).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let won: Vec<f64> = differences
            .iter()
            .map(|difference| f64::midpoint(1.0, difference.signum() * f64::from(u8::from(*difference != 0.0))))
            .collect();
        let [base_means, aligned_means, difference_means, won_means] =
            resampled_means([base, aligned, &differences, &won], bootstrap_samples, &mut rng);
        let won = estimate(&won, won_means);
        let count = |holds: fn(&f64) -> bool| differences.iter().filter(|difference| holds(difference)).count();
        let (wins, losses) = (
            count(|difference| *difference > 0.0),
            count(|difference| *difference < 0.0),
        );
        let ties = differences.len() - wins - losses;
        Ok(Self {
            n: differences.len(),
            base: estimate(base, base_means),
            aligned: estimate(aligned, aligned_means),
            difference: estimate(&differences, difference_means),
            wins,
            ties,
            losses,
            win_rate: (wins as f64 + 0.5 * ties as f64) / differences.len() as f64,
            win_rate_interval: [won.low, won.high],
            p_value: sign_flip_p_value(&differences, bootstrap_samples, &mut rng),
            bootstrap_samples,
            seed,
        })
    }
}

impl fmt::Display for WinRate {
    /// The table a run ends with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let interval = format!("[{:+.4}, {:+.4}]", self.difference.low, self.difference.high);
        let [from, to] = self.win_rate_interval.map(|share| 100.0 * share);
        let rate = format!("{:.1} % [{from:.1}, {to:.1}]", 100.0 * self.win_rate);
        let outcomes = format!("{}/{}/{}", self.wins, self.ties, self.losses);
        writeln!(
            f,
            "{:>8} | {:>8} | {:>10} {:<20} | win/tie/loss | {:<21} | p-value | n",
            "base", "aligned", "difference", "95 % interval", "win rate, 95 %"
        )?;
        write!(
            f,
            "{:>8.4} | {:>8.4} | {:>+10.4} {interval:<20} | {outcomes:>12} | {rate:<21} | {:>7.4} | {}",
            self.base.mean, self.aligned.mean, self.difference.mean, self.p_value, self.n
        )?;
        if self.n == 1 {
            write!(f, "\n(one prompt: the interval says nothing)")?;
        }
        Ok(())
    }
}

/// One score a prompt, the mean over its images. `scores` hold all images of the first prompt, then of the second, ….
///
/// Images of one prompt are not independent: averaged first, each prompt counts once in the resampling.
///
/// # Errors
/// [`Error::Ungroupable`] when the number of scores is not a multiple of `images_per_prompt`, or that is 0.
pub fn mean_per_prompt(scores: &[f64], images_per_prompt: usize) -> Result<Vec<f64>> {
    if images_per_prompt == 0 || !scores.len().is_multiple_of(images_per_prompt) {
        return Err(Error::Ungroupable {
            len: scores.len(),
            images_per_prompt,
        });
    }
    Ok(scores.chunks(images_per_prompt).map(mean).collect())
}

fn check(base: &[f64], aligned: &[f64], bootstrap_samples: usize) -> Result<()> {
    if base.len() != aligned.len() {
        let (left_len, right_len) = (base.len(), aligned.len());
        return Err(Error::LengthMismatch {
            left: "base scores",
            left_len,
            right: "aligned scores",
            right_len,
        });
    }
    if base.is_empty() {
        return Err(Error::NoScores);
    }
    if bootstrap_samples == 0 {
        let (key, found) = ("bootstrap_samples", "0".to_owned());
        return Err(Error::InvalidConfig {
            key,
            found,
            expected: "at least 1",
        });
    }
    for (side, scores) in [("base", base), ("aligned", aligned)] {
        if let Some(index) = scores.iter().position(|score| !score.is_finite()) {
            return Err(Error::NotFinite {
                side,
                index,
                value: scores[index],
            });
        }
    }
    Ok(())
}

pub(crate) fn estimate(values: &[f64], mut resampled: Vec<f64>) -> Estimate {
    resampled.sort_by(f64::total_cmp);
    Estimate {
        mean: mean(values),
        low: quantile(&resampled, 0.025),
        high: quantile(&resampled, 0.975),
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
