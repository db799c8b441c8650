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

use super::spacing;
use crate::schedule::{DiscreteSchedule, FinalSigma, PredictionType, TimestepSpacing};
use crate::{Error, Result};

/// Signal share that stands for none in a table rescaled to zero terminal signal, so that the first sigma is finite.
const ALMOST_NO_SIGNAL: f32 = 1.0 / 16_777_216.0;

/// The Euler sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Euler {
    timesteps: Vec<f32>,
    /// One more than `timesteps`: the last is the sigma reached at the end.
    sigmas: Vec<f32>,
    initial_sigma: f64,
    prediction_type: PredictionType,
}

impl Euler {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`] for a number of steps the table cannot serve; [`Error::Sampler`] for an unimplemented variant.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        if let Some((key, found, expected)) = config.euler_obstacle.clone() {
            return Err(Error::Sampler {
                sampler: "euler",
                file: config.file.clone(),
                key,
                found,
                expected,
            });
        }
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
        let timesteps: Vec<f32> = spacing::timesteps(config, num_steps, TimestepSpacing::Linspace)?
            .into_iter()
            .map(|timestep| timestep as f32)
            .collect();
        let table = training_sigmas(schedule);
        let last = match config.final_sigma.unwrap_or(FinalSigma::Zero) {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => table[0] as f32,
        };
        let sigmas: Vec<f32> = timesteps
            .iter()
            .map(|&timestep| interpolate(&table, timestep) as f32)
            .chain([last])
            .collect();
        let max_sigma = sigmas.iter().copied().fold(0.0_f32, f32::max);
        let initial_sigma = match spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => f64::from(max_sigma),
            TimestepSpacing::Leading => f64::from(max_sigma).powi(2).mul_add(1.0, 1.0).sqrt(),
        };
        Ok(Self {
            timesteps,
            sigmas,
            initial_sigma,
            prediction_type: config.prediction_type,
        })
    }

    /// Timesteps given to the denoiser, noisiest first; fractional with linear spacing.
    pub fn timesteps(&self) -> Vec<f32> {
        self.timesteps.clone()
    }

    /// Standard deviation of the latents the first step expects.
    pub fn initial_sigma(&self) -> f64 {
        self.initial_sigma
    }

    /// Latents as the denoiser expects them: divided by `sqrt(1 + sigma^2)`.
    ///
    /// # Errors
    /// Tensor operations.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn scale_input(&self, latents: &Tensor, step_idx: usize) -> diptych_tensor::Result<Tensor> {
        let sigma = f64::from(self.sigmas[step_idx]);
        Ok((latents / sigma.mul_add(sigma, 1.0).sqrt())?)
    }

    /// Latents at the next, smaller sigma.
    ///
    /// # Shape
    /// `prediction`, `latents` and the result are (B, C, Y, X).
    ///
    /// # Errors
    /// Tensor operations.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn step(&self, prediction: &Tensor, step_idx: usize, latents: &Tensor) -> diptych_tensor::Result<Tensor> {
        let (sigma, next) = (f64::from(self.sigmas[step_idx]), f64::from(self.sigmas[step_idx + 1]));
        let derivative = match self.prediction_type {
            // (x - x0) / sigma is the predicted noise itself: no cancellation.
            PredictionType::Epsilon => prediction.clone(),
            PredictionType::Sample => ((latents - prediction)? / sigma)?,
            PredictionType::VPrediction => {
                let power = sigma.mul_add(sigma, 1.0);
                let clean = ((latents / power)? - (prediction * (sigma / power.sqrt()))?)?;
                ((latents - clean)? / sigma)?
            }
        };
        Ok((latents + (derivative * (next - sigma))?)?)
    }
}

fn training_sigmas(schedule: &DiscreteSchedule) -> Vec<f64> {
    let mut alphas = schedule.alphas_cumprod().to_vec();
    if schedule.config().rescale_betas_zero_snr
        && let Some(last) = alphas.last_mut()
    {
        *last = ALMOST_NO_SIGNAL;
    }
    alphas
        .into_iter()
        .map(|alpha| f64::from(((1.0 - alpha) / alpha).sqrt()))
        .collect()
}

/// Linear interpolation in a table indexed by timestep; `timestep` is inside the table.
fn interpolate(table: &[f64], timestep: f32) -> f64 {
    let below = (timestep.floor() as usize).min(table.len() - 1);
    let above = (below + 1).min(table.len() - 1);
    let share = f64::from(timestep) - below as f64;
    table[below] + share * (table[above] - table[below])
}
