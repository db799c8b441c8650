//! Pairs of whole trajectories: every transition towards the preferred image against that towards the other one.
//!
//! Yang et al., "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model" (D3PO), CVPR 2024, arXiv:2311.13231.
//! Two trajectories of a prompt begin with the same noise; a judge prefers one of the two images. Images that it likes alike make no
//! pair.

use std::collections::BTreeMap;

use diptych_train::{Item, MicroBatch};

use super::Collected;
use super::kept::{Kept, Move, TransitionPair, nothing};
use super::pair_step::reward_metrics;
use super::studio::{Dice, Studio, each, joined};
use crate::Result;

/// Trajectories of a prompt.
const SIDES: usize = 2;

/// Samples two trajectories of each prompt of the effective batch and has their images judged.
pub(super) fn collect(studio: &Studio, batch: &MicroBatch) -> Result<Collected<TransitionPair>> {
    let mut pool = Vec::new();
    let mut pairs = Vec::new();
    let mut rewards = Vec::new();
    let mut num_ties = 0_usize;
    let mut num_latents = 0;
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
            pairs.extend((0..trajectories.num_steps()).filter(|&step| studio.transitions.is_random(step)).map(|step| {
                TransitionPair {
                    position: item.position,
                    step,
                    chosen: at(step, chosen),
                    rejected: at(step, 1 - chosen),
                    scores: [scores[chosen], scores[1 - chosen]],
                }
            }));
        }
        num_latents += trajectories.num_latents();
        pool.extend(trajectories.latents);
    }
    let latents = if pairs.is_empty() { nothing(studio.device())? } else { joined(&pool)? };
    let totals = BTreeMap::from([
        ("ties", num_ties as f64),
        ("pairs", (batch.step_items.len() - num_ties) as f64),
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
    pub(super) latents: Vec<diptych_tensor::Tensor>,
    /// Means of each step's transitions, as sampled.
    pub(super) means: Vec<diptych_tensor::Tensor>,
    /// One a trajectory.
    pub(super) rewards: Vec<f64>,
}

impl Trajectories {
    pub(super) fn num_steps(&self) -> usize {
        self.means.len()
    }

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
    let mut dice = Dice::new(studio, batch, items);
    let mut current = match start {
        Start::Own => dice.normal(times)?,
        Start::Shared => {
            let places = each(&(0..items.len()).collect::<Vec<_>>(), times);
            super::studio::gather(&dice.normal(1)?, places.into_iter())?
        }
    };
    let transitions = &studio.transitions;
    let (mut latents, mut means) = (vec![current.clone()], Vec::new());
    for step in 0..transitions.num_steps() {
        let steps = vec![step; records.len()];
        let prediction = studio.predict_detached(&records, &current, step)?;
        let mean = transitions.mean(&prediction, &steps, &current)?;
        current = transitions.sample(&mean, &steps, &dice.normal(times)?)?;
        latents.push(current.clone());
        means.push(mean);
    }
    let rewards = studio.host_rewards(&records, &current, 0.0)?;
    Ok(Trajectories {
        latents,
        means,
        rewards,
    })
}
