//! Weighted Preference Optimization: pairs count by how likely the policy is to say them.
//!
//! # Paper
//! Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization", Conference on Empirical Methods in Natural Language
//! Processing 2024, arXiv:2406.11827, Eq. 2 (the weighted loss, with sampled alignment of the weights).
//!
//! # Formula
//! ```text
//! w(y) = exp( mean_t( log pi(y_t) - log sum_v pi(v)^2 ) )          v runs over the vocabulary at token t
//! L    = w(y_w) w(y_l) L_objective
//! ```
//!
//! # Convention
//! The weights are constants: no gradient passes through them. The second term is what the first one is on average when the
//! token is drawn from the policy; a policy that is sure of every token it was given has weight 1. Any objective of pairs can be
//! weighted that does not compare the pairs of a batch with each other. Rewards are those of the objective inside.
//! Reference code: trl `dpo_trainer.py`, `use_weighting`. Differences: rounding that lifts a token's log-probability above 0 is
//! undone before it is weighed. Earlier trainers bounded the product of both weights by 1; neither this nor TRL does.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, Objective, ObjectiveInfo};
use crate::{Error, Kind, ObjectiveOutput, PairLogps, Requirements, Responses, Result, ScoreKind};

/// Parameters of WPO.
///
/// # Shape
/// As the objective inside; token scores and collisions are `(B, T)`.
///
/// # Errors
/// [`Missing`](crate::Error::Missing) without token scores or their collisions, [`WrongKind`](crate::Error::WrongKind) for an
/// objective that compares pairs of a batch with each other, unpaired responses or denoising errors; whatever the objective refuses.
///
/// # Example
/// ```
/// use diptych_core::{Objective, PairLogps, Responses, TokenLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let side = |logps: [f64; 2]| -> Result<Responses, Box<dyn std::error::Error>> {
///     let tokens = TokenLogps {
///         policy: Tensor::new(&[logps], &Device::Cpu)?,
///         reference: None,
///         mask: Tensor::new(&[[1.0, 1.0]], &Device::Cpu)?,
///         log_collisions: Some(Tensor::new(&[[-0.5, -0.5]], &Device::Cpu)?),
///     };
///     let mut responses = Responses::new(tokens.policy.sum(1)?);
///     responses.reference = Some(responses.policy.clone());
///     responses.tokens = Some(tokens);
///     Ok(responses)
/// };
/// let objective: Objective = serde_json::from_str(r#"{ "wpo": { "objective": { "dpo": { "beta": 0.1 } } } }"#)?;
/// let losses = objective.pair_losses(&PairLogps::of(side([-0.5, -0.5])?, side([-1.0, -2.0])?))?.losses;
/// assert!((losses.to_vec1::<f64>()?[0] - (-1.0f64).exp() * 2f64.ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wpo {
    /// What is weighted.
    pub objective: Box<Objective>,
}

impl Formula for Wpo {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "wpo",
        title: "Weighted Preference Optimization",
        paper: "Zhou et al., EMNLP 2024, arXiv:2406.11827",
        requirements: Requirements::PAIRS.with_collisions(),
    };

    fn requirements(&self) -> Requirements {
        Self::INFO.requirements.and(self.objective.requirements())
    }

    fn running_shift_beta(&self) -> Option<f64> {
        self.objective.running_shift_beta()
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        self.objective.check_judge_scores(scores)
    }

    fn validate(&self) -> Result<()> {
        self.objective.validate()?;
        let inside = self.objective.requirements();
        let given = match (inside.kind, inside.score) {
            _ if inside.couples_examples => "an objective that compares the pairs of a batch with each other",
            (Kind::Unpaired, _) => "an objective of unpaired responses",
            (_, ScoreKind::DenoisingError) => "an objective of denoising errors",
            (Kind::Chosen | Kind::Pairs | Kind::Lists, ScoreKind::Any | ScoreKind::LogProbability) => return Ok(()),
        };
        Err(Error::WrongKind {
            objective: "wpo",
            needed: "texts, each pair by itself",
            given,
        })
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let log_weights = (log_weights(&logps.chosen)? + log_weights(&logps.rejected)?)?;
        let mut output = self.objective.pair_losses(logps)?;
        output.losses = (output.losses * log_weights.exp()?)?;
        Ok(output)
    }
}

