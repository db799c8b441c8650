//! The gradient of a reward through the sampler.
//!
//! - Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards" (DRaFT, DRaFT-K, DRaFT-LV), ICLR 2024, arXiv:2309.17400
//! - Prabhudesai et al., "Aligning Text-to-Image Diffusion Models with Reward Backpropagation" (AlignProp), arXiv:2310.03739
//! - Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation" (ReFL), NeurIPS 2023, arXiv:2304.05977
//!
//! They differ in which of the sampler's predictions get a gradient and in what a reward is worth. Latents before the first such
//! prediction are constants; behind it the gradient goes through the latents, too. Each of several steps computes its activations again
//! in the backward pass, so that only one of them is there at a time.
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
use super::studio::{Dice, Predictor, Studio, recomputed};
use super::transition::Transitions;
use crate::Result;
use crate::method::offline_pairs::Reference;
use crate::tensors::host_f64;

/// The method `direct_reward`.
#[derive(Debug)]
pub(super) struct DirectReward {
    pub(super) config: DirectRewardConfig,
    pub(super) objective: Objective,
}

/// Rewards (B,) and, with a reference, the mean squared differences to it (B,), with their graph.
struct Rewarded {
    rewards: Tensor,
    penalties: Option<Tensor>,
}

impl DirectReward {
    pub(super) fn step(&self, studio: &Studio, batch: &MicroBatch) -> Result<StepOutput> {
        let records: Vec<usize> = batch.items.iter().map(|item| item.index).collect();
        let mut dice = Dice::new(studio, batch, &batch.items);
        let num_steps = studio.transitions.num_steps();
        let first = self.first_step(batch, num_steps);
        let rewarded = match self.config.gradient {
            GradientSpan::All {} | GradientSpan::Last { .. } | GradientSpan::Truncated { .. } => {
                let before = prefix(studio, &records, first, &mut dice)?;
                self.tail(studio, &records, before, first, &mut dice)?
            }
            GradientSpan::Single { .. } => {
                let before = prefix(studio, &records, first, &mut dice)?;
                self.promise(studio, &records, &before, first)?
            }
            GradientSpan::LowVariance { draws } => {
                let finished = prefix(studio, &records, num_steps, &mut dice)?;
                let mut all = Vec::with_capacity(draws);
                for _ in 0..draws {
                    let noisy = studio.transitions.renoise(&finished, &dice.normal(1)?, num_steps - 1)?;
                    all.push(self.promise(studio, &records, &noisy, num_steps - 1)?);
                }
                averaged(&all)?
            }
        };
        let scores = self.scores(&rewarded)?;
        let losses = self.objective.chosen_losses(&Responses::new(scores))?;
        let rewards = host_f64(&rewarded.rewards)?;
        let mut output = StepOutput::new(losses, BTreeMap::new());
        output.weighted.extend(reward_metrics(&rewards));
        output.weighted.insert("gradient_start", weighted(&[first as f64]));
        if let Some(penalties) = &rewarded.penalties {
            output.weighted.insert("penalty", weighted(&host_f64(penalties)?));
        }
        Ok(output)
    }

    /// The first step whose prediction gets a gradient. Drawn from the seed and the optimizer step alone, so that all micro batches of one agree.
    fn first_step(&self, batch: &MicroBatch, num_steps: usize) -> usize {
        let mut rng = generator(batch.seed, Stream::Timesteps, batch.step, 0);
        match self.config.gradient {
            GradientSpan::All {} => 0,
            GradientSpan::Last { steps } => num_steps - steps,
            GradientSpan::LowVariance { .. } => num_steps - 1,
            GradientSpan::Single { first, last } => rng.random_range(first..=last),
            GradientSpan::Truncated { mean, deviation } => loop {
                let drawn = mean + deviation * f64::from(normal_vec(&mut rng, 1)[0]);
                if drawn >= 1.0 && drawn < num_steps as f64 {
                    break drawn as usize;
                }
            },
        }
    }

    /// The steps from `first` to the end, and the reward of the finished image.
    fn tail(
        &self,
        studio: &Studio,
        records: &[usize],
        start: Tensor,
        first: usize,
        dice: &mut Dice,
    ) -> Result<Rewarded> {
        let num_steps = studio.transitions.num_steps();
        let mut latents = start;
        let mut penalties = Vec::new();
        for step in first..num_steps {
            let work = self.work(studio, records, step, Some(dice.normal(1)?))?;
            let output = if num_steps - first > 1 {
                recomputed(&[&latents], move |inputs| work.run(&inputs[0]))?
            } else {
                work.run(&latents)?
            };
            let (next, penalty) = self.unpacked(&output, &latents)?;
            latents = next;
            penalties.extend(penalty);
        }
        Ok(Rewarded {
            rewards: studio.rewards(records, &latents, 0.0)?,
            penalties: mean(&penalties)?,
        })
    }

