//! The stochastic DDIM transition and its log-density.
//!
//! Song et al., arXiv:2010.02502, Eq. 12 and 16, read as a policy by Black et al. (DDPO, arXiv:2305.13301) and by D3PO and SPO after
//! them:
//!
//! ```text
//! t'   = max(t - T/S, 0)
//! v    = eta² (1 - a_t') / (1 - a_t) (1 - a_t / a_t')
//! mean = sqrt(a_t') x0 + sqrt(1 - a_t' - v) eps          x_t' = mean + sqrt(v) z
//! logp = mean over components of  -(x_t' - mean)² / (2v) - ln sqrt(v) - ln(2π) / 2
//! ```
//!
//! The log-density is a mean over the components, not their sum: the published `beta`s and clip ranges are for this scale. Since t' is not
//! below 0, the last transition leads to the least noisy timestep of the table, as in the published samplers.
//!
//! Shape letters: N transitions, C channels, Y x X spatial.

use diptych_tensor::Tensor;

use crate::Result;
use crate::sampler::SamplerKind;
use crate::schedule::{NoiseSchedule, PredictionType};

/// Transitions of a sampler with a fixed number of steps.
#[derive(Debug, Clone)]
pub(super) struct Transitions {
    timesteps: Vec<f32>,
    /// Signal share before and after each step.
    alphas: Vec<(f64, f64)>,
    /// Standard deviation of each step's noise.
    deviations: Vec<f64>,
    prediction_type: PredictionType,
    clip: Option<f64>,
}

impl Transitions {
    pub(super) fn new(schedule: &NoiseSchedule, num_steps: usize, eta: f64) -> Result<Self> {
        let config = schedule.config();
        let timesteps = SamplerKind::Ddim.prepare(schedule, num_steps)?.timesteps();
        let table = schedule.alphas_cumprod();
        let stride = schedule.num_train_timesteps() / num_steps;
        let alphas: Vec<(f64, f64)> = timesteps
            .iter()
            .map(|&timestep| {
                let timestep = timestep as usize;
                let next = timestep.saturating_sub(stride);
                (f64::from(table[timestep]), f64::from(table[next]))
            })
            .collect();
        let variance = |&(alpha, next): &(f64, f64)| (1.0 - next) / (1.0 - alpha) * (1.0 - alpha / next);
        Ok(Self {
            timesteps,
            deviations: alphas.iter().map(|pair| eta * variance(pair).max(0.0).sqrt()).collect(),
            alphas,
            prediction_type: config.prediction_type,
            clip: config
                .clip_sample
                .unwrap_or(true)
                .then(|| config.clip_sample_range.unwrap_or(1.0)),
        })
    }

    pub(super) fn num_steps(&self) -> usize {
        self.timesteps.len()
    }

    /// What the denoiser is told at a step; 0 behind the last one, where the image is finished.
    pub(super) fn timestep(&self, step: usize) -> f32 {
        self.timesteps.get(step).copied().unwrap_or(0.0)
    }

    /// Whether a step adds noise, so that its transition has a density.
    pub(super) fn is_random(&self, step: usize) -> bool {
        self.deviations[step] > 0.0
    }

    /// The clean latents that N predictions promise, each at a step of its own.
    pub(super) fn clean(&self, prediction: &Tensor, steps: &[usize], latents: &Tensor) -> Result<Tensor> {
        Ok(self.split(prediction, steps, latents)?.0)
    }

    /// Mean of the latents after N transitions, each of a step of its own.
    pub(super) fn mean(&self, prediction: &Tensor, steps: &[usize], latents: &Tensor) -> Result<Tensor> {
        let (clean, noise) = self.split(prediction, steps, latents)?;
        let signal = column(steps, latents, |step| self.alphas[step].1.sqrt())?;
        let direction = column(steps, latents, |step| {
            (1.0 - self.alphas[step].1 - self.deviations[step].powi(2)).max(0.0).sqrt()
        })?;
        Ok(sum(&clean, &signal, &noise, &direction)?)
    }

