//! The encoder and the decoder.
//!
//! B batch, C channels, Y x X spatial, T pixels.

use std::sync::Arc;

use diptych_tensor::autograd::BlockCounter;
use diptych_tensor::{Result as TensorResult, Tensor, checkpoint, ops};

use super::AutoencoderKlConfig;
use crate::attention::{AttendConfig, attend};
use crate::layers::{Conv2d, Conv2dConfig, GroupNorm, Linear, LinearConfig};
use crate::resnet::{Downsample2D, ResnetBlock2D, ResnetConfig, Upsample2D};
use crate::{Builder, Result};

/// Epsilon of every norm of the autoencoder.
const EPS: f64 = 1e-6;

/// Image (B, 3, Y, X) to moments (B, 2C, Y/8, X/8).
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    levels: Vec<(Vec<Resnet>, Option<Downsample2D>)>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(super) fn load(builder: &Builder<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut levels = Vec::new();
        for (i, &out) in channels.iter().enumerate() {
            let block = builder.child(format!("down_blocks.{i}"));
            let input = channels[i.saturating_sub(1)];
            let resnets = Resnet::stack(&block, (input, out), config.layers_per_block, config)?;
            let downsampler = || Downsample2D::load(&block.child("downsamplers.0"), out, 0);
            levels.push((resnets, (i + 1 < channels.len()).then(downsampler).transpose()?));
        }
        let conv_out = Conv2dConfig::new(last, 2 * config.latent_channels, 3);
        Ok(Self {
            conv_in: Conv2d::load(
                &builder.child("conv_in"),
                Conv2dConfig::new(config.in_channels, first, 3),
            )?,
            levels,
            mid_block: MidBlock::load(&builder.child("mid_block"), last, config)?,
            conv_norm_out: GroupNorm::load(&builder.child("conv_norm_out"), last, config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(&builder.child("conv_out"), conv_out)?,
        })
    }

    pub(super) fn forward(&self, image: &Tensor, blocks: &BlockCounter) -> TensorResult<Tensor> {
        let mut x = self.conv_in.forward(image)?;
        for (resnets, downsampler) in &self.levels {
            for resnet in resnets {
                x = resnet.forward(&x, blocks)?;
            }
            if let Some(downsampler) = downsampler {
                x = downsampler.forward(&x)?;
            }
        }
        let x = self.mid_block.forward(&x, blocks)?;
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }
}

