//! Preference data that a model makes of itself: sample, judge, and keep pairs or ranked lists.

use diptych_data::{ImagePair, ImageSource, PairRule, PairSelection, RankedImages, ScoredImage};
use diptych_eval::{Judge, JudgeOptions};
use diptych_tensor::random::{Stream, generator};
use diptych_train::Reporter;
use rand::Rng as _;

use crate::evaluation::repeat_each;
use crate::pipeline::{Pipeline, SampleConfig, generate_candidates};
use crate::stage::Stage;
use crate::{Error, Result};

/// How pairs and lists are built.
#[derive(Debug, Clone, PartialEq)]
pub struct PairsConfig {
    /// Who gives the scores.
    pub judge: Judge,
    /// Images sampled for each prompt, at least 2.
    pub candidates: usize,
    /// Which images become pairs.
    pub rule: PairRule,
    /// How much lower the rejected image's score must be; a prompt without such an image gives no pair. A list is kept if its worst
    /// image is as much lower than its best.
    pub min_margin: f64,
    /// A prompt whose best image scores lower gives nothing: the better of two failures teaches little.
    pub min_chosen: f64,
}

impl Default for PairsConfig {
    fn default() -> Self {
        Self {
            judge: Judge::Verifier,
            candidates: 6,
            rule: PairRule::Worst,
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

/// The pairs of each prompt's candidates, by the rule; of images with equal scores the earlier counts as the better, and no two of
/// them are a pair. Prompts whose images are too close or all too bad are left out.
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
    let lists = candidates(pipeline, prompts, sampling, config, reporter)?;
    Ok(pairs_of(&lists, config, sampling.seed))
}

/// The candidates of each prompt as one ranked list, as RankDPO takes them. Prompts whose images are too close or all too bad are
/// left out.
///
/// # Errors
/// As [`build_pairs`].
pub fn build_ranked(
    pipeline: &Pipeline,
    prompts: &[String],
    sampling: &SampleConfig,
    config: &PairsConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<RankedImages>> {
    let mut lists = candidates(pipeline, prompts, sampling, config, reporter)?;
    let ends = PairSelection {
        rule: PairRule::Worst,
        min_margin: config.min_margin,
    };
    lists.retain(|list| is_good_enough(list, config) && !list.pairs(&ends, |_| 0).is_empty());
    Ok(lists)
}

/// Every prompt's images with their scores.
fn candidates(
    pipeline: &Pipeline,
    prompts: &[String],
    sampling: &SampleConfig,
    config: &PairsConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<RankedImages>> {
    config.validate()?;
    // What it cannot be made of is said before hours of sampling.
    let judge = config.judge.load(&JudgeOptions {
        device: pipeline.denoiser.device().clone(),
        ..JudgeOptions::default()
    })?;
    let repeated = repeat_each(prompts, config.candidates);
    let images = generate_candidates(pipeline, &repeated, sampling, reporter)?;
    let scores = judge.score_images(&repeated, &images)?;
    reporter.advance(Stage::Judging, 1, 1)?;
    let groups = images.chunks(config.candidates).zip(scores.chunks(config.candidates));
    let list = |(number, (images, scores)): (usize, (&[image::RgbImage], &[f64]))| {
        let scored = images.iter().zip(scores).map(|(image, &score)| {
            Ok(ScoredImage {
                image: ImageSource::from_image(image)?,
                score,
            })
        });
        Ok(RankedImages {
            id: number.to_string(),
            prompt: prompts[number].clone(),
            responses: scored.collect::<Result<_>>()?,
        })
    };
    groups.enumerate().map(list).collect()
}

fn pairs_of(lists: &[RankedImages], config: &PairsConfig, seed: u64) -> Vec<ImagePair> {
    let selection = PairSelection {
        rule: config.rule,
        min_margin: config.min_margin,
    };
    let lists = lists.iter().enumerate();
    let good = lists.filter(|(_, list)| is_good_enough(list, config));
    good.flat_map(|(number, list)| {
        let draw = |below: usize| generator(seed, Stream::Pairs, 0, number as u64).random_range(0..below);
        list.pairs(&selection, draw)
    })
    .filter(|pair| pair.chosen_score.is_some_and(|score| score >= config.min_chosen))
    .collect()
}

/// Whether the best image is good enough.
fn is_good_enough(list: &RankedImages, config: &PairsConfig) -> bool {
    list.responses
        .iter()
        .any(|response| response.score >= config.min_chosen)
}

#[cfg(test)]
mod tests {
    use diptych_data::{ImageSource, PairRule, RankedImages, ScoredImage};

    use super::{PairsConfig, pairs_of};

    fn list(scores: &[f64]) -> RankedImages {
        let response = |&score: &f64| ScoredImage {
            image: ImageSource::Bytes(Vec::new().into()),
            score,
        };
        RankedImages {
            id: "0".into(),
            prompt: "a red square".into(),
            responses: scores.iter().map(response).collect(),
        }
    }

    #[test]
    fn pairs_follow_the_rule_and_bad_ones_are_not_chosen() {
        let lists = [list(&[0.5, 0.9, 0.1]), list(&[0.2, 0.1, 0.0])];
        let scores = |rule, min_chosen| -> Vec<(f64, f64)> {
            let config = PairsConfig {
                rule,
                min_chosen,
                min_margin: 0.0,
                ..PairsConfig::default()
            };
            let pairs = pairs_of(&lists, &config, 3).into_iter();
            pairs
                .map(|pair| (pair.chosen_score.unwrap(), pair.rejected_score.unwrap()))
                .collect()
        };
        assert_eq!(scores(PairRule::Worst, 0.0), [(0.9, 0.1), (0.2, 0.0)]);
        assert_eq!(scores(PairRule::Closest, 0.3), [(0.9, 0.5)]);
        assert_eq!(scores(PairRule::All, 0.3), [(0.9, 0.5), (0.9, 0.1), (0.5, 0.1)]);
        assert_eq!(scores(PairRule::All, 0.6), [(0.9, 0.5), (0.9, 0.1)]);
        let random = scores(PairRule::Random, 0.0);
        assert_eq!(random, scores(PairRule::Random, 0.0));
        assert_eq!((random[0].0, random[1].0), (0.9, 0.2));
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
