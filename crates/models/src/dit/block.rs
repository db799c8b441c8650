//! The block of two streams: text and image attend to both, and have their own norms and feed-forward layers.
//!
//! B batch, S text tokens, T image tokens, D width.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::attention::{Attention, AttentionConfig, Rope, Streams};
use super::modulation::{AdaLayerNormContinuous, Modulation, PlainNorm, modulated};
use crate::layers::{Linear, LinearConfig};
use crate::{Builder, Result};

/// diffusers' `FeedForward` with `gelu-approximate`: four times as wide inside.
#[derive(Debug)]
pub(crate) struct FeedForward {
    proj_in: Linear,
    proj_out: Linear,
}

impl FeedForward {
    pub(crate) fn load(builder: &Builder<'_>, dim: usize) -> Result<Self> {
        Ok(Self {
            proj_in: Linear::load(&builder.child("net.0.proj"), LinearConfig::new(dim, 4 * dim))?,
            proj_out: Linear::load(&builder.child("net.2"), LinearConfig::new(4 * dim, dim))?,
        })
    }

    /// (..., D), unchanged.
    pub(crate) fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        self.proj_out.forward(&ops::gelu_tanh(&self.proj_in.forward(x)?)?)
    }
}

/// What a [`JointBlock`] looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JointBlockConfig {
    pub(crate) dim: usize,
    pub(crate) num_heads: usize,
    pub(crate) qk_norm: bool,
    /// Whether the image also attends to itself alone.
    pub(crate) has_dual_attention: bool,
    /// Whether nothing reads the text after this block.
    pub(crate) is_last_of_text: bool,
}

/// diffusers' `JointTransformerBlock` and `FluxTransformerBlock`.
#[derive(Debug)]
pub(crate) struct JointBlock {
    norm1: ImageModulation,
    attn: Attention,
    text: TextStream,
    norm: PlainNorm,
    ff: FeedForward,
}

/// The image's shifts, scales and gates, and the attention that the last three are for.
#[derive(Debug)]
enum ImageModulation {
    Zero(Modulation<6>),
    Dual(Modulation<9>, Box<Attention>),
}

/// What the text stream does beside attending.
#[derive(Debug)]
enum TextStream {
    Full {
        norm1: Modulation<6>,
        ff: FeedForward,
    },
    /// Only its keys and values are still read.
    Last {
        norm1: AdaLayerNormContinuous,
    },
}

impl JointBlock {
    pub(crate) fn load(builder: &Builder<'_>, config: JointBlockConfig) -> Result<Self> {
        let dim = config.dim;
        let attention = |name: &str, streams| {
            let config = AttentionConfig {
                dim,
                num_heads: config.num_heads,
                qk_norm: config.qk_norm,
                streams,
                has_bias: true,
            };
            Attention::load(&builder.child(name), config)
        };
        let (norm1, norm1_context) = (builder.child("norm1"), builder.child("norm1_context"));
        let (streams, text) = if config.is_last_of_text {
            let norm1 = AdaLayerNormContinuous::load(&norm1_context, dim)?;
            (Streams::JointWithoutTextOutput, TextStream::Last { norm1 })
        } else {
            let norm1 = Modulation::load(&norm1_context, dim)?;
            let ff = FeedForward::load(&builder.child("ff_context"), dim)?;
            (Streams::Joint, TextStream::Full { norm1, ff })
        };
        Ok(Self {
            norm1: if config.has_dual_attention {
                ImageModulation::Dual(
                    Modulation::load(&norm1, dim)?,
                    Box::new(attention("attn2", Streams::One)?),
                )
            } else {
                ImageModulation::Zero(Modulation::load(&norm1, dim)?)
            },
            attn: attention("attn", streams)?,
            text,
            norm: PlainNorm::new(builder, dim)?,
            ff: FeedForward::load(&builder.child("ff"), dim)?,
        })
    }

    /// Text and image behind each other, (B, S + T, D), of which `text_len` tokens are text, and `SiLU` of the condition (B, D), to the
    /// same; to the image alone (B, T, D) if this is the text's last block.
    pub(crate) fn forward(
        &self,
        joint: &Tensor,
        condition_silu: &Tensor,
        (text_len, rope): (usize, Option<&Rope>),
    ) -> TensorResult<Tensor> {
        let text = joint.narrow(1, 0, text_len)?;
        let image = joint.narrow(1, text_len, joint.dim(1)? - text_len)?;
        let normed = self.norm.forward(&image)?;
        let (parts, dual) = match &self.norm1 {
            ImageModulation::Zero(modulation) => (modulation.forward(condition_silu)?, None),
            ImageModulation::Dual(modulation, attn2) => {
                let [a, b, c, d, e, f, shift, scale, gate] = modulation.forward(condition_silu)?;
                let out = attn2.forward(&modulated(&normed, &shift, &scale)?, None)?;
                ([a, b, c, d, e, f], Some(out.broadcast_mul(&gate)?))
            }
        };
        let [shift, scale, gate, shift_ff, scale_ff, gate_ff] = parts;
        let normed = modulated(&normed, &shift, &scale)?;
        let finish_image = |attended: &Tensor| -> TensorResult<Tensor> {
            let mut image = (&image + attended.broadcast_mul(&gate)?)?;
            if let Some(dual) = &dual {
                image = (image + dual)?;
            }
            self.feed_forward(&self.ff, image, [&shift_ff, &scale_ff, &gate_ff])
        };
        match &self.text {
            TextStream::Last { norm1 } => {
                let normed_text = norm1.forward(&text, condition_silu)?;
                let (_, attended) = self.attn.forward_joint(&normed_text, &normed, rope)?;
                finish_image(&attended)
            }
            TextStream::Full { norm1, ff } => {
                let [shift, scale, gate, shift_ff, scale_ff, gate_ff] = norm1.forward(condition_silu)?;
                let normed_text = modulated(&self.norm.forward(&text)?, &shift, &scale)?;
                let (attended_text, attended) = self.attn.forward_joint(&normed_text, &normed, rope)?;
                let text = (&text + attended_text.broadcast_mul(&gate)?)?;
                let text = self.feed_forward(ff, text, [&shift_ff, &scale_ff, &gate_ff])?;
                Ok(Tensor::cat(&[text, finish_image(&attended)?], 1)?)
            }
        }
    }

    fn feed_forward(&self, ff: &FeedForward, x: Tensor, [shift, scale, gate]: [&Tensor; 3]) -> TensorResult<Tensor> {
        let normed = modulated(&self.norm.forward(&x)?, shift, scale)?;
        Ok((x + ff.forward(&normed)?.broadcast_mul(gate)?)?)
    }
}
