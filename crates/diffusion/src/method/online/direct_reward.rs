//! The gradient of a reward through the sampler.
//!
//! - Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards" (DRaFT, DRaFT-K, DRaFT-LV), ICLR 2024, arXiv:2309.17400
//! - Prabhudesai et al., "Aligning Text-to-Image Diffusion Models with Reward Backpropagation" (AlignProp), arXiv:2310.03739
//! - Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation" (ReFL), NeurIPS 2023, arXiv:2304.05977
//!
//! - Shekhar and Zhang, "ROCM: RLHF on consistency models", arXiv:2503.06171
//!
//! They differ in which of the sampler's predictions get a gradient and in what a reward is worth. Latents before the first such
//! prediction are constants; behind it the gradient goes through the latents, too. Each of several steps computes its activations again
//! in the backward pass, so that only one of them is there at a time.
//!
//! ROCM makes `reward - beta * sum over steps of D_f(policy's step | reference's step)` greater, through the few steps of a consistency model's
//! sampler. Every step but the last is a normal distribution, of the same deviation under policy and reference, from latents that the policy itself
//! has led to: the gradient goes through those latents, too, in the reward as in the divergence. Our reading of what the paper leaves open: the
//! divergence is that of one component, averaged over components as log-densities are here, because one of all components together
//! would be at its bound as soon as policy and reference differ at all.
//!
//! Shape letters: B images, C channels, Y x X spatial.

use std::collections::BTreeMap;
use std::sync::Arc;

use diptych_core::{Objective, Responses};
use diptych_tensor::Tensor;
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_train::{MicroBatch, StepOutput};
use rand::Rng;

use super::config::{DirectRewardConfig, GradientSpan, RewardLoss};
use super::pair_step::{reward_metrics, weighted};
use super::studio::Studio;
use crate::pipeline::{Checkpointing, Denoiser, Guided};
use crate::sampler::Sampler;
use crate::tensors::host_f64;
use crate::trajectory::{Against, State, Tail, Walk};
use crate::{Error, Result};

/// The method `direct_reward`.
#[derive(Debug)]
pub(super) struct DirectReward {
    pub(super) config: DirectRewardConfig,
    pub(super) objective: Objective,
}

/// Rewards (B,) and, with a reference, how far from it (B,), with their graph.
pub(super) struct Rewarded {
    pub(super) rewards: Tensor,
    pub(super) penalties: Option<Tensor>,
    /// Divergences of steps from the reference's, summed, (B,).
    pub(super) divergences: Option<Tensor>,
}

/// Prompts that are sampled together, and the policy that knows them.
pub(super) struct Party<'a> {
    studio: &'a Studio,
    batch: &'a MicroBatch,
    records: Vec<usize>,
    images: Vec<u64>,
    network: Guided<Arc<Denoiser>>,
}

/// Which of a tail's latents are rewarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewardable {
    /// Those behind its last step, which are an image.
    Finished,
    /// The clean ones that its last step promises.
    Promised,
}

impl DirectReward {
    pub(super) fn step(&self, studio: &Studio, batch: &MicroBatch) -> Result<StepOutput> {
        let party = Party::new(studio, batch)?;
        let num_steps = studio.sampler.num_steps();
        let first = self.first_step(batch, num_steps);
        let rewarded = match self.config.gradient {
            GradientSpan::All {} | GradientSpan::Last { .. } | GradientSpan::Truncated { .. } => {
                self.rewarded(&party, &party.before(first)?, num_steps, Rewardable::Finished)?
            }
            GradientSpan::Single { .. } => {
                self.rewarded(&party, &party.before(first)?, first + 1, Rewardable::Promised)?
            }
            GradientSpan::LowVariance { draws } => {
                let finished = party.before(num_steps)?.latents;
                let draws = (0..draws).map(|draw| {
                    let noisy = party.renoised(&finished, draw)?;
                    self.rewarded(&party, &noisy, num_steps, Rewardable::Promised)
                });
                averaged(&draws.collect::<Result<Vec<_>>>()?)?
            }
        };
        let mut output = StepOutput::new(self.losses(&rewarded)?, BTreeMap::new());
        output.weighted.extend(reward_metrics(&host_f64(&rewarded.rewards)?));
        output.weighted.insert("gradient_start", weighted(&[first as f64]));
        if let Some(penalties) = &rewarded.penalties {
            output.weighted.insert("penalty", weighted(&host_f64(penalties)?));
        }
        if let Some(divergences) = &rewarded.divergences {
            output.weighted.insert("divergence", weighted(&host_f64(divergences)?));
        }
        Ok(output)
    }

