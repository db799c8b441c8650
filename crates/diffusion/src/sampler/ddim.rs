//! DDIM, deterministic (eta 0) or with fresh noise in every step.
//!
//! Song et al., "Denoising Diffusion Implicit Models" (arXiv:2010.02502), Eq. 12 and Eq. 16:
//!
//! ```text
//! x0   = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)
//! std  = eta sqrt((1 - a_t') / (1 - a_t)) sqrt(1 - a_t / a_t')
//! mean = sqrt(a_t') x0 + sqrt(1 - a_t' - std^2) eps
//! ```
//!
//! Keys of `scheduler_config.json` mean what they mean to `diffusers.DDIMScheduler`; a missing key takes that class's default.

use diptych_tensor::Tensor;

use super::prediction::{Clipping, Reading, refuse_blind};
use super::spacing;
use super::transition::Moments;
use crate::Result;
use crate::schedule::{DiscreteSchedule, TimestepSpacing};

/// The signal share that the last step reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FinalLevel {
    /// What `set_alpha_to_one` says: none of the noise left, or that of timestep 0.
    #[default]
    Schedule,
    /// That of timestep 0, whatever the schedule says: the published code of DDPO, D3PO and SPO, whose last step so keeps a
    /// density.
    FirstTimestep,
}

/// The DDIM sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Ddim {
    timesteps: Vec<f32>,
    /// Signal share at each visited timestep and at the one after it.
    alphas: Vec<(f64, f64)>,
    eta: f64,
    reading: Reading,
}

impl Ddim {
    /// Prepares `num_steps` steps; `eta` is 0 to 1.
    ///
    /// # Errors
    /// [`Error::Steps`](crate::Error::Steps) for a number of steps the table cannot serve;
    /// [`Error::Sampler`](crate::Error::Sampler) when the network predicts noise and a visited timestep has no signal.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize, eta: f64, final_level: FinalLevel) -> Result<Self> {
        let config = schedule.config();
        let timesteps: Vec<u32> = spacing::timesteps(config, num_steps, TimestepSpacing::Leading)?
            .into_iter()
            .map(|timestep| timestep.round_ties_even() as u32)
            .collect();
        let table = schedule.alphas_cumprod();
        let ends_clean = config.set_alpha_to_one.unwrap_or(true) && final_level == FinalLevel::Schedule;
        let final_alpha = if ends_clean { 1.0 } else { f64::from(table[0]) };
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
        refuse_blind("ddim", schedule, alphas.iter().map(|&(alpha, _)| alpha))?;
        Ok(Self {
            timesteps: timesteps.into_iter().map(|timestep| timestep as f32).collect(),
            alphas,
            eta,
            reading: Reading::new(schedule, Clipping::On),
        })
    }

    /// Timesteps given to the denoiser, noisiest first.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Standard deviation of the fresh noise of a step.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn std(&self, step_idx: usize) -> f64 {
        let (alpha, next) = self.alphas[step_idx];
        // Below 0 by rounding only, where the last step stays at the timestep it is at.
        let variance = ((1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next)).max(0.0);
        self.eta * variance.sqrt()
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<Moments> {
        let (alpha, next) = self.alphas[step_idx];
        let (clean, noise) = self.reading.split(prediction, latents, alpha)?;
        let direction = (1.0 - next - self.std(step_idx).powi(2)).max(0.0).sqrt();
        Ok(Moments {
            mean: ((&clean * next.sqrt())? + (noise * direction)?)?,
            clean,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::SchedulerConfig;

    fn schedule(json: &serde_json::Value) -> DiscreteSchedule {
        DiscreteSchedule::new(SchedulerConfig::from_value("scheduler_config.json".as_ref(), json).unwrap())
    }

    /// It used to sample NaN.
    #[test]
    fn noise_predicted_without_signal_is_refused() {
        let ddim = |prediction: &str, spacing: &str| {
            let json = serde_json::json!({
                "prediction_type": prediction, "timestep_spacing": spacing, "rescale_betas_zero_snr": true,
            });
            Ddim::new(&schedule(&json), 10, 0.0, FinalLevel::Schedule)
        };
        let error = ddim("epsilon", "trailing").unwrap_err();
        assert!(
            error.is_configuration() && error.to_string().contains("rescale_betas_zero_snr"),
            "{error}"
        );
        for (prediction, spacing) in [
            ("v_prediction", "trailing"),
            ("sample", "trailing"),
            ("epsilon", "leading"),
        ] {
            ddim(prediction, spacing).unwrap();
        }
    }

    #[test]
    fn the_last_step_has_a_density_where_it_ends_at_the_first_timestep() {
        let schedule = schedule(&serde_json::json!({"steps_offset": 1}));
        let last = |level| Ddim::new(&schedule, 10, 1.0, level).unwrap().std(9);
        assert_eq!(last(FinalLevel::Schedule), 0.0);
        assert!(last(FinalLevel::FirstTimestep) > 0.0);
    }
}
