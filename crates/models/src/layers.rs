//! The layers that networks are made of. Linear and convolution layers may carry a LoRA adapter.
//!
//! Every layer casts its parameters to the type of its input; for parameters already of that type this costs nothing.

use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

use crate::linear_weight::LinearWeight;
use crate::{AdapterSwitch, Builder, Init, Result};

/// A low-rank update `scale B A` beside a frozen layer.
#[derive(Debug)]
pub(crate) struct Lora {
    /// `A`: (rank, in) or (rank, in, ky, kx).
    pub(crate) a: Tensor,
    /// `B`: (out, rank) or (out, rank, 1, 1).
    pub(crate) b: Tensor,
    /// `alpha / rank`, or `alpha / sqrt(rank)` where it is rank-stabilized.
    pub(crate) scale: f64,
    /// The length of each row of the adapted weight, (out), where it is trained by itself.
    pub(crate) magnitude: Option<Tensor>,
    pub(crate) switch: AdapterSwitch,
}

impl Lora {
    /// The update at the rank's width: `scale A x`. Scaling here is cheaper than behind `B`.
    fn scaled(&self, ax: &Tensor) -> TensorResult<Tensor> {
        if self.scale == 1.0 {
            Ok(ax.clone())
        } else {
            Ok((ax * self.scale)?)
        }
    }

    /// What each row of the sum of `weight` and the update is multiplied by, (out): its magnitude over its length, which is a
    /// constant in the backward pass. `None` where lengths are not trained by themselves.
    fn row_factors(&self, weight: &LinearWeight) -> TensorResult<Option<Tensor>> {
        let Some(magnitude) = &self.magnitude else {
            return Ok(None);
        };
        let lengths = row_lengths(&weight.dense()?, (&self.a, &self.b), self.scale)?;
        Ok(Some((magnitude / lengths)?))
    }
}

/// The length of each row of `W + scale B A`, (out), in the precision of `A`, without a graph.
pub(crate) fn row_lengths(weight: &Tensor, (a, b): (&Tensor, &Tensor), scale: f64) -> TensorResult<Tensor> {
    let update = (b.detach().matmul(&a.detach())? * scale)?;
    let adapted = (weight.detach().to_dtype(a.dtype())? + update)?;
    Ok(adapted.sqr()?.sum(1)?.sqrt()?)
}

fn like(parameter: &Tensor, input: &Tensor) -> TensorResult<Tensor> {
    Ok(parameter.to_dtype(input.dtype())?)
}

fn like_opt(parameter: Option<&Tensor>, input: &Tensor) -> TensorResult<Option<Tensor>> {
    parameter.map(|parameter| like(parameter, input)).transpose()
}

/// What a linear layer looks like.
#[derive(Debug, Clone, Copy)]
pub struct LinearConfig {
    in_dim: usize,
    out_dim: usize,
    bias: Option<Init>,
    weight: Init,
}

impl LinearConfig {
    /// A layer with a bias and PyTorch's initialization.
    pub fn new(in_dim: usize, out_dim: usize) -> Self {
        let init = Init::kaiming_uniform(in_dim);
        Self {
            in_dim,
            out_dim,
            bias: Some(init),
            weight: init,
        }
    }

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: None, ..self }
    }

    /// The same with other initial values.
    pub fn init(self, weight: Init, bias: Init) -> Self {
        Self {
            weight,
            bias: self.bias.map(|_| bias),
            ..self
        }
    }
}

/// `y = W x + b`, with `weight` (out, in) and `bias` (out).
#[derive(Debug)]
pub struct Linear {
    weight: LinearWeight,
    bias: Option<Tensor>,
    lora: Option<Lora>,
}

