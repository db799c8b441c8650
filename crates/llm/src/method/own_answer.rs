//! The chosen answer against what the policy itself would say when it sees badly.
//!
//! # Paper
//! Zhou et al., "Aligning Modalities in Vision Large Language Models via Preference Fine-tuning", arXiv:2402.11411 (POVID), its second
//! stage: while the chosen answer is read token by token under a noisy image, the likeliest next tokens are an answer that the policy's own
//! weakness makes, and it is the dispreferred one.
//!
//! ```text
//! L = (1 - share) L_objective - share log s(beta (A_w - A_own))
//! A_own = sum_t log p(o_t | v, y_w<t) - log p_ref(o_t | v, y_w<t),   o_t = argmax_o p(o | v', y_w<t)
//! ```
//!
//! Convention: sums over the tokens of the chosen answer that count, with their weights; `share` is 1/2 in the released program, which has
//! `dpo` as objective. The tokens are found under the noisy image and scored under the row's own, behind the chosen answer's tokens.
//!
//! Reference code: YiyangZhou/POVID `tool/dpo_trainer_inherent.py`. Differences: there the reference finds tokens of its own, so that the term is
//! no log-ratio of a common answer; `reference_tokens = "own"` does that, and by itself both networks score the policy's.
//!
//! Shape letters: B records, N tokens of their chosen answers.

use diptych_core::{Dpo, Objective, PairLogps, Responses};
use diptych_tensor::{Tensor, ops};
use diptych_train::{MicroBatch, StepOutput};
use serde::{Deserialize, Serialize};

use super::engine::{Batch, Engine, Term};
use super::other_images::{Draw, OtherAnswers, Spoil, under_other_images};
use super::texts::Texts;
use crate::network::NetworkRef;
use crate::scoring::{Scored, host, score_detached, score_others};
use crate::{Error, Result};

/// How the policy's own tokens are learned from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OwnAnswerConfig {
    /// Strength of the pull towards the reference in this term, above 0.
    pub beta: f64,
    /// Share of the term in the loss, above 0 and below 1.
    pub share: f64,
    /// Whose tokens the reference scores.
    pub reference_tokens: ReferenceTokens,
}

/// Whose tokens the reference scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceTokens {
    /// Those of the policy.
    #[default]
    Policy,
    /// Those that it finds likeliest itself, as POVID's released program does.
    Own,
}

impl OwnAnswerConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Some(("beta", self.beta.to_string(), "a finite number above 0"));
        }
        let is_share = self.share > 0.0 && self.share < 1.0;
        (!is_share).then(|| ("share", self.share.to_string(), "a number above 0 and below 1"))
    }

    /// What the term gives B records beside the `losses` of the objective, and the log-ratio margins `beta (A_w - A_own)`.
    fn losses(&self, losses: &Tensor, chosen: &Responses, own: &Responses) -> Result<(Tensor, Tensor, Vec<f64>)> {
        let dpo = Objective::from(Dpo {
            beta: self.beta,
            label_smoothing: 0.0,
        });
        let term = dpo.pair_losses(&PairLogps::of(chosen.clone(), own.clone()))?;
        let margins = host(&term.rewards_chosen)?.into_iter();
        let margins = margins
            .zip(host(&term.rewards_rejected)?)
            .map(|(chosen, own)| chosen - own);
        let total = || -> diptych_tensor::Result<Tensor> {
            Ok(((losses * (1.0 - self.share))? + Term::weighted(&term.losses, self.share)?)?)
        };
        Ok((total()?, term.losses.clone(), margins.collect()))
    }
}

/// The term with what spoils its images.
#[derive(Debug)]
pub struct OwnAnswer {
    config: OwnAnswerConfig,
    spoil: Box<dyn Spoil>,
}

impl OwnAnswer {
    /// `spoil` makes the images under which the tokens are found.
    pub fn new(config: OwnAnswerConfig, spoil: Box<dyn Spoil>) -> Self {
        Self { config, spoil }
    }

    /// Puts the term beside what the objective gave for the pairs, which were scored as `scored` says.
    pub(super) fn add_to(
        &self,
        texts: &Texts<'_>,
        batch: &MicroBatch,
        (pairs, scored): (&PairLogps, &Batch),
        step: &mut StepOutput,
    ) -> Result<()> {
        let noisy = under_other_images(texts, batch, Some(&*self.spoil), Draw::Policy)?;
        let own = self.own(texts.engine, &noisy, scored)?;
        let (losses, of_term, margins) = self.config.losses(&step.losses, &pairs.chosen, &own)?;
        let is_right = |margin: &f64| f64::from(u8::from(*margin > 0.0));
        let accuracies = margins.iter().map(is_right).collect();
        step.metrics.insert("own_answer/accuracies", accuracies);
        step.metrics.insert("own_answer/margins", margins);
        step.metrics.insert("own_answer/loss", host(&of_term)?);
        step.metrics.insert("logps/own_answer", host(&own.policy)?);
        step.losses = losses;
        *step.totals.entry("num_tokens").or_default() += noisy.num_tokens();
        Ok(())
    }

