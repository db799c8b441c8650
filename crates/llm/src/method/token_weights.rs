//! Dense preference: tokens in which the two answers of a pair differ weigh more, or alone.
//!
//! # Papers
//! - Yu et al., "RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human Feedback", CVPR 2024,
//!   arXiv:2312.00849, Eq. 4 (dense DPO): `log pi(y) = 1 / N (sum over y_u log p + gamma sum over y_c log p)`, with the tokens `y_u` that both
//!   answers have and those that were corrected, `y_c`, and `N = |y_u| + gamma |y_c|`.
//! - Fu et al., "`CHiP`", ICLR 2025, arXiv:2501.16629: such an objective of segments beside that of whole answers, `beside` being its lambda.
//!   Its published program has one objective of weighed tokens (weight 4, no division) in the place of both.
//! - Sarkar et al., "Self-alignment of Large Video Language Models with Refined Regularized Preference Optimization", Neural Information
//!   Processing Systems 2025, arXiv:2504.12083 (RRPO): the sum over phrases that differ, which is that over their tokens: `gamma = 1`,
//!   `unchanged = 0`, `normalization = "none"`, beside a `token_divergence` as penalty. Its phrases are told by the data's masks; here
//!   they are what differs.
//!
//! Which tokens were corrected is told by the rules of the published program of RLHF-V (RLHF-V/RLAIF-V, `utils/diff_lib.py`), which are
//! those of Python's `difflib.SequenceMatcher(None, rejected, chosen)` on the ids of prompt and answer after the first one:
//! matching blocks of at least `min_match_size` tokens are what both have; what lies between two blocks is corrected if neither side of it
//! is empty, so that pure insertions and deletions are not. In sequences of 200 tokens and more, `difflib` begins no block with a token
//! that makes up more than a hundredth of the chosen side; so it is here. An image is one token. Answers are compared as they are
//! learned: after `data.max_len` cut them.
//!
//! Differences: the shipped program divides by `N` only where it is told to (`normalization = "none"` is what it does by itself), and its
//! command has `gamma = 1.1` where the paper has 5.

use std::ops::Range;

use diptych_core::{Objective, PairLogps, Requirements};
use diptych_data::changed_tokens;
use serde::{Deserialize, Serialize};

use super::engine::Term;
use crate::Result;
use crate::records::{EncodedRecord, EncodedResponse};
use crate::scoring::host;

/// `[method.offline_pairs.token_weights]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWeightsConfig {
    /// Weight of a token that was corrected, above 0. The paper has 5.
    pub gamma: f64,
    /// Weight of the others, at least 0; 1 in dense DPO. With 0 only what differs is learned (RRPO).
    #[serde(default = "one")]
    pub unchanged: f64,
    /// Tokens that both answers must have in a row to be the same there; at least 1.
    #[serde(default = "min_match_size")]
    pub min_match_size: usize,
    /// What the weighted sum is divided by.
    #[serde(default)]
    pub normalization: WeightNormalization,
    /// Factor, above 0, of the objective of weighed sums beside that of plain ones (`CHiP`'s lambda). Without it the objective is that of
    /// weighed sums alone (dense DPO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<f64>,
}

/// What a weighted sum of log-probabilities is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightNormalization {
    /// The sum of the weights, as in the paper.
    #[default]
    WeightedLength,
    /// Nothing, as the published program does by itself.
    None,
}

fn one() -> f64 {
    1.0
}

fn min_match_size() -> usize {
    3
}

impl TokenWeightsConfig {
    /// The first value out of its range, or without a use: key, what was found, what was expected.
    pub(crate) fn problem(&self, needs: Requirements) -> Option<(&'static str, String, &'static str)> {
        let above_0 = "a finite number above 0";
        if !(self.gamma.is_finite() && self.gamma > 0.0) {
            return Some(("token_weights.gamma", self.gamma.to_string(), above_0));
        }
        if !(self.unchanged.is_finite() && self.unchanged >= 0.0) {
            let expected = "a finite number, at least 0";
            return Some(("token_weights.unchanged", self.unchanged.to_string(), expected));
        }
        if self.min_match_size == 0 {
            return Some(("token_weights.min_match_size", "0".to_owned(), "a number, at least 1"));
        }
        let beside = self.beside?;
        if !(beside.is_finite() && beside > 0.0) {
            return Some(("token_weights.beside", beside.to_string(), above_0));
        }
        let found = "a second objective beside one that scores prompts too";
        needs
            .whole_texts
            .then(|| ("token_weights.beside", found.to_owned(), "no such key"))
    }
}

