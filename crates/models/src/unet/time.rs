//! Timesteps as vectors: sinusoids through two linear layers.

use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

use super::UNet2DConditionConfig;
use crate::layers::{Linear, LinearConfig};
use crate::{Builder, Result};

/// Longest period of the sinusoids.
const MAX_PERIOD: f64 = 10_000.0;

/// diffusers' `Timesteps` followed by `TimestepEmbedding`.
#[derive(Debug)]
pub(super) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    num_sinusoids: usize,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl TimestepEmbedding {
    pub(super) fn load(builder: &Builder<'_>, config: &UNet2DConditionConfig) -> Result<Self> {
        let num_sinusoids = config.block_out_channels[0];
        let dim = config.time_embedding_dim;
        Ok(Self {
            linear_1: Linear::load(&builder.child("linear_1"), LinearConfig::new(num_sinusoids, dim))?,
            linear_2: Linear::load(&builder.child("linear_2"), LinearConfig::new(dim, dim))?,
            num_sinusoids,
            dim,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        })
    }

    /// Width of the embedding.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// (B,) to (B, D), in `dtype`. The sinusoids are computed in f32, as diffusers does.
    pub(super) fn forward(&self, timesteps: &Tensor, dtype: DType) -> TensorResult<Tensor> {
        let sinusoids = self.sinusoids(timesteps)?.to_dtype(dtype)?;
        self.linear_2.forward(&ops::silu(&self.linear_1.forward(&sinusoids)?)?)
    }

    fn sinusoids(&self, timesteps: &Tensor) -> TensorResult<Tensor> {
        let half = self.num_sinusoids / 2;
        let step = -(MAX_PERIOD.ln() as f32) / (half as f32 - self.freq_shift as f32);
        let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * step).exp()).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), timesteps.device())?;
        let angles = timesteps
            .to_dtype(DType::F32)?
            .unsqueeze(1)?
            .broadcast_mul(&frequencies)?;
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let halves = if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
        let sinusoids = Tensor::cat(&halves, 1)?;
        // An odd width leaves one column, which is zero.
        Ok(sinusoids.pad_with_zeros(1, 0, self.num_sinusoids % 2)?)
    }
}
