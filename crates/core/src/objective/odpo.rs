//! DPO with an offset: the margin must grow with the difference of a judge's scores.
//!
//! # Paper
//! Amini, Vieira and Cotterell, "Direct Preference Optimization with an Offset", Findings of ACL 2024, arXiv:2402.10571.
//!
//! # Formula
//! ```text
//! h = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l)), g = score(y_w) - score(y_l)
//! L = -log s(beta h - alpha log g)   offset = "log"
//! L = -log s(beta h - alpha g)       offset = "identity"
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. The offset is not multiplied by `beta`. `alpha` 0 is DPO with both. A gap below 1 has a
//! negative logarithm, that is a margin that need not even be positive.
//! Reference code: rycolab/odpo `trainers.py`, `preference_loss` with `offset`. Differences: there, the logarithm of a gap that is
//! not positive is NaN; here such a pair is an error.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, at_least_0, positive};
use crate::arithmetic::{host, logistic, rewarded};
use crate::{Error, ObjectiveOutput, PairLogps, Requirements, Result};

/// Parameters of ODPO.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::pair_losses`](crate::Objective::pair_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without a
/// judge's scores, [`UnorderedJudgeScores`](crate::Error::UnorderedJudgeScores) for a pair that has no logarithm,
/// [`OutOfRange`](crate::Error::OutOfRange) for a `beta` or `alpha` outside its range.
///
/// # Example
/// ```
/// use diptych_core::{Objective, Odpo, OdpoOffset, PairLogps, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let side = |judge_score: f32| -> Result<Responses, Box<dyn std::error::Error>> {
///     let score = Tensor::new(&[-42.0f32], &Device::Cpu)?;
///     let judge_scores = Some(Tensor::new(&[judge_score], &Device::Cpu)?);
///     Ok(Responses { reference: Some(score.clone()), judge_scores, ..Responses::new(score) })
/// };
/// let objective = Objective::from(Odpo { beta: 0.1, alpha: 1.0, offset: OdpoOffset::Log });
/// let loss = |chosen| -> Result<f32, Box<dyn std::error::Error>> {
///     let output = objective.pair_losses(&PairLogps::of(side(chosen)?, side(1.0)?))?;
///     Ok(output.losses.to_vec1::<f32>()?[0])
/// };
/// assert!(loss(9.0)? > loss(2.0)?);
/// assert!(loss(0.5).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Odpo {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio.
    pub beta: f64,
    /// Factor of the offset, >= 0; 0 is DPO. Usual: 0.5 to 1.
    pub alpha: f64,
    /// How the offset grows with the gap of the judge's scores.
    #[serde(default)]
    pub offset: OdpoOffset,
}

/// How the offset of ODPO grows with the gap of the judge's scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OdpoOffset {
    /// With its logarithm, as in the paper's experiments. The chosen response must have the greater score.
    #[default]
    Log,
    /// With the gap itself.
    Identity,
}

impl Formula for Odpo {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "odpo",
        title: "DPO with an offset",
        paper: "Amini et al., Findings of ACL 2024, arXiv:2402.10571",
        requirements: Requirements::PAIRS.with_reference().with_judge_margins(),
    };

    fn validate(&self) -> Result<()> {
        positive("odpo", "beta", self.beta)?;
        at_least_0("odpo", "alpha", self.alpha)
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        match (self.offset, scores) {
            (OdpoOffset::Log, &[chosen, rejected]) => ordered(0, chosen, rejected),
            (OdpoOffset::Log | OdpoOffset::Identity, _) => Ok(()),
        }
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (chosen, rejected) = logps.logratios("odpo")?;
        let (better, worse) = (logps.chosen.judge_scores("odpo")?, logps.rejected.judge_scores("odpo")?);
        let offsets = match self.offset {
            OdpoOffset::Log => log_gaps(better, worse)?,
            OdpoOffset::Identity => (better - worse)?,
        };
        let logits = (((&chosen - &rejected)? * self.beta)? - (offsets * self.alpha)?)?;
        rewarded(logistic(&logits, 0.0)?, self.beta, &chosen, &rejected)
    }
}

/// Logarithms of the gaps between a judge's scores, `(B,)` each.
fn log_gaps(better: &Tensor, worse: &Tensor) -> Result<Tensor> {
    let scores = host(better)?.into_iter().zip(host(worse)?);
    for (row, (chosen, rejected)) in scores.enumerate() {
        ordered(row, chosen, rejected)?;
    }
    Ok((better - worse)?.log()?)
}

/// Whether a gap has a logarithm.
fn ordered(row: usize, chosen: f64, rejected: f64) -> Result<()> {
    let is_ordered = chosen > rejected;
    if is_ordered {
        return Ok(());
    }
    Err(Error::UnorderedJudgeScores {
        objective: "odpo",
        row,
        chosen,
        rejected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dpo;
    use crate::testing::{SCORES, assert_near, assert_refused, pair, softplus_neg};

    #[test]
    fn published_arithmetic_by_hand() {
        // The judge gives 3/4 and 1/4.
        let odpo = |offset| Odpo {
            beta: 0.1,
            alpha: 0.4,
            offset,
        };
        let by_log = softplus_neg(0.36 - 0.4 * 0.5f64.ln());
        assert_near(pair(odpo(OdpoOffset::Log), SCORES), [by_log, 0.11, -0.25]);
        assert_near(
            pair(odpo(OdpoOffset::Identity), SCORES),
            [softplus_neg(0.16), 0.11, -0.25],
        );
    }

    #[test]
    fn without_an_offset_it_is_dpo() {
        let dpo = pair(
            Dpo {
                beta: 0.1,
                label_smoothing: 0.0,
            },
            SCORES,
        );
        for offset in [OdpoOffset::Log, OdpoOffset::Identity] {
            assert_near(
                pair(
                    Odpo {
                        beta: 0.1,
                        alpha: 0.0,
                        offset,
                    },
                    SCORES,
                ),
                dpo,
            );
        }
    }

    #[test]
    fn a_pair_that_the_judge_does_not_prefer_is_named() {
        let scores = |values: [f64; 2]| Tensor::new(&values, &diptych_tensor::Device::Cpu).unwrap();
        let error = log_gaps(&scores([2.0, 0.5]), &scores([1.0, 0.5]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("pair 1 of the batch has 0.5 and 0.5"), "{error}");
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let offset = OdpoOffset::Log;
        assert_refused([
            (
                Odpo {
                    beta: 0.0,
                    alpha: 1.0,
                    offset,
                },
                "beta",
            ),
            (
                Odpo {
                    beta: 0.1,
                    alpha: -1.0,
                    offset,
                },
                "alpha",
            ),
        ]);
    }
}
