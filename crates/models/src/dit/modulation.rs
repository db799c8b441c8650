//! Norms whose scale and shift come from the condition.
//!
//! B batch, T tokens, D width.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::EPS;
use crate::layers::{Linear, LinearConfig};
use crate::{Builder, Result};

/// A layer norm without parameters.
#[derive(Debug)]
pub(crate) struct PlainNorm {
    ones: Tensor,
    zeros: Tensor,
}

impl PlainNorm {
    pub(crate) fn new(builder: &Builder<'_>, dim: usize) -> Result<Self> {
        let (dtype, device) = (builder.dtype(), builder.device());
        Ok(Self {
            ones: Tensor::ones(dim, dtype, device).map_err(diptych_tensor::Error::from)?,
            zeros: Tensor::zeros(dim, dtype, device).map_err(diptych_tensor::Error::from)?,
        })
    }

    /// (..., D), unchanged.
    pub(crate) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let dtype = x.dtype();
        ops::layer_norm(x, &self.ones.to_dtype(dtype)?, &self.zeros.to_dtype(dtype)?, EPS)
    }
}

/// `x (1 + scale) + shift`, with x (B, T, D) and the others (B, 1, D).
pub(crate) fn modulated(x: &Tensor, shift: &Tensor, scale: &Tensor) -> TensorResult<Tensor> {
    Ok(x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)?)
}

/// A linear layer from the condition to N vectors of the stream's width: the shifts, scales and gates of diffusers'
/// `AdaLayerNormZero` (6 of them), `SD35AdaLayerNormZeroX` (9) and `AdaLayerNormZeroSingle` (3).
#[derive(Debug)]
pub(crate) struct Modulation<const N: usize> {
    linear: Linear,
    dim: usize,
}

impl<const N: usize> Modulation<N> {
    /// The layer `linear` below the builder's place.
    pub(crate) fn load(builder: &Builder<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            linear: Linear::load(&builder.child("linear"), LinearConfig::new(dim, N * dim))?,
            dim,
        })
    }

    /// `SiLU` of the condition, (B, D), to N of (B, 1, D).
    pub(crate) fn forward(&self, condition_silu: &Tensor) -> TensorResult<[Tensor; N]> {
        let all = self.linear.forward(condition_silu)?.unsqueeze(1)?;
        let mut parts = Vec::with_capacity(N);
        for i in 0..N {
            parts.push(all.narrow(2, i * self.dim, self.dim)?);
        }
        Ok(parts.try_into().expect("N parts were pushed"))
    }
}

/// diffusers' `AdaLayerNormContinuous` around a norm without parameters: the scale comes before the shift.
#[derive(Debug)]
pub(crate) struct AdaLayerNormContinuous {
    modulation: Modulation<2>,
    norm: PlainNorm,
}

impl AdaLayerNormContinuous {
    pub(crate) fn load(builder: &Builder<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            modulation: Modulation::load(builder, dim)?,
            norm: PlainNorm::new(builder, dim)?,
        })
    }

    /// (B, T, D) and (B, D), to (B, T, D).
    pub(crate) fn forward(&self, x: &Tensor, condition_silu: &Tensor) -> TensorResult<Tensor> {
        let [scale, shift] = self.modulation.forward(condition_silu)?;
        modulated(&self.norm.forward(x)?, &shift, &scale)
    }
}
