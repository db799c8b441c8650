//! Ancestral sampling: the reverse of the Markov chain that was trained.
//!
//! Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), Eq. 7, between visited timesteps t and t':
//!
//! ```text
//! b    = 1 - a_t / a_t'
//! mean = sqrt(a_t') b / (1 - a_t) x0 + sqrt(1 - b) (1 - a_t') / (1 - a_t) x_t
//! std  = sqrt(b (1 - a_t') / (1 - a_t)) (fixed_small, fixed_small_log) or sqrt(b) (fixed_large)
//! ```
//!
//! Keys of `scheduler_config.json` mean what they mean to `diffusers.DDPMScheduler`; a missing key takes that class's default.

use diptych_tensor::Tensor;

use super::prediction::{Clipping, Reading, refuse_blind};
use super::spacing;
use super::transition::Moments;
use crate::Result;
use crate::schedule::{DiscreteSchedule, TimestepSpacing, VarianceType};

/// The ancestral sampler for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Ddpm {
    timesteps: Vec<f32>,
    steps: Vec<Step>,
    reading: Reading,
}

/// Coefficients of one step.
#[derive(Debug, Clone, Copy)]
struct Step {
    /// Signal share at the step's timestep.
    alpha: f64,
    clean: f64,
    latents: f64,
    std: f64,
}

impl Ddpm {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`](crate::Error::Steps) for a number of steps the table cannot serve;
    /// [`Error::Sampler`](crate::Error::Sampler) for a variance that is not implemented, or when the network predicts noise
    /// and a visited timestep has no signal.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        config.obstacles.ddpm.refuse("ddpm", &config.file)?;
        let timesteps: Vec<u32> = spacing::timesteps(config, num_steps, TimestepSpacing::Leading)?
            .into_iter()
            .map(|timestep| timestep.round_ties_even() as u32)
            .collect();
        let table = schedule.alphas_cumprod();
        let variance_type = config.variance_type.unwrap_or(VarianceType::FixedSmall);
        let steps: Vec<Step> = timesteps
            .iter()
            .enumerate()
            .map(|(i, &timestep)| {
                let next = timesteps
                    .get(i + 1)
                    .map_or(1.0, |&next| f64::from(table[next as usize]));
                Step::new(timestep, f64::from(table[timestep as usize]), next, variance_type)
            })
            .collect();
        refuse_blind("ddpm", schedule, steps.iter().map(|step| step.alpha))?;
        Ok(Self {
            timesteps: timesteps.into_iter().map(|timestep| timestep as f32).collect(),
            steps,
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
        self.steps[step_idx].std
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
    ) -> diptych_tensor::Result<Moments> {
        let step = self.steps[step_idx];
        let (clean, _) = self.reading.split(prediction, latents, step.alpha)?;
        Ok(Moments {
            mean: ((&clean * step.clean)? + (latents * step.latents)?)?,
            clean,
        })
    }
}

impl Step {
    fn new(timestep: u32, alpha: f64, next: f64, variance_type: VarianceType) -> Self {
        let beta = 1.0 - alpha / next;
        let variance = match variance_type {
            VarianceType::FixedSmall | VarianceType::FixedSmallLog => beta * (1.0 - next) / (1.0 - alpha),
            VarianceType::FixedLarge => beta,
        };
        Self {
            alpha,
            clean: next.sqrt() * beta / (1.0 - alpha),
            latents: (1.0 - beta).sqrt() * (1.0 - next) / (1.0 - alpha),
            // Timestep 0 is the last of the chain: no noise is added there.
            std: if timestep > 0 { variance.max(0.0).sqrt() } else { 0.0 },
        }
    }
}
