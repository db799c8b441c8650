//! Pairs of whole trajectories: every transition towards the preferred image against that towards the other one.
//!
//! Yang et al., "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model" (D3PO), CVPR 2024, arXiv:2311.13231.
//! Two trajectories of a prompt begin with the same noise; a judge prefers one of the two images. Images that it likes alike make no
//! pair.

use std::collections::BTreeMap;

use diptych_tensor::Tensor;
use diptych_train::{Item, MicroBatch};

use super::Collected;
use super::kept::{Kept, Move, TransitionPair, nothing};
use super::pair_step::reward_metrics;
use super::studio::{Studio, each, gather, joined};
use crate::Result;
use crate::tensors::host_f64;
use crate::trajectory::State;

/// Trajectories of a prompt.
const SIDES: usize = 2;

/// Samples two trajectories of each prompt of the effective batch and has their images judged.
pub(super) fn collect(studio: &Studio, batch: &MicroBatch) -> Result<Collected<TransitionPair>> {
    let (mut pool, mut pairs, mut rewards) = (Vec::new(), Vec::new(), Vec::new());
    let mut num_ties = 0_usize;
    let mut num_latents = 0;
    let steps = studio.random_steps();
    for items in batch.step_items.chunks(batch.items.len().max(1)) {
        let trajectories = sample(studio, batch, items, SIDES, Start::Shared)?;
        for (place, item) in items.iter().enumerate() {
            let scores = &trajectories.rewards[place * SIDES..(place + 1) * SIDES];
            rewards.extend_from_slice(scores);
            if scores[0] == scores[1] {
                num_ties += 1;
                continue;
            }
            let chosen = usize::from(scores[1] > scores[0]);
            let at = |step, side| trajectories.at(num_latents, step, place * SIDES + side);
            pairs.extend(steps.iter().map(|&step| TransitionPair {
                position: item.position,
                step,
                chosen: at(step, chosen),
                rejected: at(step, 1 - chosen),
                scores: [scores[chosen], scores[1 - chosen]],
            }));
        }
        num_latents += trajectories.num_latents();
        pool.extend(trajectories.latents);
    }
    let latents = if pairs.is_empty() {
        nothing(studio.device())?
    } else {
        joined(&pool)?
    };
    let totals = BTreeMap::from([
        ("pairs", (batch.step_items.len() - num_ties) as f64),
        ("ties", num_ties as f64),
    ]);
    Ok(Collected {
        kept: Kept::new(batch, latents, pairs),
        weighted: reward_metrics(&rewards),
        totals,
    })
}

/// Where the trajectories of a prompt begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// With the same noise.
    Shared,
    /// Each with noise of its own.
    Own,
}

/// Trajectories of some prompts, those of a prompt one behind the other, and the rewards of their images.
pub(super) struct Trajectories {
    /// Latents before each step and behind the last one, each (N, C, Y, X).
    pub(super) latents: Vec<Tensor>,
    /// Log-densities of each step's transitions under the policy that sampled, N; none where it adds no noise.
    pub(super) log_densities: Vec<Option<Vec<f64>>>,
    /// One a trajectory.
    pub(super) rewards: Vec<f64>,
}

impl Trajectories {
    /// How many latents there are in all.
    pub(super) fn num_latents(&self) -> usize {
        self.latents.len() * self.rewards.len()
    }

    /// A transition, by its latents' places in a pool where the first of these is at `first`.
    pub(super) fn at(&self, first: usize, step: usize, trajectory: usize) -> Move {
        let place = |step: usize| first + step * self.rewards.len() + trajectory;
        Move {
            from: place(step),
            to: place(step + 1),
        }
    }
}

/// Samples `times` trajectories of each record under the policy, without a graph, and rewards their images.
pub(super) fn sample(
    studio: &Studio,
    batch: &MicroBatch,
    items: &[Item],
    times: usize,
    start: Start,
) -> Result<Trajectories> {
    let own: Vec<usize> = items.iter().map(|item| item.index).collect();
    let records = each(&own, times);
    let positions = items.iter().map(|item| item.position * times as u64);
    let images: Vec<u64> = positions
        .flat_map(|first| (0..times as u64).map(move |offset| first + offset))
        .collect();
    let network = studio.policy_for(&records)?;
    let walk = studio.walk(&network, batch, &images);
    let mut state = walk.start()?;
    if start == Start::Shared {
        let firsts = (0..records.len()).map(|place| place / times * times);
        state = State::new(gather(&state.latents, firsts)?, 0);
    }
    let (mut latents, mut log_densities) = (vec![state.latents.clone()], Vec::new());
    for _ in 0..studio.sampler.num_steps() {
        let step = walk.step(&mut state)?;
        log_densities.push(step.log_probs.as_ref().map(host_f64).transpose()?);
        latents.push(step.after);
    }
    let rewards = studio.host_rewards(&records, &state.latents, 0.0)?;
    Ok(Trajectories {
        latents,
        log_densities,
        rewards,
    })
}
