//! `RankDPO`: pairs of a ranked list, weighted by their discounted cumulative gain.
//!
//! # Paper
//! Karthik et al., "Scalable Ranked Preference Optimization for Text-to-Image Generation", arXiv:2410.18013, Eq. 5 to 7.
//!
//! # Formula
//! ```text
//! a_i  = log pi(y_i) - log ref(y_i)
//! D_ij = |2^psi_i - 2^psi_j| |1 / log(1 + tau_i) - 1 / log(1 + tau_j)|
//! L    = -sum_(psi_i > psi_j) D_ij log s(beta (a_i - a_j))
//! ```
//! `psi` is the judge's score, `tau` the rank of a response, 1 for the best.
//!
//! # Convention
//! For diffusion the score is minus one half of the per-image mean squared denoising error, with the timestep shared by the images
//! of a list. The paper's `s_i` is the difference of the errors themselves: its `beta` is half of this one, which has the scale
//! of [`dpo`](super::dpo). `psi` is the share of comparisons a response wins, averaged over reward models, in `[0, 1]`.
//! Pairs are summed over the list, weights are constants, the logarithm in the discount is natural, equal scores have weight 0.
//! The text takes `tau` from the order by `psi`: `ranking = "judge"`. Its second figure can be read as taking the rank by the
//! policy's own scores, as [`lipo_lambda`](super::lipo_lambda) does: `ranking = "policy"`.
//! Reference code: none is published. Differences: the paper prints `i > j` under the sum; here i is the better one.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::arithmetic::logistic;
use crate::padded_lists::{PaddedLists, check_ranked_scores, gain_of_exchange, ranks};
use crate::{ListLogps, ObjectiveOutput, PairLogps, Requirements, ResponsesOutput, Result};

/// Parameters of `RankDPO`.
///
/// # Shape
/// Scores, judge's scores and rewards are `(N,)` of all lists, losses one a list; see
/// [`Objective::list_losses`](crate::Objective::list_losses). Pairs are taken as lists of two.
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without a
/// judge's scores, [`OutOfRange`](crate::Error::OutOfRange) for a `beta` that is not above 0 and for judge's scores that do not fall
/// along a list or lie outside `[-126, 126]`.
///
/// # Example
/// ```
/// use diptych_core::{ListLogps, Objective, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let errors = |values: [f64; 3]| Tensor::new(&values.map(|error| -0.5 * error), &Device::Cpu);
/// let mut responses = Responses::new(errors([0.110, 0.140, 0.120])?);
/// responses.reference = Some(errors([0.110, 0.140, 0.120])?);
/// responses.judge_scores = Some(Tensor::new(&[0.8, 0.5, 0.2], &Device::Cpu)?);
/// let objective: Objective = serde_json::from_str(r#"{ "rank_dpo": { "beta": 5000.0 } }"#)?;
/// assert!(objective.list_losses(&ListLogps::new(responses, vec![3]))?.losses.to_vec1::<f64>()?[0] > 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankDpo {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio. Twice the paper's.
    pub beta: f64,
    /// Whose ranks discount the gains.
    #[serde(default)]
    pub ranking: Ranking,
}

/// Whose ranks discount the gains of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// Those of the judge: the order of the list.
    #[default]
    Judge,
    /// Those of the policy's log-ratios at this step.
    Policy,
}

