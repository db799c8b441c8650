//! Multistep sampling of a latent consistency model.
//!
//! Luo et al., "Latent Consistency Models" (arXiv:2310.04378), Algorithm 3 with the boundary condition of section 4.1:
//!
//! ```text
//! c_skip = 1 / (4 s^2 + 1),  c_out = s / sqrt(s^2 + 1/4),  s = timestep_scaling t
//! f      = c_out x0 + c_skip x_t
//! x_t'   = sqrt(a_t') f + sqrt(1 - a_t') noise;  f itself in the last step
//! ```
//!
//! Timesteps are a subset of the `original_inference_steps` that the model was distilled on. Keys of `scheduler_config.json`
//! mean what they mean to `diffusers.LCMScheduler`; a missing key takes that class's default.

use diptych_tensor::Tensor;

use super::prediction::{Clipping, Reading, refuse_blind};
use super::transition::Moments;
use crate::schedule::DiscreteSchedule;
use crate::{Error, Result};

/// Standard deviation of the data in the boundary condition.
const SIGMA_DATA: f64 = 0.5;

/// The consistency sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Lcm {
    timesteps: Vec<f32>,
    /// Signal share at each visited timestep and, but for the last, at the next one.
    alphas: Vec<(f64, Option<f64>)>,
    boundary: Boundary,
    reading: Reading,
}

/// The boundary condition: how much of the clean latents and how much of the noisy ones a consistency function takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boundary {
    timestep_scaling: f64,
}

impl Boundary {
    /// As the schedule's `timestep_scaling` says, 10 by default.
    pub(crate) fn of(schedule: &DiscreteSchedule) -> Self {
        Self {
            timestep_scaling: schedule.config().timestep_scaling.unwrap_or(10.0),
        }
    }

    /// `c_skip` and `c_out` at a timestep.
    pub(crate) fn scales(self, timestep: f64) -> (f64, f64) {
        let scaled = timestep * self.timestep_scaling;
        let sum = scaled.mul_add(scaled, SIGMA_DATA * SIGMA_DATA);
        (SIGMA_DATA * SIGMA_DATA / sum, scaled / sum.sqrt())
    }
}

/// Timesteps that a model is distilled on where `scheduler_config.json` does not say.
pub(crate) const ORIGINAL_STEPS: usize = 50;

impl Lcm {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`] for 0 steps; [`Error::Sampler`] for more than the model was distilled on, or when the network
    /// predicts noise and a visited timestep has no signal.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let timesteps = timesteps(schedule, num_steps)?;
        let table = schedule.alphas_cumprod();
        let alpha = |timestep: usize| f64::from(table[timestep]);
        let alphas: Vec<(f64, Option<f64>)> = timesteps
            .iter()
            .enumerate()
            .map(|(i, &timestep)| (alpha(timestep), timesteps.get(i + 1).map(|&next| alpha(next))))
            .collect();
        refuse_blind("lcm", schedule, alphas.iter().map(|&(alpha, _)| alpha))?;
        Ok(Self {
            timesteps: timesteps.into_iter().map(|timestep| timestep as f32).collect(),
            alphas,
            boundary: Boundary::of(schedule),
            reading: Reading::new(schedule, Clipping::Off),
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
        self.alphas[step_idx].1.map_or(0.0, |next| (1.0 - next).sqrt())
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<Moments> {
        let (alpha, next) = self.alphas[step_idx];
        let (clean, _) = self.reading.split(prediction, latents, alpha)?;
        let (skip, out) = self.boundary.scales(f64::from(self.timesteps[step_idx]));
        let clean = ((clean * out)? + (latents * skip)?)?;
        Ok(Moments {
            mean: (&clean * next.unwrap_or(1.0).sqrt())?,
            clean,
        })
    }
}

fn timesteps(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Vec<usize>> {
    let config = schedule.config();
    let num_train = schedule.num_train_timesteps();
    let original = config.original_inference_steps.unwrap_or(ORIGINAL_STEPS);
    if num_steps == 0 {
        return Err(Error::Steps {
            found: num_steps,
            num_train_timesteps: original,
        });
    }
    if num_steps > original || original > num_train {
        return Err(Error::Sampler {
            sampler: "lcm",
            file: config.file.clone(),
            key: "original_inference_steps".into(),
            found: original.to_string(),
            expected: format!("at least the {num_steps} sampling steps and at most {num_train}"),
        });
    }
    let stride = num_train / original;
    // The distilled timesteps are stride - 1, 2 stride - 1, …; evenly spread places among them, from the noisiest.
    let place = |i: usize| (i as f64 * (original as f64 / num_steps as f64)).floor() as usize;
    Ok((0..num_steps).map(|i| (original - place(i)) * stride - 1).collect())
}
