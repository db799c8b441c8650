//! Listwise Preference Optimization with lambda weights.
//!
//! # Paper
//! Liu et al., "`LiPO`: Listwise Preference Optimization through Learning-to-Rank", NAACL 2025, arXiv:2402.01878, Sec. 4 (LiPO-lambda).
//! The weights are those of Wang et al., "The `LambdaLoss` Framework for Ranking Metric Optimization", CIKM 2018.
//!
//! # Formula
//! ```text
//! s_i  = beta (log pi(y_i) - log ref(y_i))
//! D_ij = |2^psi_i - 2^psi_j| |1 / log(1 + tau_i) - 1 / log(1 + tau_j)|
//! L    = -sum_(psi_i > psi_j) D_ij log s(s_i - s_j)
//! ```
//! `psi` is the judge's score, `tau` the rank of a response by `s`, 1 for the greatest.
//!
//! # Convention
//! Log-probs are summed over tokens, pairs are summed over the list, the logarithm in the discount is natural. The weights are
//! constants: no gradient passes through them. Responses with equal `s` rank in the order of the list, best first; equal judge's
//! scores have weight 0. `psi` in `[0, 1]` is what the paper uses (the average probability of winning against the others).
//! `weights = "constant"` makes every weight 1: then no judge is needed, the order of the list says who is better, and with two
//! responses it is [`dpo`](super::dpo) (the paper's DPO-BT on all pairs).
//! Reference code: none of the authors'. Differences: allRank's `lambdaLoss`, which others use, divides the gains by those of the
//! ideal order, takes logarithms to base 2 and means over pairs.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::arithmetic::logistic;
use crate::padded_lists::{PaddedLists, check_ranked_scores, gain_of_exchange, ranks};
use crate::{ListLogps, ObjectiveOutput, PairLogps, Requirements, ResponsesOutput, Result};

/// Parameters of LiPO-lambda.
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
/// The weight of a pair is what exchanging the two would cost:
/// ```
/// use diptych_core::{LipoLambda, ListLogps, Objective, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let mut responses = Responses::new(Tensor::new(&[-4.0f64, -9.0], &Device::Cpu)?);
/// responses.reference = Some(responses.policy.clone());
/// responses.judge_scores = Some(Tensor::new(&[1.0, 0.0], &Device::Cpu)?);
/// let objective: Objective = serde_json::from_str(r#"{ "lipo_lambda": { "beta": 0.1 } }"#)?;
/// let loss = objective.list_losses(&ListLogps::new(responses, vec![2]))?.losses.to_vec1::<f64>()?[0];
/// let weight = 1.0 / 2f64.ln() - 1.0 / 3f64.ln();
/// assert!((loss - weight * 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LipoLambda {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio.
    pub beta: f64,
    /// How much each pair of a list counts.
    #[serde(default)]
    pub weights: PairWeights,
}

/// How much each pair of a list counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairWeights {
    /// What exchanging the two would change in the discounted cumulative gain of the policy's ranking.
    #[default]
    Lambda,
    /// The same for all: 1.
    Constant,
}