/// Weighs the tokens of pairs, beside what weighs them already. Nothing of the records may be cut afterwards.
pub(super) fn weigh_tokens(records: &mut [EncodedRecord], config: &TokenWeightsConfig) {
    let mut same: Option<String> = None;
    let mut num_same = 0;
    for record in records {
        let EncodedRecord {
            responses,
            other_images,
            ..
        } = record;
        let [chosen, rejected] = responses.as_mut_slice() else {
            continue;
        };
        let places = differing(rejected, chosen, config.min_match_size);
        if places.iter().all(Vec::is_empty) {
            num_same += 1;
            same.get_or_insert_with(|| record.id.clone());
        }
        if let Some(other) = other_images {
            let [_, of_other] = differing(rejected, other, config.min_match_size);
            weigh(other, &of_other, config);
        }
        let [of_rejected, of_chosen] = places;
        weigh(chosen, &of_chosen, config);
        weigh(rejected, &of_rejected, config);
    }
    if let Some(first) = same {
        tracing::warn!(
            "the answers of {num_same} records, {first} first, differ in nothing that `method.offline_pairs.token_weights` would weigh: \
             what is only put in or left out stands against nothing"
        );
    }
}

/// The ids of a text with one token an image, and the place of each in the text.
fn spelled(response: &EncodedResponse) -> (Vec<u32>, Vec<usize>) {
    let ids = response.prompt.iter().chain(&response.ids).copied();
    let is_rest = |at: usize| {
        response
            .images
            .iter()
            .any(|image| (image.tokens.start + 1..image.tokens.end).contains(&at))
    };
    ids.enumerate()
        .filter(|(at, _)| !is_rest(*at))
        .map(|(at, id)| (id, at))
        .unzip()
}

/// The places at which two texts differ, those of the rejected one first.
fn differing(rejected: &EncodedResponse, chosen: &EncodedResponse, min_match_size: usize) -> [Vec<usize>; 2] {
    let [rejected, chosen] = [rejected, chosen].map(spelled);
    let (in_rejected, in_chosen) = changed_tokens(&rejected.0[1..], &chosen.0[1..], min_match_size);
    let places =
        |spans: Vec<Range<usize>>, places: &[usize]| spans.into_iter().flatten().map(|at| places[at + 1]).collect();
    [places(in_rejected, &rejected.1), places(in_chosen, &chosen.1)]
}

/// Weighs the tokens of a response that stand at these places of its text.
fn weigh(response: &mut EncodedResponse, changed: &[usize], config: &TokenWeightsConfig) {
    let mut weights: Vec<f64> = match &response.weights {
        Some(weights) => weights.iter().map(|weight| f64::from(*weight)).collect(),
        None => vec![1.0; response.ids.len()],
    };
    let mut factors = vec![config.unchanged; weights.len()];
    for at in changed {
        let own = at.checked_sub(response.prompt.len());
        if let Some(factor) = own.and_then(|own| factors.get_mut(own)) {
            *factor = config.gamma;
        }
    }
    for (weight, factor) in weights.iter_mut().zip(factors) {
        *weight *= factor;
    }
    let total: f64 = weights.iter().sum();
    if config.normalization == WeightNormalization::WeightedLength && total > 0.0 {
        for weight in &mut weights {
            *weight /= total;
        }
    }
    response.dense = Some(weights.into_iter().map(|weight| weight as f32).collect());
}