/// Latents (B, C, Y, X) to image (B, 3, 8Y, 8X).
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    levels: Vec<(Vec<Resnet>, Option<Upsample2D>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(super) fn load(builder: &Builder<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut levels = Vec::new();
        let mut input = last;
        for (i, &out) in channels.iter().rev().enumerate() {
            let block = builder.child(format!("up_blocks.{i}"));
            let resnets = Resnet::stack(&block, (input, out), config.layers_per_block + 1, config)?;
            let upsampler = || Upsample2D::load(&block.child("upsamplers.0"), out);
            levels.push((resnets, (i + 1 < channels.len()).then(upsampler).transpose()?));
            input = out;
        }
        let conv_in = Conv2dConfig::new(config.latent_channels, last, 3);
        Ok(Self {
            conv_in: Conv2d::load(&builder.child("conv_in"), conv_in)?,
            mid_block: MidBlock::load(&builder.child("mid_block"), last, config)?,
            levels,
            conv_norm_out: GroupNorm::load(&builder.child("conv_norm_out"), first, config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load(
                &builder.child("conv_out"),
                Conv2dConfig::new(first, config.out_channels, 3),
            )?,
        })
    }

    pub(super) fn forward(&self, latents: &Tensor, blocks: &BlockCounter) -> TensorResult<Tensor> {
        let mut x = self.mid_block.forward(&self.conv_in.forward(latents)?, blocks)?;
        for (resnets, upsampler) in &self.levels {
            for resnet in resnets {
                x = resnet.forward(&x, blocks)?;
            }
            if let Some(upsampler) = upsampler {
                x = upsampler.forward(&x, None)?;
            }
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }
}

/// A residual block without time that can be recomputed.
#[derive(Debug)]
struct Resnet(Arc<ResnetBlock2D>);

impl Resnet {
    fn load(builder: &Builder<'_>, (in_channels, out_channels): (usize, usize), num_groups: usize) -> Result<Self> {
        let config = ResnetConfig {
            in_channels,
            out_channels,
            time_dim: None,
            num_groups,
            eps: EPS,
            output_scale: 1.0,
        };
        Ok(Self(Arc::new(ResnetBlock2D::load(builder, config)?)))
    }

    fn stack(
        builder: &Builder<'_>,
        (input, out): (usize, usize),
        num_layers: usize,
        config: &AutoencoderKlConfig,
    ) -> Result<Vec<Self>> {
        let place = |i| builder.child(format!("resnets.{i}"));
        (0..num_layers)
            .map(|i| {
                Self::load(
                    &place(i),
                    (if i == 0 { input } else { out }, out),
                    config.norm_num_groups,
                )
            })
            .collect()
    }

    fn forward(&self, x: &Tensor, blocks: &BlockCounter) -> TensorResult<Tensor> {
        if !blocks.recomputes_next() {
            return self.0.forward(x, None);
        }
        let block = self.0.clone();
        checkpoint(&[x], move |inputs| block.forward(&inputs[0], None))
    }
}

/// Two residual blocks around attention over all pixels.
#[derive(Debug)]
struct MidBlock {
    resnets: [Resnet; 2],
    attention: Option<Attention>,
}

impl MidBlock {
    fn load(builder: &Builder<'_>, channels: usize, config: &AutoencoderKlConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        let resnet = |i| Resnet::load(&builder.child(format!("resnets.{i}")), (channels, channels), groups);
        let attention = || Attention::load(&builder.child("attentions.0"), channels, groups);
        Ok(Self {
            resnets: [resnet(0)?, resnet(1)?],
            attention: config.mid_block_add_attention.then(attention).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, blocks: &BlockCounter) -> TensorResult<Tensor> {
        let mut x = self.resnets[0].forward(x, blocks)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.resnets[1].forward(&x, blocks)
    }
}

/// Attention with one head as wide as the channels, and the input added.
#[derive(Debug)]
struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl Attention {
    fn load(builder: &Builder<'_>, channels: usize, num_groups: usize) -> Result<Self> {
        // The second name is the one that files of 2022, Stable Diffusion 1.5's among them, have.
        let linear = |name: &str, old: &str| {
            Linear::load(
                &builder.child_from(name, &[name, old]),
                LinearConfig::new(channels, channels),
            )
        };
        Ok(Self {
            group_norm: GroupNorm::load(&builder.child("group_norm"), channels, num_groups, EPS)?,
            to_q: linear("to_q", "query")?,
            to_k: linear("to_k", "key")?,
            to_v: linear("to_v", "value")?,
            to_out: linear("to_out.0", "proj_attn")?,
        })
    }

    fn forward(&self, x_bcyx: &Tensor) -> TensorResult<Tensor> {
        let (_, _, height, width) = x_bcyx.dims4()?;
        let x_btc = ops::image_to_tokens(&self.group_norm.forward(x_bcyx)?)?;
        let (q, k, v) = (
            self.to_q.forward(&x_btc)?,
            self.to_k.forward(&x_btc)?,
            self.to_v.forward(&x_btc)?,
        );
        let heads = AttendConfig {
            num_heads: 1,
            mask: ops::AttentionMask::None,
            upcast: true,
        };
        let out_btc = self.to_out.forward(&attend(&q, &k, &v, heads)?)?;
        let out = ops::tokens_to_image(&out_btc, height, width)?;
        Ok((out + x_bcyx)?)
    }
}
