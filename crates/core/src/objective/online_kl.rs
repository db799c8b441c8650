//! The divergence of the policy from the reference, estimated on the policy's own samples.
//!
//! # Paper
//! Song et al., "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage", Neural Information Processing
//! Systems 2024, arXiv:2406.01462, the second term of `HyPO` (Algorithm 1).
//!
//! # Formula
//! ```text
//! y ~ pi(. | x)
//! r = log pi(y) - log ref(y)
//! L = sg(r) + sg(r) (log pi(y) - sg(log pi(y)))
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. `sg` is held constant. The value of a loss is `r`, an unbiased estimate of `KL(pi || ref)`; its
//! gradient is `r` times that of `log pi(y)`, an unbiased estimate of the gradient of `KL(pi || ref)`: the derivative of `r` itself
//! has the mean 0 and is left out. It is therefore not the slope of the loss. Both hold only if the responses were drawn from the
//! policy as it is now, at temperature 1 and from all tokens; of answers that are cut after so many tokens it is the divergence of
//! such beginnings. There is no baseline: examples are not coupled. The factor in front, the paper's lambda, is that of the method.
//!
//! The paper writes the term as `log pi(y) sg(r)`, which has the same gradient and no meaning as a number.
//! Reference code: yudasong/HyPO. Differences: it could not be compared; the formula is the paper's. Rewards are the log-ratios.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo};
use crate::arithmetic::rewarded;
use crate::{ObjectiveOutput, PairLogps, Requirements, Responses, Result};

/// The divergence of the policy from the reference, on responses that the policy has just given. It has no parameters.
///
/// # Shape
/// Scores and losses are `(B,)`; see [`Objective::chosen_losses`](crate::Objective::chosen_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores.
///
/// # Example
/// ```
/// use diptych_core::{Objective, OnlineKl, Responses};
/// use diptych_tensor::{Device, Var};
///
/// let policy = Var::new(&[-4.0f32, -2.0], &Device::Cpu)?;
/// let reference = Some(policy.as_detached_tensor().affine(1.0, -1.5)?);
/// let samples = Responses { reference, ..Responses::new(policy.as_tensor().clone()) };
/// let losses = Objective::from(OnlineKl {}).chosen_losses(&samples)?;
/// assert_eq!(losses.to_vec1::<f32>()?, [1.5, 1.5]);
/// let gradients = losses.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&policy).unwrap().to_vec1::<f32>()?, [1.5, 1.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineKl {}

impl Formula for OnlineKl {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "online_kl",
        title: "Divergence from the reference on the policy's own samples (HyPO)",
        paper: "Song et al., NeurIPS 2024, arXiv:2406.01462",
        requirements: Requirements::CHOSEN
            .with_reference()
            .of_log_probabilities()
            .of_own_samples(),
    };

    fn validate(&self) -> Result<()> {
        Ok(())
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (chosen, rejected) = logps.logratios("online_kl")?;
        rewarded(self.chosen_losses(&logps.chosen)?, 1.0, &chosen, &rejected)
    }

    fn chosen_losses(&self, samples: &Responses) -> Result<Tensor> {
        let logratios = samples.logratios("online_kl")?.detach();
        // 0, with the gradient of the log-probability.
        let moved = (&samples.policy - samples.policy.detach())?;
        Ok(((&logratios * moved)? + logratios)?)
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{DType, Device, Var, ops};

    use super::*;
    use crate::{Error, Objective};

    /// Tokens of the tiny vocabulary; the last one ends an answer.
    const VOCABULARY: usize = 3;
    const END: usize = VOCABULARY - 1;

    /// Log-probabilities of every answer of at most two tokens: those of the first token stand in the first row of `logits`, those of
    /// the token after token `v` in row `v + 1`.
    fn answers(logits: &Tensor) -> Tensor {
        let logps = ops::log_softmax(logits).unwrap();
        let at = |row: usize, token: usize| logps.get(row).unwrap().get(token).unwrap();
        let mut answers = vec![at(0, END)];
        for first in 0..END {
            for second in 0..VOCABULARY {
                answers.push((at(0, first) + at(first + 1, second)).unwrap());
            }
        }
        Tensor::stack(&answers, 0).unwrap()
    }

    fn numbers(tensor: &Tensor) -> Vec<f64> {
        tensor
            .flatten_all()
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    #[test]
    fn its_mean_over_all_answers_is_the_divergence_with_its_gradient() {
        let shape = (VOCABULARY, VOCABULARY);
        let matrix = |values: &[f64]| Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        let policy = Var::from_tensor(&matrix(&[0.3, -1.1, 0.7, 2.0, 0.1, -0.4, -0.9, 1.3, 0.2])).unwrap();
        let reference = answers(&matrix(&[1.2, 0.4, -0.5, 0.0, -1.0, 0.6, 0.8, -0.3, 1.9]));
        let logps = answers(policy.as_tensor());
        let chances = logps.exp().unwrap();
        assert_eq!(logps.dims(), [7]);
        assert!((chances.sum_all().unwrap().to_scalar::<f64>().unwrap() - 1.0).abs() < 1e-14);

        let samples = Responses {
            reference: Some(reference.clone()),
            ..Responses::new(logps.clone())
        };
        let losses = Objective::from(OnlineKl {}).chosen_losses(&samples).unwrap();
        // What is drawn does not move with the parameters.
        let mean = (losses * chances.detach()).unwrap().sum_all().unwrap();
        let exact = (&chances * (&logps - &reference).unwrap()).unwrap().sum_all().unwrap();
        let gradient = |of: &Tensor| numbers(of.backward().unwrap().get(&policy).unwrap());
        let (found, expected) = (gradient(&mean), gradient(&exact));
        assert!((numbers(&mean)[0] - numbers(&exact)[0]).abs() < 1e-14);
        assert!(expected.iter().any(|slope| slope.abs() > 0.1));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
    }

    #[test]
    fn it_needs_a_reference_and_samples_of_the_policy() {
        let bare = Responses::new(Tensor::new(&[-1.0f64], &Device::Cpu).unwrap());
        let error = Objective::from(OnlineKl {}).chosen_losses(&bare).unwrap_err();
        assert!(
            matches!(error, Error::MissingReference { objective: "online_kl" }),
            "{error}"
        );
        let needs = Objective::from(OnlineKl {}).requirements();
        assert_eq!(needs.needs(), "reference, log-probabilities, the policy's own samples");
        let sum = r#"{ "weighted_sum": { "terms": [
            { "weight": 1.0, "objective": { "dpo": { "beta": 0.1 } } },
            { "weight": 0.1, "objective": { "online_kl": {} } }
        ] } }"#;
        assert!(
            serde_json::from_str::<Objective>(sum)
                .unwrap()
                .requirements()
                .own_samples
        );
    }
}
