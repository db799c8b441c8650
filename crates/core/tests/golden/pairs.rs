//! Golden cases of pairs, and of chosen responses that came in pairs.

use diptych_core::{Objective, PairLogps, Responses, TokenLogps};
use diptych_tensor::{DType, Tensor, Var};
use serde::Deserialize;

use crate::compare::{Comparison, host, largest, matrix, vector};
use crate::objective;

/// A batch of pairs with everything that must come out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// What the case is for.
    pub(crate) name: String,
    parameters: serde_json::Value,
    policy_chosen_logps: Vec<f64>,
    policy_rejected_logps: Vec<f64>,
    reference_chosen_logps: Option<Vec<f64>>,
    reference_rejected_logps: Option<Vec<f64>>,
    chosen_lengths: Option<Vec<f64>>,
    rejected_lengths: Option<Vec<f64>>,
    chosen_judge_scores: Option<Vec<f64>>,
    rejected_judge_scores: Option<Vec<f64>>,
    reward_shift: Option<f64>,
    prompt_distances: Option<Vec<Vec<f64>>>,
    chosen_tokens: Option<Tokens>,
    rejected_tokens: Option<Tokens>,
    /// One loss a pair.
    pub(crate) losses: Vec<f64>,
    rewards_chosen: Vec<f64>,
    rewards_rejected: Vec<f64>,
    grad_policy_chosen_logps: Option<Vec<f64>>,
    grad_policy_rejected_logps: Option<Vec<f64>>,
    grad_chosen_per_token_logps: Option<Vec<Vec<f64>>>,
    grad_rejected_per_token_logps: Option<Vec<Vec<f64>>>,
}

/// Log-probabilities token by token; the scores of the policy are their masked sums.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tokens {
    /// Under the policy.
    pub(crate) policy: Vec<Vec<f64>>,
    reference: Option<Vec<Vec<f64>>>,
    mask: Vec<Vec<f64>>,
    log_collisions: Option<Vec<Vec<f64>>>,
}

/// Scores alone, chosen first.
pub(crate) struct Scores {
    /// Under the policy.
    pub(crate) policy: [Vec<f64>; 2],
    /// Under the reference.
    pub(crate) reference: [Option<Vec<f64>>; 2],
}

/// What came out, on the host.
pub(crate) struct Found {
    /// The losses.
    pub(crate) losses: Vec<f64>,
    /// The rewards, chosen first.
    pub(crate) rewards: [Vec<f64>; 2],
    /// Gradients of the sum of the losses with respect to what was varied, chosen first.
    pub(crate) grads: [Vec<f64>; 2],
}

impl Scores {
    /// Losses, rewards and gradients with respect to the policy's scores.
    pub(crate) fn evaluate(&self, objective: &Objective, dtype: DType) -> Found {
        let vars = self.policy.each_ref().map(|policy| variable(&vector(policy, dtype)));
        let [chosen, rejected] = [0, 1].map(|side| Responses {
            reference: self.reference[side].as_ref().map(|reference| vector(reference, dtype)),
            ..Responses::new(vars[side].as_tensor().clone())
        });
        evaluate(objective, &PairLogps::of(chosen, rejected), &vars)
    }
}

fn variable(values: &Tensor) -> Var {
    Var::from_tensor(values).unwrap()
}

fn evaluate(objective: &Objective, logps: &PairLogps, vars: &[Var; 2]) -> Found {
    let output = objective.pair_losses(logps).unwrap();
    let gradients = output.losses.sum_all().unwrap().backward().unwrap();
    let grad = |var: &Var| gradients.get(var).map_or_else(|| vec![0.0; var.elem_count()], host);
    Found {
        losses: host(&output.losses),
        rewards: [host(&output.rewards_chosen), host(&output.rewards_rejected)],
        grads: vars.each_ref().map(grad),
    }
}

