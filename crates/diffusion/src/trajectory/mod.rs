//! Trajectories: from noise to latents with a record of every step, for methods that learn from their own samples.
//!
//! A [`Walk`] takes a batch of images down a sampler, with guidance, without a graph. What it records can be scored again
//! under another network ([`log_probs`]), and its last steps can be repeated with a graph ([`Walk::tail`]). Every number is a
//! function of (seed, stream, set, image, step): the micro batch that an image is computed in changes it by rounding only.
//!
//! Black et al., "Training Diffusion Models with Reinforcement Learning" (DDPO, arXiv:2305.13301), section 4, for denoising as
//! a chain of decisions; Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards" (`DRaFT`,
//! arXiv:2309.17400), section 4, for the tail.
//!
//! Shape letters: B batch, C channels, Y x X spatial.

mod record;
mod tail;

use std::borrow::Borrow;

use diptych_tensor::Tensor;

pub use record::{Decisions, Step, Trajectory};
pub use tail::{Adapters, Against, Tail};

use crate::pipeline::{Denoiser, Guided};
use crate::sampler::{History, Sampler, SamplerNoise, Transition};
use crate::tensors::cast;
use crate::{Error, Result};

/// A batch of images on its way down a sampler.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a, D> {
    /// The sampler.
    pub sampler: &'a Sampler,
    /// The network, with what it is told about each image.
    pub network: &'a Guided<D>,
    /// Where noise comes from.
    pub noise: SamplerNoise,
    /// Number of each image, which its noise follows.
    pub images: &'a [u64],
    /// (C, Y, X) of the latents.
    pub latent_shape: [usize; 3],
}

/// Where a walk stands.
#[derive(Debug, Clone)]
pub struct State {
    /// Latents before the step, (B, C, Y, X).
    pub latents: Tensor,
    /// The step that comes next; the number of steps at the end.
    pub step_idx: usize,
    history: History,
}

impl State {
    /// Latents on their way to step `step_idx`. A multistep sampler forgets what was before.
    pub fn new(latents: Tensor, step_idx: usize) -> Self {
        Self {
            latents,
            step_idx,
            history: History::default(),
        }
    }
}

