//! Timestep, guidance and pooled text as one vector.
//!
//! B batch, D width.

use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

use crate::layers::{Linear, LinearConfig};
use crate::{Builder, Result};

/// Sinusoids of a timestep or another number.
const NUM_SINUSOIDS: usize = 256;
/// Longest period of the sinusoids.
const MAX_PERIOD: f64 = 10_000.0;

/// Cosines and sines of numbers (B,) at `NUM_SINUSOIDS / 2` frequencies: (B, 256) in f32, as diffusers computes them.
fn sinusoids(numbers: &Tensor) -> TensorResult<Tensor> {
    let half = NUM_SINUSOIDS / 2;
    let step = -(MAX_PERIOD.ln() as f32);
    let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * step / half as f32).exp()).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, half), numbers.device())?;
    let angles = numbers
        .to_dtype(DType::F32)?
        .unsqueeze(1)?
        .broadcast_mul(&frequencies)?;
    Ok(Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?)
}

/// diffusers' `Timesteps` with 256 channels and `TimestepEmbedding`.
#[derive(Debug)]
pub(crate) struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    pub(crate) fn load(builder: &Builder<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&builder.child("linear_1"), LinearConfig::new(NUM_SINUSOIDS, dim))?,
            linear_2: Linear::load(&builder.child("linear_2"), LinearConfig::new(dim, dim))?,
        })
    }

    /// (B,) to (B, D) in `dtype`.
    pub(crate) fn forward(&self, numbers: &Tensor, dtype: DType) -> TensorResult<Tensor> {
        let hidden = self.linear_1.forward(&sinusoids(numbers)?.to_dtype(dtype)?)?;
        self.linear_2.forward(&ops::silu(&hidden)?)
    }
}

/// Activation inside a [`TextProjection`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProjectionActivation {
    Silu,
    GeluTanh,
}

/// diffusers' `PixArtAlphaTextProjection`: two linear layers.
#[derive(Debug)]
pub(crate) struct TextProjection {
    linear_1: Linear,
    linear_2: Linear,
    activation: ProjectionActivation,
}

impl TextProjection {
    pub(crate) fn load(
        builder: &Builder<'_>,
        (in_dim, dim): (usize, usize),
        activation: ProjectionActivation,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::load(&builder.child("linear_1"), LinearConfig::new(in_dim, dim))?,
            linear_2: Linear::load(&builder.child("linear_2"), LinearConfig::new(dim, dim))?,
            activation,
        })
    }

    /// (..., in) to (..., D).
    pub(crate) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let hidden = self.linear_1.forward(x)?;
        let hidden = match self.activation {
            ProjectionActivation::Silu => ops::silu(&hidden)?,
            ProjectionActivation::GeluTanh => ops::gelu_tanh(&hidden)?,
        };
        self.linear_2.forward(&hidden)
    }
}

/// diffusers' `CombinedTimestepTextProjEmbeddings`, or with a guidance `CombinedTimestepGuidanceTextProjEmbeddings`.
#[derive(Debug)]
pub(crate) struct CombinedEmbedding {
    timestep: TimestepEmbedding,
    guidance: Option<TimestepEmbedding>,
    text: TextProjection,
}

impl CombinedEmbedding {
    pub(crate) fn load(
        builder: &Builder<'_>,
        (pooled_dim, dim): (usize, usize),
        guidance: Option<&str>,
    ) -> Result<Self> {
        let number = |name: &str| TimestepEmbedding::load(&builder.child(name), dim);
        Ok(Self {
            timestep: number("timestep_embedder")?,
            guidance: guidance.map(number).transpose()?,
            text: TextProjection::load(
                &builder.child("text_embedder"),
                (pooled_dim, dim),
                ProjectionActivation::Silu,
            )?,
        })
    }

    /// Whether a guidance is part of the condition.
    pub(crate) fn has_guidance(&self) -> bool {
        self.guidance.is_some()
    }

    /// Timesteps and guidance (B,), from 0 to 1000, and pooled text (B, P), to (B, D) in the type of the text.
    pub(crate) fn forward(
        &self,
        timesteps: &Tensor,
        guidance: Option<&Tensor>,
        pooled: &Tensor,
    ) -> TensorResult<Tensor> {
        let mut sum = self.timestep.forward(timesteps, pooled.dtype())?;
        if let (Some(embedding), Some(guidance)) = (&self.guidance, guidance) {
            sum = (sum + embedding.forward(guidance, pooled.dtype())?)?;
        }
        Ok((sum + self.text.forward(pooled)?)?)
    }
}
