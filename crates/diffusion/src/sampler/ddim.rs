//! DDIM with eta 0: the deterministic sampler.
//!
//! Song et al., "Denoising Diffusion Implicit Models" (arXiv:2010.02502), Eq. 12 with sigma 0:
//!
//! ```text
//! x0   = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)
//! x_t' = sqrt(a_t') x0 + sqrt(1 - a_t') eps
//! ```
//!
//! Keys of `scheduler_config.json` mean what they mean to `diffusers.DDIMScheduler`; a missing key takes that class's default.

use diptych_tensor::Tensor;

use super::spacing;
use crate::Result;
use crate::schedule::{NoiseSchedule, PredictionType, TimestepSpacing};

/// The deterministic DDIM sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Ddim {
    timesteps: Vec<u32>,
    /// Signal share at each visited timestep and at the one after it.
    alphas: Vec<(f64, f64)>,
    prediction_type: PredictionType,
    clip: Option<f64>,
}

impl Ddim {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`crate::Error::Steps`] for a number of steps the table cannot serve.
    pub fn new(schedule: &NoiseSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        let timesteps: Vec<u32> = spacing::timesteps(config, num_steps, TimestepSpacing::Leading)?
            .into_iter()
            .map(|timestep| timestep.round_ties_even() as u32)
            .collect();
        let table = schedule.alphas_cumprod();
        let final_alpha = if config.set_alpha_to_one.unwrap_or(true) {
            1.0
        } else {
            f64::from(table[0])
        };
        let stride = schedule.num_train_timesteps() / num_steps;
        let alphas = timesteps
            .iter()
            .map(|&timestep| {
                let timestep = timestep as usize;
                let next = timestep
                    .checked_sub(stride)
                    .map_or(final_alpha, |next| f64::from(table[next]));
                (f64::from(table[timestep]), next)
            })
            .collect();
        let clip = config
            .clip_sample
            .unwrap_or(true)
            .then(|| config.clip_sample_range.unwrap_or(1.0));
        Ok(Self {
            timesteps,
            alphas,
            prediction_type: config.prediction_type,
            clip,
        })
    }

    /// Timesteps given to the denoiser, noisiest first.
    pub fn timesteps(&self) -> Vec<f32> {
        self.timesteps.iter().map(|&timestep| timestep as f32).collect()
    }

    /// Latents of the next, cleaner timestep.
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
        let (alpha, next_alpha) = self.alphas[step_idx];
        let (signal, noise_scale) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (clean, noise) = match self.prediction_type {
            PredictionType::Epsilon => {
                let clean = ((latents - (prediction * noise_scale)?)? / signal)?;
                (clean, prediction.clone())
            }
            PredictionType::Sample => {
                let noise = ((latents - (prediction * signal)?)? / noise_scale)?;
                (prediction.clone(), noise)
            }
            PredictionType::VPrediction => {
                let clean = ((latents * signal)? - (prediction * noise_scale)?)?;
                let noise = ((prediction * signal)? + (latents * noise_scale)?)?;
                (clean, noise)
            }
        };
        let clean = match self.clip {
            Some(range) => clean.clamp(-range, range)?,
            None => clean,
        };
        Ok(((clean * next_alpha.sqrt())? + (noise * (1.0 - next_alpha).sqrt())?)?)
    }
}
