//! Contrastive Policy Gradient: two responses of known reward, neither of which need be the better one.
//!
//! # Paper
//! Flet-Berliac et al., "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
//! EMNLP 2024, arXiv:2406.19185.
//!
//! # Formula
//! ```text
//! R(y) = score(y) - beta (log pi(y) - log ref(y))
//! L = (R(y_w) - R(y_l))^2
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. The loss is symmetric: which response is called chosen does not matter, their rewards do.
//! With scores of 1/4 and -1/4 it is `ipo` times `beta^2`. Rewards, as logged, are `beta` times the log-ratio.
//! Reference code: none published. Differences: none from the paper; some accounts of it have a factor one half.

use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::arithmetic::rewarded;
use crate::{ObjectiveOutput, PairLogps, Requirements, Result};

/// Parameters of CoPG.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::pair_losses`](crate::Objective::pair_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without a
/// judge's scores, [`OutOfRange`](crate::Error::OutOfRange) for `beta`.
///
/// # Example
/// ```
/// use diptych_core::{Copg, Objective, PairLogps, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let side = |judge_score: f32| -> Result<Responses, Box<dyn std::error::Error>> {
///     let score = Tensor::new(&[-42.0f32], &Device::Cpu)?;
///     let judge_scores = Some(Tensor::new(&[judge_score], &Device::Cpu)?);
///     Ok(Responses { reference: Some(score.clone()), judge_scores, ..Responses::new(score) })
/// };
/// let output = Objective::from(Copg { beta: 0.1 }).pair_losses(&PairLogps::of(side(2.0)?, side(0.5)?))?;
/// assert_eq!(output.losses.to_vec1::<f32>()?, [2.25]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copg {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio.
    pub beta: f64,
}

impl Formula for Copg {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "copg",
        title: "Contrastive Policy Gradient",
        paper: "Flet-Berliac et al., EMNLP 2024, arXiv:2406.19185",
        requirements: Requirements::PAIRS.with_reference().with_judge_margins(),
    };

    fn validate(&self) -> Result<()> {
        positive("copg", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (chosen, rejected) = logps.logratios("copg")?;
        let gaps = (logps.chosen.judge_scores("copg")? - logps.rejected.judge_scores("copg")?)?;
        let losses = (gaps - ((&chosen - &rejected)? * self.beta)?)?.sqr()?;
        rewarded(losses, self.beta, &chosen, &rejected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{SCORES, assert_near, assert_refused, pair};
    use crate::{Ipo, IpoNormalization};

    #[test]
    fn published_arithmetic_by_hand() {
        // The judge gives 3/4 and 1/4.
        assert_near(pair(Copg { beta: 0.1 }, SCORES), [0.14f64.powi(2), 0.11, -0.25]);
    }

    #[test]
    fn a_gap_of_one_half_is_ipo() {
        let ipo = pair(
            Ipo {
                beta: 0.1,
                normalization: IpoNormalization::Sum,
            },
            SCORES,
        )[0];
        assert_near([pair(Copg { beta: 0.1 }, SCORES)[0]], [ipo * 0.01]);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        assert_refused([(Copg { beta: 0.0 }, "beta"), (Copg { beta: f64::NAN }, "beta")]);
    }
}
