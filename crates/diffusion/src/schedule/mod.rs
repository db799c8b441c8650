//! The forward process: how much noise each timestep adds, and what the denoiser should answer.
//!
//! Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), Eq. 4:
//!
//! ```text
//! noisy_latents = sqrt(alpha_bar[t]) latents + sqrt(1 - alpha_bar[t]) noise
//! ```
//!
//! Timesteps are per example: every row of a batch has its own.

mod betas;
mod config;

use std::path::Path;

use diptych_tensor::Tensor;

pub use config::{BetaSchedule, FinalSigma, PredictionType, SCHEDULER_CONFIG_FILE, SchedulerConfig, TimestepSpacing};

use crate::tensors::negated;
use crate::{Error, Result};

/// A discrete-time noise schedule: the training table of a `diffusers` scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f32>,
}

impl NoiseSchedule {
    /// Builds the table.
    pub fn new(config: SchedulerConfig) -> Self {
        let alphas_cumprod = betas::alphas_cumprod(&betas::betas(&config));
        Self { config, alphas_cumprod }
    }

    /// Reads `scheduler_config.json`; `path` is the file or its folder.
    ///
    /// # Errors
    /// As [`SchedulerConfig::read`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::new(SchedulerConfig::read(path)?))
    }

    /// The settings the table was built from.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Share of signal power left at each timestep, `alpha_bar`, `num_train_timesteps` values from almost 1 to almost 0.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// Number of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// What the denoiser predicts.
    pub fn prediction_type(&self) -> PredictionType {
        self.config.prediction_type
    }

    /// Latents with the noise of their timesteps added.
    ///
    /// # Shape
    /// `latents`, `noise` and the result are (B, C, Y, X) of one floating type; `timesteps` has B entries.
    ///
    /// # Errors
    /// [`Error::Timestep`] beyond the table, [`Error::Shape`] when the counts differ.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        let (signal, noise_scale) = self.scales(latents, timesteps)?;
        Ok(weighted(latents, &signal, noise, &noise_scale)?)
    }

    /// What the denoiser should answer to `add_noise(latents, noise, timesteps)`.
    ///
    /// # Shape
    /// As [`NoiseSchedule::add_noise`].
    ///
    /// # Errors
    /// As [`NoiseSchedule::add_noise`].
    pub fn target(&self, latents: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(noise.clone()),
            PredictionType::Sample => Ok(latents.clone()),
            PredictionType::VPrediction => {
                let (signal, noise_scale) = self.scales(latents, timesteps)?;
                Ok(weighted(noise, &signal, &negated(latents)?, &noise_scale)?)
            }
        }
    }

    /// `sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)` of each example, shaped to broadcast over (C, Y, X).
    fn scales(&self, like: &Tensor, timesteps: &[u32]) -> Result<(Tensor, Tensor)> {
        let batch = like.dims().first().copied().unwrap_or(0);
        if timesteps.len() != batch {
            return Err(Error::Shape {
                name: "timesteps".into(),
                found: vec![timesteps.len()],
                expected: vec![batch],
            });
        }
        let mut signal = Vec::with_capacity(batch);
        let mut noise = Vec::with_capacity(batch);
        for &timestep in timesteps {
            let alpha = self.alpha_cumprod(timestep as usize)?;
            signal.push(alpha.sqrt());
            noise.push((1.0 - alpha).sqrt());
        }
        Ok((per_example(signal, like)?, per_example(noise, like)?))
    }

    fn alpha_cumprod(&self, timestep: usize) -> Result<f32> {
        self.alphas_cumprod.get(timestep).copied().ok_or(Error::Timestep {
            found: timestep,
            num_train_timesteps: self.alphas_cumprod.len(),
        })
    }
}

/// One number an example, shaped to broadcast over the other dimensions of `like`.
fn per_example(values: Vec<f32>, like: &Tensor) -> diptych_tensor::Result<Tensor> {
    let mut shape = vec![values.len()];
    shape.resize(like.rank(), 1);
    Ok(Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())?)
}

fn weighted(a: &Tensor, a_scale: &Tensor, b: &Tensor, b_scale: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((a.broadcast_mul(a_scale)? + b.broadcast_mul(b_scale)?)?)
}

#[cfg(test)]
mod tests {
    use diptych_tensor::Device;

    use super::*;

    fn schedule(json: &str) -> NoiseSchedule {
        let value = serde_json::from_str(json).unwrap();
        NoiseSchedule::new(SchedulerConfig::from_value("scheduler_config.json".into(), &value).unwrap())
    }

    const STABLE_DIFFUSION: &str = r#"{"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}"#;

    /// Values of `DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)`.
    #[test]
    fn table_of_stable_diffusion() {
        let table = schedule(STABLE_DIFFUSION);
        for (timestep, expected) in [(0, 0.99915_f32), (500, 0.276_332_68), (999, 0.004_660_10)] {
            let found = table.alphas_cumprod()[timestep];
            assert!((found - expected).abs() < 1e-6, "{timestep}: {found}");
        }
    }

    #[test]
    fn timesteps_are_per_example() {
        let table = schedule(STABLE_DIFFUSION);
        let latents = Tensor::new(&[[[[1.0_f32]]], [[[1.0]]]], &Device::Cpu).unwrap();
        let noise = Tensor::new(&[[[[1.0_f32]]], [[[-1.0]]]], &Device::Cpu).unwrap();
        let noisy = table
            .add_noise(&latents, &noise, &[0, 500])
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let expected = [
            0.99915_f32.sqrt() + 0.00085_f32.sqrt(),
            0.276_332_68_f32.sqrt() - 0.723_667_3_f32.sqrt(),
        ];
        for (found, expected) in noisy.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        assert!(matches!(
            table.add_noise(&latents, &noise, &[0]),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            table.add_noise(&latents, &noise, &[0, 1000]),
            Err(Error::Timestep { found: 1000, .. })
        ));
    }

    /// The noise can be recovered from a velocity: `noise = sqrt(1 - a) x_t + sqrt(a) v`.
    #[test]
    fn velocity_and_noise_agree() {
        let velocity = schedule(r#"{"prediction_type": "v_prediction"}"#);
        let latents = Tensor::new(&[[[[0.3_f32]]]], &Device::Cpu).unwrap();
        let noise = Tensor::new(&[[[[-1.2_f32]]]], &Device::Cpu).unwrap();
        let noisy = velocity.add_noise(&latents, &noise, &[321]).unwrap();
        let target = velocity.target(&latents, &noise, &[321]).unwrap();
        let alpha = f64::from(velocity.alphas_cumprod()[321]);
        let recovered = ((noisy * (1.0 - alpha).sqrt()).unwrap() + (target * alpha.sqrt()).unwrap()).unwrap();
        let found = recovered.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((found + 1.2).abs() < 1e-6, "{found}");
    }
}
