//! Likelihood of a ranking under mean log-probabilities, without a reference.
//!
//! # Paper
//! Xia et al., "Listwise Approach to Learning to Rank: Theory and Algorithm", International Conference on Machine Learning 2008,
//! Eq. 8 (`ListMLE`); as a preference loss Liu et al., "`LiPO`: Listwise Preference Optimization through Learning-to-Rank",
//! NAACL 2025, arXiv:2402.01878. The score is that of Yuan et al., "RRHF: Rank Responses to Align Language Models with Human Feedback
//! without tears", Neural Information Processing Systems 2023, arXiv:2304.05302, Eq. 1.
//!
//! # Formula
//! ```text
//! p_i = log pi(y_i) / |y_i|                                    y_1 best
//! L   = -sum_k log( exp(beta p_k) / sum_(i >= k) exp(beta p_i) )
//! ```
//!
//! # Convention
//! Log-probs are means over the tokens of a response, picks are summed over the list. `beta` is the temperature of the ranking, as
//! in `SimPO`; with two responses this is `SimPO` without a margin. `LiPO` has the log-ratio to a reference in place of `p`: that is
//! [`plackett_luce`](super::plackett_luce).
//! Reference code: none of the authors'. Differences: `LiPO`'s score is compared with a reference and not divided by the length.
//! Rewards are `beta p`.

use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::padded_lists::PaddedLists;
use crate::{ListLogps, ObjectiveOutput, PairLogps, Requirements, ResponsesOutput, Result};

/// Parameters of `ListMLE`.
///
/// # Shape
/// Scores, lengths and rewards are `(N,)` of all lists, losses one a list; see
/// [`Objective::list_losses`](crate::Objective::list_losses). Pairs are taken as lists of two.
///
/// # Errors
/// [`Missing`](crate::Error::Missing) without the numbers of tokens, [`OutOfRange`](crate::Error::OutOfRange) for a `beta` that is
/// not above 0.
///
/// # Example
/// Responses of equal likelihood a token leave all orders equally likely:
/// ```
/// use diptych_core::{ListLogps, ListMle, Objective, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let mut responses = Responses::new(Tensor::new(&[-4.0f32, -2.0, -8.0], &Device::Cpu)?);
/// responses.lengths = Some(Tensor::new(&[8.0f32, 4.0, 16.0], &Device::Cpu)?);
/// let output = Objective::from(ListMle { beta: 2.0 }).list_losses(&ListLogps::new(responses, vec![3]))?;
/// assert!((output.losses.to_vec1::<f32>()?[0] - 6f32.ln()).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListMle {
    /// Temperature of the ranking, > 0; multiplies the mean log-probability. Usual: 1 (`LiPO`) to 2 (`SimPO`).
    pub beta: f64,
}

impl Formula for ListMle {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "list_mle",
        title: "ListMLE on mean log-probabilities",
        paper: "Xia et al., ICML 2008; Liu et al., NAACL 2025, arXiv:2402.01878",
        requirements: Requirements::LISTS.with_lengths(),
    };

    fn validate(&self) -> Result<()> {
        positive("list_mle", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        self.list_losses(&ListLogps::of_pairs(logps)?)?.into_pairs()
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let mean_logps = logps.responses.mean_logps("list_mle")?;
        let lists = PaddedLists::try_new(logps)?;
        Ok(ResponsesOutput {
            losses: lists.plackett_luce(&mean_logps, self.beta)?,
            rewards: (mean_logps.detach() * self.beta)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Tensor};

    use super::*;
    use crate::{Error, Objective, Responses};

    fn responses(logps: &[f64], lengths: &[f64]) -> Responses {
        let vector = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let mut responses = Responses::new(vector(logps));
        responses.lengths = Some(vector(lengths));
        responses
    }

    #[test]
    fn ragged_lists_by_hand() {
        // Means -1, -2 and -3 in the first list, -0.5 and -4 in the second.
        let responses = responses(&[-3.0, -4.0, -3.0, -1.0, -4.0], &[3.0, 2.0, 1.0, 2.0, 1.0]);
        let output = Objective::from(ListMle { beta: 1.0 })
            .list_losses(&ListLogps::new(responses, vec![3, 2]))
            .unwrap();
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let expected = [
            (1.0 + (-1f64).exp() + (-2f64).exp()).ln() + softplus(-1.0),
            softplus(-3.5),
        ];
        for (found, expected) in output.losses.to_vec1::<f64>().unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
        assert_eq!(output.rewards.to_vec1::<f64>().unwrap(), [-1.0, -2.0, -3.0, -0.5, -4.0]);
    }

    #[test]
    fn two_responses_are_a_logistic_loss_of_the_margin() {
        let pairs = PairLogps::of(responses(&[-6.0], &[3.0]), responses(&[-5.0], &[2.0]));
        let output = Objective::from(ListMle { beta: 2.0 }).pair_losses(&pairs).unwrap();
        let found = output.losses.to_vec1::<f64>().unwrap()[0];
        assert!((found - (1.0 + (-1f64).exp()).ln()).abs() < 1e-14, "{found}");
        assert_eq!(output.rewards_rejected.to_vec1::<f64>().unwrap(), [-5.0]);
    }

    #[test]
    fn beta_must_be_above_0_and_lengths_given() {
        for beta in [0.0, -0.1, f64::NAN] {
            let error = Objective::from(ListMle { beta }).validate().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        objective: "list_mle",
                        parameter: "beta",
                        ..
                    }
                ),
                "{error}"
            );
        }
        let bare = ListLogps::new(
            Responses {
                lengths: None,
                ..responses(&[-1.0, -2.0], &[1.0, 1.0])
            },
            vec![2],
        );
        let error = Objective::from(ListMle { beta: 1.0 }).list_losses(&bare).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Missing {
                    objective: "list_mle",
                    ..
                }
            ),
            "{error}"
        );
    }
}
