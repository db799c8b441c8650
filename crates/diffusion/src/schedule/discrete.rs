//! Diffusion in discrete time: the table of a DDPM.
//!
//! Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239), Eq. 4:
//!
//! ```text
//! noisy_latents = sqrt(alpha_bar[t]) latents + sqrt(1 - alpha_bar[t]) noise
//! ```

use std::path::Path;

use diptych_tensor::Tensor;

use super::betas;
use super::config::{PredictionType, SchedulerConfig};
use super::{per_example, weighted};
use crate::tensors::negated;
use crate::{Error, Result};

/// A discrete-time noise schedule: the training table of a `diffusers` scheduler.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscreteSchedule {
    config: SchedulerConfig,
    alphas_cumprod: Vec<f32>,
}

impl DiscreteSchedule {
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

    /// The file the settings came from.
    pub fn file(&self) -> &Path {
        &self.config.file
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

    /// As [`NoiseSchedule::add_noise`](super::NoiseSchedule::add_noise).
    ///
    /// # Errors
    /// [`Error::Timestep`] for one that is not in the table, [`Error::Shape`] when the counts differ.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[f32]) -> Result<Tensor> {
        let (signal, noise_scale) = self.scales(latents, timesteps)?;
        Ok(weighted(latents, &signal, noise, &noise_scale)?)
    }

    /// As [`NoiseSchedule::target`](super::NoiseSchedule::target).
    ///
    /// # Errors
    /// As [`DiscreteSchedule::add_noise`].
    pub fn target(&self, latents: &Tensor, noise: &Tensor, timesteps: &[f32]) -> Result<Tensor> {
        match self.config.prediction_type {
            PredictionType::Epsilon => Ok(noise.clone()),
            PredictionType::Sample => Ok(latents.clone()),
            PredictionType::VPrediction => {
                let (signal, noise_scale) = self.scales(latents, timesteps)?;
                Ok(weighted(noise, &signal, &negated(latents)?, &noise_scale)?)
            }
        }
    }

    /// Share of signal power left at a timestep.
    ///
    /// # Errors
    /// [`Error::Timestep`] for one that is not in the table.
    pub fn alpha_cumprod(&self, timestep: f32) -> Result<f32> {
        let is_whole = timestep >= 0.0 && timestep.fract() == 0.0;
        let found = is_whole.then(|| self.alphas_cumprod.get(timestep as usize)).flatten();
        found.copied().ok_or_else(|| Error::Timestep {
            found: f64::from(timestep),
            expected: format!("a whole number, 0 to {}", self.alphas_cumprod.len() - 1),
        })
    }

    /// `sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)` of each example, shaped to broadcast over (C, Y, X).
    fn scales(&self, like: &Tensor, timesteps: &[f32]) -> Result<(Tensor, Tensor)> {
        let alphas: Vec<f32> = timesteps
            .iter()
            .map(|&timestep| self.alpha_cumprod(timestep))
            .collect::<Result<_>>()?;
        let signal = alphas.iter().map(|alpha| f64::from(alpha.sqrt())).collect();
        let noise = alphas.iter().map(|alpha| f64::from((1.0 - alpha).sqrt())).collect();
        Ok((per_example(signal, like)?, per_example(noise, like)?))
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::Device;

    use super::*;

    fn schedule(json: &str) -> DiscreteSchedule {
        let value = serde_json::from_str(json).unwrap();
        DiscreteSchedule::new(SchedulerConfig::from_value("scheduler_config.json".as_ref(), &value).unwrap())
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
            .add_noise(&latents, &noise, &[0.0, 500.0])
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
            table.add_noise(&latents, &noise, &[0.0]),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            table.add_noise(&latents, &noise, &[0.0, 1000.0]),
            Err(Error::Timestep { .. })
        ));
        let between = table.add_noise(&latents, &noise, &[0.0, 1.5]).unwrap_err().to_string();
        assert!(between.contains("1.5") && between.contains("whole number"), "{between}");
    }

    /// The noise can be recovered from a velocity: `noise = sqrt(1 - a) x_t + sqrt(a) v`.
    #[test]
    fn velocity_and_noise_agree() {
        let velocity = schedule(r#"{"prediction_type": "v_prediction"}"#);
        let latents = Tensor::new(&[[[[0.3_f32]]]], &Device::Cpu).unwrap();
        let noise = Tensor::new(&[[[[-1.2_f32]]]], &Device::Cpu).unwrap();
        let noisy = velocity.add_noise(&latents, &noise, &[321.0]).unwrap();
        let target = velocity.target(&latents, &noise, &[321.0]).unwrap();
        let alpha = f64::from(velocity.alphas_cumprod()[321]);
        let recovered = ((noisy * (1.0 - alpha).sqrt()).unwrap() + (target * alpha.sqrt()).unwrap()).unwrap();
        let found = recovered.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert!((found + 1.2).abs() < 1e-6, "{found}");
    }
}
