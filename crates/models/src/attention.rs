//! Attention as the networks call it.
//!
//! B batch, T query tokens, S key tokens, D width, H heads.

use diptych_tensor::{DType, Result, Tensor, ops};

/// How heads attend.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttendConfig {
    pub(crate) num_heads: usize,
    pub(crate) mask: ops::AttentionMask,
    /// Attend in f32 when the activations are in half precision.
    pub(crate) upcast: bool,
}

/// Scaled dot-product attention over heads side by side in D: q (B,T,D), k and v (B,S,D) to (B,T,D).
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, config: AttendConfig) -> Result<Tensor> {
    let dtype = q.dtype();
    let head_dim = q.dim(2)? / config.num_heads;
    let scores = ops::AttentionConfig {
        scale: 1.0 / (head_dim as f64).sqrt(),
        mask: config.mask,
    };
    if config.upcast && dtype.size_in_bytes() < 4 {
        let wide = |x: &Tensor| x.to_dtype(DType::F32);
        let out = ops::attention_packed(&wide(q)?, &wide(k)?, &wide(v)?, config.num_heads, scores)?;
        return Ok(out.to_dtype(dtype)?);
    }
    ops::attention_packed(q, k, v, config.num_heads, scores)
}
