//! Timesteps as vectors: sinusoids through two linear layers.

use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

use super::{TextTimeConfig, UNet2DConditionConfig};
use crate::layers::{Linear, LinearConfig};
use crate::{Builder, Result};

/// Longest period of the sinusoids.
const MAX_PERIOD: f64 = 10_000.0;

/// diffusers' `Timesteps`: cosines and sines of numbers at growing periods.
#[derive(Debug, Clone, Copy)]
struct Sinusoids {
    width: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

/// diffusers' `Timesteps` followed by `TimestepEmbedding`.
#[derive(Debug)]
pub(super) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    sinusoids: Sinusoids,
    dim: usize,
}

/// SDXL's added embedding: a text's vector and the sinusoids of sizes and crops, through two linear layers.
#[derive(Debug)]
pub(super) struct TextTimeEmbedding {
    linear_1: Linear,
    linear_2: Linear,
    sinusoids: Sinusoids,
}

impl TimestepEmbedding {
    pub(super) fn load(builder: &Builder<'_>, config: &UNet2DConditionConfig) -> Result<Self> {
        let sinusoids = Sinusoids::new(config.block_out_channels[0], config);
        let dim = config.time_embedding_dim;
        let (linear_1, linear_2) = layers(builder, sinusoids.width, dim)?;
        Ok(Self {
            linear_1,
            linear_2,
            sinusoids,
            dim,
        })
    }

    /// Width of the embedding.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// (B,) to (B, D), in `dtype`. The sinusoids are computed in f32, as diffusers does.
    pub(super) fn forward(&self, timesteps: &Tensor, dtype: DType) -> TensorResult<Tensor> {
        let sinusoids = self.sinusoids.of(timesteps)?.to_dtype(dtype)?;
        self.linear_2.forward(&ops::silu(&self.linear_1.forward(&sinusoids)?)?)
    }
}

impl TextTimeEmbedding {
    pub(super) fn load(builder: &Builder<'_>, config: &UNet2DConditionConfig, added: TextTimeConfig) -> Result<Self> {
        let inputs = added.projection_class_embeddings_input_dim;
        let (linear_1, linear_2) = layers(builder, inputs, config.time_embedding_dim)?;
        Ok(Self {
            linear_1,
            linear_2,
            sinusoids: Sinusoids::new(added.addition_time_embed_dim, config),
        })
    }

    /// (B, P) and (B, N) to (B, D), in `dtype`.
    pub(super) fn forward(&self, text_embeds: &Tensor, time_ids: &Tensor, dtype: DType) -> TensorResult<Tensor> {
        let (batch, numbers) = time_ids.dims2()?;
        let sinusoids = self.sinusoids.of(&time_ids.flatten_all()?)?;
        let sinusoids = sinusoids.reshape((batch, numbers * self.sinusoids.width))?;
        let input = Tensor::cat(&[&text_embeds.to_dtype(DType::F32)?, &sinusoids], 1)?.to_dtype(dtype)?;
        self.linear_2.forward(&ops::silu(&self.linear_1.forward(&input)?)?)
    }
}

fn layers(builder: &Builder<'_>, from: usize, dim: usize) -> Result<(Linear, Linear)> {
    Ok((
        Linear::load(&builder.child("linear_1"), LinearConfig::new(from, dim))?,
        Linear::load(&builder.child("linear_2"), LinearConfig::new(dim, dim))?,
    ))
}

impl Sinusoids {
    fn new(width: usize, config: &UNet2DConditionConfig) -> Self {
        Self {
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// (N,) to (N, width), in f32.
    fn of(self, numbers: &Tensor) -> TensorResult<Tensor> {
        let half = self.width / 2;
        let step = -(MAX_PERIOD.ln() as f32) / (half as f32 - self.freq_shift as f32);
        let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * step).exp()).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), numbers.device())?;
        let angles = numbers
            .to_dtype(DType::F32)?
            .unsqueeze(1)?
            .broadcast_mul(&frequencies)?;
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let halves = if self.flip_sin_to_cos { [cos, sin] } else { [sin, cos] };
        let sinusoids = Tensor::cat(&halves, 1)?;
        // An odd width leaves one column, which is zero.
        Ok(sinusoids.pad_with_zeros(1, 0, self.width % 2)?)
    }
}
