//! Preference Ranking Optimization.
//!
//! # Paper
//! Song et al., "Preference Ranking Optimization for Human Alignment", AAAI Conference on Artificial Intelligence 2024,
//! arXiv:2306.17492, Sec. 3: the ranking, its temperatures and the supervised term.
//!
//! # Formula
//! ```text
//! p_i = log pi(y_i) / |y_i|                                   y_1 best
//! g_ki = r_k - r_i,   g_k = max_(i > k) g_ki                  "judge_scores"; both 1 for "unit"
//! L   = -sum_(k < K) log( exp(g_k p_k) / (exp(g_k p_k) + sum_(i > k) exp(g_ki p_i)) ) - sft_weight (K - 1)^2 log pi(y_1)
//! ```
//! `r` is the judge's score, `K` the number of responses in the list.
//!
//! # Convention
//! Log-probs are means over tokens in the ranking and a sum in the supervised term; picks are summed over the list. The paper's
//! temperatures are `1 / g`; its `beta`, the weight of the supervised term, is `0.05 (K - 1)^2`, so that `sft_weight` is 0.05. There
//! is no reference. Rewards are `p`.
//! Reference code: AlibabaResearch/DAMO-ConvAI `PRO/train/utils/process_manager.py`, `compute_loss`. Differences: it adds 1e-10 inside the
//! logarithm; here no exponential can overflow or vanish.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, at_least_0};
use crate::padded_lists::{PaddedLists, check_ranked_scores};
use crate::{ListLogps, ObjectiveOutput, PairLogps, Requirements, ResponsesOutput, Result};

/// Parameters of PRO.
///
/// # Shape
/// Scores, lengths, judge's scores and rewards are `(N,)` of all lists, losses one a list; see
/// [`Objective::list_losses`](crate::Objective::list_losses). Pairs are taken as lists of two.
///
/// # Errors
/// [`Missing`](crate::Error::Missing) without the numbers of tokens, and without a judge's scores where temperatures need them;
/// [`OutOfRange`](crate::Error::OutOfRange) for a negative `sft_weight` and for judge's scores that do not fall along a list or
/// lie outside `[-126, 126]`.
///
/// # Example
/// ```
/// use diptych_core::{ListLogps, Objective, Pro, ProTemperature, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let mut responses = Responses::new(Tensor::new(&[-4.0f32, -2.0, -6.0], &Device::Cpu)?);
/// responses.lengths = Some(Tensor::new(&[2.0f32, 1.0, 3.0], &Device::Cpu)?);
/// let objective = Objective::from(Pro { sft_weight: 0.05, temperature: ProTemperature::Unit });
/// let loss = objective.list_losses(&ListLogps::new(responses, vec![3]))?.losses.to_vec1::<f32>()?[0];
/// assert!((loss - (6f32.ln() + 0.05 * 4.0 * 4.0)).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pro {
    /// Weight of the supervised term on the best response, >= 0; `(K - 1)^2` multiplies it. The paper: 0.05.
    #[serde(default = "published_sft_weight")]
    pub sft_weight: f64,
    /// How sharply responses are told apart.
    #[serde(default)]
    pub temperature: ProTemperature,
}

/// How sharply PRO tells responses apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProTemperature {
    /// All alike.
    #[default]
    Unit,
    /// By how much better a judge finds the one.
    JudgeScores,
}

fn published_sft_weight() -> f64 {
    0.05
}

