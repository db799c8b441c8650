//! Dense preference: tokens in which the two answers of a pair differ weigh more.
//!
//! # Paper
//! Yu et al., "RLHF-V: Towards Trustworthy MLLMs via Behavior Alignment from Fine-grained Correctional Human Feedback", CVPR 2024,
//! arXiv:2312.00849, Eq. 4 (dense DPO): `log pi(y) = 1 / N (sum over y_u log p + gamma sum over y_c log p)`, with the tokens `y_u` that both
//! answers have and those that were corrected, `y_c`, and `N = |y_u| + gamma |y_c|`.
//!
//! Which tokens were corrected is told by the rules of the published program (RLHF-V/RLAIF-V, `utils/diff_lib.py`), which are those of
//! Python's `difflib.SequenceMatcher(None, rejected, chosen)` on the ids of prompt and answer after the first one:
//! matching blocks of at least `min_match_size` tokens are what both have; what lies between two blocks is corrected if neither side of it
//! is empty, so that pure insertions and deletions are not. In sequences of 200 tokens and more, `difflib` begins no block with a token
//! that makes up more than a hundredth of the chosen side; so it is here. An image is one token.
//!
//! Differences: the shipped program divides by `N` only where it is told to (`normalization = "none"` is what it does by itself), and its
//! command has `gamma = 1.1` where the paper has 5.

use std::ops::Range;

use diptych_data::changed_tokens;
use serde::{Deserialize, Serialize};

use crate::records::{EncodedRecord, EncodedResponse};

/// `[method.offline_pairs.token_weights]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenWeightsConfig {
    /// Weight of a token that was corrected, above 0; others have 1. The paper has 5.
    pub gamma: f64,
    /// Tokens that both answers must have in a row to be the same there; at least 1.
    #[serde(default = "min_match_size")]
    pub min_match_size: usize,
    /// What the weighted sum is divided by.
    #[serde(default)]
    pub normalization: WeightNormalization,
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

fn min_match_size() -> usize {
    3
}

impl TokenWeightsConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        if !(self.gamma.is_finite() && self.gamma > 0.0) {
            let expected = "a finite number above 0";
            return Some(("token_weights.gamma", self.gamma.to_string(), expected));
        }
        (self.min_match_size == 0).then(|| ("token_weights.min_match_size", "0".to_owned(), "a number, at least 1"))
    }
}

/// Weighs the tokens of pairs, beside what weighs them already.
pub fn weigh_tokens(records: &mut [EncodedRecord], config: &TokenWeightsConfig) {
    for record in records {
        let [chosen, rejected] = record.responses.as_mut_slice() else {
            continue;
        };
        let ids = |response: &EncodedResponse| [response.prompt.as_slice(), &response.ids].concat();
        let (of_chosen, of_rejected) = (ids(chosen), ids(rejected));
        let (in_rejected, in_chosen) = changed_tokens(&of_rejected[1..], &of_chosen[1..], config.min_match_size);
        weigh(chosen, &in_chosen, config.gamma as f32);
        weigh(rejected, &in_rejected, config.gamma as f32);
    }
}

/// Divides the weights of every answer by their sum, where the recipe says so.
pub fn normalize_weights(records: &mut [EncodedRecord], config: &TokenWeightsConfig) {
    if config.normalization == WeightNormalization::None {
        return;
    }
    for response in records
        .iter_mut()
        .flat_map(|record| record.responses.iter_mut().chain(&mut record.other_images))
    {
        let weights = response.weights.get_or_insert_with(|| vec![1.0; response.ids.len()]);
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        if total > 0.0 {
            for weight in weights {
                *weight = (f64::from(*weight) / total) as f32;
            }
        }
    }
}

/// Multiplies the weights of tokens in spans, which are counted from the second token of the prompt.
fn weigh(response: &mut EncodedResponse, spans: &[Range<usize>], gamma: f32) {
    let weights = response.weights.get_or_insert_with(|| vec![1.0; response.ids.len()]);
    for at in spans.iter().cloned().flatten() {
        let own = (at + 1).checked_sub(response.prompt.len());
        if let Some(weight) = own.and_then(|own| weights.get_mut(own)) {
            *weight *= gamma;
        }
    }
    if weights.iter().all(|weight| *weight == 1.0) {
        response.weights = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let config = TokenWeightsConfig {
            gamma: 5.0,
            min_match_size: 3,
            normalization: WeightNormalization::WeightedLength,
        };
        weigh_tokens(&mut records, &config);
        let weights = |records: &[EncodedRecord], side: usize| records[0].responses[side].weights.clone().unwrap();
        assert_eq!(weights(&records, 0), [1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0]);
        assert_eq!(weights(&records, 1), [1.0, 1.0, 1.0, 5.0, 5.0, 1.0, 1.0, 1.0]);
        normalize_weights(&mut records, &config);
        assert_eq!(weights(&records, 0)[3], 5.0 / 11.0);
        assert_eq!(weights(&records, 1)[0], 1.0 / 16.0);
    }
}
