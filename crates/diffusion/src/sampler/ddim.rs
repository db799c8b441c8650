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
use crate::schedule::{DiscreteSchedule, PredictionType, TimestepSpacing};
use crate::{Error, Result};

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
    /// [`Error::Steps`] for a number of steps the table cannot serve; [`Error::Sampler`] when the network predicts noise and a
    /// visited timestep has no signal.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
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
        let alphas: Vec<(f64, f64)> = timesteps
            .iter()
            .map(|&timestep| {
                let timestep = timestep as usize;
                let next = timestep
                    .checked_sub(stride)
                    .map_or(final_alpha, |next| f64::from(table[next]));
                (f64::from(table[timestep]), next)
            })
            .collect();
        // Nothing of the image is left there, so that a noise says nothing about it: x0 would be divided by 0.
        let is_blind = |&(alpha, _): &(f64, f64)| alpha <= 0.0;
        if config.prediction_type == PredictionType::Epsilon && alphas.iter().any(is_blind) {
            return Err(Error::Sampler {
                sampler: "ddim",
                file: config.file.clone(),
                key: "rescale_betas_zero_snr".into(),
                found: "true, with `prediction_type` epsilon".into(),
                expected: "false, or `v_prediction` or `sample`; sampler `euler` takes it as it is".into(),
            });
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SchedulerConfig;

    /// It used to sample NaN.
    #[test]
    fn noise_predicted_without_signal_is_refused() {
        let schedule = |prediction: &str, spacing: &str| {
            let json = serde_json::json!({
                "prediction_type": prediction, "timestep_spacing": spacing, "rescale_betas_zero_snr": true,
            });
            DiscreteSchedule::new(SchedulerConfig::from_value("scheduler_config.json".into(), &json).unwrap())
        };
        let error = Ddim::new(&schedule("epsilon", "trailing"), 10).unwrap_err();
        assert!(
            error.is_configuration() && error.to_string().contains("rescale_betas_zero_snr"),
            "{error}"
        );
        for (prediction, spacing) in [
            ("v_prediction", "trailing"),
            ("sample", "trailing"),
            ("epsilon", "leading"),
        ] {
            Ddim::new(&schedule(prediction, spacing), 10).unwrap();
        }
    }
}
