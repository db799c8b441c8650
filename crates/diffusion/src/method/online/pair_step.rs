//! The loss on pairs of transitions, of `trajectory_pairs` and `step_aware` alike.
//!
//! A transition's score is its log-density a component. The log-ratio of policy and reference is held within
//! `ln(1 ± clip_range)`, as D3PO's and SPO's code holds the ratio within `1 ± clip_range`; the objective is free. With `dpo` this is
//! `−ln σ(β ln r_w − β ln r_l)`.

use std::collections::BTreeMap;

use diptych_core::{Objective, PairLogps, pair_metrics};
use diptych_tensor::{DType, Tensor};
use diptych_train::{MicroBatch, StepOutput, Weighted};

use super::config::ReuseConfig;
use super::kept::{Kept, TransitionPair};
use super::studio::{Studio, Visit, afters};
use crate::Result;
use crate::sampler::Transition;
use crate::tensors::host_f64;

/// What the two methods have in common.
#[derive(Debug)]
pub(super) struct PairLoss {
    pub(super) objective: Objective,
    pub(super) reuse: ReuseConfig,
    pub(super) clip_range: f64,
}

impl PairLoss {
    /// Losses of a micro batch in one of the updates on what was kept. The mean over the effective batch is that over its pairs.
    pub(super) fn step(&self, studio: &Studio, kept: &Kept<TransitionPair>, batch: &MicroBatch) -> Result<StepOutput> {
        let dealt = |position| kept.dealt(&self.reuse, batch, position);
        let num_pairs: usize = batch.step_items.iter().map(|item| dealt(item.position).len()).sum();
        if num_pairs == 0 {
            return Ok(StepOutput::empty(batch.items.len(), studio.device(), BTreeMap::new())?);
        }
        let mut pairs = Vec::new();
        let mut owners = Vec::new();
        for (owner, item) in batch.items.iter().enumerate() {
            for pair in dealt(item.position) {
                pairs.push((*pair, item.index));
                owners.push(owner);
            }
        }
        if pairs.is_empty() {
            let zeros = StepOutput::empty(batch.items.len(), studio.device(), BTreeMap::new())?;
            // Its records count in the mean of the effective batch, with nothing.
            return Ok(StepOutput {
                is_empty: false,
                ..zeros
            });
        }
        let (logps, divergences, clip_share) = self.scores(studio, kept, &pairs, 2 * batch.items.len())?;
        let output = self.objective.pair_losses(&logps)?;
        let metrics = pair_metrics(&logps, &output)?;
        let share = batch.step_items.len() as f64 / num_pairs as f64;
        let losses = per_record(&output.losses, &owners, batch.items.len(), share)?;
        let mut output = StepOutput::new(losses, BTreeMap::new());
        output.weighted = metrics
            .into_iter()
            .map(|(name, values)| (name, weighted(&values)))
            .collect();
        let timesteps: Vec<f64> = pairs
            .iter()
            .map(|(pair, _)| f64::from(studio.timestep(pair.step)))
            .collect();
        output.weighted.insert("timesteps/mean", weighted(&timesteps));
        if let Some(divergences) = divergences {
            output.weighted.insert("kl", weighted(&divergences));
            output.weighted.insert("clip_ratio", weighted(&clip_share));
        }
        Ok(output)
    }

