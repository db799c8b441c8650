//! Kahneman-Tversky Optimization.
//!
//! # Paper
//! Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", International Conference on Machine Learning 2024,
//! arXiv:2402.01306, Eq. 7. For image diffusion: Li et al., "Aligning Diffusion Models by Optimizing Human Utility", Neural Information
//! Processing Systems 2024, arXiv:2404.04465 (Diffusion-KTO).
//!
//! # Formula
//! ```text
//! a = log pi(y) - log ref(y)
//! z = max(0, mean of a over mismatched prompts and responses)
//! L = desirable_weight   (1 - U(beta (a - z)))        desirable
//!     undesirable_weight (1 - U(beta (z - a)))        undesirable
//! U(x) = s(x)          utility = "kahneman_tversky"
//!        log s(x)      utility = "loss_averse"
//!        -log s(-x)    utility = "risk_seeking"
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. `z` estimates the divergence between policy and reference; it is a constant, no gradient
//! passes through it, and it is one number for the micro batch: with other examples beside it an example has another loss.
//! A response is mismatched when it is scored as the answer to another prompt of the batch. For diffusion the score is minus one
//! half of the error, so that `beta` is twice the `beta` of Diffusion-KTO's code, whose `z` is by default the mean over
//! the batch's own images: give those as mismatched for that. The other utilities are those of Diffusion-KTO, Sec. 4 (its code's `loss_averse` and
//! `risk_seeking_3`).
//! Reference code: ContextualAI/HALOs `trainers.py`; trl `kto_trainer.py`. Differences: none from TRL on one device; on several
//! TRL averages `z` over all of them.

use diptych_tensor::{Tensor, ops};
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, at_least_0, positive};
use crate::arithmetic::sigmoid;
use crate::{Error, Requirements, ResponsesOutput, Result, UnpairedLogps};

/// Parameters of KTO.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::unpaired_losses`](crate::Objective::unpaired_losses). There may be
/// any number of mismatched responses, at least 1.
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`Missing`](crate::Error::Missing) without
/// mismatched responses, [`OutOfRange`](crate::Error::OutOfRange) for a `beta` that is not above 0 or a negative weight.
///
/// # Example
/// A policy equal to its reference has half of each weight as its loss:
/// ```
/// use diptych_core::{Objective, Responses, UnpairedLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let responses = |values: &[f32]| -> Result<Responses, Box<dyn std::error::Error>> {
///     let mut responses = Responses::new(Tensor::new(values, &Device::Cpu)?);
///     responses.reference = Some(responses.policy.clone());
///     Ok(responses)
/// };
/// let logps = UnpairedLogps::new(responses(&[-4.0, -9.0])?, vec![true, false]).with_mismatched(responses(&[-30.0])?);
/// let objective: Objective = serde_json::from_str(r#"{ "kto": { "beta": 0.1, "undesirable_weight": 1.5 } }"#)?;
/// assert_eq!(objective.unpaired_losses(&logps)?.losses.to_vec1::<f32>()?, [0.5, 0.75]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kto {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio. Usual: 0.1 for text, 2000 for diffusion.
    pub beta: f64,
    /// Weight of desirable responses, >= 0. The paper keeps `desirable_weight * num_desirable` within 1 and 3/2 of
    /// `undesirable_weight * num_undesirable`.
    #[serde(default = "one")]
    pub desirable_weight: f64,
    /// Weight of undesirable responses, >= 0.
    #[serde(default = "one")]
    pub undesirable_weight: f64,
    /// What a gain is worth.
    #[serde(default)]
    pub utility: Utility,
}

/// What a gain over the divergence from the reference is worth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Utility {
    /// Less and less with its size, and so is a loss: the sigmoid of KTO.
    #[default]
    KahnemanTversky,
    /// A loss weighs more than a gain of its size: concave everywhere.
    LossAverse,
    /// A gain weighs more than a loss of its size: convex everywhere.
    RiskSeeking,
}

fn one() -> f64 {
    1.0
}

