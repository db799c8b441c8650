//! Euler's method on the probability-flow equation, in the variance-exploding parameterization.
//!
//! Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv:2206.00364), Algorithm 1
//! without churn. With `sigma = sqrt((1 - a) / a)` and latents scaled by `sqrt(1 + sigma^2)`:
//!
//! ```text
//! x' = x + (sigma' - sigma) (x - x0) / sigma
//! ```
//!
//! Keys of `scheduler_config.json` mean what they mean to `diffusers.EulerDiscreteScheduler`; a missing key takes that
//! class's default. Karras, exponential and beta sigmas are refused.

use diptych_tensor::Tensor;

use super::sigmas::{Levels, training_sigmas};
use super::spacing;
use super::transition::Moments;
use crate::Result;
use crate::schedule::{DiscreteSchedule, FinalSigma, TimestepSpacing};

/// The Euler sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Euler {
    levels: Levels,
}

impl Euler {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`](crate::Error::Steps) for a number of steps the table cannot serve;
    /// [`Error::Sampler`](crate::Error::Sampler) for an unimplemented variant.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        config.obstacles.euler.refuse("euler", &config.file)?;
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let timesteps = spacing::timesteps(config, num_steps, TimestepSpacing::Linspace)?
            .into_iter()
            .map(|timestep| timestep as f32)
            .collect();
        let table = training_sigmas(schedule);
        let last = match config.final_sigma.unwrap_or(FinalSigma::Zero) {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => table[0] as f32,
        };
        Ok(Self {
            levels: Levels::new(schedule, timesteps, spacing, last, &table),
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

    pub(super) fn scale_input(&self, latents: &Tensor, step_idx: usize) -> diptych_tensor::Result<Tensor> {
        self.levels.scale_input(latents, step_idx)
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<Moments> {
        let (sigma, next) = self.levels.pair(step_idx);
        let (derivative, clean) = self.levels.split(prediction, step_idx, latents)?;
        Ok(Moments {
            mean: (latents + (derivative * (next - sigma))?)?,
            clean,
        })
    }
}
