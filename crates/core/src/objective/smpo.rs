//! Smoothed Preference Optimization: a pair counts as much as a judge is sure of it.
//!
//! # Paper
//! Lu et al., "Smoothed Preference Optimization via `ReNoise` Inversion for Aligning Diffusion Models with Varied Human Preferences",
//! International Conference on Machine Learning 2025, arXiv:2506.02698 (`SmPO`-Diffusion).
//!
//! # Formula
//! ```text
//! n = (score - min_score) / (max_score - min_score)
//! p = exp(n_w) / (exp(n_w) + exp(n_l)),   2 p - 1 = tanh((n_w - n_l) / 2)
//! h = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))
//! L = -log s(gamma (2 p - 1) beta h)
//! ```
//!
//! # Convention
//! The paper writes the factor as `2 alpha - gamma` with `alpha = gamma p`. A pair whose scores contradict its label has a negative
//! factor and is learned the other way around, as if the judge had labeled it; equal scores teach nothing. For diffusion the score is minus
//! one half of the error, and `beta` is that of the released code. Its scores are cosines of `PickScore`, between `min_score =
//! 0.11543526500463486` and `max_score = 0.28201571106910706`, the extremes of its data; `gamma` is 10 there. Scores are not cut at the extremes.
//! Reference code: JaydenLyh/SmPO `train.py`. Differences: the code takes the factor of the first pair for its whole batch; here each
//! pair has its own. The inversion that gives the paper's noise is no part of the objective.

use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, finite, positive};
use crate::arithmetic::{logistic, rewarded};
use crate::{Error, ObjectiveOutput, PairLogps, Requirements, Result};

/// Parameters of `SmPO`.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::pair_losses`](crate::Objective::pair_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without a
/// judge's scores, [`OutOfRange`](crate::Error::OutOfRange) for a `beta` or `gamma` that is not above 0, or a `max_score` that is not above
/// `min_score`.
///
/// # Example
/// A policy that has learned a pair is rewarded for it as much as the judge is sure:
/// ```
/// use diptych_core::{Objective, PairLogps, Responses, Smpo};
/// use diptych_tensor::{Device, Tensor};
///
/// let objective = Objective::from(Smpo { beta: 2000.0, gamma: 10.0, min_score: 0.0, max_score: 1.0 });
/// let side = |score: f32, judge_score: f32| -> Result<Responses, Box<dyn std::error::Error>> {
///     let mut side = Responses::new(Tensor::new(&[score], &Device::Cpu)?);
///     side.reference = Some(Tensor::new(&[-0.1f32], &Device::Cpu)?);
///     side.judge_scores = Some(Tensor::new(&[judge_score], &Device::Cpu)?);
///     Ok(side)
/// };
/// let loss = |judge_score| -> Result<f32, Box<dyn std::error::Error>> {
///     let logps = PairLogps::of(side(-0.0999, judge_score)?, side(-0.1, 0.5)?);
///     Ok(objective.pair_losses(&logps)?.losses.to_vec1::<f32>()?[0])
/// };
/// assert!(loss(0.9)? < loss(0.6)?);
/// assert!((loss(0.5)? - std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Smpo {
    /// Strength of the pull towards the reference, > 0; multiplies the weighted log-ratio. The authors: 2000 for Stable Diffusion 1.5,
    /// 5000 for SDXL.
    pub beta: f64,
    /// Factor of the judge's certainty, > 0. The authors: 10.
    #[serde(default = "ten")]
    pub gamma: f64,
    /// The judge's score that counts as 0.
    pub min_score: f64,
    /// The judge's score that counts as 1, > `min_score`.
    pub max_score: f64,
}

fn ten() -> f64 {
    10.0
}

impl Formula for Smpo {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "smpo",
        title: "Smoothed Preference Optimization",
        paper: "Lu et al., ICML 2025, arXiv:2506.02698",
        requirements: Requirements::PAIRS.with_reference().with_judge_scores(),
    };

    fn validate(&self) -> Result<()> {
        positive("smpo", "beta", self.beta)?;
        positive("smpo", "gamma", self.gamma)?;
        finite("smpo", "min_score", self.min_score)?;
        if self.max_score.is_finite() && self.max_score > self.min_score {
            return Ok(());
        }
        Err(Error::OutOfRange {
            objective: "smpo",
            parameter: "max_score",
            found: self.max_score,
            expected: "a finite number above `min_score`",
        })
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (chosen, rejected) = logps.logratios("smpo")?;
        let gaps = (logps.chosen.judge_scores("smpo")? - logps.rejected.judge_scores("smpo")?)?;
        let certainties = (gaps * (0.5 / (self.max_score - self.min_score)))?.tanh()?;
        let logits = (((&chosen - &rejected)? * certainties)? * (self.gamma * self.beta))?;
        rewarded(logistic(&logits, 0.0)?, self.beta, &chosen, &rejected)
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Tensor};

    use super::*;
    use crate::{Dpo, Objective, Responses};

    const PICK_SCORE: [f64; 2] = [0.115_435_265_004_634_86, 0.282_015_711_069_107_06];

    fn smpo([min_score, max_score]: [f64; 2]) -> Smpo {
        Smpo {
            beta: 2000.0,
            gamma: 10.0,
            min_score,
            max_score,
        }
    }

    fn side(policy: f64, reference: f64, judge_score: f64) -> Responses {
        let vector = |value: f64| Tensor::new(&[value], &Device::Cpu).unwrap();
        let mut side = Responses::new(vector(policy));
        side.reference = Some(vector(reference));
        side.judge_scores = Some(vector(judge_score));
        side
    }

    fn loss(objective: impl Into<Objective>, chosen: Responses, rejected: Responses) -> f64 {
        let output = objective.into().pair_losses(&PairLogps::of(chosen, rejected)).unwrap();
        output.losses.to_vec1::<f64>().unwrap()[0]
    }

    /// The released code on one pair, in its variables: mean squared errors 0.1101 and 0.1403, of the reference 0.1102 and 0.14.
    #[test]
    fn one_pair_of_the_released_code() {
        let chosen = side(-0.5 * 0.1101, -0.5 * 0.1102, 0.2301);
        let rejected = side(-0.5 * 0.1403, -0.5 * 0.14, 0.2105);
        let found = loss(smpo(PICK_SCORE), chosen, rejected);
        assert!((found - 0.582_512_126_341_185_4).abs() < 1e-12, "{found}");
    }

    #[test]
    fn the_judge_may_turn_a_label_around() {
        let pair = |[chosen, rejected]: [f64; 2]| [side(-0.3, -0.31, chosen), side(-0.4, -0.39, rejected)];
        let [chosen, rejected] = pair([0.2, 0.25]);
        let contradicted = loss(smpo([0.0, 0.5]), chosen, rejected);
        // The same images with the label the judge would have given.
        let [rejected, chosen] = pair([0.2, 0.25]);
        let agreed = loss(smpo([0.0, 0.5]), chosen, rejected);
        assert!((contradicted - agreed).abs() < 1e-12, "{contradicted} {agreed}");
        let [certain, other] = pair([1e6, 0.0]);
        let dpo = Dpo {
            beta: 20_000.0,
            label_smoothing: 0.0,
        };
        assert_eq!(
            loss(smpo([0.0, 0.5]), certain.clone(), other.clone()),
            loss(dpo, certain, other)
        );
    }

    #[test]
    fn the_range_of_scores_must_have_a_width() {
        for range in [[0.5, 0.5], [1.0, 0.0], [0.0, f64::NAN]] {
            let error = Objective::from(smpo(range)).validate().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        parameter: "max_score",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