    /// The scores of the policy's own tokens in the places of those of the chosen answers, (B).
    fn own(&self, engine: &Engine, noisy: &OtherAnswers<'_>, scored: &Batch) -> Result<Responses> {
        let find = |network: NetworkRef<'_>| -> Result<Tensor> {
            let arranged = &noisy.arranged;
            let hidden = score_detached(network, arranged)?.predicting(arranged, 0..arranged.targets.len())?;
            let head = network.language_model().token_head(&hidden)?;
            Ok(ops::likeliest_tokens(&head, None)?)
        };
        let policy = engine.network();
        let tokens = find(policy)?;
        let of_reference = match self.config.reference_tokens {
            ReferenceTokens::Policy => Some(tokens.clone()),
            ReferenceTokens::Own => engine.reference.with_network(policy, find)?,
        };
        let others = |network: NetworkRef<'_>, clean: &Scored, tokens: &Tensor| -> Result<Scored> {
            let chosen = scored.arranged.responses.iter().step_by(2).cloned().flatten();
            let hidden = clean.predicting(&scored.arranged, chosen)?;
            Ok(Scored {
                per_token_logps: score_others(network, &hidden, tokens)?,
                statistics: None,
                states: None,
            })
        };
        let own = others(policy, &scored.policy, &tokens)?;
        let (Some(clean), Some(tokens)) = (&scored.reference, of_reference) else {
            return Err(Error::NoDistributions);
        };
        let reference = engine
            .reference
            .with_network(policy, |network| others(network, clean, &tokens))?
            .ok_or(Error::NoDistributions)?;
        let weights: Vec<Option<&[f32]>> = noisy
            .responses
            .iter()
            .map(|response| engine.weights_of(response))
            .collect();
        engine.summed(&noisy.arranged, &weights, &own, Some(&reference))
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{DType, Device, Var};

    use super::*;

    #[test]
    fn losses_and_gradients_are_those_of_the_program() {
        let text = include_str!("../../../../tests/golden/vlm_preferences.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = golden["own_answers"].as_array().unwrap();
        for case in cases {
            let read = |key: &str| -> Vec<f64> { serde_json::from_value(case[key].clone()).unwrap() };
            let tensor = |key: &str| Tensor::new(read(key).as_slice(), &Device::Cpu).unwrap();
            let vars =
                ["chosen", "rejected", "own"].map(|side| Var::from_tensor(&tensor(&format!("policy_{side}"))).unwrap());
            let side = |at: usize, name: &str| Responses {
                reference: Some(tensor(&format!("reference_{name}"))),
                ..Responses::new(vars[at].as_tensor().clone())
            };
            let beta = case["beta"].as_f64().unwrap();
            let objective = Objective::from(Dpo {
                beta,
                label_smoothing: 0.0,
            });
            let pairs = PairLogps::of(side(0, "chosen"), side(1, "rejected"));
            let config = OwnAnswerConfig {
                beta,
                share: case["share"].as_f64().unwrap(),
                reference_tokens: ReferenceTokens::Policy,
            };
            let of_pairs = objective.pair_losses(&pairs).unwrap().losses;
            let (losses, _, margins) = config.losses(&of_pairs, &pairs.chosen, &side(2, "own")).unwrap();
            let close = |what: &str, found: &[f64], expected: &[f64]| {
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    let bound = 1e-9 * expected.abs().max(1e-3);
                    assert!(
                        (found - expected).abs() <= bound,
                        "{what}: {found}, expected {expected}: {case}"
                    );
                }
            };
            let numbers = |tensor: &Tensor| tensor.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
            close("losses", &numbers(&losses), &read("losses"));
            close("margins", &margins, &read("margins"));
            let gradients = losses.sum_all().unwrap().backward().unwrap();
            for (var, name) in vars.iter().zip(["chosen", "rejected", "own"]) {
                close(
                    name,
                    &numbers(gradients.get(var).unwrap()),
                    &read(&format!("gradient_{name}")),
                );
            }
        }
        assert_eq!(cases.len(), 2);
    }
}
