//! Stored pairs: the score of an answer is the log-probability of its tokens.
//!
//! Rafailov et al., "Direct Preference Optimization", Neural Information Processing Systems 2023, arXiv:2305.18290. A prompt is computed once
//! for both of its answers. The objective is free: every objective that compares pairs can be used, and those of ranked lists
//! with lists of two. Beside it there may be the terms of `online_kl.rs`, `rationale.rs` and `image_preference.rs`.
//!
//! Shape letters: B pairs; the 2B answers stand in the order chosen, rejected, chosen, …

use diptych_core::{ObjectiveOutput, PairLogps, pair_metrics};
use diptych_train::{MicroBatch, StepOutput};

use super::engine::{Batch, Engine};
use super::shift::SharedShift;
use crate::Result;
use crate::scoring::host;

/// The scores of a micro batch of pairs, its losses and metrics.
pub(super) fn step(engine: &Engine, shift: &SharedShift, batch: &MicroBatch) -> Result<(PairLogps, StepOutput)> {
    let places = engine.places(batch);
    let scored = engine.score(&places)?;
    let [chosen, rejected] = [0, 1].map(|side| (0..places.len() as u32).skip(side).step_by(2).collect::<Vec<_>>());
    let mut pairs = PairLogps::of(scored.responses.select(&chosen)?, scored.responses.select(&rejected)?);
    pairs.reward_shift = shift.of(&engine.objective, batch, &scored.responses)?;
    let output = engine.objective.pair_losses(&pairs)?;
    let mut step = metrics(&pairs, &scored, output)?;
    step.totals.insert("num_tokens", engine.num_tokens(&places));
    Ok((pairs, step))
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
