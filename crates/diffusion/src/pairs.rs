//! Preference pairs that a model makes of itself: sample, judge, keep the best and the worst.

use diptych_data::{ImagePair, ImageSource};
use diptych_eval::Judge;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::pipeline::{Pipeline, SampleConfig, generate_with};
use crate::progress::{Reporter, Stage};

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

/// At most one pair for each prompt: of its candidates, the one with the highest score is chosen and the one with the lowest
/// rejected; the earlier wins a tie. Prompts without a difference of `min_margin` are left out.
///
/// # Errors
/// A sampler or the judge fails; [`crate::Error::Stopped`].
pub fn build_pairs(
    pipeline: &Pipeline,
    prompts: &[String],
    sampling: &SampleConfig,
    config: &PairsConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<ImagePair>> {
    let candidates = config.candidates.max(2);
    let repeated: Vec<String> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), candidates))
        .collect();
    let images = generate_with(pipeline, &repeated, sampling, reporter)?;
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
    use super::extremes;

    #[test]
    fn the_best_and_the_worst_are_kept_and_close_calls_are_not() {
        assert_eq!(extremes(&[0.5, 0.9, 0.1, 0.9, 0.1], 0.2), Some((1, 2)));
        assert_eq!(extremes(&[0.5, 0.6], 0.2), None);
        assert_eq!(extremes(&[0.5, 0.5], 0.0), None);
        assert_eq!(extremes(&[], 0.0), None);
    }
}