    /// Scores of pairs, divergences of their transitions from the reference, and for each transition whether it is clipped.
    fn scores(
        &self,
        studio: &Studio,
        kept: &Kept<TransitionPair>,
        pairs: &[(TransitionPair, usize)],
        at_once: usize,
    ) -> Result<(PairLogps, Option<Vec<f64>>, Vec<f64>)> {
        let side = |at: fn(&TransitionPair) -> super::kept::Move| {
            pairs.iter().map(move |(pair, record)| Visit {
                record: *record,
                step: pair.step,
                at: at(pair),
            })
        };
        let visits: Vec<Visit> = side(|pair| pair.chosen).chain(side(|pair| pair.rejected)).collect();
        let ends = afters(&kept.latents, &visits)?;
        // The reference first, so that its activations are gone before the policy's graph grows.
        let reference_transitions = studio.reference_transitions(&kept.latents, &visits, at_once)?;
        let transitions = studio.policy_transitions(&kept.latents, &visits, at_once)?;
        let policy = transitions.log_probs(&ends)?;
        let mut clip_share = Vec::new();
        let mut divergences = None;
        let mut policy_scores = policy.clone();
        let mut reference = None;
        if let Some(of_reference) = reference_transitions {
            let scores = of_reference.log_probs(&ends)?;
            divergences = Some(divergence(&transitions, &of_reference)?);
            let ratios = difference(&policy, &scores)?;
            clip_share = host_f64(&ratios)?
                .iter()
                .map(|&ratio| f64::from(u8::from(self.clip_range > 0.0 && self.is_clipped(ratio))))
                .collect();
            if self.clip_range > 0.0 {
                policy_scores = self.clipped(&ratios, &scores)?;
            }
            reference = Some(scores);
        }
        let halves = |scores: &Tensor| -> diptych_tensor::Result<(Tensor, Tensor)> {
            Ok((
                scores.narrow(0, 0, pairs.len())?,
                scores.narrow(0, pairs.len(), pairs.len())?,
            ))
        };
        let (chosen, rejected) = halves(&policy_scores)?;
        let mut logps = PairLogps::new(chosen, rejected);
        if let Some(reference) = reference {
            let (chosen, rejected) = halves(&reference)?;
            logps = logps.with_reference(chosen, rejected);
        }
        logps.chosen.judge_scores = Some(judged(pairs, 0, &policy)?);
        logps.rejected.judge_scores = Some(judged(pairs, 1, &policy)?);
        Ok((logps, divergences, clip_share))
    }

    fn is_clipped(&self, log_ratio: f64) -> bool {
        log_ratio > self.clip_range.ln_1p() || log_ratio < (-self.clip_range).ln_1p()
    }

    /// Policy scores whose log-ratio to the reference is within the range.
    fn clipped(&self, ratios: &Tensor, reference: &Tensor) -> Result<Tensor> {
        let clip = || -> diptych_tensor::Result<Tensor> {
            let ratios = ratios.clamp((-self.clip_range).ln_1p(), self.clip_range.ln_1p())?;
            Ok((ratios + reference)?)
        };
        Ok(clip()?)
    }
}

/// Kullback-Leibler divergences of normal distributions with the same deviations, a component.
fn divergence(policy: &Transition, reference: &Transition) -> Result<Vec<f64>> {
    let squares = || -> diptych_tensor::Result<Tensor> {
        Ok((policy.mean.detach() - &reference.mean)?
            .sqr()?
            .flatten_from(1)?
            .mean(1)?)
    };
    let squares = host_f64(&squares()?)?;
    Ok(squares
        .iter()
        .zip(&policy.stds)
        .map(|(square, std)| 0.5 * square / (std * std))
        .collect())
}

fn difference(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let subtract = || -> diptych_tensor::Result<Tensor> { Ok((a - b)?) };
    Ok(subtract()?)
}

fn judged(pairs: &[(TransitionPair, usize)], side: usize, like: &Tensor) -> Result<Tensor> {
    let scores: Vec<f32> = pairs.iter().map(|(pair, _)| pair.scores[side] as f32).collect();
    let tensor = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::from_vec(scores, pairs.len(), like.device())?) };
    Ok(tensor()?)
}

/// Sums of the losses (N,) of each record, times `share`: (B,).
pub(super) fn per_record(losses: &Tensor, owners: &[usize], num_records: usize, share: f64) -> Result<Tensor> {
    let mut weights = vec![0.0_f32; num_records * owners.len()];
    for (at, owner) in owners.iter().enumerate() {
        weights[owner * owners.len() + at] = share as f32;
    }
    let sum = || -> diptych_tensor::Result<Tensor> {
        let weights = Tensor::from_vec(weights, (num_records, owners.len()), losses.device())?;
        Ok(weights
            .broadcast_mul(&losses.to_dtype(DType::F32)?.unsqueeze(0)?)?
            .sum(1)?)
    };
    Ok(sum()?)
}

/// A mean under way.
pub(super) fn weighted(values: &[f64]) -> Weighted {
    Weighted {
        sum: values.iter().sum(),
        weight: values.len() as f64,
    }
}

/// The mean and the spread of rewards, to be logged.
pub(super) fn reward_metrics(rewards: &[f64]) -> BTreeMap<&'static str, Weighted> {
    let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
    let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / rewards.len() as f64;
    BTreeMap::from([
        ("reward", weighted(rewards)),
        ("reward_std", weighted(&[variance.sqrt()])),
    ])
}
