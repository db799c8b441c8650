//! The noise that leads to an image under the policy itself, found by inversion.
//!
//! Lu et al., arXiv:2506.02698 (`SmPO`-Diffusion): in place of a draw, the noise of an image is `(x_t - √a_t x_0) / √(1 - a_t)` with `x_t` from DDIM
//! inversion, whose every step is averaged as in `ReNoise`, without guidance.
//!
//! Each example is inverted to its own noise level: the drawn timestep rounded up to the inversion's grid, so that latents, noise and
//! timestep belong together at any batch size. The released code (JaydenLyh/SmPO `train.py`) stops at the last timestep of the grid below the drawn one and takes the latents for
//! those of the drawn one, and the timestep of its batch's first example for all.
//!
//! Shape letters: N images, C channels, Y x X spatial.

use diptych_tensor::Tensor;

use super::config::InversionConfig;
use crate::inversion::Inversion;
use crate::pipeline::{Conditioning, Denoiser};
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// Inversion to a timestep of its grid.
#[derive(Debug, Clone)]
pub(crate) struct InvertedNoise {
    inversion: Inversion,
    num_renoise: usize,
}

impl InvertedNoise {
    /// # Errors
    /// [`Error::Recipe`] for no step; [`Inversion::new`].
    pub(crate) fn new(schedule: &NoiseSchedule, config: InversionConfig) -> Result<Self> {
        if config.steps == 0 {
            return Err(Error::Recipe {
                key: "method.offline_pairs.noise.inverted.steps".into(),
                problem: "is 0".into(),
                hint: "expected at least 1".into(),
            });
        }
        Ok(Self {
            inversion: Inversion::new(schedule, config.steps)?,
            num_renoise: config.num_renoise,
        })
    }

    /// Timesteps of the grid at or above the drawn ones; its noisiest where a draw lies beyond.
    pub(super) fn rounded(&self, timesteps: &[f32]) -> Vec<f32> {
        let grid = self.inversion.timesteps();
        timesteps
            .iter()
            .map(|&timestep| {
                let above = grid.partition_point(|&of_grid| of_grid < timestep);
                grid[above.min(grid.len() - 1)]
            })
            .collect()
    }

    /// Noise of N images at timesteps of the grid, (N, C, Y, X), without a graph.
    pub(super) fn of(
        &self,
        denoiser: &Denoiser,
        latents: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
    ) -> Result<Tensor> {
        // A bound between two timesteps of the grid: the example's own is the last below it.
        let until: Vec<f32> = timesteps.iter().map(|timestep| timestep + 0.25).collect();
        let predict = |latents: &Tensor, timestep: f32, rows: &[usize]| {
            let prediction = denoiser.predict(latents, &vec![timestep; rows.len()], &conditioning.gather(rows)?)?;
            Ok(as_latents(&prediction, latents)?)
        };
        let inverted = self.inversion.invert(latents, &until, self.num_renoise, predict)?;
        let schedule = denoiser.schedule();
        let (zeros, ones) = constants(latents)?;
        let signal = schedule.add_noise(latents, &zeros, timesteps)?;
        let noise_scale = schedule.add_noise(&zeros, &ones, timesteps)?;
        Ok(quotient(&inverted.latents, &signal, &noise_scale)?)
    }
}

/// A prediction without its graph, in the type of the latents.
fn as_latents(prediction: &Tensor, latents: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok(prediction.detach().to_dtype(latents.dtype())?)
}

fn constants(like: &Tensor) -> diptych_tensor::Result<(Tensor, Tensor)> {
    Ok((like.zeros_like()?, like.ones_like()?))
}

fn quotient(noisy: &Tensor, signal: &Tensor, noise_scale: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok(((noisy - signal)? / noise_scale)?.detach())
}
