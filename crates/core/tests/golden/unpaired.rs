//! Golden cases of responses that were each judged good or bad.

use diptych_core::{Responses, UnpairedLogps};
use diptych_tensor::{DType, Tensor, Var};
use serde::Deserialize;

use crate::compare::{Comparison, host, largest, matrix, vector};
use crate::objective;
use crate::pairs::Tokens;

/// A batch of responses with everything that must come out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// What the case is for.
    pub(crate) name: String,
    parameters: serde_json::Value,
    policy_logps: Vec<f64>,
    reference_logps: Option<Vec<f64>>,
    labels: Vec<bool>,
    lengths: Option<Vec<f64>>,
    judge_scores: Option<Vec<f64>>,
    mismatched_policy_logps: Option<Vec<f64>>,
    mismatched_reference_logps: Option<Vec<f64>>,
    reward_shift: Option<f64>,
    tokens: Option<Tokens>,
    /// One loss a response.
    pub(crate) losses: Vec<f64>,
    rewards: Vec<f64>,
    grad_policy_logps: Vec<f64>,
    grad_per_token_logps: Option<Vec<Vec<f64>>>,
}

impl Case {
    /// Compares everything in one precision.
    pub(crate) fn check(&self, name: &str, dtype: DType, comparison: &mut Comparison) {
        // What is varied are the scores, or the token scores that they are sums of.
        let varied = match &self.tokens {
            Some(tokens) => matrix(&tokens.policy, dtype),
            None => vector(&self.policy_logps, dtype),
        };
        let varied = Var::from_tensor(&varied).unwrap();
        let logps = self.logps(varied.as_tensor(), dtype);
        let output = objective(name, &self.parameters).unpaired_losses(&logps).unwrap();
        let gradients = output.losses.sum_all().unwrap().backward().unwrap();
        let grads = gradients
            .get(&varied)
            .map_or_else(|| vec![0.0; varied.elem_count()], host);
        let expected = match &self.grad_per_token_logps {
            Some(by_token) => &by_token.concat(),
            None => &self.grad_policy_logps,
        };
        comparison.equal("losses", &host(&output.losses), &self.losses, 1.0);
        comparison.equal("rewards", &host(&output.rewards), &self.rewards, 1.0);
        comparison.equal("gradients", &grads, expected, largest(expected));
    }

    fn logps(&self, varied: &Tensor, dtype: DType) -> UnpairedLogps {
        let optional = |values: &Option<Vec<f64>>| values.as_ref().map(|values| vector(values, dtype));
        let tokens = self.tokens.as_ref().map(|tokens| tokens.tensors(varied.clone(), dtype));
        let policy = match &tokens {
            Some(tokens) => (varied * &tokens.mask).unwrap().sum(1).unwrap(),
            None => varied.clone(),
        };
        let responses = Responses {
            reference: optional(&self.reference_logps),
            lengths: optional(&self.lengths),
            judge_scores: optional(&self.judge_scores),
            tokens,
            ..Responses::new(policy)
        };
        let mismatched = optional(&self.mismatched_policy_logps).map(|policy| Responses {
            reference: optional(&self.mismatched_reference_logps),
            ..Responses::new(policy)
        });
        UnpairedLogps {
            mismatched,
            reward_shift: self.reward_shift,
            ..UnpairedLogps::new(responses, self.labels.clone())
        }
    }
}