impl Tokens {
    /// These with the policy's scores as they are varied.
    pub(crate) fn tensors(&self, policy: Tensor, dtype: DType) -> TokenLogps {
        let optional = |rows: &Option<Vec<Vec<f64>>>| rows.as_ref().map(|rows| matrix(rows, dtype));
        TokenLogps {
            policy,
            reference: optional(&self.reference),
            mask: matrix(&self.mask, dtype),
            log_collisions: optional(&self.log_collisions),
        }
    }
}

impl Case {
    /// Compares everything in one precision.
    pub(crate) fn check(&self, name: &str, dtype: DType, comparison: &mut Comparison) {
        let objective = objective(name, &self.parameters);
        let found = self.run(&objective, dtype, false);
        comparison.equal("losses", &found.losses, &self.losses, 1.0);
        comparison.equal("rewards_chosen", &found.rewards[0], &self.rewards_chosen, 1.0);
        comparison.equal("rewards_rejected", &found.rewards[1], &self.rewards_rejected, 1.0);
        let by_score = [&self.grad_policy_chosen_logps, &self.grad_policy_rejected_logps];
        let by_token = [&self.grad_chosen_per_token_logps, &self.grad_rejected_per_token_logps];
        match (by_score, by_token) {
            ([Some(chosen), Some(rejected)], [None, None]) => {
                compare_grads(comparison, &found, &[chosen.clone(), rejected.clone()]);
            }
            (_, [Some(chosen), Some(rejected)]) => {
                let found = self.run(&objective, dtype, true);
                compare_grads(comparison, &found, &[chosen.concat(), rejected.concat()]);
            }
            _ => panic!("{name}/{}: no gradients to compare with", self.name),
        }
    }

    /// Evaluates the case; what is varied are the scores, or the token scores that they are sums of.
    fn run(&self, objective: &Objective, dtype: DType, by_token: bool) -> Found {
        let policy = [&self.policy_chosen_logps, &self.policy_rejected_logps];
        let tokens = [&self.chosen_tokens, &self.rejected_tokens];
        let vars = [0, 1].map(|side| match tokens[side] {
            Some(tokens) if by_token => variable(&matrix(&tokens.policy, dtype)),
            _ => variable(&vector(policy[side], dtype)),
        });
        let optional = |values: &Option<Vec<f64>>| values.as_ref().map(|values| vector(values, dtype));
        let reference = [&self.reference_chosen_logps, &self.reference_rejected_logps].map(optional);
        let lengths = [&self.chosen_lengths, &self.rejected_lengths].map(optional);
        let judge_scores = [&self.chosen_judge_scores, &self.rejected_judge_scores].map(optional);
        let [chosen, rejected] = [0, 1].map(|side| {
            let varied = vars[side].as_tensor();
            let tokens = tokens[side].as_ref().map(|tokens| {
                let policy = if by_token {
                    varied.clone()
                } else {
                    matrix(&tokens.policy, dtype)
                };
                tokens.tensors(policy, dtype)
            });
            let policy = match &tokens {
                Some(tokens) if by_token => (&tokens.policy * &tokens.mask).unwrap().sum(1).unwrap(),
                _ => varied.clone(),
            };
            Responses {
                reference: reference[side].clone(),
                lengths: lengths[side].clone(),
                tokens,
                mean_length: None,
                judge_scores: judge_scores[side].clone(),
                ..Responses::new(policy)
            }
        });
        let logps = PairLogps {
            reward_shift: self.reward_shift,
            prompt_distances: self.prompt_distances.as_ref().map(|rows| matrix(rows, dtype)),
            ..PairLogps::of(chosen, rejected)
        };
        evaluate(objective, &logps, &vars)
    }
}

fn compare_grads(comparison: &mut Comparison, found: &Found, expected: &[Vec<f64>; 2]) {
    let scale = largest(expected.iter().flatten());
    for ((what, found), expected) in ["grad_chosen", "grad_rejected"].iter().zip(&found.grads).zip(expected) {
        comparison.equal(what, found, expected, scale);
    }
}