impl Formula for LipoLambda {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "lipo_lambda",
        title: "Listwise Preference Optimization with lambda weights",
        paper: "Liu et al., NAACL 2025, arXiv:2402.01878",
        requirements: Requirements::LISTS.with_reference().with_judge_scores(),
    };

    fn requirements(&self) -> Requirements {
        match self.weights {
            PairWeights::Lambda => Self::INFO.requirements,
            PairWeights::Constant => Requirements::LISTS.with_reference(),
        }
    }

    fn validate(&self) -> Result<()> {
        positive("lipo_lambda", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        self.list_losses(&ListLogps::of_pairs(logps)?)?.into_pairs()
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        check_ranked_scores("lipo_lambda", scores)
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let logratios = logps.responses.logratios("lipo_lambda")?;
        let lists = PaddedLists::try_new(logps)?;
        let weights = match self.weights {
            PairWeights::Constant => lists.each_pair(|_, _, _| 1.0)?,
            PairWeights::Lambda => {
                let scores = lists.judge_scores("lipo_lambda", logps)?;
                let ranks: Vec<_> = lists.host(&logratios)?.iter().map(|list| ranks(list)).collect();
                lists.each_pair(|list, i, j| {
                    gain_of_exchange([i, j].map(|i| scores[list][i]), [i, j].map(|i| ranks[list][i]))
                })?
            }
        };
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
    use crate::{Dpo, Error, Objective, Responses};

    fn vector(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn lists(logratios: &[f64], judge_scores: Option<&[f64]>, list_lens: &[usize]) -> ListLogps {
        let mut responses = Responses::new(vector(logratios));
        responses.reference = Some(vector(&vec![0.0; logratios.len()]));
        responses.judge_scores = judge_scores.map(vector);
        ListLogps::new(responses, list_lens.to_vec())
    }

    fn softplus(x: f64) -> f64 {
        (1.0 + x.exp()).ln()
    }

    #[test]
    fn ranks_are_those_of_the_policy() {
        // The policy's order is 2, 1, 3 by position: ranks 2, 1 and 3.
        let objective = Objective::from(LipoLambda {
            beta: 0.5,
            weights: PairWeights::Lambda,
        });
        let logps = lists(&[1.0, 2.0, -1.0], Some(&[0.9, 0.4, 0.1]), &[3]);
        let found = objective.list_losses(&logps).unwrap().losses.to_vec1::<f64>().unwrap()[0];
        let gain = |psi: f64| 2f64.powf(psi) - 1.0;
        let discount = |rank: f64| 1.0 / (1.0 + rank).ln();
        let (first, second, third) = (discount(2.0), discount(1.0), discount(3.0));
        let expected = (gain(0.9) - gain(0.4)) * (second - first) * softplus(0.5)
            + (gain(0.9) - gain(0.1)) * (first - third) * softplus(-1.0)
            + (gain(0.4) - gain(0.1)) * (second - third) * softplus(-1.5);
        assert!((found - expected).abs() < 1e-14, "{found} {expected}");
    }

    #[test]
    fn constant_weights_are_the_logistic_loss_of_all_pairs() {
        let logratios = [1.0, 2.0, -1.0, 0.5, 0.5];
        let objective = Objective::from(LipoLambda {
            beta: 0.5,
            weights: PairWeights::Constant,
        });
        let found = objective
            .list_losses(&lists(&logratios, None, &[3, 2]))
            .unwrap()
            .losses
            .to_vec1::<f64>()
            .unwrap();
        let pairs = [(0, 1), (0, 2), (1, 2), (3, 4)];
        let side = |pick: fn(&(usize, usize)) -> usize| {
            vector(&pairs.iter().map(|pair| logratios[pick(pair)]).collect::<Vec<_>>())
        };
        let zeros = vector(&[0.0; 4]);
        let logps = PairLogps::new(side(|pair| pair.0), side(|pair| pair.1)).with_reference(zeros.clone(), zeros);
        let dpo = Objective::from(Dpo {
            beta: 0.5,
            label_smoothing: 0.0,
        });
        let dpo = dpo.pair_losses(&logps).unwrap().losses.to_vec1::<f64>().unwrap();
        assert!((found[0] - dpo[..3].iter().sum::<f64>()).abs() < 1e-14);
        assert_eq!(found[1], dpo[3]);
        assert!(!objective.requirements().judge_scores);
    }

    #[test]
    fn equal_judge_scores_say_nothing() {
        let objective = Objective::from(LipoLambda {
            beta: 0.5,
            weights: PairWeights::Lambda,
        });
        let losses = objective
            .list_losses(&lists(&[1.0, 2.0], Some(&[0.4, 0.4]), &[2]))
            .unwrap()
            .losses;
        assert_eq!(losses.to_vec1::<f64>().unwrap(), [0.0]);
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let lambda = |beta| {
            Objective::from(LipoLambda {
                beta,
                weights: PairWeights::Lambda,
            })
        };
        let error = lambda(0.0).validate().unwrap_err();
        assert!(matches!(error, Error::OutOfRange { parameter: "beta", .. }), "{error}");
        for wrong in [[0.1, 0.2], [500.0, 0.0], [f64::NAN, 0.0], [0.0, f64::NEG_INFINITY]] {
            let error = lambda(0.1)
                .list_losses(&lists(&[1.0, 2.0], Some(&wrong), &[2]))
                .unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        parameter: "judge_scores",
                        ..
                    }
                ),
                "{error}"
            );
        }
        let error = lambda(0.1).list_losses(&lists(&[1.0, 2.0], None, &[2])).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Missing {
                    objective: "lipo_lambda",
                    ..
                }
            ),
            "{error}"
        );
    }
}
