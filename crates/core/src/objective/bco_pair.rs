//! Binary Classifier Optimization of the two responses of a pair.
//!
//! # Paper
//! Jung et al., "Binary Classifier Optimization for Large Language Model Alignment", ACL 2025, arXiv:2404.04656, with a
//! pair in place of unpaired responses.
//!
//! # Formula
//! ```text
//! a = log pi(y_w) - log ref(y_w), b = log pi(y_l) - log ref(y_l), delta = running mean of the rewards or 0
//! L = -log s(beta a - delta) - log s(-(beta b - delta))
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. `delta` is a constant to the gradient, and comes with the scores: the trainer keeps the
//! running mean of the rewards of both sides. Rewards are `beta` times the log-ratio, without `delta`.
//! Reference code: trl `dpo_trainer.py`, `loss_type="bco_pair"`. Differences: TRL has no shift there, which is the default
//! here; LLaMA-Factory and ms-swift have it.

use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::arithmetic::{logistic, rewarded};
use crate::{Error, ObjectiveOutput, PairLogps, Requirements, Result};

/// Parameters of BCO on pairs.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::pair_losses`](crate::Objective::pair_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without
/// [`PairLogps::reward_shift`] where `running_shift` is on, [`OutOfRange`](crate::Error::OutOfRange) for `beta`.
///
/// # Example
/// A policy equal to its reference has loss 2 ln 2:
/// ```
/// use diptych_core::{BcoPair, Objective, PairLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let score = Tensor::new(&[-42.0f32], &Device::Cpu)?;
/// let logps = PairLogps::new(score.clone(), score.clone()).with_reference(score.clone(), score);
/// let output = Objective::from(BcoPair { beta: 0.1, running_shift: false }).pair_losses(&logps)?;
/// assert!((output.losses.to_vec1::<f32>()?[0] - 2.0 * std::f32::consts::LN_2).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BcoPair {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio. Usual: 0.01 to 0.1.
    pub beta: f64,
    /// Whether the running mean of the rewards is subtracted from them.
    #[serde(default)]
    pub running_shift: bool,
}

impl Formula for BcoPair {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "bco_pair",
        title: "Binary Classifier Optimization (pairs)",
        paper: "Jung et al., ACL 2025, arXiv:2404.04656",
        requirements: Requirements::PAIRS.with_reference(),
    };

    fn requirements(&self) -> Requirements {
        if self.running_shift {
            Self::INFO.requirements.with_reward_shift()
        } else {
            Self::INFO.requirements
        }
    }

    fn running_shift_beta(&self) -> Option<f64> {
        self.running_shift.then_some(self.beta)
    }

    fn validate(&self) -> Result<()> {
        positive("bco_pair", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (chosen, rejected) = logps.logratios("bco_pair")?;
        let shift = match (self.running_shift, logps.reward_shift) {
            (false, _) => 0.0,
            (true, Some(shift)) => shift,
            (true, None) => {
                let (objective, what) = ("bco_pair", "running means of the rewards");
                return Err(Error::Missing { objective, what });
            }
        };
        let desirable = logistic(&chosen.affine(self.beta, -shift)?, 0.0)?;
        let undesirable = logistic(&rejected.affine(-self.beta, shift)?, 0.0)?;
        rewarded((desirable + undesirable)?, self.beta, &chosen, &rejected)
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Tensor};

    use super::*;
    use crate::Objective;
    use crate::testing::{SCORES, assert_near, assert_refused, pair, softplus_neg};

    #[test]
    fn published_arithmetic_by_hand() {
        let expected = softplus_neg(0.11) + softplus_neg(0.25);
        assert_near(
            pair(
                BcoPair {
                    beta: 0.1,
                    running_shift: false,
                },
                SCORES,
            ),
            [expected, 0.11, -0.25],
        );
    }

    #[test]
    fn the_shift_moves_both_rewards_and_is_demanded() {
        let objective = Objective::from(BcoPair {
            beta: 0.1,
            running_shift: true,
        });
        let score = |score: f64| Tensor::new(&[score], &Device::Cpu).unwrap();
        let [a, b, c, d] = SCORES.map(score);
        let mut logps = PairLogps::new(a, b).with_reference(c, d);
        let error = objective.pair_losses(&logps).unwrap_err().to_string();
        assert_eq!(
            error,
            "objective `bco_pair` needs running means of the rewards and none were given"
        );
        logps.reward_shift = Some(0.3);
        let loss = objective.pair_losses(&logps).unwrap().losses.to_vec1::<f64>().unwrap()[0];
        assert_near([loss], [softplus_neg(0.11 - 0.3) + softplus_neg(0.25 + 0.3)]);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let running_shift = false;
        assert_refused([
            (
                BcoPair {
                    beta: 0.0,
                    running_shift,
                },
                "beta",
            ),
            (
                BcoPair {
                    beta: f64::NAN,
                    running_shift,
                },
                "beta",
            ),
        ]);
    }
}