impl Linear {
    /// A layer whose weight is held elsewhere too, such as a head that shares the embedding: the adapter at the builder's place, if
    /// there is one, is beside that weight.
    pub(crate) fn with_weight(builder: &Builder<'_>, weight: &Tensor) -> Result<Self> {
        let weight = LinearWeight::Dense(weight.clone());
        Ok(Self {
            bias: None,
            lora: builder.linear_lora(&weight)?,
            weight,
        })
    }

    /// Operands (x', W') of one product that is this layer without its bias: `x' W'^T = x W^T + scale (x A^T) B^T`. Both are as wide
    /// as the input, wider by the rank while an adapter is on.
    pub(crate) fn operands(&self, x: &Tensor) -> TensorResult<(Tensor, Tensor)> {
        let weight = like(&self.weight.dense()?, x)?;
        match &self.lora {
            Some(lora) if lora.switch.is_enabled() => {
                let ax = lora.scaled(&ops::linear(x, &like(&lora.a, x)?, None)?)?;
                let wide = Tensor::cat(&[&weight, &like(&lora.b, x)?], 1)?;
                let wide = match lora.row_factors(&self.weight)? {
                    None => wide,
                    Some(factors) => wide.broadcast_mul(&like(&factors, x)?.unsqueeze(1)?)?,
                };
                Ok((Tensor::cat(&[x, &ax], 1)?, wide))
            }
            _ => Ok((x.clone(), weight)),
        }
    }

    /// The layer at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: LinearConfig) -> Result<Self> {
        let LinearConfig {
            in_dim,
            out_dim,
            bias,
            weight,
        } = config;
        let weight = builder.linear_weight([out_dim, in_dim], weight)?;
        Ok(Self {
            bias: bias.map(|init| builder.get("bias", &[out_dim], init)).transpose()?,
            lora: builder.linear_lora(&weight)?,
            weight,
        })
    }

    /// # Shape
    /// (..., in) to (..., out).
    ///
    /// # Errors
    /// When the last dimension is not `in`.
    pub fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let bias = like_opt(self.bias.as_ref(), x)?;
        let Some(lora) = self.lora.as_ref().filter(|lora| lora.switch.is_enabled()) else {
            return self.weight.product(x, bias.as_ref());
        };
        let ax = lora.scaled(&ops::linear(x, &like(&lora.a, x)?, None)?)?;
        let update = ops::linear(&ax, &like(&lora.b, x)?, None)?;
        let Some(factors) = lora.row_factors(&self.weight)? else {
            return Ok((self.weight.product(x, bias.as_ref())? + update)?);
        };
        // The bias is not part of the weight whose rows have lengths.
        let y = (self.weight.product(x, None)? + update)?.broadcast_mul(&like(&factors, x)?)?;
        match bias {
            None => Ok(y),
            Some(bias) => Ok(y.broadcast_add(&bias)?),
        }
    }
}

/// What a convolution looks like.
#[derive(Debug, Clone, Copy)]
pub struct Conv2dConfig {
    in_channels: usize,
    out_channels: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Conv2dConfig {
    /// A square kernel with a bias, stride 1, and the padding that keeps the size of the image.
    pub fn new(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding: kernel / 2,
        }
    }

    /// The same with another stride.
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same with another padding on every side.
    pub fn padding(self, padding: usize) -> Self {
        Self { padding, ..self }
    }
}

/// A two-dimensional convolution, with `weight` (out, in, k, k) and `bias` (out).
#[derive(Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    config: ops::Conv2dConfig,
    lora: Option<Lora>,
}