/// Mean over the tokens of each response of its log-probability less that of a token of the policy's own, `(B,)`, constant.
fn log_weights(responses: &Responses) -> Result<Tensor> {
    let tokens = responses.tokens("wpo")?;
    let log_collisions = tokens.log_collisions.as_ref().ok_or(Error::Missing {
        objective: "wpo",
        what: "collision probabilities token by token",
    })?;
    let aligned = (tokens.policy.detach().minimum(0.0)? - log_collisions)?;
    // Whatever stands in the padding, even what is not a number.
    let aligned = tokens.mask.gt(0.5)?.where_cond(&aligned, &aligned.zeros_like()?)?;
    // A response without tokens has weight 1.
    Ok((aligned.sum(1)? / tokens.mask.sum(1)?.maximum(1.0)?)?)
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Var};

    use super::*;
    use crate::TokenLogps;

    const MASK: [[f64; 3]; 2] = [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]];

    fn side(policy: &Tensor, log_collisions: [[f64; 3]; 2]) -> Responses {
        let matrix = |rows: [[f64; 3]; 2]| Tensor::new(&rows, &Device::Cpu).unwrap();
        let mut responses = Responses::new((policy * matrix(MASK)).unwrap().sum(1).unwrap());
        responses.reference = Some(Tensor::new(&[-3.0, -2.0], &Device::Cpu).unwrap());
        responses.tokens = Some(TokenLogps {
            policy: policy.clone(),
            reference: None,
            mask: matrix(MASK),
            log_collisions: Some(matrix(log_collisions)),
        });
        responses
    }

    fn tokens(rows: [[f64; 3]; 2]) -> Tensor {
        Tensor::new(&rows, &Device::Cpu).unwrap()
    }

    fn wpo(inside: &str) -> Objective {
        serde_json::from_str(&format!(r#"{{ "wpo": {{ "objective": {inside} }} }}"#)).unwrap()
    }

    const DPO: &str = r#"{ "dpo": { "beta": 0.1 } }"#;

    #[test]
    fn weights_by_hand_and_without_a_gradient() {
        let var = Var::from_tensor(&tokens([[-1.0, -2.0, -9.0], [-0.5, -0.5, -1.0]])).unwrap();
        let logps = PairLogps::of(
            side(var.as_tensor(), [[-0.5, -1.5, f64::NAN], [-0.25, -0.5, -0.25]]),
            side(&tokens([[-1.0, -1.0, -1.0], [-1.0, -2.0, -3.0]]), [[-1.0; 3]; 2]),
        );
        let weighted = wpo(DPO).pair_losses(&logps).unwrap();
        let plain: Objective = serde_json::from_str(DPO).unwrap();
        let plain = plain.pair_losses(&logps).unwrap();
        let weights = [(-0.5f64).exp(), (-1.0f64 / 3.0 - 1.0).exp()];
        let [found, losses] = [&weighted.losses, &plain.losses].map(|losses| losses.to_vec1::<f64>().unwrap());
        let slopes = [&weighted.losses, &plain.losses].map(|losses| {
            let gradients = losses.sum_all().unwrap().backward().unwrap();
            gradients.get(&var).unwrap().to_vec2::<f64>().unwrap()
        });
        for i in 0..2 {
            assert!((found[i] - weights[i] * losses[i]).abs() < 1e-15, "{found:?}");
            for t in 0..3 {
                assert!(
                    (slopes[0][i][t] - weights[i] * slopes[1][i][t]).abs() < 1e-16,
                    "{slopes:?}"
                );
            }
        }
        assert_eq!(
            weighted.rewards_chosen.to_vec1::<f64>().unwrap(),
            plain.rewards_chosen.to_vec1::<f64>().unwrap()
        );
    }

    #[test]
    fn what_the_policy_is_sure_of_has_weight_1() {
        // All probability on the token: its log-probability is 0, and so is the log of the collision probability.
        let sure = side(&tokens([[0.0; 3]; 2]), [[0.0; 3]; 2]);
        let logps = PairLogps::of(sure.clone(), sure);
        let plain: Objective = serde_json::from_str(DPO).unwrap();
        let [weighted, plain] =
            [wpo(DPO), plain].map(|objective| objective.pair_losses(&logps).unwrap().losses.to_vec1::<f64>().unwrap());
        assert_eq!(weighted, plain);
    }

    #[test]
    fn needs_are_its_own_and_those_inside() {
        let needs = wpo(r#"{ "list_mle": { "beta": 1.0 } }"#).requirements();
        assert_eq!(needs, Requirements::PAIRS.with_collisions().with_lengths());
        assert_eq!(
            wpo(DPO).requirements(),
            Requirements::PAIRS.with_collisions().with_reference()
        );
        // The weights are the policy's alone.
        let of_tokens = wpo(r#"{ "ld_dpo": { "beta": 0.1, "alpha": 0.5 } }"#).requirements();
        assert_eq!(
            [wpo(DPO).requirements(), of_tokens].map(|needs| needs.reference_tokens),
            [false, true]
        );
    }

    #[test]
    fn what_cannot_be_weighted_is_refused() {
        for (inside, expected) in [
            (r#"{ "rpo": { "beta": 0.1, "tau": 0.5 } }"#, "with each other"),
            (r#"{ "bco": { "beta": 0.1 } }"#, "unpaired"),
            (r#"{ "mapo": {} }"#, "denoising"),
            (r#"{ "dpo": { "beta": -0.1 } }"#, "objective.dpo.beta"),
        ] {
            let error = wpo(inside).validate().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let policy = tokens([[-1.0; 3]; 2]);
        let mut blind = side(&policy, [[-1.0; 3]; 2]);
        blind.tokens.as_mut().unwrap().log_collisions = None;
        let error = wpo(DPO)
            .pair_losses(&PairLogps::of(blind, side(&policy, [[-1.0; 3]; 2])))
            .unwrap_err();
        assert!(matches!(error, Error::Missing { objective: "wpo", .. }), "{error}");
    }
}