    /// Refuses a divergence that no step with a gradient would have.
    ///
    /// # Errors
    /// [`Error::Recipe`].
    pub(super) fn check_density(&self, sampler: &Sampler) -> Result<()> {
        let num_steps = sampler.num_steps();
        let first = match self.config.gradient {
            GradientSpan::Last { steps } => num_steps.saturating_sub(steps),
            _ => 0,
        };
        if self.config.divergence.is_none() || (first..num_steps).any(|step| sampler.std(step) > 0.0) {
            return Ok(());
        }
        Err(Error::Recipe {
            key: "method.direct_reward.divergence".into(),
            problem: format!(
                "is always 0: no step of `{}` with a gradient adds noise",
                sampler.kind().name()
            ),
            hint: "take more steps, or a sampler with noise".into(),
        })
    }

    /// The first step whose prediction gets a gradient. Drawn from the seed and the optimizer step alone, so that all micro batches of one
    /// agree.
    fn first_step(&self, batch: &MicroBatch, num_steps: usize) -> usize {
        let mut rng = generator(batch.seed, Stream::Timesteps, batch.step, 0);
        match self.config.gradient {
            GradientSpan::All {} => 0,
            GradientSpan::Last { steps } => num_steps.saturating_sub(steps),
            GradientSpan::LowVariance { .. } => num_steps - 1,
            GradientSpan::Single { first, last } => rng.random_range(first..=last).min(num_steps - 1),
            GradientSpan::Truncated { mean, deviation } => loop {
                let drawn = mean + deviation * f64::from(normal_vec(&mut rng, 1)[0]);
                if drawn >= 1.0 && drawn < num_steps as f64 {
                    break drawn as usize;
                }
            },
        }
    }

    /// Steps from `start` to before `end` with a graph, and their reward.
    pub(super) fn rewarded(&self, party: &Party<'_>, start: &State, end: usize, what: Rewardable) -> Result<Rewarded> {
        let studio = party.studio;
        let checkpointing: Checkpointing = (end - start.step_idx > 1).into();
        let walk = party.walk();
        let against = self.against(party)?;
        let mut reached = walk.tail_against(start.clone(), end, checkpointing, against.as_ref())?;
        let divergences = reached.as_mut().and_then(|tail| tail.divergences.take());
        let timestep = match what {
            Rewardable::Finished => 0.0,
            Rewardable::Promised => studio.timestep(end - 1),
        };
        let latents = chosen(reached, what)?;
        let mut penalties = None;
        if self.config.regularization > 0.0 {
            let of_reference = studio.of_reference(|denoiser| {
                let denoiser = party.network.with_denoiser(denoiser);
                let walk = studio.walk(&denoiser, party.batch, &party.images);
                let mut state = start.clone();
                match what {
                    Rewardable::Finished => walk.advance(&mut state, end).map(|()| state.latents),
                    Rewardable::Promised => Ok(walk.transition(&mut state)?.clean),
                }
            })?;
            penalties = of_reference.map(|other| mean_squares(&latents, &other)).transpose()?;
        }
        Ok(Rewarded {
            rewards: party.rewards(&latents, timestep)?,
            penalties,
            divergences,
        })
    }

    /// The network that steps are compared with, where they are.
    pub(super) fn against(&self, party: &Party<'_>) -> Result<Option<Against>> {
        let Some(section) = &self.config.divergence else {
            return Ok(None);
        };
        let studio = party.studio;
        let (network, adapters) = studio.reference.constant(&studio.policy).ok_or_else(|| Error::Recipe {
            key: "method.direct_reward.divergence".into(),
            problem: "has no reference that stays as it is".into(),
            hint: "use `adapter_off`, `frozen` or `checkpoint`".into(),
        })?;
        Ok(Some(Against {
            network: party.network.with_denoiser(network),
            adapters,
            divergence: section.kind,
        }))
    }

    /// Losses of rewards, (B,).
    pub(super) fn losses(&self, rewarded: &Rewarded) -> Result<Tensor> {
        Ok(self.objective.chosen_losses(&Responses::new(self.scores(rewarded)?))?)
    }

