//! Denoising as a decision process, and a policy gradient for it.
//!
//! Black et al., "Training Diffusion Models with Reinforcement Learning" (DDPO, its importance-sampled form), ICLR 2024,
//! arXiv:2305.13301, Eq. 5, with the clipping and the advantages of its code: with `r` the probability ratio of a stored transition to the
//! policy that sampled it and `A` the image's advantage,
//!
//! ```text
//! L = max(−A r, −A clip(r, 1 ± clip_range))
//! ```

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use diptych_core::{Objective, Responses};
use diptych_tensor::{Tensor, Weights};
use diptych_train::{MicroBatch, StepOutput};

use super::Collected;
use super::advantages::RewardMemory;
use super::config::PolicyGradientConfig;
use super::kept::{Action, Kept};
use super::pair_step::{per_record, reward_metrics, weighted};
use super::studio::{Studio, Visit, afters, each, joined};
use super::trajectory_pairs::{Start, sample};
use crate::Result;
use crate::tensors::host_f64;

/// The method `policy_gradient`.
#[derive(Debug)]
pub(super) struct PolicyGradient {
    pub(super) config: PolicyGradientConfig,
    objective: Objective,
    state: Mutex<State>,
}

/// What lasts from one step to the next.
#[derive(Debug, Default)]
struct State {
    kept: Option<Kept<Action>>,
    memory: RewardMemory,
}

impl PolicyGradient {
    pub(super) fn new(config: PolicyGradientConfig, objective: Objective) -> Self {
        Self {
            config,
            objective,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn step(&self, studio: &Studio, batch: &MicroBatch) -> Result<StepOutput> {
        let state = &mut *self.state();
        let mut told = None;
        if state.kept.as_ref().is_none_or(|kept| !kept.serves(batch)) {
            let collected = self.collect(studio, &mut state.memory, batch)?;
            told = Some((collected.weighted, collected.totals));
            state.kept = Some(collected.kept);
        }
        let mut output = match &state.kept {
            Some(kept) => self.losses(studio, kept, batch)?,
            None => StepOutput::empty(batch.items.len(), studio.device(), BTreeMap::new())?,
        };
        if let Some((weighted, totals)) = told {
            output.weighted.extend(weighted);
            output.totals.extend(totals);
        }
        Ok(output)
    }

    /// Forgets what was sampled.
    pub(super) fn forget(&self) {
        self.state().kept = None;
    }

    pub(super) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let state = self.state();
        let mut tensors = state.memory.tensors()?;
        if let Some(kept) = &state.kept {
            tensors.extend(kept.tensors()?);
        }
        Ok(tensors)
    }

    pub(super) fn restore(&self, studio: &Studio, weights: &Weights) -> Result<()> {
        *self.state() = State {
            kept: Kept::read(weights, studio.device())?,
            memory: RewardMemory::read(weights)?,
        };
        Ok(())
    }

    /// Samples the images of each prompt of the effective batch and has them rewarded.
    fn collect(&self, studio: &Studio, memory: &mut RewardMemory, batch: &MicroBatch) -> Result<Collected<Action>> {
        let times = self.config.images_per_prompt;
        let (mut pool, mut actions) = (Vec::new(), Vec::new());
        let (mut rewards, mut records) = (Vec::new(), Vec::new());
        let mut num_latents = 0;
        for items in batch.step_items.chunks(batch.items.len().max(1)) {
            let trajectories = sample(studio, batch, items, times, Start::Own)?;
            for (step, densities) in trajectories.log_densities.iter().enumerate() {
                let densities = densities.iter().flatten().enumerate();
                actions.extend(densities.map(|(trajectory, &log_density)| {
                    let action = Action {
                        position: items[trajectory / times].position,
                        step,
                        at: trajectories.at(num_latents, step, trajectory),
                        log_density,
                        advantage: 0.0,
                    };
                    (action, rewards.len() + trajectory)
                }));
            }
            records.extend(each(&items.iter().map(|item| item.index).collect::<Vec<_>>(), times));
            num_latents += trajectories.num_latents();
            rewards.extend(trajectories.rewards);
            pool.extend(trajectories.latents);
        }
        let advantages = memory.advantages(&self.config.advantages, &records, &rewards, self.config.advantage_clip);
        let rows = actions.into_iter().map(|(action, trajectory)| Action {
            advantage: advantages[trajectory],
            ..action
        });
        Ok(Collected {
            kept: Kept::new(batch, joined(&pool)?, rows.collect()),
            weighted: reward_metrics(&rewards),
            totals: BTreeMap::new(),
        })
    }

    fn losses(&self, studio: &Studio, kept: &Kept<Action>, batch: &MicroBatch) -> Result<StepOutput> {
        let dealt = |position| kept.dealt(&self.config.reuse, batch, position);
        let num_actions: usize = batch.step_items.iter().map(|item| dealt(item.position).len()).sum();
        let (mut actions, mut visits, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, item) in batch.items.iter().enumerate() {
            for action in dealt(item.position) {
                visits.push(Visit {
                    record: item.index,
                    step: action.step,
                    at: action.at,
                });
                actions.push(*action);
                owners.push(owner);
            }
        }
        if actions.is_empty() {
            let zeros = StepOutput::empty(batch.items.len(), studio.device(), BTreeMap::new())?;
            return Ok(StepOutput {
                is_empty: num_actions == 0,
                ..zeros
            });
        }
        let ends = afters(&kept.latents, &visits)?;
        let transitions = studio.policy_transitions(
            &kept.latents,
            &visits,
            batch.items.len() * self.config.images_per_prompt,
        )?;
        let densities = transitions.log_probs(&ends)?;
        let (scores, log_ratios) = self.surrogate(&densities, &actions)?;
        let losses = self.objective.chosen_losses(&Responses::new(scores))?;
        let share = batch.step_items.len() as f64 / num_actions as f64;
        let losses = per_record(&losses, &owners, batch.items.len(), share)?;
        let mut output = StepOutput::new(losses, BTreeMap::new());
        let log_ratios = host_f64(&log_ratios)?;
        let is_clipped = |ratio: &f64| f64::from(u8::from(ratio.exp_m1().abs() > self.config.clip_range));
        let clipped: Vec<f64> = log_ratios.iter().map(is_clipped).collect();
        let divergences: Vec<f64> = log_ratios.iter().map(|ratio| 0.5 * ratio.powi(2)).collect();
        output.weighted.insert("clip_ratio", weighted(&clipped));
        output.weighted.insert("kl", weighted(&divergences));
        Ok(output)
    }

    /// What is made greater, an action, and its log-ratio.
    fn surrogate(&self, densities: &Tensor, actions: &[Action]) -> Result<(Tensor, Tensor)> {
        let range = self.config.clip_range;
        let compute = || -> diptych_tensor::Result<(Tensor, Tensor)> {
            let column = |value: fn(&Action) -> f64| -> diptych_tensor::Result<Tensor> {
                let values: Vec<f32> = actions.iter().map(|action| value(action) as f32).collect();
                Ok(Tensor::from_vec(values, actions.len(), densities.device())?)
            };
            let advantages = column(|action| action.advantage)?;
            let log_ratios = (densities - column(|action| action.log_density)?)?;
            let ratios = log_ratios.exp()?;
            let clipped = ratios.clamp(1.0 - range, 1.0 + range)?;
            let scores = (&advantages * ratios)?.minimum(&(&advantages * clipped)?)?;
            Ok((scores, log_ratios))
        };
        Ok(compute()?)
    }
}
