//! The block of one stream: text and image as one, attention and feed-forward layer side by side.
//!
//! B batch, T tokens, D width.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::clamped;
use crate::dit::{Attention, AttentionConfig, Modulation, PlainNorm, Rope, Streams, modulated};
use crate::layers::{Linear, LinearConfig};
use crate::{Builder, Result};

/// diffusers' `FluxSingleTransformerBlock`.
#[derive(Debug)]
pub(super) struct SingleBlock {
    modulation: Modulation<3>,
    norm: PlainNorm,
    attn: Attention,
    proj_mlp: Linear,
    proj_out: Linear,
}

impl SingleBlock {
    pub(super) fn load(builder: &Builder<'_>, dim: usize, num_heads: usize) -> Result<Self> {
        let attention = AttentionConfig {
            dim,
            num_heads,
            qk_norm: true,
            streams: Streams::OneWithoutOutput,
            has_bias: true,
        };
        Ok(Self {
            modulation: Modulation::load(&builder.child("norm"), dim)?,
            norm: PlainNorm::new(builder, dim)?,
            attn: Attention::load(&builder.child("attn"), attention)?,
            proj_mlp: Linear::load(&builder.child("proj_mlp"), LinearConfig::new(dim, 4 * dim))?,
            proj_out: Linear::load(&builder.child("proj_out"), LinearConfig::new(5 * dim, dim))?,
        })
    }

    /// (B, T, D) and `SiLU` of the condition (B, D), to (B, T, D).
    pub(super) fn forward(&self, x: &Tensor, condition_silu: &Tensor, rope: &Rope) -> TensorResult<Tensor> {
        let [shift, scale, gate] = self.modulation.forward(condition_silu)?;
        let normed = modulated(&self.norm.forward(x)?, &shift, &scale)?;
        let hidden = ops::gelu_tanh(&self.proj_mlp.forward(&normed)?)?;
        let attended = self.attn.forward(&normed, Some(rope))?;
        let out = self.proj_out.forward(&Tensor::cat(&[attended, hidden], 2)?)?;
        clamped((x + out.broadcast_mul(&gate)?)?)
    }
}