    /// What is made greater: minus the loss that the configuration names.
    fn scores(&self, rewarded: &Rewarded) -> Result<Tensor> {
        let rewards = &rewarded.rewards;
        let compute = || -> diptych_tensor::Result<Tensor> {
            let scores = match self.config.loss {
                RewardLoss::Maximize { weight } => (rewards * weight)?,
                RewardLoss::Distance { target, weight } => ((rewards - target)?.abs()? * -weight)?,
                RewardLoss::Hinge { target, weight } => (rewards.affine(-1.0, target)?.relu()? * -weight)?,
            };
            let beta = self.config.divergence.map_or(0.0, |section| section.beta);
            let costs = [
                (&rewarded.penalties, self.config.regularization),
                (&rewarded.divergences, beta),
            ];
            costs.into_iter().try_fold(scores, |scores, (cost, weight)| match cost {
                Some(cost) => Ok((scores - (cost * weight)?)?),
                None => Ok(scores),
            })
        };
        Ok(compute()?)
    }
}

impl<'a> Party<'a> {
    pub(super) fn new(studio: &'a Studio, batch: &'a MicroBatch) -> Result<Self> {
        let records: Vec<usize> = batch.items.iter().map(|item| item.index).collect();
        Ok(Self {
            studio,
            batch,
            network: studio.policy_for(&records)?,
            images: batch.items.iter().map(|item| item.position).collect(),
            records,
        })
    }

    pub(super) fn walk(&self) -> Walk<'_, Arc<Denoiser>> {
        self.studio.walk(&self.network, self.batch, &self.images)
    }

    /// Rewards of clean latents, (B,), promised at a timestep or finished.
    pub(super) fn rewards(&self, clean: &Tensor, timestep: f32) -> Result<Tensor> {
        self.studio.rewards(&self.records, clean, timestep)
    }

    /// Where the first `end` steps lead, without a graph.
    fn before(&self, end: usize) -> Result<State> {
        let walk = self.walk();
        let mut state = walk.start()?;
        walk.advance(&mut state, end)?;
        Ok(state)
    }

    /// Finished latents with the noise of the last step once more, drawn anew each time.
    fn renoised(&self, finished: &Tensor, draw: u8) -> Result<State> {
        let studio = self.studio;
        let last = studio.sampler.num_steps() - 1;
        // No trajectory takes this step, so that its noise is free.
        let noise = Studio::noise(self.batch);
        let noise = noise.of_step(last + 1, draw, &self.images, &studio.latent_shape, studio.device())?;
        let timesteps = vec![studio.timestep(last); self.images.len()];
        let noisy = studio
            .policy
            .denoiser
            .schedule()
            .add_noise(finished, &noise, &timesteps)?;
        // Samplers whose latents grow with their noise (Euler's) divide by what they have grown when they ask the denoiser.
        let grown = || -> diptych_tensor::Result<Tensor> {
            Ok((&noisy / studio.sampler.scale_input(&noisy.ones_like()?, last)?)?)
        };
        Ok(State::new(grown()?, last))
    }
}

fn chosen(tail: Option<Tail>, what: Rewardable) -> Result<Tensor> {
    let tail = tail.ok_or_else(|| Error::Shape {
        name: "steps with a gradient".into(),
        found: vec![0],
        expected: vec![1],
    })?;
    Ok(match what {
        Rewardable::Finished => tail.latents,
        Rewardable::Promised => tail.clean,
    })
}

fn mean_squares(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let compute = || -> diptych_tensor::Result<Tensor> { Ok((a - b)?.sqr()?.flatten_from(1)?.mean(1)?) };
    Ok(compute()?)
}

fn averaged(all: &[Rewarded]) -> Result<Rewarded> {
    let mean = |tensors: Vec<&Tensor>| -> diptych_tensor::Result<Tensor> { Ok(Tensor::stack(&tensors, 0)?.mean(0)?) };
    let penalties: Option<Vec<&Tensor>> = all.iter().map(|one| one.penalties.as_ref()).collect();
    let divergences: Option<Vec<&Tensor>> = all.iter().map(|one| one.divergences.as_ref()).collect();
    Ok(Rewarded {
        rewards: mean(all.iter().map(|one| &one.rewards).collect())?,
        penalties: penalties.map(mean).transpose()?,
        divergences: divergences.map(mean).transpose()?,
    })
}
