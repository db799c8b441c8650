//! Euler's method down to a lower level than the next one, and fresh noise back up to it.
//!
//! The ancestral sampler of k-diffusion, in the variance-exploding parameterization of [`Euler`](super::Euler):
//!
//! ```text
//! up   = sqrt(sigma'^2 (sigma^2 - sigma'^2) / sigma^2),  down = sqrt(sigma'^2 - up^2)
//! mean = x + (down - sigma) (x - x0) / sigma,            std  = up
//! ```
//!
//! Keys of `scheduler_config.json` mean what they mean to `diffusers.EulerAncestralDiscreteScheduler`; a missing key takes that
//! class's default.

use diptych_tensor::Tensor;

use super::sigmas::{Levels, training_sigmas};
use super::spacing;
use super::transition::Moments;
use crate::Result;
use crate::schedule::{DiscreteSchedule, TimestepSpacing};

/// The ancestral Euler sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct EulerAncestral {
    levels: Levels,
}

impl EulerAncestral {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`](crate::Error::Steps) for a number of steps the table cannot serve.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let timesteps = spacing::timesteps(config, num_steps, TimestepSpacing::Linspace)?
            .into_iter()
            .map(|timestep| timestep as f32)
            .collect();
        Ok(Self {
            levels: Levels::new(schedule, timesteps, spacing, 0.0, &training_sigmas(schedule)),
        })
    }

    /// Timesteps given to the denoiser, noisiest first; fractional with linear spacing.
    pub fn timesteps(&self) -> &[f32] {
        &self.levels.timesteps
    }

    /// Standard deviation of the latents the first step expects.
    pub fn initial_sigma(&self) -> f64 {
        self.levels.initial_sigma
    }

    /// Standard deviation of the fresh noise of a step.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn std(&self, step_idx: usize) -> f64 {
        self.up_and_down(step_idx).0
    }

    fn up_and_down(&self, step_idx: usize) -> (f64, f64) {
        let (sigma, next) = self.levels.pair(step_idx);
        let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).max(0.0);
        (up.sqrt(), (next * next - up).max(0.0).sqrt())
    }

    pub(super) fn scale_input(&self, latents: &Tensor, step_idx: usize) -> diptych_tensor::Result<Tensor> {
        self.levels.scale_input(latents, step_idx)
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<Moments> {
        let (sigma, _) = self.levels.pair(step_idx);
        let (_, down) = self.up_and_down(step_idx);
        let (derivative, clean) = self.levels.split(prediction, step_idx, latents)?;
        Ok(Moments {
            mean: (latents + (derivative * (down - sigma))?)?,
            clean,
        })
    }
}
