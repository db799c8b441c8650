//! Ranking responses by their mean log-probabilities, with supervised fine-tuning on the best.
//!
//! # Paper
//! Yuan et al., "RRHF: Rank Responses to Align Language Models with Human Feedback without tears", Neural Information Processing
//! Systems 2023, arXiv:2304.05302, Sec. 3.
//!
//! # Formula
//! ```text
//! p_i = log pi(y_i) / |y_i|                                   y_1 best
//! L   = ranking_weight sum_(i < j) max(0, p_j - p_i) - log pi(y_1)
//! ```
//!
//! # Convention
//! Log-probs are means over tokens in the ranking, and a sum in the supervised term, as in the paper;
//! `sft_normalization = "tokens"` divides that too by the length. Pairs are summed over the list. The slope of the hinge at 0 is
//! 0. There is no reference. Rewards are `p`.
//! Reference code: GanjinZero/RRHF `train.py`, `rrhf_loss` and `sft_loss`. Differences: its supervised term is the mean over the padded
//! sequence, prompt and padding counted, and its launch script sets `rrhf_weight` to 100.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, at_least_0};
use crate::arithmetic::relu;
use crate::padded_lists::PaddedLists;
use crate::{ListLogps, ObjectiveOutput, PairLogps, Requirements, ResponsesOutput, Result};

/// Parameters of RRHF.
///
/// # Shape
/// Scores, lengths and rewards are `(N,)` of all lists, losses one a list; see
/// [`Objective::list_losses`](crate::Objective::list_losses). Pairs are taken as lists of two.
///
/// # Errors
/// [`Missing`](crate::Error::Missing) without the numbers of tokens, [`OutOfRange`](crate::Error::OutOfRange) for a negative
/// `ranking_weight`.
///
/// # Example
/// ```
/// use diptych_core::{ListLogps, Objective, Responses, Rrhf};
/// use diptych_tensor::{Device, Tensor};
///
/// let mut responses = Responses::new(Tensor::new(&[-4.0f32, -1.0, -6.0], &Device::Cpu)?);
/// responses.lengths = Some(Tensor::new(&[2.0f32, 1.0, 2.0], &Device::Cpu)?);
/// let objective = Objective::from(Rrhf::default());
/// // Means -2, -1 and -3: the second beats the first by 1.
/// let losses = objective.list_losses(&ListLogps::new(responses, vec![3]))?.losses;
/// assert_eq!(losses.to_vec1::<f32>()?, [1.0 + 4.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rrhf {
    /// Weight of the ranking against the supervised term, >= 0.
    pub ranking_weight: f64,
    /// What the supervised term is divided by.
    pub sft_normalization: RrhfNormalization,
}

/// What the supervised term of RRHF is divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RrhfNormalization {
    /// Nothing: minus the log-probability of the best response.
    #[default]
    Sum,
    /// The number of tokens of the best response.
    Tokens,
}

impl Default for Rrhf {
    fn default() -> Self {
        Self {
            ranking_weight: 1.0,
            sft_normalization: RrhfNormalization::Sum,
        }
    }
}

impl Formula for Rrhf {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "rrhf",
        title: "Rank Responses to align with Human Feedback",
        paper: "Yuan et al., NeurIPS 2023, arXiv:2304.05302",
        requirements: Requirements::LISTS.with_lengths(),
    };

    fn validate(&self) -> Result<()> {
        at_least_0("rrhf", "ranking_weight", self.ranking_weight)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        self.list_losses(&ListLogps::of_pairs(logps)?)?.into_pairs()
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let mean_logps = logps.responses.mean_logps("rrhf")?;
        let best = logps.best()?;
        let best = match self.sft_normalization {
            RrhfNormalization::Sum => best.policy,
            RrhfNormalization::Tokens => best.mean_logps("rrhf")?,
        };
        let lists = PaddedLists::try_new(logps)?;
        let weights = lists.each_pair(|_, _, _| self.ranking_weight)?;
        let shortfall = |margins: &Tensor| relu(&margins.neg()?);
        Ok(ResponsesOutput {
            losses: (lists.weighted_pairs(&mean_logps, &weights, shortfall)? - best)?,
            rewards: mean_logps.detach(),
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Var};

    use super::*;
    use crate::{Error, Objective, Responses};

    fn lists(policy: Tensor, lengths: &[f64], list_lens: &[usize]) -> ListLogps {
        let mut responses = Responses::new(policy);
        responses.lengths = Some(Tensor::new(lengths, &Device::Cpu).unwrap());
        ListLogps::new(responses, list_lens.to_vec())
    }

    #[test]
    fn ragged_lists_by_hand_with_their_slopes() {
        // Means -2, -1, -1.5 and -3, -3.
        let var = Var::new(&[-4.0, -1.0, -3.0, -3.0, -6.0], &Device::Cpu).unwrap();
        let logps = lists(var.as_tensor().clone(), &[2.0, 1.0, 2.0, 1.0, 2.0], &[3, 2]);
        let objective = Objective::from(Rrhf {
            ranking_weight: 2.0,
            ..Rrhf::default()
        });
        let output = objective.list_losses(&logps).unwrap();
        assert_eq!(output.losses.to_vec1::<f64>().unwrap(), [2.0 * (1.0 + 0.5) + 4.0, 3.0]);
        assert_eq!(output.rewards.to_vec1::<f64>().unwrap(), [-2.0, -1.0, -1.5, -3.0, -3.0]);
        let gradients = output.losses.sum_all().unwrap().backward().unwrap();
        // Equal means, in the second list, have no slope.
        let expected = [2.0 * -2.0 / 2.0 - 1.0, 2.0, 2.0 / 2.0, -1.0, 0.0];
        assert_eq!(gradients.get(&var).unwrap().to_vec1::<f64>().unwrap(), expected);
    }

    #[test]
    fn a_list_in_order_is_supervised_fine_tuning_on_the_best() {
        let policy = Tensor::new(&[-4.0, -8.0, -9.0], &Device::Cpu).unwrap();
        let logps = lists(policy, &[2.0, 2.0, 2.0], &[3]);
        for (sft_normalization, expected) in [(RrhfNormalization::Sum, 4.0), (RrhfNormalization::Tokens, 2.0)] {
            let objective = Objective::from(Rrhf {
                sft_normalization,
                ..Rrhf::default()
            });
            assert_eq!(
                objective.list_losses(&logps).unwrap().losses.to_vec1::<f64>().unwrap(),
                [expected]
            );
        }
    }

    #[test]
    fn weights_and_names_are_checked() {
        for ranking_weight in [-1.0, f64::NAN, f64::INFINITY] {
            let objective = Objective::from(Rrhf {
                ranking_weight,
                ..Rrhf::default()
            });
            let error = objective.validate().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        parameter: "ranking_weight",
                        ..
                    }
                ),
                "{error}"
            );
        }
        let read = |json: &str| serde_json::from_str::<Objective>(json);
        assert_eq!(read(r#"{ "rrhf": {} }"#).unwrap(), Rrhf::default().into());
        assert!(read(r#"{ "rrhf": { "sft_normalization": "batch" } }"#).is_err());
    }
}
