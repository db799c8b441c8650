//! Noise levels in the variance-exploding parameterization: `sigma = sqrt((1 - a) / a)`, latents `x0 + sigma noise`.

use diptych_tensor::Tensor;

use crate::schedule::{DiscreteSchedule, PredictionType, TimestepSpacing};

/// Signal share that stands for none in a table rescaled to zero terminal signal, so that the first sigma is finite.
const ALMOST_NO_SIGNAL: f32 = 1.0 / 16_777_216.0;

/// Sigmas of the training table.
pub(super) fn training_sigmas(schedule: &DiscreteSchedule) -> Vec<f64> {
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
pub(super) fn interpolate(table: &[f64], timestep: f32) -> f64 {
    let below = (timestep.floor() as usize).min(table.len() - 1);
    let above = (below + 1).min(table.len() - 1);
    let share = f64::from(timestep) - below as f64;
    table[below] + share * (table[above] - table[below])
}

/// Levels that a sampler visits: one sigma more than timesteps, the last is the one reached at the end.
#[derive(Debug, Clone)]
pub(super) struct Levels {
    pub(super) timesteps: Vec<f32>,
    pub(super) sigmas: Vec<f32>,
    pub(super) initial_sigma: f64,
    prediction_type: PredictionType,
}

impl Levels {
    pub(super) fn new(
        schedule: &DiscreteSchedule,
        timesteps: Vec<f32>,
        spacing: TimestepSpacing,
        last: f32,
        table: &[f64],
    ) -> Self {
        let sigmas: Vec<f32> = timesteps
            .iter()
            .map(|&timestep| interpolate(table, timestep) as f32)
            .chain([last])
            .collect();
        let max_sigma = sigmas.iter().copied().fold(0.0_f32, f32::max);
        let initial_sigma = match spacing {
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => f64::from(max_sigma),
            TimestepSpacing::Leading => f64::from(max_sigma).powi(2).mul_add(1.0, 1.0).sqrt(),
        };
        Self {
            timesteps,
            sigmas,
            initial_sigma,
            prediction_type: schedule.prediction_type(),
        }
    }

    /// The sigma of a step and of the next one.
    pub(super) fn pair(&self, step_idx: usize) -> (f64, f64) {
        (f64::from(self.sigmas[step_idx]), f64::from(self.sigmas[step_idx + 1]))
    }

    /// Latents as the denoiser expects them: divided by `sqrt(1 + sigma^2)`.
    pub(super) fn scale_input(&self, latents: &Tensor, step_idx: usize) -> diptych_tensor::Result<Tensor> {
        let (sigma, _) = self.pair(step_idx);
        Ok((latents / sigma.mul_add(sigma, 1.0).sqrt())?)
    }

    /// The predicted noise, `(x - x0) / sigma`, and the clean latents.
    pub(super) fn split(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<(Tensor, Tensor)> {
        let (sigma, _) = self.pair(step_idx);
        Ok(match self.prediction_type {
            // The predicted noise itself: no cancellation.
            PredictionType::Epsilon => (prediction.clone(), (latents - (prediction * sigma)?)?),
            PredictionType::Sample => (((latents - prediction)? / sigma)?, prediction.clone()),
            PredictionType::VPrediction => {
                let power = sigma.mul_add(sigma, 1.0);
                let clean = ((latents / power)? - (prediction * (sigma / power.sqrt()))?)?;
                (((latents - &clean)? / sigma)?, clean)
            }
        })
    }
}
