//! The weight of a linear layer: a tensor, or frozen and in few bits.

use std::sync::Arc;

use diptych_tensor::{QuantizedMatrix, Result as TensorResult, Tensor, ops};

/// The weight of a linear layer, (out, in).
#[derive(Debug, Clone)]
pub(crate) enum LinearWeight {
    Dense(Tensor),
    /// Frozen.
    Quantized(Arc<QuantizedMatrix>),
}

impl LinearWeight {
    /// Widths out and in.
    pub(crate) fn dims(&self) -> TensorResult<(usize, usize)> {
        match self {
            Self::Dense(weight) => Ok(weight.dims2()?),
            Self::Quantized(weight) => Ok((weight.rows(), weight.cols())),
        }
    }

    /// All of it as a tensor: of a quantized one a new one, in f32.
    pub(crate) fn dense(&self) -> TensorResult<Tensor> {
        match self {
            Self::Dense(weight) => Ok(weight.clone()),
            Self::Quantized(weight) => weight.dequantize(),
        }
    }

    /// `x weight^T + bias`, in the type of `x`: (..., in) to (..., out).
    pub(crate) fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> TensorResult<Tensor> {
        match self {
            Self::Dense(weight) => ops::linear(x, &weight.to_dtype(x.dtype())?, bias),
            Self::Quantized(weight) => ops::quantized_linear(x, weight, bias),
        }
    }
}