impl Formula for RankDpo {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "rank_dpo",
        title: "RankDPO",
        paper: "Karthik et al., arXiv:2410.18013",
        requirements: Requirements::LISTS.with_reference().with_judge_scores(),
    };

    fn validate(&self) -> Result<()> {
        positive("rank_dpo", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        self.list_losses(&ListLogps::of_pairs(logps)?)?.into_pairs()
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        check_ranked_scores("rank_dpo", scores)
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let logratios = logps.responses.logratios("rank_dpo")?;
        let lists = PaddedLists::try_new(logps)?;
        let scores = lists.judge_scores("rank_dpo", logps)?;
        let ranks: Vec<Vec<usize>> = match self.ranking {
            Ranking::Judge => scores.iter().map(|list| ranks(list)).collect(),
            Ranking::Policy => lists.host(&logratios)?.iter().map(|list| ranks(list)).collect(),
        };
        let weight = |list: usize, i: usize, j: usize| {
            gain_of_exchange([i, j].map(|i| scores[list][i]), [i, j].map(|i| ranks[list][i]))
        };
        let weights = lists.each_pair(weight)?;
        let of_margins = |margins: &Tensor| logistic(&(margins * self.beta)?, 0.0);
        Ok(ResponsesOutput {
            losses: lists.weighted_pairs(&logratios, &weights, of_margins)?,
            rewards: (logratios.detach() * self.beta)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::Device;

    use super::*;
    use crate::{Dpo, Error, LipoLambda, Objective, PairWeights, Responses};

    fn lists(logratios: &[f64], judge_scores: &[f64], list_lens: &[usize]) -> ListLogps {
        let vector = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let mut responses = Responses::new(vector(logratios));
        responses.reference = Some(vector(&vec![0.0; logratios.len()]));
        responses.judge_scores = Some(vector(judge_scores));
        ListLogps::new(responses, list_lens.to_vec())
    }

    fn losses(objective: impl Into<Objective>, logps: &ListLogps) -> Vec<f64> {
        objective.into().list_losses(logps).unwrap().losses.to_vec1().unwrap()
    }

    #[test]
    fn three_images_by_hand() {
        let objective = RankDpo {
            beta: 2.0,
            ranking: Ranking::Judge,
        };
        let found = losses(objective, &lists(&[0.1, 0.4, -0.3], &[0.8, 0.5, 0.2], &[3]))[0];
        let gain = |psi: f64| 2f64.powf(psi) - 1.0;
        let discount = |rank: f64| 1.0 / (1.0 + rank).ln();
        let term = |i: [f64; 2], j: [f64; 2], margin: f64| {
            (gain(i[0]) - gain(j[0])) * (discount(i[1]) - discount(j[1])) * (1.0 + (-2.0 * margin).exp()).ln()
        };
        let expected =
            term([0.8, 1.0], [0.5, 2.0], -0.3) + term([0.8, 1.0], [0.2, 3.0], 0.4) + term([0.5, 2.0], [0.2, 3.0], 0.7);
        assert!((found - expected).abs() < 1e-14, "{found} {expected}");
    }

    #[test]
    fn two_images_are_weighted_dpo() {
        let logps = lists(&[0.1, 0.4], &[0.8, 0.5], &[2]);
        let found = losses(
            RankDpo {
                beta: 2.0,
                ranking: Ranking::Judge,
            },
            &logps,
        )[0];
        let dpo = Dpo {
            beta: 2.0,
            label_smoothing: 0.0,
        };
        let side = |i: usize| logps.responses.policy.narrow(0, i, 1).unwrap();
        let zero = side(0).zeros_like().unwrap();
        let pair = PairLogps::new(side(0), side(1)).with_reference(zero.clone(), zero);
        let dpo = Objective::from(dpo)
            .pair_losses(&pair)
            .unwrap()
            .losses
            .to_vec1::<f64>()
            .unwrap()[0];
        let weight = gain_of_exchange([0.8, 0.5], [1, 2]);
        assert!((found - weight * dpo).abs() < 1e-15, "{found}");
    }

    #[test]
    fn ranked_by_the_policy_it_is_lipo_lambda() {
        let logps = lists(&[0.1, 0.4, -0.3, 2.0, 3.0], &[0.8, 0.5, 0.2, 0.7, 0.1], &[3, 2]);
        let lipo = LipoLambda {
            beta: 2.0,
            weights: PairWeights::Lambda,
        };
        let by_policy = losses(
            RankDpo {
                beta: 2.0,
                ranking: Ranking::Policy,
            },
            &logps,
        );
        assert_eq!(by_policy, losses(lipo, &logps));
        assert_ne!(
            by_policy[0],
            losses(
                RankDpo {
                    beta: 2.0,
                    ranking: Ranking::Judge
                },
                &logps
            )[0]
        );
    }

    #[test]
    fn beta_must_be_above_0() {
        for beta in [0.0, -1.0, f64::INFINITY] {
            let error = Objective::from(RankDpo {
                beta,
                ranking: Ranking::Judge,
            })
            .validate()
            .unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        objective: "rank_dpo",
                        parameter: "beta",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
