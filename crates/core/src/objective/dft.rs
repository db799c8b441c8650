//! Dynamic Fine-Tuning: supervised fine-tuning whose tokens count as much as the policy already believes in them.
//!
//! # Paper
//! Wu et al., "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification", arXiv:2508.05629.
//!
//! # Formula
//! ```text
//! L = -sum_t sg(pi(y_t)) log pi(y_t)                  normalization = "sum"
//!     that over |y|                                   normalization = "tokens"
//!     that of the whole batch over its sum of |y|     normalization = "batch_tokens"
//! ```
//!
//! # Convention
//! The probability in front of each token's logarithm is a constant: no gradient passes through it, so that the gradient is not the
//! slope of the loss but minus that of the token's probability. With `batch_tokens` every example of the micro batch gets the same
//! loss: examples are coupled. Rewards are the scores.
//! Reference code: trl `sft_trainer.py`, `loss_type="dft"`. Differences: none with `batch_tokens`.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, SftNormalization};
use crate::arithmetic::rewarded;
use crate::{ObjectiveOutput, PairLogps, Requirements, Responses, Result};

/// Parameters of dynamic fine-tuning.
///
/// # Shape
/// Token scores are `(B, T)`, losses and rewards `(B,)`; see [`Objective::chosen_losses`](crate::Objective::chosen_losses).
///
/// # Errors
/// [`Missing`](crate::Error::Missing) without scores token by token, or without numbers of tokens where they are divided by.
///
/// # Example
/// ```
/// use diptych_core::{Dft, Objective, Responses, TokenLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let policy = Tensor::new(&[[-1.0f64, -2.0]], &Device::Cpu)?;
/// let tokens = TokenLogps { mask: policy.ones_like()?, reference: None, log_collisions: None, policy };
/// let chosen = Responses { tokens: Some(tokens), ..Responses::new(Tensor::new(&[-3.0f64], &Device::Cpu)?) };
/// let losses = Objective::from(Dft::default()).chosen_losses(&chosen)?.to_vec1::<f64>()?;
/// assert!((losses[0] - ((-1.0f64).exp() + 2.0 * (-2.0f64).exp())).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dft {
    /// What the weighted log-probability is divided by.
    pub normalization: SftNormalization,
}

impl Formula for Dft {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "dft",
        title: "Dynamic Fine-Tuning",
        paper: "Wu et al., arXiv:2508.05629",
        requirements: Requirements::CHOSEN.with_policy_tokens(),
    };

    fn requirements(&self) -> Requirements {
        Self::INFO.requirements.and(self.normalization.requirements())
    }

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let losses = self.chosen_losses(&logps.chosen)?;
        rewarded(losses, 1.0, &logps.chosen.policy, &logps.rejected.policy)
    }

    fn chosen_losses(&self, chosen: &Responses) -> Result<Tensor> {
        let weighted = Responses {
            policy: weighted_logps(chosen)?,
            ..chosen.clone()
        };
        self.normalization.losses("dft", &weighted)
    }
}

/// Log-probabilities weighted with the probabilities that they are logarithms of, summed over tokens, `(B,)`.
fn weighted_logps(chosen: &Responses) -> Result<Tensor> {
    let tokens = chosen.tokens("dft")?;
    // Whatever stands in the padding, even what is not a number.
    let is_real = tokens.mask.gt(0.5)?;
    let logps = is_real.where_cond(&tokens.policy, &tokens.policy.zeros_like()?)?;
    // Rounding may lift a logarithm above 0.
    let probabilities = logps.detach().minimum(0.0)?.exp()?;
    Ok((logps * probabilities)?.sum(1)?)
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Var};

    use super::*;
    use crate::{Error, Objective, TokenLogps};

    fn chosen(policy: &Tensor) -> Responses {
        let tokens = TokenLogps {
            policy: policy.clone(),
            reference: None,
            mask: Tensor::new(&[[1.0f64, 1.0, 1.0], [1.0, 0.0, 0.0]], &Device::Cpu).unwrap(),
            log_collisions: None,
        };
        Responses {
            lengths: Some(Tensor::new(&[3.0f64, 1.0], &Device::Cpu).unwrap()),
            tokens: Some(tokens),
            ..Responses::new(Tensor::new(&[-3.5f64, -0.5], &Device::Cpu).unwrap())
        }
    }

    #[test]
    fn published_arithmetic_by_hand() {
        let policy = Var::new(&[[-1.0f64, -2.0, -0.5], [-0.5, f64::NAN, 3.0]], &Device::Cpu).unwrap();
        let term = |logp: f64| -logp * logp.exp();
        let sums = [term(-1.0) + term(-2.0) + term(-0.5), term(-0.5)];
        let mean = (sums[0] + sums[1]) / 4.0;
        for (normalization, expected) in [
            (SftNormalization::Sum, sums),
            (SftNormalization::Tokens, [sums[0] / 3.0, sums[1]]),
            (SftNormalization::BatchTokens, [mean, mean]),
        ] {
            let losses = Objective::from(Dft { normalization })
                .chosen_losses(&chosen(policy.as_tensor()))
                .unwrap();
            for (found, expected) in losses.to_vec1::<f64>().unwrap().iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-15,
                    "{normalization:?}: {found} {expected}"
                );
            }
        }
        let losses = Objective::from(Dft::default())
            .chosen_losses(&chosen(policy.as_tensor()))
            .unwrap();
        let gradients = losses.sum_all().unwrap().backward().unwrap();
        let found = gradients.get(&policy).unwrap().to_vec2::<f64>().unwrap();
        let expected = [
            [-(-1.0f64).exp(), -(-2.0f64).exp(), -(-0.5f64).exp()],
            [-(-0.5f64).exp(), 0.0, 0.0],
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn it_needs_tokens_and_no_reference() {
        let bare = Responses::new(Tensor::new(&[-1.0f64], &Device::Cpu).unwrap());
        let error = Objective::from(Dft::default()).chosen_losses(&bare).unwrap_err();
        assert!(matches!(error, Error::Missing { objective: "dft", .. }), "{error}");
        let needs = Objective::from(Dft::default()).requirements();
        assert!(needs.tokens && !needs.reference_tokens && !needs.couples_examples);
    }
}