impl Conv2d {
    /// The layer at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: Conv2dConfig) -> Result<Self> {
        let Conv2dConfig {
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
        } = config;
        let init = Init::kaiming_uniform(in_channels * kernel * kernel);
        Ok(Self {
            weight: builder.get("weight", &[out_channels, in_channels, kernel, kernel], init)?,
            bias: builder.get("bias", &[out_channels], init)?,
            config: ops::Conv2dConfig { stride, padding },
            lora: builder.conv2d_lora([out_channels, in_channels, kernel, kernel])?,
        })
    }

    /// # Shape
    /// (B, in, Y, X) to (B, out, Y', X').
    ///
    /// # Errors
    /// When the input does not have `in` channels.
    pub fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let y = ops::conv2d(x, &like(&self.weight, x)?, Some(&like(&self.bias, x)?), self.config)?;
        match &self.lora {
            Some(lora) if lora.switch.is_enabled() => {
                let ax = lora.scaled(&ops::conv2d(x, &like(&lora.a, x)?, None, self.config)?)?;
                let pointwise = ops::Conv2dConfig { stride: 1, padding: 0 };
                Ok((y + ops::conv2d(&ax, &like(&lora.b, x)?, None, pointwise)?)?)
            }
            _ => Ok(y),
        }
    }
}

/// Normalization over groups of channels.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    num_groups: usize,
    eps: f64,
}

impl GroupNorm {
    /// The layer at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, num_channels: usize, num_groups: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: builder.get("weight", &[num_channels], Init::Ones)?,
            bias: builder.get("bias", &[num_channels], Init::Zeros)?,
            num_groups,
            eps,
        })
    }

    /// # Shape
    /// (B, C, ...), unchanged.
    ///
    /// # Errors
    /// When the channels do not fit.
    pub fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        ops::group_norm(
            x,
            &like(&self.weight, x)?,
            &like(&self.bias, x)?,
            self.num_groups,
            self.eps,
        )
    }

    /// The normalized input through `SiLU`, in one pass.
    ///
    /// # Shape
    /// (B, C, ...), unchanged.
    ///
    /// # Errors
    /// When the channels do not fit.
    pub fn forward_silu(&self, x: &Tensor) -> TensorResult<Tensor> {
        ops::group_norm_silu(
            x,
            &like(&self.weight, x)?,
            &like(&self.bias, x)?,
            self.num_groups,
            self.eps,
        )
    }
}

/// Normalization over the last dimension.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// The layer at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, dim: usize, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: builder.get("weight", &[dim], Init::Ones)?,
            bias: builder.get("bias", &[dim], Init::Zeros)?,
            eps,
        })
    }

    /// # Shape
    /// (..., D), unchanged.
    ///
    /// # Errors
    /// When the last dimension does not fit.
    pub fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        ops::layer_norm(x, &like(&self.weight, x)?, &like(&self.bias, x)?, self.eps)
    }
}

/// What the weight of an [`RmsNorm`] stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RmsNormWeight {
    /// The factor itself; ones at the start.
    Factor,
    /// What is added to a factor of one; zeros at the start. Gemma's.
    BesideOne,
}

/// Division by the root mean square of the last dimension.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    kind: RmsNormWeight,
    eps: f64,
}

impl RmsNorm {
    /// The layer at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, dim: usize, eps: f64, kind: RmsNormWeight) -> Result<Self> {
        let init = match kind {
            RmsNormWeight::Factor => Init::Ones,
            RmsNormWeight::BesideOne => Init::Zeros,
        };
        Ok(Self {
            weight: builder.get("weight", &[dim], init)?,
            kind,
            eps,
        })
    }

    /// # Shape
    /// (..., D), unchanged.
    ///
    /// # Errors
    /// When the last dimension does not fit.
    pub fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        match self.kind {
            RmsNormWeight::Factor => ops::rms_norm(x, &like(&self.weight, x)?, self.eps),
            RmsNormWeight::BesideOne if x.dtype().size_in_bytes() < 4 => {
                // One and a small number need more digits than half precision has.
                let factor = (self.weight.to_dtype(DType::F32)? + 1.0)?;
                let y = ops::rms_norm(&x.to_dtype(DType::F32)?, &factor, self.eps)?;
                Ok(y.to_dtype(x.dtype())?)
            }
            RmsNormWeight::BesideOne => ops::rms_norm(x, &(like(&self.weight, x)? + 1.0)?, self.eps),
        }
    }
}