impl Formula for Pro {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "pro",
        title: "Preference Ranking Optimization",
        paper: "Song et al., AAAI 2024, arXiv:2306.17492",
        requirements: Requirements::LISTS.with_lengths(),
    };

    fn requirements(&self) -> Requirements {
        match self.temperature {
            ProTemperature::Unit => Self::INFO.requirements,
            ProTemperature::JudgeScores => Self::INFO.requirements.with_judge_scores(),
        }
    }

    fn validate(&self) -> Result<()> {
        at_least_0("pro", "sft_weight", self.sft_weight)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        self.list_losses(&ListLogps::of_pairs(logps)?)?.into_pairs()
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        match self.temperature {
            ProTemperature::JudgeScores => check_ranked_scores("pro", scores),
            ProTemperature::Unit => Ok(()),
        }
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let mean_logps = logps.responses.mean_logps("pro")?;
        let best = logps.best()?.policy;
        let lists = PaddedLists::try_new(logps)?;
        let (of_picked, of_rest) = match self.temperature {
            ProTemperature::Unit => (lists.each(|_, _| 1.0)?, lists.each_pair(|_, _, _| 1.0)?),
            ProTemperature::JudgeScores => {
                let scores = lists.judge_scores("pro", logps)?;
                // Scores fall along a list: the last one is furthest from each.
                let widest = |list: usize, k: usize| scores[list][k] - scores[list][scores[list].len() - 1];
                (
                    lists.each(widest)?,
                    lists.each_pair(|list, k, i| scores[list][k] - scores[list][i])?,
                )
            }
        };
        let supervised = lists.each_list(|list_len| self.sft_weight * ((list_len - 1) as f64).powi(2))?;
        let matrix = lists.gather(&mean_logps)?;
        let rest: Tensor = matrix.unsqueeze(1)?.broadcast_mul(&of_rest)?;
        let picked = (matrix * of_picked)?.unsqueeze(2)?;
        let ranking = lists.picked_in_order(&rest.broadcast_sub(&picked)?)?;
        let supervised = (best * supervised)?;
        Ok(ResponsesOutput {
            losses: (ranking - supervised)?,
            rewards: mean_logps.detach(),
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::Device;

    use super::*;
    use crate::{Error, ListMle, Objective, Responses};

    fn lists(judge_scores: Option<&[f64]>) -> ListLogps {
        let vector = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        // Means -1, -2, -1.5 and -0.5, -4.
        let mut responses = Responses::new(vector(&[-3.0, -4.0, -3.0, -1.0, -4.0]));
        responses.lengths = Some(vector(&[3.0, 2.0, 2.0, 2.0, 1.0]));
        responses.judge_scores = judge_scores.map(vector);
        ListLogps::new(responses, vec![3, 2])
    }

    fn losses(objective: impl Into<Objective>, logps: &ListLogps) -> Vec<f64> {
        objective.into().list_losses(logps).unwrap().losses.to_vec1().unwrap()
    }

    #[test]
    fn temperatures_of_a_judge_by_hand() {
        let objective = Pro {
            sft_weight: 0.2,
            temperature: ProTemperature::JudgeScores,
        };
        let found = losses(objective, &lists(Some(&[2.0, 1.5, -1.0, 0.5, 0.0])));
        // Gaps of the first list: 0.5 and 3 from the first, 2.5 from the second; of the second list: 0.5.
        let first = (-3.0f64).exp() / ((-3.0f64).exp() + (-2.0f64 * 0.5).exp() + (-1.5f64 * 3.0).exp());
        let second = (-5.0f64).exp() / ((-5.0f64).exp() + (-1.5f64 * 2.5).exp());
        let only = (-0.25f64).exp() / ((-0.25f64).exp() + (-2.0f64).exp());
        for (found, expected) in found
            .iter()
            .zip([-(first * second).ln() + 0.2 * 4.0 * 3.0, -only.ln() + 0.2])
        {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
    }

    #[test]
    fn without_temperatures_and_supervision_it_is_list_mle() {
        let objective = Pro {
            sft_weight: 0.0,
            temperature: ProTemperature::Unit,
        };
        assert_eq!(
            losses(objective, &lists(None)),
            losses(ListMle { beta: 1.0 }, &lists(None))
        );
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        let objective = |sft_weight| {
            Objective::from(Pro {
                sft_weight,
                temperature: ProTemperature::JudgeScores,
            })
        };
        let error = objective(-0.1).validate().unwrap_err();
        assert!(
            matches!(
                error,
                Error::OutOfRange {
                    objective: "pro",
                    parameter: "sft_weight",
                    ..
                }
            ),
            "{error}"
        );
        assert!(objective(0.0).requirements().judge_scores);
        let error = objective(0.0).list_losses(&lists(None)).unwrap_err();
        assert!(matches!(error, Error::Missing { objective: "pro", .. }), "{error}");
        let error = objective(0.0)
            .list_losses(&lists(Some(&[1.0, 0.0, 0.5, 1.0, 0.0])))
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::OutOfRange {
                    parameter: "judge_scores",
                    found: 0.5,
                    ..
                }
            ),
            "{error}"
        );
    }
}