impl Formula for Kto {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "kto",
        title: "Kahneman-Tversky Optimization",
        paper: "Ethayarajh et al., ICML 2024, arXiv:2402.01306; for diffusion Li et al., NeurIPS 2024, arXiv:2404.04465",
        requirements: Requirements::UNPAIRED
            .with_reference()
            .with_mismatched()
            .coupling_examples(),
    };

    fn validate(&self) -> Result<()> {
        positive("kto", "beta", self.beta)?;
        at_least_0("kto", "desirable_weight", self.desirable_weight)?;
        at_least_0("kto", "undesirable_weight", self.undesirable_weight)
    }

    fn unpaired_losses(&self, logps: &UnpairedLogps) -> Result<ResponsesOutput> {
        let logratios = logps.responses.logratios("kto")?;
        let mismatched = logps
            .mismatched
            .as_ref()
            .filter(|mismatched| mismatched.policy.elem_count() > 0);
        let mismatched = mismatched.ok_or(Error::Missing {
            objective: "kto",
            what: "mismatched responses",
        })?;
        let baseline = mismatched.logratios("kto")?;
        let signs = logps.per_label(1.0, -1.0)?;
        let weights = logps.per_label(self.desirable_weight, self.undesirable_weight)?;
        let baseline = baseline.detach().mean(0)?.relu()?;
        let gains: Tensor = ((logratios.broadcast_sub(&baseline)? * self.beta)? * signs)?;
        let disutilities = match self.utility {
            // 1 - s(x) is s(-x), which does not cancel.
            Utility::KahnemanTversky => sigmoid(&gains.neg()?)?,
            Utility::LossAverse => ops::log_sigmoid(&gains)?.affine(-1.0, 1.0)?,
            Utility::RiskSeeking => ops::log_sigmoid(&gains.neg()?)?.affine(1.0, 1.0)?,
        };
        Ok(ResponsesOutput {
            losses: (disutilities * weights)?,
            rewards: (logratios.detach() * self.beta)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Var};

    use super::*;
    use crate::{ApoZeroUnpaired, Objective, Responses};

    fn responses(policy: &[f64], reference: &[f64]) -> Responses {
        let vector = |values: &[f64]| Tensor::new(values, &Device::Cpu).unwrap();
        let mut responses = Responses::new(vector(policy));
        responses.reference = Some(vector(reference));
        responses
    }

    fn kto(desirable_weight: f64, undesirable_weight: f64) -> Objective {
        Kto {
            beta: 0.1,
            desirable_weight,
            undesirable_weight,
            utility: Utility::KahnemanTversky,
        }
        .into()
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn both_labels_by_hand() {
        // Log-ratios 3 and -2; the mismatched ones are 4 and -1, so that z is 1.5.
        let logps = UnpairedLogps::new(responses(&[-7.0, -12.0], &[-10.0, -10.0]), vec![true, false])
            .with_mismatched(responses(&[-20.0, -31.0], &[-24.0, -30.0]));
        let output = kto(1.0, 1.5).unpaired_losses(&logps).unwrap();
        let expected = [1.0 - sigmoid(0.1 * 1.5), 1.5 * (1.0 - sigmoid(0.1 * 3.5))];
        for (found, expected) in output.losses.to_vec1::<f64>().unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15, "{found} {expected}");
        }
        assert_eq!(output.rewards.to_vec1::<f64>().unwrap(), [3.0 * 0.1, -2.0 * 0.1]);
    }

    #[test]
    fn a_baseline_below_0_is_0_and_leaves_the_anchored_loss() {
        let both = responses(&[-7.0, -12.0], &[-10.0, -10.0]);
        let logps = UnpairedLogps::new(both, vec![true, false]).with_mismatched(responses(&[-40.0], &[-24.0]));
        let anchored = ApoZeroUnpaired {
            beta: 0.1,
            desirable_weight: 2.0,
            undesirable_weight: 0.5,
        };
        let [found, expected] = [kto(2.0, 0.5), anchored.into()].map(|objective| {
            objective
                .unpaired_losses(&logps)
                .unwrap()
                .losses
                .to_vec1::<f64>()
                .unwrap()
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn a_pair_without_divergence_has_the_slopes_of_dpo() {
        // At policy = reference: minus and plus beta / 4 each, where DPO has beta / 2 for weights of 2.
        let var = Var::new(&[-3.0, -5.0], &Device::Cpu).unwrap();
        let mut both = Responses::new(var.as_tensor().clone());
        both.reference = Some(var.as_tensor().detach());
        let logps = UnpairedLogps::new(both, vec![true, false]).with_mismatched(responses(&[-1.0], &[-1.0]));
        let losses = kto(2.0, 2.0).unpaired_losses(&logps).unwrap().losses;
        let gradients = losses.sum_all().unwrap().backward().unwrap();
        let gradients = gradients.get(&var).unwrap().to_vec1::<f64>().unwrap();
        assert!(
            (gradients[0] + 0.05).abs() < 1e-15 && (gradients[1] - 0.05).abs() < 1e-15,
            "{gradients:?}"
        );
    }

    #[test]
    fn the_baseline_is_a_constant() {
        let var = Var::new(&[-1.0, 4.0], &Device::Cpu).unwrap();
        let mut mismatched = Responses::new(var.as_tensor().clone());
        mismatched.reference = Some(var.as_tensor().zeros_like().unwrap());
        let logps = UnpairedLogps::new(responses(&[-1.0], &[-2.0]), vec![true]).with_mismatched(mismatched);
        let losses = kto(1.0, 1.0).unpaired_losses(&logps).unwrap().losses;
        assert!(losses.sum_all().unwrap().backward().unwrap().get(&var).is_none());
    }

    #[test]
    fn what_is_missing_or_out_of_range_is_named() {
        let logps = UnpairedLogps::new(responses(&[-1.0], &[-2.0]), vec![true]);
        let error = kto(1.0, 1.0).unpaired_losses(&logps).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Missing {
                    objective: "kto",
                    what: "mismatched responses"
                }
            ),
            "{error}"
        );
        let bare = logps
            .clone()
            .with_mismatched(Responses::new(Tensor::new(&[-1.0], &Device::Cpu).unwrap()));
        let error = kto(1.0, 1.0).unpaired_losses(&bare).unwrap_err();
        assert!(matches!(error, Error::MissingReference { objective: "kto" }), "{error}");
        for (objective, name) in [
            (kto(-1.0, 1.0), "desirable_weight"),
            (kto(1.0, f64::NAN), "undesirable_weight"),
        ] {
            let error = objective.validate().unwrap_err();
            assert!(
                matches!(error, Error::OutOfRange { parameter, .. } if parameter == name),
                "{error}"
            );
        }
    }
}
