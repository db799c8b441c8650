//! One block: attention of the image to itself and to the text, and a feed-forward layer.
//!
//! B batch, T image tokens, S text tokens, D width.

use diptych_tensor::{Result as TensorResult, Tensor};

use super::PixArtTransformer2DConfig;
use crate::dit::{Attention, AttentionConfig, FeedForward, PlainNorm, Streams, modulated};
use crate::{Builder, Init, Result};

/// diffusers' `BasicTransformerBlock` with `ada_norm_single`: shifts, scales and gates are a sum of the condition's, the same in all blocks, and
/// of the block's own.
#[derive(Debug)]
pub(super) struct Block {
    /// (6, D).
    scale_shift_table: Tensor,
    attn1: Attention,
    attn2: Attention,
    norm: PlainNorm,
    ff: FeedForward,
}

impl Block {
    pub(super) fn load(builder: &Builder<'_>, config: &PixArtTransformer2DConfig) -> Result<Self> {
        let dim = config.dim();
        let std = (dim as f64).powf(-0.5);
        let attention = |name: &str| {
            let config = AttentionConfig {
                dim,
                num_heads: config.num_attention_heads,
                qk_norm: false,
                streams: Streams::One,
                has_bias: config.attention_bias,
            };
            Attention::load(&builder.child(name), config)
        };
        Ok(Self {
            scale_shift_table: builder.get("scale_shift_table", &[6, dim], Init::Normal { std })?,
            attn1: attention("attn1")?,
            attn2: attention("attn2")?,
            norm: PlainNorm::new(builder, dim)?,
            ff: FeedForward::load(&builder.child("ff"), dim)?,
        })
    }

    /// x (B, T, D), modulation (B, 6, D) and text (B, S, D), of which each row has so many tokens, to (B, T, D).
    pub(super) fn forward(
        &self,
        x: &Tensor,
        modulation: &Tensor,
        (text, text_lens): (&Tensor, Option<&[usize]>),
    ) -> TensorResult<Tensor> {
        let table = self.scale_shift_table.to_dtype(x.dtype())?;
        let all = modulation.broadcast_add(&table.unsqueeze(0)?)?;
        let part = |i| all.narrow(1, i, 1);
        let attended = self
            .attn1
            .forward(&modulated(&self.norm.forward(x)?, &part(0)?, &part(1)?)?, None)?;
        let x = (attended.broadcast_mul(&part(2)?)? + x)?;
        let x = (self.attn2.forward_cross(&x, text, text_lens)? + x)?;
        let hidden = self
            .ff
            .forward(&modulated(&self.norm.forward(&x)?, &part(3)?, &part(4)?)?)?;
        Ok((hidden.broadcast_mul(&part(5)?)? + x)?)
    }
}
