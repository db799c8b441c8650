//! Euler's method on the line of a flow, or on the stochastic equation with the same marginals.
//!
//! Esser et al. (arXiv:2403.03206); the stochastic step is that of Liu et al., "Flow-GRPO" (arXiv:2505.05470), Eq. 9, as its
//! published code has it. With velocity v, `dt = sigma' - sigma < 0`, and `eta` their noise level:
//!
//! ```text
//! g    = eta sqrt(sigma / (1 - sigma))       at sigma = 1 with the next sigma below the root
//! mean = (1 + g^2 dt / (2 sigma)) x + (1 + g^2 (1 - sigma) / (2 sigma)) v dt
//! std  = g sqrt(-dt)
//! ```
//!
//! With `eta` 0 it is `x + v dt`.

use diptych_tensor::Tensor;

use super::transition::Moments;
use crate::Result;
use crate::schedule::FlowSchedule;

/// The Euler sampler of a flow for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct FlowEuler {
    timesteps: Vec<f32>,
    /// One more than `timesteps`; the last is 0.
    sigmas: Vec<f32>,
    eta: f64,
}

impl FlowEuler {
    /// Prepares `num_steps` steps; `eta` is at least 0.
    ///
    /// # Errors
    /// As [`FlowSchedule::sampling_sigmas`].
    pub fn new(schedule: &FlowSchedule, num_steps: usize, eta: f64) -> Result<Self> {
        let sigmas = schedule.sampling_sigmas(num_steps)?;
        let num_train = schedule.config().num_train_timesteps as f32;
        Ok(Self {
            timesteps: sigmas[..num_steps].iter().map(|sigma| sigma * num_train).collect(),
            sigmas,
            eta,
        })
    }

    /// Timesteps given to the denoiser, noisiest first; fractional.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Standard deviation of the fresh noise of a step.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn std(&self, step_idx: usize) -> f64 {
        let (sigma, next) = self.pair(step_idx);
        self.diffusion(step_idx) * (sigma - next).sqrt()
    }

    fn pair(&self, step_idx: usize) -> (f64, f64) {
        (f64::from(self.sigmas[step_idx]), f64::from(self.sigmas[step_idx + 1]))
    }

    /// Strength of the fresh noise, g.
    fn diffusion(&self, step_idx: usize) -> f64 {
        let (sigma, next) = self.pair(step_idx);
        let below_one = if sigma == 1.0 { next } else { sigma };
        self.eta * (sigma / (1.0 - below_one)).sqrt()
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<Moments> {
        let (sigma, next) = self.pair(step_idx);
        let dt = next - sigma;
        let drift = self.diffusion(step_idx).powi(2) / (2.0 * sigma);
        let latents_scale = drift.mul_add(dt, 1.0);
        let velocity_scale = drift.mul_add(1.0 - sigma, 1.0) * dt;
        Ok(Moments {
            mean: ((latents * latents_scale)? + (prediction * velocity_scale)?)?,
            clean: (latents - (prediction * sigma)?)?,
        })
    }
}
