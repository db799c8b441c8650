//! Stored pairs: the score of an answer is the log-probability of its tokens.
//!
//! Rafailov et al., "Direct Preference Optimization", Neural Information Processing Systems 2023, arXiv:2305.18290. A prompt is computed once
//! for both of its answers. The objective is free: every objective that compares pairs can be used, and those of ranked lists
//! with lists of two. Beside it there may be the terms of `online_kl.rs`, `rationale.rs`, `image_preference.rs`, `own_answer.rs`,
//! `token_divergence.rs`, `token_weights.rs` and `frequency.rs`, and prompts may be perturbed (`token_perturbation.rs`).
//!
//! Shape letters: B pairs; the 2B answers stand in the order chosen, rejected, chosen, …

use diptych_core::{ObjectiveOutput, PairLogps, Responses, pair_metrics};
use diptych_train::{MicroBatch, StepOutput};

use super::PairWork;
use super::engine::{Batch, Engine};
use super::shift::SharedShift;
use super::texts::Texts;
use super::token_weights::beside;
use crate::Result;
use crate::scoring::host;

/// The scores of a micro batch of pairs.
pub(super) struct Pairs {
    /// As they are.
    pub(super) plain: PairLogps,
    /// As the objective is given them: with divergences in them, where these enter.
    pub(super) given: PairLogps,
}

/// The losses and metrics of a micro batch of pairs, with the terms that compare its own answers.
pub(super) fn step(engine: &Engine, work: &PairWork, shift: &SharedShift, batch: &MicroBatch) -> Result<StepOutput> {
    let places = engine.places(batch);
    let texts = match &work.terms.token_perturbation {
        Some(perturbation) => Texts::perturbed(engine, perturbation, batch),
        None => Texts::of(engine),
    };
    let scored = engine.score_texts(&texts, &places)?;
    let mut plain = pairs_of(&scored.responses)?;
    plain.reward_shift = shift.of(&engine.objective, batch, &scored.responses)?;
    let divergences = match &work.token_divergence {
        Some(config) => Some((config, config.measure(&texts, &places, &scored)?)),
        None => None,
    };
    let given = match &divergences {
        Some((config, divergences)) => config.enter(&plain, divergences)?,
        None => plain.clone(),
    };
    let pairs = Pairs { plain, given };
    let output = engine.objective.pair_losses(&pairs.given)?;
    let mut step = metrics(&pairs.plain, &scored, output)?;
    step.totals.insert("num_tokens", engine.num_tokens(&places));
    if let Some(term) = &work.terms.own_answer {
        term.add_to(&texts, batch, (&pairs.plain, &scored), &mut step)?;
    }
    if let Some(term) = &work.terms.image_preference {
        term.add_to(&texts, batch, &pairs, &mut step)?;
    }
    if let Some((config, divergences)) = &divergences {
        config.add_to(divergences, &mut step)?;
    }
    if let Some(config) = &work.frequency {
        config.add_to((&texts, &places), &scored, &mut step)?;
    }
    if let (Some(weight), Some(segments)) = (work.beside, &scored.segments) {
        let mut segments = pairs_of(segments)?;
        segments.reward_shift = pairs.plain.reward_shift;
        beside(&engine.objective, &segments, weight)?.add_to(&mut step)?;
    }
    Ok(step)
}

/// The chosen answers and the rejected ones.
fn pairs_of(responses: &Responses) -> Result<PairLogps> {
    let num = responses.policy.dim(0).map_err(diptych_tensor::Error::from)? as u32;
    let [chosen, rejected] = [0, 1].map(|side| (side..num).step_by(2).collect::<Vec<_>>());
    Ok(PairLogps::of(responses.select(&chosen)?, responses.select(&rejected)?))
}

fn metrics(pairs: &PairLogps, batch: &Batch, output: ObjectiveOutput) -> Result<StepOutput> {
    let mut metrics = pair_metrics(pairs, &output)?;
    let [chosen, rejected] = [0, 1].map(|side| {
        let lengths = batch.gathering.lengths().iter().skip(side).step_by(2);
        lengths.map(|&len| f64::from(len)).collect::<Vec<_>>()
    });
    if let (Some(reference_chosen), Some(reference_rejected)) = (&pairs.chosen.reference, &pairs.rejected.reference) {
        let (reference_chosen, reference_rejected) = (host(reference_chosen)?, host(reference_rejected)?);
        let ratios = |policy: &[f64], reference: &[f64]| policy.iter().zip(reference).map(|(p, r)| p - r).collect();
        let is_right = |(chosen, rejected): (&f64, &f64)| f64::from(u8::from(chosen > rejected));
        metrics.insert("logratios/chosen", ratios(&metrics["logps/chosen"], &reference_chosen));
        metrics.insert(
            "logratios/rejected",
            ratios(&metrics["logps/rejected"], &reference_rejected),
        );
        let accuracies = reference_chosen.iter().zip(&reference_rejected).map(is_right);
        metrics.insert("reference/accuracies", accuracies.collect());
    }
    metrics.insert("lengths/chosen", chosen);
    metrics.insert("lengths/rejected", rejected);
    let mut step = StepOutput::new(output.losses, metrics);
    batch.describe(&mut step)?;
    if let Some((logits, accuracy)) = batch.logits_and_accuracy(|at| at % 2 == 0)? {
        step.weighted.insert("logits/chosen", logits);
        step.weighted.insert("mean_token_accuracy", accuracy);
    }
    if let Some((logits, _)) = batch.logits_and_accuracy(|at| at % 2 == 1)? {
        step.weighted.insert("logits/rejected", logits);
    }
    Ok(step)
}
