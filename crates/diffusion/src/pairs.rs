//! Preference pairs that a model makes of itself: sample, judge, keep the best and the worst.

use diptych_data::{ImagePair, ImageSource};
use diptych_eval::Judge;
use serde::{Deserialize, Serialize};

use crate::evaluation::repeat_each;
use crate::pipeline::{Pipeline, SampleConfig, generate_candidates};
use crate::progress::{Reporter, Stage};
use crate::{Error, Result};

/// How pairs are built.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairsConfig {
    /// Who gives the scores.
    pub judge: Judge,
    /// Images sampled for each prompt, at least 2.
    pub candidates: usize,
    /// A prompt whose best and worst score are closer than this gives no pair.
    pub min_margin: f64,
}

impl Default for PairsConfig {
    fn default() -> Self {
        Self {
            judge: Judge::Verifier,
            candidates: 6,
            min_margin: 0.2,
        }
    }
}

impl PairsConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`Error::Setting`] for fewer than 2 candidates, or a margin that is no number from 0.
    pub fn validate(&self) -> Result<()> {
        let setting = |key, found, expected| Err(Error::Setting { key, found, expected });
        if self.candidates < 2 {
            return setting("candidates", self.candidates.to_string(), "at least 2");
        }
        if !(self.min_margin.is_finite() && self.min_margin >= 0.0) {
            return setting("min_margin", self.min_margin.to_string(), "a finite number, at least 0");
        }
        Ok(())
    }
}

/// At most one pair for each prompt: of its candidates, the one with the highest score is chosen and the one with the lowest
/// rejected; the earlier wins a tie. Prompts without a difference of `min_margin` are left out.
///
/// # Errors
/// [`PairsConfig::validate`]; a sampler or the judge fails; [`Error::Stopped`].
pub fn build_pairs(
    pipeline: &Pipeline,
    prompts: &[String],
    sampling: &SampleConfig,
    config: &PairsConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<ImagePair>> {
    config.validate()?;
    let candidates = config.candidates;
    let repeated = repeat_each(prompts, candidates);
    let images = generate_candidates(pipeline, &repeated, sampling, reporter)?;
    let scores = config.judge.score(&repeated, &images)?;
    reporter.advance(Stage::Judging, 1, 1)?;
    let mut pairs = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let first = number * candidates;
        let Some((chosen, rejected)) = extremes(&scores[first..first + candidates], config.min_margin) else {
            continue;
        };
        let source = |which: usize| ImageSource::from_image(&images[first + which]);
        let mut pair = ImagePair::new(number.to_string(), prompt, source(chosen)?, source(rejected)?);
        pair.chosen_score = Some(scores[first + chosen]);
        pair.rejected_score = Some(scores[first + rejected]);
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Places of the highest and the lowest score, if they are at least `min_margin` apart and not equal.
fn extremes(scores: &[f64], min_margin: f64) -> Option<(usize, usize)> {
    let (mut best, mut worst) = (0, 0);
    for (place, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = place;
        }
        if score < scores[worst] {
            worst = place;
        }
    }
    let margin = scores.get(best)? - scores.get(worst)?;
    (margin > 0.0 && margin >= min_margin).then_some((best, worst))
}

#[cfg(test)]
mod tests {
    use super::{PairsConfig, extremes};

    #[test]
    fn the_best_and_the_worst_are_kept_and_close_calls_are_not() {
        assert_eq!(extremes(&[0.5, 0.9, 0.1, 0.9, 0.1], 0.2), Some((1, 2)));
        assert_eq!(extremes(&[0.5, 0.6], 0.2), None);
        assert_eq!(extremes(&[0.5, 0.5], 0.0), None);
        assert_eq!(extremes(&[], 0.0), None);
    }

    #[test]
    fn one_candidate_makes_no_pair() {
        let default = PairsConfig::default();
        default.validate().unwrap();
        let one = PairsConfig {
            candidates: 1,
            ..default
        };
        let message = one.validate().unwrap_err().to_string();
        assert_eq!(message, "`candidates` is 1, expected at least 2");
        for min_margin in [-0.1, f64::NAN, f64::INFINITY] {
            let bad = PairsConfig { min_margin, ..default };
            assert!(bad.validate().unwrap_err().is_configuration(), "{min_margin}");
        }
    }
}
