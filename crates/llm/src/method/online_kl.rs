//! The divergence of the policy from the reference on answers that the policy has just given.
//!
//! # Paper
//! Song et al., "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage", Neural Information Processing
//! Systems 2024, arXiv:2406.01462: `HyPO`, an objective of stored pairs with this term beside it. Stored pairs say nothing of what the
//! policy answers elsewhere; the term holds it to the reference there, and needs no judge.
//!
//! In every micro batch the policy answers each prompt once, as it is now: at temperature 1, from all tokens, until a token ends the
//! answer or there are `max_new_tokens`. Any other way of sampling would estimate something else, so there are no keys for it. An
//! answer depends on the seed of the run, the step and the place of its record in the effective batch. The prompt is that of the chosen
//! response.
//!
//! Shape letter: B records.

use std::collections::BTreeMap;

use diptych_core::{Objective, OnlineKl};
use diptych_models::lm::{GenerateConfig, Generated, Sampling};
use diptych_train::{Item, MicroBatch};

use super::config::OnlineKlConfig;
use super::engine::{Engine, Term};
use crate::Result;
use crate::arrangement::{PlacedImage, Sequence};
use crate::network::PromptRef;
use crate::records::EncodedResponse;
use crate::scoring::{Statistics, host, score};

/// What the term is computed with, beside the networks and the records.
#[derive(Debug)]
pub(crate) struct OnlineKlTerm {
    weight: f64,
    max_new_tokens: usize,
    eos_token_ids: Vec<u32>,
}

impl OnlineKlTerm {
    pub(super) fn new(config: OnlineKlConfig, eos_token_ids: Vec<u32>) -> Self {
        Self {
            weight: config.weight,
            max_new_tokens: config.max_new_tokens,
            eos_token_ids,
        }
    }

    /// The weighted term of each record of a micro batch, (B).
    pub(super) fn term(&self, engine: &Engine, batch: &MicroBatch) -> Result<Term> {
        let answers = self.answers(engine, batch)?;
        let images: Vec<Vec<PlacedImage>> = batch.items.iter().map(|item| images(engine, item)).collect();
        let sequences: Vec<Sequence<'_>> = batch
            .items
            .iter()
            .zip(answers.iter().zip(&images))
            .map(|(item, (answer, images))| Sequence {
                id: &engine.records[item.index].id,
                prompt: prompt(engine, item),
                response: &answer.tokens,
                images,
            })
            .collect();
        let model = engine.network();
        let arranged = engine.arranged(&sequences)?;
        let reference = engine.reference.score_live(model, &arranged)?;
        let policy = score(model, &arranged, Statistics::Skipped)?;
        let weights = vec![None; sequences.len()];
        let samples = engine.summed(&arranged, &weights, &policy, reference.as_ref())?;
        let losses = Objective::from(OnlineKl {}).chosen_losses(&samples)?;
        let lengths = answers.iter().map(|answer| answer.tokens.len() as f64).collect();
        Ok(Term {
            metrics: BTreeMap::from([("kl/online", host(&losses)?), ("lengths/online", lengths)]),
            num_tokens: Term::count(&sequences),
            losses: Term::weighted(&losses, self.weight)?,
        })
    }

    /// One answer a record.
    fn answers(&self, engine: &Engine, batch: &MicroBatch) -> Result<Vec<Generated>> {
        let images: Vec<Vec<usize>> = batch
            .items
            .iter()
            .map(|item| images(engine, item).iter().map(|image| image.index).collect())
            .collect();
        let prompts: Vec<PromptRef<'_>> = batch
            .items
            .iter()
            .zip(&images)
            .map(|(item, images)| PromptRef {
                input_ids: prompt(engine, item),
                images,
                // Steps count from 1, so that these are never the draws of a sample that is shown.
                example: (batch.step << 32) | item.position,
            })
            .collect();
        let config = GenerateConfig {
            max_new_tokens: self.max_new_tokens,
            sampling: Sampling::default(),
            eos_token_ids: self.eos_token_ids.clone(),
            seed: batch.seed,
        };
        engine.network().generate(&prompts, &config)
    }
}

/// What is answered.
fn prompt<'a>(engine: &'a Engine, item: &Item) -> &'a [u32] {
    &engine.records[item.index].responses[0].prompt
}

/// The images of what is answered.
fn images(engine: &Engine, item: &Item) -> Vec<PlacedImage> {
    let EncodedResponse { prompt, images, .. } = &engine.records[item.index].responses[0];
    let num = images.partition_point(|image| image.tokens.end <= prompt.len());
    images[..num].to_vec()
}