    /// One prediction, and the reward of the clean image that it promises.
    fn promise(&self, studio: &Studio, records: &[usize], latents: &Tensor, step: usize) -> Result<Rewarded> {
        let output = self.work(studio, records, step, None)?.run(latents)?;
        let (clean, penalty) = self.unpacked(&output, latents)?;
        Ok(Rewarded {
            rewards: studio.rewards(records, &clean, studio.transitions.timestep(step))?,
            penalties: penalty,
        })
    }

    /// A step with everything it needs; with noise to the next latents, without it to the clean ones.
    fn work(&self, studio: &Studio, records: &[usize], step: usize, noise: Option<Tensor>) -> Result<StepWork> {
        let reference = if self.config.regularization > 0.0 {
            match &studio.reference {
                Reference::None => None,
                Reference::AdapterOff => Some((studio.predictor(records)?, Compared::AdapterOff)),
                Reference::Frozen(denoiser) => {
                    let predictor = studio.predictor_of(denoiser, records, studio.guidance_scale)?;
                    Some((predictor, Compared::Other))
                }
            }
        } else {
            None
        };
        Ok(StepWork {
            predictor: studio.predictor(records)?,
            reference,
            transitions: Arc::new(studio.transitions.clone()),
            steps: vec![step; records.len()],
            noise,
        })
    }

    /// Latents and, where there is one, the penalty of a [`StepWork`].
    fn unpacked(&self, output: &Tensor, like: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let len: usize = like.dims()[1..].iter().product();
        let has_penalty = self.config.regularization > 0.0;
        let split = || -> diptych_tensor::Result<(Tensor, Option<Tensor>)> {
            let latents = output.narrow(1, 0, len)?.reshape(like.dims())?;
            let penalty = has_penalty.then(|| output.narrow(1, len, 1)?.squeeze(1)).transpose()?;
            Ok((latents, penalty))
        };
        Ok(split()?)
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
            match &rewarded.penalties {
                Some(penalties) => Ok((scores - (penalties * self.config.regularization)?)?),
                None => Ok(scores),
            }
        };
        Ok(compute()?)
    }
}

/// Which network a reference's prediction is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// The policy's, its adapter switched off.
    AdapterOff,
    /// Another one.
    Other,
}

/// One step of the sampler with a graph; owns what it needs, so that it can be computed again.
struct StepWork {
    predictor: Predictor,
    reference: Option<(Predictor, Compared)>,
    transitions: Arc<Transitions>,
    steps: Vec<usize>,
    noise: Option<Tensor>,
}

impl StepWork {
    /// Latents (B, C Y X) and, with a reference, the mean squared difference of the predictions behind them (B, C Y X + 1).
    fn run(&self, latents: &Tensor) -> Result<Tensor> {
        let timesteps: Vec<f32> = self.steps.iter().map(|&step| self.transitions.timestep(step)).collect();
        let reference = match &self.reference {
            None => None,
            Some((predictor, compared)) => {
                let _off = (*compared == Compared::AdapterOff).then(|| predictor.adapter_switch().disable());
                Some(predictor.predict(&latents.detach(), &timesteps)?.detach())
            }
        };
        let prediction = self.predictor.predict(latents, &timesteps)?;
        let next = match &self.noise {
            Some(noise) => {
                let mean = self.transitions.mean(&prediction, &self.steps, latents)?;
                self.transitions.sample(&mean, &self.steps, noise)?
            }
            None => self.transitions.clean(&prediction, &self.steps, latents)?,
        };
        let pack = || -> diptych_tensor::Result<Tensor> {
            let next = next.flatten_from(1)?;
            match reference {
                None => Ok(next),
                Some(reference) => {
                    let penalty = (prediction - reference)?.sqr()?.flatten_from(1)?.mean_keepdim(1)?;
                    Ok(Tensor::cat(&[next, penalty], 1)?)
                }
            }
        };
        Ok(pack()?)
    }
}

/// Latents after the first `end` steps, without a graph.
fn prefix(studio: &Studio, records: &[usize], end: usize, dice: &mut Dice) -> Result<Tensor> {
    let mut latents = dice.normal(1)?;
    for step in 0..end {
        let steps = vec![step; records.len()];
        let prediction = studio.predict_detached(records, &latents, step)?;
        let mean = studio.transitions.mean(&prediction, &steps, &latents)?;
        latents = studio.transitions.sample(&mean, &steps, &dice.normal(1)?)?;
    }
    Ok(latents)
}

fn averaged(all: &[Rewarded]) -> Result<Rewarded> {
    let penalties: Vec<Tensor> = all.iter().filter_map(|one| one.penalties.clone()).collect();
    let rewards: Vec<Tensor> = all.iter().map(|one| one.rewards.clone()).collect();
    let stack = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::stack(&rewards, 0)?.mean(0)?) };
    Ok(Rewarded {
        rewards: stack()?,
        penalties: mean(&penalties)?,
    })
}

/// The mean of tensors of one shape; none of none.
fn mean(tensors: &[Tensor]) -> Result<Option<Tensor>> {
    if tensors.is_empty() {
        return Ok(None);
    }
    let stack = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::stack(tensors, 0)?.mean(0)?) };
    Ok(Some(stack()?))
}