impl<D: Borrow<Denoiser> + Clone> Walk<'_, D> {
    /// The initial noise, as strong as the sampler wants it.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not as many images as the network is told about.
    pub fn start(&self) -> Result<State> {
        if self.images.len() != self.network.batch_size() {
            return Err(Error::Shape {
                name: "images".into(),
                found: vec![self.images.len()],
                expected: vec![self.network.batch_size()],
            });
        }
        let device = self.network.denoiser().device();
        let noise = self.noise.initial(self.images, &self.latent_shape, device)?;
        let noise = cast(&noise, self.network.dtype())?;
        Ok(State::new(scaled(&noise, self.sampler.initial_sigma())?, 0))
    }

    /// The distribution of the next latents, without a graph.
    ///
    /// # Errors
    /// The network refuses.
    ///
    /// # Panics
    /// When the walk is at its end.
    pub fn transition(&self, state: &mut State) -> Result<Transition> {
        let timestep = self.sampler.timesteps()[state.step_idx];
        state.latents = cast(&state.latents.detach(), self.network.dtype())?;
        let input = self.sampler.scale_input(&state.latents, state.step_idx)?;
        let timesteps = vec![timestep; self.images.len()];
        // Cut off before the sampler's own arithmetic: the graph of a network under training would grow over all steps.
        let prediction = self.network.predict(&input, &timesteps)?.detach();
        self.sampler
            .transition(&prediction, state.step_idx, &state.latents, &mut state.history)
    }

    /// Several draws of one transition, for methods that compare the results of a step; the first is what the walk itself
    /// would take.
    ///
    /// # Errors
    /// [`Error::NoDensity`] where the step adds no noise, so that there is only one result.
    pub fn candidates(&self, transition: &Transition, step_idx: usize, num: u8) -> Result<Vec<Tensor>> {
        if num > 1 && self.sampler.std(step_idx) == 0.0 {
            return Err(Error::NoDensity {
                sampler: self.sampler.kind().name(),
            });
        }
        (0..num)
            .map(|candidate| transition.sample(self.fresh_noise(step_idx, candidate)?.as_ref()))
            .collect()
    }

    /// Takes one step and records it.
    ///
    /// # Errors
    /// As [`Walk::transition`].
    ///
    /// # Panics
    /// As [`Walk::transition`].
    pub fn step(&self, state: &mut State) -> Result<Step> {
        let step_idx = state.step_idx;
        let transition = self.transition(state)?;
        let after = transition.sample(self.fresh_noise(step_idx, 0)?.as_ref())?;
        let has_density = self.sampler.std(step_idx) > 0.0;
        let log_probs = has_density.then(|| transition.log_probs(&after)).transpose()?;
        let before = std::mem::replace(&mut state.latents, after.clone());
        state.step_idx += 1;
        Ok(Step {
            step_idx,
            before,
            after,
            log_probs,
        })
    }

    /// Takes steps until `step_idx` comes next, without a record.
    ///
    /// # Errors
    /// As [`Walk::transition`].
    pub fn advance(&self, state: &mut State, step_idx: usize) -> Result<()> {
        while state.step_idx < step_idx.min(self.sampler.num_steps()) {
            self.step(state)?;
        }
        Ok(())
    }

    /// The whole walk, without a record.
    ///
    /// # Shape
    /// (B, C, Y, X) in f32, or f64 where the network is.
    ///
    /// # Errors
    /// As [`Walk::transition`].
    pub fn latents(&self) -> Result<Tensor> {
        let mut state = self.start()?;
        self.advance(&mut state, self.sampler.num_steps())?;
        Ok(state.latents)
    }

    /// The whole walk with a record of every step, `micro_batch` images at a time.
    ///
    /// # Errors
    /// [`Error::NoDensity`] when no step of the sampler adds noise: there is nothing to learn from then;
    /// [`Error::Setting`] for a micro batch of 0; as [`Walk::transition`].
    pub fn trajectory(&self, micro_batch: usize) -> Result<Trajectory> {
        self.trajectory_from(&self.start()?, micro_batch)
    }

    /// The same from a state of the whole batch: the common start of several trajectories, which are other `images` or another
    /// set of `noise` from there on, or the place where one branches.
    ///
    /// # Errors
    /// As [`Walk::trajectory`]; [`Error::Shape`] when the state has another number of images.
    pub fn trajectory_from(&self, start: &State, micro_batch: usize) -> Result<Trajectory> {
        self.sampler.ensure_density()?;
        let found = start.latents.dims().first().copied().unwrap_or(0);
        if found != self.images.len() {
            return Err(Error::Shape {
                name: "latents of the start".into(),
                found: vec![found],
                expected: vec![self.images.len()],
            });
        }
        if micro_batch == 0 {
            return Err(Error::Setting {
                key: "micro_batch",
                found: "0".into(),
                expected: "at least 1",
            });
        }
        let rows: Vec<usize> = (0..self.images.len()).collect();
        let parts = rows
            .chunks(micro_batch)
            .map(|rows| {
                let network = self.network.gather(rows)?;
                let walk = Walk {
                    network: &network,
                    images: &self.images[rows[0]..rows[0] + rows.len()],
                    sampler: self.sampler,
                    noise: self.noise,
                    latent_shape: self.latent_shape,
                };
                let mut state = State::new(part(&start.latents, rows[0], rows.len())?, start.step_idx);
                let steps = (start.step_idx..self.sampler.num_steps())
                    .map(|_| walk.step(&mut state))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Trajectory { steps })
            })
            .collect::<Result<Vec<_>>>()?;
        Trajectory::joined(&parts)
    }

    /// Fresh noise of a step, where it adds any.
    fn fresh_noise(&self, step_idx: usize, candidate: u8) -> Result<Option<Tensor>> {
        if self.sampler.std(step_idx) == 0.0 {
            return Ok(None);
        }
        let device = self.network.denoiser().device();
        let noise = self
            .noise
            .of_step(step_idx, candidate, self.images, &self.latent_shape, device)?;
        Ok(Some(noise))
    }
}

/// The distributions of what follows latents that stand at some steps of a sampler, under a network; with a graph where that
/// network is trained.
///
/// # Shape
/// `latents` (B, C, Y, X), one of `step_indices` an example.
///
/// # Errors
/// As [`Sampler::transitions`]; the network refuses.
///
/// # Panics
/// When a step is not below the sampler's number.
pub fn transitions<D: Borrow<Denoiser>>(
    sampler: &Sampler,
    network: &Guided<D>,
    step_indices: &[usize],
    latents: &Tensor,
) -> Result<Transition> {
    let of_sampler = sampler.timesteps();
    let timesteps: Vec<f32> = step_indices.iter().map(|&step_idx| of_sampler[step_idx]).collect();
    let latents = cast(latents, network.dtype())?;
    let input = sampler.scale_inputs(&latents, step_indices)?;
    let prediction = network.predict(&input, &timesteps)?;
    sampler.transitions(&prediction, step_indices, &latents)
}

/// Log-probabilities of recorded decisions under a network, with its guidance; with a graph where that network is trained
/// ([`Tensor::detach`] drops it).
///
/// # Shape
/// (B,), one a decision.
///
/// # Errors
/// As [`transitions`]; [`Error::NoDensity`] for a step that adds no noise.
///
/// # Panics
/// As [`transitions`].
pub fn log_probs<D: Borrow<Denoiser>>(sampler: &Sampler, network: &Guided<D>, decisions: &Decisions) -> Result<Tensor> {
    transitions(sampler, network, &decisions.step_indices, &decisions.before)?.log_probs(&decisions.after)
}

fn part(tensor: &Tensor, first: usize, num: usize) -> diptych_tensor::Result<Tensor> {
    Ok(tensor.narrow(0, first, num)?)
}

fn scaled(tensor: &Tensor, factor: f64) -> diptych_tensor::Result<Tensor> {
    Ok((tensor * factor)?)
}
