//! DPO over ranked lists, with the Plackett-Luce model of rankings.
//!
//! # Paper
//! Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", Neural Information
//! Processing Systems 2023, arXiv:2305.18290, Appendix A.3, Eq. 20 (the model: Plackett, "The Analysis of Permutations", Journal of
//! the Royal Statistical Society C 24(2), 1975; Luce, "Individual Choice Behavior", 1959).
//!
//! # Formula
//! ```text
//! a_i = log pi(y_i) - log ref(y_i)                              y_1 best
//! L   = -sum_k log( exp(beta a_k) / sum_(i >= k) exp(beta a_i) )
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens, picks are summed over the list: a longer list weighs more. With two responses it is
//! [`dpo`](super::dpo), and `beta` has the same scale (for diffusion 2000 to 5000). The order is that of the list; responses of equal
//! quality must not be given as ranked.
//! Reference code: none of the authors'. Differences: from the paper none; differences of log-ratios go through a log-sum-exp.

use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::padded_lists::PaddedLists;
use crate::{ListLogps, ObjectiveOutput, PairLogps, Requirements, ResponsesOutput, Result};

/// Parameters of the Plackett-Luce form of DPO.
///
/// # Shape
/// Scores and rewards are `(N,)` of all lists, losses one a list; see [`Objective::list_losses`](crate::Objective::list_losses).
/// Pairs are taken as lists of two.
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`OutOfRange`](crate::Error::OutOfRange) for a
/// `beta` that is not above 0.
///
/// # Example
/// A policy equal to its reference has loss ln K!, that of one order among all:
/// ```
/// use diptych_core::{ListLogps, Objective, PlackettLuce, Responses};
/// use diptych_tensor::{Device, Tensor};
///
/// let mut responses = Responses::new(Tensor::new(&[-4.0f32, -9.0, -2.0, -3.0, -3.0], &Device::Cpu)?);
/// responses.reference = Some(responses.policy.clone());
/// let lists = ListLogps::new(responses, vec![2, 3]);
/// let losses = Objective::from(PlackettLuce { beta: 0.1 }).list_losses(&lists)?.losses.to_vec1::<f32>()?;
/// assert!((losses[0] - 2f32.ln()).abs() < 1e-6 && (losses[1] - 6f32.ln()).abs() < 1e-6);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlackettLuce {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio. Usual: as [`Dpo::beta`](crate::Dpo::beta).
    pub beta: f64,
}

impl Formula for PlackettLuce {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "plackett_luce",
        title: "DPO over ranked lists",
        paper: "Rafailov et al., NeurIPS 2023, arXiv:2305.18290 (Appendix A.3)",
        requirements: Requirements::LISTS.with_reference(),
    };

    fn validate(&self) -> Result<()> {
        positive("plackett_luce", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        self.list_losses(&ListLogps::of_pairs(logps)?)?.into_pairs()
    }

    fn list_losses(&self, logps: &ListLogps) -> Result<ResponsesOutput> {
        let logratios = logps.responses.logratios("plackett_luce")?;
        let lists = PaddedLists::try_new(logps)?;
        Ok(ResponsesOutput {
            losses: lists.plackett_luce(&logratios, self.beta)?,
            rewards: (logratios.detach() * self.beta)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Tensor};

    use super::*;
    use crate::{Dpo, Error, Objective, Responses};

    fn vector(values: &[f64]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn three_responses_by_hand() {
        let mut responses = Responses::new(vector(&[-10.0, -12.0, -11.0]));
        responses.reference = Some(vector(&[-11.0, -12.0, -9.0]));
        let output = Objective::from(PlackettLuce { beta: 0.5 })
            .list_losses(&ListLogps::new(responses, vec![3]))
            .unwrap();
        // beta times log-ratios: 0.5, 0 and -1.
        let all = 0.5f64.exp() + 1.0 + (-1.0f64).exp();
        let rest = 1.0 + (-1.0f64).exp();
        let expected = all.ln() - 0.5 + rest.ln();
        let found = output.losses.to_vec1::<f64>().unwrap()[0];
        assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        assert_eq!(output.rewards.to_vec1::<f64>().unwrap(), [0.5, 0.0, -1.0]);
    }

    #[test]
    fn two_responses_are_dpo() {
        let pairs = PairLogps::new(vector(&[-42.0, -10.0, -200.0]), vector(&[-57.5, -9.0, 30.0]))
            .with_reference(vector(&[-43.1, -10.0, -20.0]), vector(&[-55.0, -8.0, 0.0]));
        let dpo = Dpo {
            beta: 0.1,
            label_smoothing: 0.0,
        };
        let [dpo, lists] = [Objective::from(dpo), PlackettLuce { beta: 0.1 }.into()]
            .map(|objective| objective.pair_losses(&pairs).unwrap());
        for (dpo, lists) in [
            (dpo.losses, lists.losses),
            (dpo.rewards_chosen, lists.rewards_chosen),
            (dpo.rewards_rejected, lists.rewards_rejected),
        ] {
            assert_eq!(dpo.to_vec1::<f64>().unwrap(), lists.to_vec1::<f64>().unwrap());
        }
    }

    #[test]
    fn beta_must_be_above_0() {
        for beta in [0.0, -0.1, f64::NAN, f64::INFINITY] {
            let error = Objective::from(PlackettLuce { beta }).validate().unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::OutOfRange {
                        objective: "plackett_luce",
                        parameter: "beta",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }
}