/// The objective of weighed sums beside that of plain ones.
pub(super) fn beside(objective: &Objective, segments: &PairLogps, weight: f64) -> Result<Term> {
    let losses = objective.pair_losses(segments)?.losses;
    Ok(Term {
        metrics: [("token_weights/loss", host(&losses)?)].into(),
        num_tokens: 0.0,
        losses: Term::weighted(&losses, weight)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrangement::PlacedImage;

    #[test]
    fn spans_are_those_of_the_published_program() {
        let text = include_str!("../../../../tests/golden/vlm_preferences.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = golden["differences"].as_array().unwrap();
        for case in cases {
            let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let size = case["min_match_size"].as_u64().unwrap() as usize;
            let (rejected, chosen) = changed_tokens(&ids("rejected"), &ids("chosen"), size);
            let places =
                |spans: Vec<Range<usize>>| -> Vec<u32> { spans.into_iter().flatten().map(|at| at as u32).collect() };
            assert_eq!(places(rejected), ids("in_rejected"), "{case}");
            assert_eq!(places(chosen), ids("in_chosen"), "{case}");
        }
        assert_eq!(cases.len(), 45);
    }

    #[test]
    fn weights_add_up_to_one_as_in_the_paper() {
        let response = |ids: &[u32]| EncodedResponse {
            prompt: vec![1, 2, 3],
            ids: ids.to_vec(),
            images: Vec::new(),
            prompt_tail: 0,
            weights: None,
            is_answer: None,
            dense: None,
            is_cut: false,
            judge_score: None,
            reference_logps: None,
        };
        let mut records = [EncodedRecord {
            id: "row".into(),
            row: 0,
            responses: vec![
                response(&[10, 11, 12, 13, 20, 21, 22]),
                response(&[10, 11, 12, 14, 15, 20, 21, 22]),
            ],
            is_ranked: false,
            label: None,
            margin: None,
            rationale: None,
            other_images: None,
        }];
        let plain = TokenWeightsConfig {
            gamma: 5.0,
            unchanged: 1.0,
            min_match_size: 3,
            normalization: WeightNormalization::None,
            beside: None,
        };
        let weights = |records: &[EncodedRecord], side: usize| records[0].responses[side].dense.clone().unwrap();
        weigh_tokens(&mut records, &plain);
        assert_eq!(weights(&records, 0), [1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0]);
        assert_eq!(weights(&records, 1), [1.0, 1.0, 1.0, 5.0, 5.0, 1.0, 1.0, 1.0]);
        let paper = TokenWeightsConfig {
            normalization: WeightNormalization::WeightedLength,
            ..plain
        };
        weigh_tokens(&mut records, &paper);
        assert_eq!(weights(&records, 0)[3], 5.0 / 11.0);
        assert_eq!(weights(&records, 1)[0], 1.0 / 16.0);
        // What the rows themselves leave out stays out, and phrases alone are what differs.
        records[0].responses[0].weights = Some(vec![0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        weigh_tokens(&mut records, &plain);
        assert_eq!(weights(&records, 0), [0.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0]);
        let phrases = TokenWeightsConfig {
            gamma: 1.0,
            unchanged: 0.0,
            ..plain
        };
        weigh_tokens(&mut records, &phrases);
        assert_eq!(weights(&records, 0), [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
        assert_eq!(weights(&records, 1), [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn an_image_is_one_token_however_many_features_it_has() {
        // 300 features: as tokens they would be frequent, and nothing would be said of those behind them.
        let side = |num_features: usize, answer: &[u32]| {
            let mut prompt = vec![1, 2];
            prompt.extend(vec![9; num_features]);
            prompt.push(3);
            EncodedResponse {
                images: vec![PlacedImage {
                    index: 0,
                    tokens: 2..2 + num_features,
                }],
                prompt,
                ids: answer.to_vec(),
                prompt_tail: 0,
                weights: None,
                is_answer: None,
                dense: None,
                is_cut: false,
                judge_score: None,
                reference_logps: None,
            }
        };
        let (chosen, rejected) = (side(300, &[9, 4, 5, 6, 7]), side(4, &[9, 8, 5, 6, 7]));
        assert_eq!(differing(&rejected, &chosen, 3), [vec![8], vec![304]]);
        assert_eq!(spelled(&chosen).0, [1, 2, 9, 3, 9, 4, 5, 6, 7]);
        assert_eq!(spelled(&chosen).1, [0, 1, 2, 302, 303, 304, 305, 306, 307]);
    }
}