    /// Latents after N transitions with the standard normal `noise`.
    pub(super) fn sample(&self, mean: &Tensor, steps: &[usize], noise: &Tensor) -> Result<Tensor> {
        let deviation = column(steps, mean, |step| self.deviations[step])?;
        let add = || -> diptych_tensor::Result<Tensor> { Ok((mean + noise.broadcast_mul(&deviation)?)?) };
        Ok(add()?)
    }

    /// Latents with noise as it is at the end of a step.
    pub(super) fn renoise(&self, clean: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        let alpha = self.alphas[step].0;
        let add = || -> diptych_tensor::Result<Tensor> { Ok(((clean * alpha.sqrt())? + (noise * (1.0 - alpha).sqrt())?)?) };
        Ok(add()?)
    }

    /// Log-densities of N stored latents under N transitions, (N,), differentiable by the means.
    pub(super) fn log_densities(&self, latents: &Tensor, mean: &Tensor, steps: &[usize]) -> Result<Tensor> {
        let deviation = column(steps, mean, |step| self.deviations[step])?;
        let constants: Vec<f64> = steps
            .iter()
            .map(|&step| -self.deviations[step].ln() - 0.5 * (2.0 * std::f64::consts::PI).ln())
            .collect();
        let compute = || -> diptych_tensor::Result<Tensor> {
            let score = (latents.detach() - mean)?.broadcast_div(&deviation)?;
            let constants = Tensor::from_vec(constants, steps.len(), mean.device())?.to_dtype(mean.dtype())?;
            Ok(((score.sqr()?.flatten_from(1)?.mean(1)? * -0.5)? + constants)?)
        };
        Ok(compute()?)
    }

    /// Kullback-Leibler divergences of N transitions with these means, a component, (N,).
    pub(super) fn divergences(&self, mean: &Tensor, other: &Tensor, steps: &[usize]) -> Result<Tensor> {
        let deviation = column(steps, mean, |step| self.deviations[step])?;
        let compute = || -> diptych_tensor::Result<Tensor> {
            let score = (mean - other)?.broadcast_div(&deviation)?;
            Ok((score.sqr()?.flatten_from(1)?.mean(1)? * 0.5)?)
        };
        Ok(compute()?)
    }

    /// Clean latents and noise of predictions.
    fn split(&self, prediction: &Tensor, steps: &[usize], latents: &Tensor) -> Result<(Tensor, Tensor)> {
        let signal = column(steps, latents, |step| self.alphas[step].0.sqrt())?;
        let scale = column(steps, latents, |step| (1.0 - self.alphas[step].0).sqrt())?;
        let negative = column(steps, latents, |step| -(1.0 - self.alphas[step].0).sqrt())?;
        let compute = || -> diptych_tensor::Result<(Tensor, Tensor)> {
            let (clean, noise) = match self.prediction_type {
                PredictionType::Epsilon => {
                    let clean = (latents - prediction.broadcast_mul(&scale)?)?.broadcast_div(&signal)?;
                    (clean, prediction.clone())
                }
                PredictionType::Sample => {
                    let noise = (latents - prediction.broadcast_mul(&signal)?)?.broadcast_div(&scale)?;
                    (prediction.clone(), noise)
                }
                PredictionType::VPrediction => (
                    sum(latents, &signal, prediction, &negative)?,
                    sum(prediction, &signal, latents, &scale)?,
                ),
            };
            let clean = match self.clip {
                Some(range) => clean.clamp(-range, range)?,
                None => clean,
            };
            Ok((clean, noise))
        };
        Ok(compute()?)
    }
}

fn sum(a: &Tensor, a_scale: &Tensor, b: &Tensor, b_scale: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((a.broadcast_mul(a_scale)? + b.broadcast_mul(b_scale)?)?)
}

/// One number a transition, shaped to broadcast over `like`.
fn column(steps: &[usize], like: &Tensor, value: impl Fn(usize) -> f64) -> diptych_tensor::Result<Tensor> {
    let values: Vec<f64> = steps.iter().map(|&step| value(step)).collect();
    let mut shape = vec![values.len()];
    shape.resize(like.rank(), 1);
    Ok(Tensor::from_vec(values, shape, like.device())?.to_dtype(like.dtype())?)
}
