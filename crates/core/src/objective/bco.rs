//! Binary Classifier Optimization.
//!
//! # Paper
//! Jung et al., "Binary Classifier Optimization for Large Language Model Alignment", Annual Meeting of the Association for Computational
//! Linguistics 2025, arXiv:2404.04656, Sec. 4.
//!
//! # Formula
//! ```text
//! r = beta (log pi(y) - log ref(y))
//! L = -log s(r - shift)                               desirable
//!     -log s(shift - r)                               undesirable
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. `shift` is a constant: 0, or with `running_shift` the running mean of the rewards that the
//! trainer keeps ([`RunningShift`](crate::RunningShift)) and passes with the scores. What it has seen depends on how an effective batch
//! is cut into micro batches; given the shift, no example sees another one. Rewards are not shifted.
//! Reference code: trl `bco_trainer.py`, `bco_loss` (no longer part of TRL 1.16). Differences: the paper's second part, weights of undesirable
//! responses by a classifier of their prompts, is not here (TRL: `prompt_sample_size` and so on); the paper's shift is the mean of the two
//! labels' mean rewards, where [`RunningShift`](crate::RunningShift), as TRL, takes the mean of all.

use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::arithmetic::logistic;
use crate::{Error, Requirements, ResponsesOutput, Result, UnpairedLogps};

/// Parameters of BCO.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::unpaired_losses`](crate::Objective::unpaired_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without a
/// shift where the running one is on, [`OutOfRange`](crate::Error::OutOfRange) for a `beta` that is not above 0.
///
/// # Example
/// ```
/// use diptych_core::{Bco, Objective, Responses, RunningShift, UnpairedLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let mut responses = Responses::new(Tensor::new(&[-4.0f64, -9.0], &Device::Cpu)?);
/// responses.reference = Some(Tensor::new(&[-6.0, -9.0], &Device::Cpu)?);
/// let mut logps = UnpairedLogps::new(responses, vec![true, false]);
/// let mut shift = RunningShift::default();
/// shift.update(&[0.1 * 2.0, 0.0]);
/// logps.reward_shift = Some(shift.mean());
/// let losses = Objective::from(Bco { beta: 0.1, running_shift: true }).unpaired_losses(&logps)?.losses;
/// let expected = (1.0 + (-0.1f64).exp()).ln();
/// assert!(losses.to_vec1::<f64>()?.iter().all(|loss| (loss - expected).abs() < 1e-14));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bco {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio. Usual: 0.01 to 0.1 for text.
    pub beta: f64,
    /// Whether the running mean of the rewards is subtracted from them, as the paper does.
    #[serde(default)]
    pub running_shift: bool,
}

impl Formula for Bco {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "bco",
        title: "Binary Classifier Optimization",
        paper: "Jung et al., ACL 2025, arXiv:2404.04656",
        requirements: Requirements::UNPAIRED.with_reference(),
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
        positive("bco", "beta", self.beta)
    }

    fn unpaired_losses(&self, logps: &UnpairedLogps) -> Result<ResponsesOutput> {
        let logratios = logps.responses.logratios("bco")?;
        let shift = match (self.running_shift, logps.reward_shift) {
            (false, _) => 0.0,
            (true, Some(shift)) => shift,
            (true, None) => {
                let what = "running means of the rewards";
                return Err(Error::Missing { objective: "bco", what });
            }
        };
        let signs = logps.per_label(1.0, -1.0)?;
        let gains = (logratios.affine(self.beta, -shift)? * signs)?;
        Ok(ResponsesOutput {
            losses: logistic(&gains, 0.0)?,
            rewards: (logratios.detach() * self.beta)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Tensor};

    use super::*;
    use crate::{Objective, Responses};

    fn logps(reward_shift: Option<f64>) -> UnpairedLogps {
        let mut responses = Responses::new(Tensor::new(&[-7.0, -12.0], &Device::Cpu).unwrap());
        responses.reference = Some(Tensor::new(&[-10.0, -10.0], &Device::Cpu).unwrap());
        UnpairedLogps {
            reward_shift,
            ..UnpairedLogps::new(responses, vec![true, false])
        }
    }

    fn losses(running_shift: bool, reward_shift: Option<f64>) -> Vec<f64> {
        let objective = Objective::from(Bco {
            beta: 0.5,
            running_shift,
        });
        objective
            .unpaired_losses(&logps(reward_shift))
            .unwrap()
            .losses
            .to_vec1()
            .unwrap()
    }

    #[test]
    fn both_labels_by_hand() {
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        let found = losses(true, Some(0.25));
        for (found, expected) in found.iter().zip([softplus(-(1.5 - 0.25)), softplus(-1.0 - 0.25)]) {
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
    }

    #[test]
    fn without_a_running_shift_it_is_0_whatever_is_given() {
        assert_eq!(losses(false, Some(0.25)), losses(true, Some(0.0)));
        assert_eq!(losses(false, None), losses(true, Some(0.0)));
        let objective = Objective::from(Bco {
            beta: 0.5,
            running_shift: true,
        });
        let error = objective.unpaired_losses(&logps(None)).unwrap_err();
        assert!(matches!(error, Error::Missing { objective: "bco", .. }), "{error}");
    }

    #[test]
    fn beta_must_be_above_0() {
        for beta in [0.0, -0.1, f64::NAN] {
            let error = Objective::from(Bco {
                beta,
                running_shift: true,
            })
            .validate()
            .unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        objective: "bco",
                        parameter: "beta",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
