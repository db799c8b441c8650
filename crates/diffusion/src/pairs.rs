//! Preference pairs that a model makes of itself: sample, judge, keep the best and a worse one.

use std::str::FromStr;

use diptych_data::{ImagePair, ImageSource};
use diptych_eval::Judge;
use diptych_train::Reporter;

use crate::evaluation::repeat_each;
use crate::pipeline::{Pipeline, SampleConfig, generate_candidates};
use crate::stage::Stage;
use crate::{Error, Result};

/// How pairs are built.
#[derive(Debug, Clone, PartialEq)]
pub struct PairsConfig {
    /// Who gives the scores.
    pub judge: Judge,
    /// Images sampled for each prompt, at least 2.
    pub candidates: usize,
    /// Which image is rejected.
    pub rejected: RejectedRule,
    /// How much lower the rejected image's score must be; a prompt without such an image gives no pair.
    pub min_margin: f64,
    /// A prompt whose best image scores lower gives no pair: the better of two failures teaches little.
    pub min_chosen: f64,
}

/// Which of the worse images of a prompt is rejected; the best one is always chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RejectedRule {
    /// The one with the lowest score: the clearest difference, often of quality rather than of what the prompt asks for.
    #[default]
    Worst,
    /// The best one that is at least the margin worse: a hard negative, which differs in little else.
    Closest,
}

impl RejectedRule {
    /// The names of the rules.
    pub const NAMES: [&'static str; 2] = ["worst", "closest"];
}

impl std::fmt::Display for RejectedRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Worst => "worst",
            Self::Closest => "closest",
        })
    }
}

impl FromStr for RejectedRule {
    type Err = Error;

    /// # Errors
    /// [`Error::Setting`] for a name that is none of [`RejectedRule::NAMES`].
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "worst" => Ok(Self::Worst),
            "closest" => Ok(Self::Closest),
            _ => Err(Error::Setting {
                key: "rejected",
                found: name.to_owned(),
                expected: "worst or closest",
            }),
        }
    }
}

impl Default for PairsConfig {
    fn default() -> Self {
        Self {
            judge: Judge::Verifier,
            candidates: 6,
            rejected: RejectedRule::Worst,
            min_margin: 0.2,
            min_chosen: 0.0,
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
        if !self.min_chosen.is_finite() {
            return setting("min_chosen", self.min_chosen.to_string(), "a finite number");
        }
        Ok(())
    }
}

/// At most one pair for each prompt: of its candidates, the one with the highest score is chosen and a worse one rejected, by
/// the rule; the earlier wins a tie. Prompts whose images are too close or all too bad are left out.
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
        let Some((chosen, rejected)) = select(&scores[first..first + candidates], config) else {
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

/// Places of the chosen and the rejected score, if two are far enough apart and not equal; the earlier wins a tie.
fn select(scores: &[f64], config: &PairsConfig) -> Option<(usize, usize)> {
    // `min_by` keeps the first of equals, so the highest is found as the least in descending order.
    let ascending = |&a: &usize, &b: &usize| scores[a].total_cmp(&scores[b]);
    let descending = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]);
    let chosen = (0..scores.len())
        .min_by(descending)
        .filter(|&best| scores[best] >= config.min_chosen)?;
    let worse = (0..scores.len()).filter(|&place| {
        let margin = scores[chosen] - scores[place];
        margin > 0.0 && margin >= config.min_margin
    });
    let rejected = match config.rejected {
        RejectedRule::Worst => worse.min_by(ascending),
        RejectedRule::Closest => worse.min_by(descending),
    }?;
    Some((chosen, rejected))
}

#[cfg(test)]
mod tests {
    use super::{PairsConfig, RejectedRule, select};

    #[test]
    fn the_best_and_a_worse_one_are_kept_and_close_calls_are_not() {
        let pair = |scores: &[f64], rejected, min_margin| {
            let config = PairsConfig {
                rejected,
                min_margin,
                ..PairsConfig::default()
            };
            select(scores, &config)
        };
        let scores = [0.5, 0.9, 0.1, 0.9, 0.1, 0.8];
        assert_eq!(pair(&scores, RejectedRule::Worst, 0.2), Some((1, 2)));
        assert_eq!(pair(&scores, RejectedRule::Closest, 0.2), Some((1, 0)));
        assert_eq!(pair(&scores, RejectedRule::Closest, 0.0), Some((1, 5)));
        assert_eq!(pair(&scores, RejectedRule::Closest, 0.7), Some((1, 2)));
        for (min_chosen, expected) in [(0.9, Some((1, 2))), (0.91, None)] {
            let config = PairsConfig {
                min_chosen,
                ..PairsConfig::default()
            };
            assert_eq!(select(&scores, &config), expected);
        }
        for rejected in [RejectedRule::Worst, RejectedRule::Closest] {
            assert_eq!(pair(&[0.5, 0.6], rejected, 0.2), None);
            assert_eq!(pair(&[0.5, 0.5], rejected, 0.0), None);
            assert_eq!(pair(&[], rejected, 0.0), None);
        }
    }

    #[test]
    fn rules_are_read_by_the_name_they_are_written_with() {
        for name in RejectedRule::NAMES {
            assert_eq!(name.parse::<RejectedRule>().unwrap().to_string(), name);
        }
        assert!("best".parse::<RejectedRule>().is_err());
    }

    #[test]
    fn one_candidate_makes_no_pair() {
        let default = PairsConfig::default();
        default.validate().unwrap();
        let one = PairsConfig {
            candidates: 1,
            ..default.clone()
        };
        let message = one.validate().unwrap_err().to_string();
        assert_eq!(message, "`candidates` is 1, expected at least 2");
        for min_margin in [-0.1, f64::NAN, f64::INFINITY] {
            let bad = PairsConfig {
                min_margin,
                ..default.clone()
            };
            assert!(bad.validate().unwrap_err().is_configuration(), "{min_margin}");
        }
    }
}
