//! Differentiable operations of the networks.
//!
//! Each operation has two forms. `NAME_composed` is written with candle's primitives: it is the oracle of the tests and
//! the path of devices without a kernel of ours. `NAME` runs a fused kernel on the CPU (f32 and f64; bf16 and f16 are
//! widened to f32 and narrowed back) and the composed form elsewhere. Where a fused form needs no kernel, there is one
//! function.
//!
//! What holds for every fused operation, and what the tests check:
//! - A gradient is computed only for operands that the tape tracks: a frozen weight costs nothing and gets no entry.
//! - Results do not depend on the number of threads: each output element is summed in one fixed order.
//! - Operands of any layout are accepted. Memory beside the result is bounded; attention keeps no score matrix, and
//!   [`token_logps`](token_logps()) no matrix of logits.
//!
//! | module | operations |
//! |---|---|
//! | [`activation`] | [`silu`], [`gelu`], [`gelu_tanh`], [`quick_gelu`], [`geglu`] |
//! | [`attention`](mod@attention) | [`attention`](attention()), [`attention_packed`], [`attention_grouped`] |
//! | [`conv2d`](mod@conv2d) | [`conv2d`](conv2d()) |
//! | [`embedding`](mod@embedding) | [`embedding`](embedding()) |
//! | [`gated`] | [`swiglu`], [`geglu_tanh`] |
//! | [`linear`](mod@linear) | [`linear`](linear()) |
//! | [`norm`] | [`group_norm`], [`group_norm_silu`], [`layer_norm`], [`rms_norm`] |
//! | [`quantized_linear`](mod@quantized_linear) | [`quantized_linear`](quantized_linear()) |
//! | [`rope`](mod@rope) | [`rope`](rope()) |
//! | [`softmax`](mod@softmax) | [`softmax`](softmax()), [`log_softmax`], [`log_sigmoid`] |
//! | [`token_head`] | [`token_divergences`], [`likeliest_tokens`] |
//! | [`token_logps`](mod@token_logps) | [`token_logps`](token_logps()), [`token_logps_and_statistics`] |
//! | [`tokens`] | [`image_to_tokens`], [`tokens_to_image`] |
//! | [`upsample`] | [`upsample_nearest2d`] |

#![expect(
    clippy::inline_always,
    reason = "loop bodies that are compiled for several CPU features must be inlined into each"
)]

pub mod activation;
pub mod attention;
pub mod conv2d;
pub mod embedding;
pub mod gated;
pub(crate) mod kernel;
pub mod linear;
pub mod norm;
pub mod quantized_linear;
pub mod rope;
pub mod softmax;
pub mod token_head;
pub mod token_logps;
pub mod tokens;
pub mod upsample;

pub use activation::{
    geglu, geglu_composed, gelu, gelu_composed, gelu_tanh, gelu_tanh_composed, quick_gelu, quick_gelu_composed, silu,
    silu_composed,
};
pub use attention::{
    AttentionConfig, AttentionMask, GroupedAttentionConfig, Segment, VisibleKeys, attention, attention_composed,
    attention_grouped, attention_grouped_composed, attention_packed,
};
pub use conv2d::{Conv2dConfig, conv2d, conv2d_composed};
pub use embedding::embedding;
pub use gated::{geglu_tanh, geglu_tanh_composed, swiglu, swiglu_composed};
pub use linear::{linear, linear_composed};
pub use norm::{
    group_norm, group_norm_composed, group_norm_silu, group_norm_silu_composed, layer_norm, layer_norm_composed,
    rms_norm, rms_norm_composed,
};
pub use quantized_linear::{quantized_linear, quantized_linear_composed};
pub use rope::{rope, rope_composed};
pub use softmax::{log_sigmoid, log_sigmoid_composed, log_softmax, log_softmax_composed, softmax, softmax_composed};
pub use token_head::{TokenHead, likeliest_tokens, token_divergences};
pub use token_logps::{
    TokenLogpsConfig, TokenStatistics, token_logps, token_logps_and_statistics, token_logps_and_statistics_composed,
    token_logps_composed,
};
pub use tokens::{image_to_tokens, tokens_to_image};
pub use upsample::{upsample_nearest2d, upsample_nearest2d_composed};
