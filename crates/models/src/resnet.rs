//! Residual blocks and changes of resolution, shared by the denoiser and the autoencoder.
//!
//! B batch, C channels, Y x X spatial, D width of the time embedding.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use crate::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear, LinearConfig};
use crate::{Builder, Result};

/// What a residual block looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResnetConfig {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    /// Width of the time embedding; the autoencoder has none.
    pub(crate) time_dim: Option<usize>,
    pub(crate) num_groups: usize,
    pub(crate) eps: f64,
    /// The sum of input and update is divided by this.
    pub(crate) output_scale: f64,
}

/// diffusers' `ResnetBlock2D`: norm, SiLU, convolution, time, norm, SiLU, convolution, and the input added.
#[derive(Debug)]
pub(crate) struct ResnetBlock2D {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    output_scale: f64,
}

impl ResnetBlock2D {
    pub(crate) fn load(builder: &Builder<'_>, config: ResnetConfig) -> Result<Self> {
        let ResnetConfig {
            in_channels,
            out_channels,
            num_groups,
            eps,
            ..
        } = config;
        let time = |dim| Linear::load(&builder.child("time_emb_proj"), LinearConfig::new(dim, out_channels));
        let shortcut = Conv2dConfig::new(in_channels, out_channels, 1);
        Ok(Self {
            norm1: GroupNorm::load(&builder.child("norm1"), in_channels, num_groups, eps)?,
            conv1: Conv2d::load(&builder.child("conv1"), Conv2dConfig::new(in_channels, out_channels, 3))?,
            time_emb_proj: config.time_dim.map(time).transpose()?,
            norm2: GroupNorm::load(&builder.child("norm2"), out_channels, num_groups, eps)?,
            conv2: Conv2d::load(
                &builder.child("conv2"),
                Conv2dConfig::new(out_channels, out_channels, 3),
            )?,
            conv_shortcut: (in_channels != out_channels)
                .then(|| Conv2d::load(&builder.child("conv_shortcut"), shortcut))
                .transpose()?,
            output_scale: config.output_scale,
        })
    }

    /// (B, in, Y, X) and, for blocks with time, the embedding's SiLU (B, D), to (B, out, Y, X).
    pub(crate) fn forward(&self, x: &Tensor, time_silu: Option<&Tensor>) -> TensorResult<Tensor> {
        let mut h = self.conv1.forward(&self.norm1.forward_silu(x)?)?;
        if let (Some(proj), Some(time)) = (&self.time_emb_proj, time_silu) {
            let time_bc11 = proj.forward(time)?.unsqueeze(2)?.unsqueeze(3)?;
            h = h.broadcast_add(&time_bc11)?;
        }
        let h = self.conv2.forward(&self.norm2.forward_silu(&h)?)?;
        let skip = match &self.conv_shortcut {
            Some(conv) => conv.forward(x)?,
            None => x.clone(),
        };
        let sum = (skip + h)?;
        if self.output_scale == 1.0 {
            Ok(sum)
        } else {
            Ok((sum / self.output_scale)?)
        }
    }
}

/// Halves the resolution with a strided convolution.
#[derive(Debug)]
pub(crate) struct Downsample2D {
    conv: Conv2d,
    pads_one_side: bool,
}

impl Downsample2D {
    /// With `padding` 0, one row below and one column to the right are added first, as diffusers does.
    pub(crate) fn load(builder: &Builder<'_>, channels: usize, padding: usize) -> Result<Self> {
        let config = Conv2dConfig::new(channels, channels, 3).stride(2).padding(padding);
        Ok(Self {
            conv: Conv2d::load(&builder.child("conv"), config)?,
            pads_one_side: padding == 0,
        })
    }

    /// (B, C, Y, X) to (B, C, Y/2, X/2), rounded up with padding 1 and down with padding 0.
    pub(crate) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        if self.pads_one_side {
            self.conv.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)
        } else {
            self.conv.forward(x)
        }
    }
}

/// Doubles the resolution by repeating pixels, then convolves.
#[derive(Debug)]
pub(crate) struct Upsample2D {
    conv: Conv2d,
}

impl Upsample2D {
    pub(crate) fn load(builder: &Builder<'_>, channels: usize) -> Result<Self> {
        Ok(Self {
            conv: Conv2d::load(&builder.child("conv"), Conv2dConfig::new(channels, channels, 3))?,
        })
    }

    /// (B, C, Y, X) to (B, C, 2Y, 2X), or to the `size` that halving an odd size left behind.
    pub(crate) fn forward(&self, x: &Tensor, size: Option<(usize, usize)>) -> TensorResult<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let larger = match size {
            Some((y, x_size)) if (y, x_size) != (2 * height, 2 * width) => {
                let (rows, columns) = (nearest_indices(height, y), nearest_indices(width, x_size));
                let rows = Tensor::from_vec(rows, y, x.device())?;
                let columns = Tensor::from_vec(columns, x_size, x.device())?;
                x.contiguous()?.index_select(&rows, 2)?.index_select(&columns, 3)?
            }
            _ => ops::upsample_nearest2d(x, 2)?,
        };
        self.conv.forward(&larger)
    }
}

/// For each of `to` pixels the one of `from` pixels that PyTorch's nearest-neighbor interpolation takes, in its arithmetic.
fn nearest_indices(from: usize, to: usize) -> Vec<u32> {
    let scale = from as f32 / to as f32;
    (0..to)
        .map(|i| ((i as f32 * scale) as usize).min(from - 1) as u32)
        .collect()
}
