//! Transformer blocks over the pixels of a feature map, with cross attention to the text.
//!
//! B batch, T pixels, S text tokens, D width, C channels, Y x X spatial.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::blocks::Users;
use super::users::CrossAttention;
use crate::attention::{AttendConfig, attend};
use crate::layers::{Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear, LinearConfig};
use crate::{Builder, Result};

/// What the transformer at one level of the network looks like.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerConfig {
    pub(super) channels: usize,
    pub(super) num_heads: usize,
    pub(super) num_layers: usize,
    pub(super) text_dim: usize,
    pub(super) num_groups: usize,
    pub(super) use_linear_projection: bool,
    pub(super) upcast_attention: bool,
}

/// Epsilon of the group norm, whatever the configuration says of the residual blocks' norms.
const GROUP_NORM_EPS: f64 = 1e-6;
const LAYER_NORM_EPS: f64 = 1e-5;

/// A projection in or out: a 1x1 convolution in older networks, a linear layer in newer ones.
#[derive(Debug)]
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn load(builder: &Builder<'_>, config: TransformerConfig) -> Result<Self> {
        let channels = config.channels;
        Ok(if config.use_linear_projection {
            Self::Linear(Linear::load(builder, LinearConfig::new(channels, channels))?)
        } else {
            Self::Conv(Conv2d::load(builder, Conv2dConfig::new(channels, channels, 1))?)
        })
    }
}

/// diffusers' `Transformer2DModel` over continuous inputs.
#[derive(Debug)]
pub(super) struct Transformer2D {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<TransformerBlock>,
    proj_out: Projection,
}

impl Transformer2D {
    pub(super) fn load(builder: &Builder<'_>, config: TransformerConfig) -> Result<Self> {
        let block = |i| TransformerBlock::load(&builder.child(format!("transformer_blocks.{i}")), config);
        Ok(Self {
            norm: GroupNorm::load(
                &builder.child("norm"),
                config.channels,
                config.num_groups,
                GROUP_NORM_EPS,
            )?,
            proj_in: Projection::load(&builder.child("proj_in"), config)?,
            blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            proj_out: Projection::load(&builder.child("proj_out"), config)?,
        })
    }

    /// Its attentions to the text.
    pub(super) fn cross_attentions(&self) -> impl Iterator<Item = CrossAttention> + '_ {
        self.blocks.iter().map(|block| block.attn2.described())
    }

    /// (B, C, Y, X) and text (B, S, D), to (B, C, Y, X).
    pub(super) fn forward(&self, x_bcyx: &Tensor, text: &Tensor, users: Option<&Users>) -> TensorResult<Tensor> {
        let (_, _, height, width) = x_bcyx.dims4()?;
        let normed = self.norm.forward(x_bcyx)?;
        let mut x_btd = match &self.proj_in {
            Projection::Conv(conv) => ops::image_to_tokens(&conv.forward(&normed)?)?,
            Projection::Linear(linear) => linear.forward(&ops::image_to_tokens(&normed)?)?,
        };
        for block in &self.blocks {
            x_btd = block.forward(&x_btd, text, users)?;
        }
        let out_bcyx = match &self.proj_out {
            Projection::Conv(conv) => conv.forward(&ops::tokens_to_image(&x_btd, height, width)?)?,
            Projection::Linear(linear) => ops::tokens_to_image(&linear.forward(&x_btd)?, height, width)?,
        };
        Ok((out_bcyx + x_bcyx)?)
    }
}

/// diffusers' `BasicTransformerBlock`: self attention, cross attention and a gated feed-forward layer, each on a normed input.
#[derive(Debug)]
struct TransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    /// To twice the inner width: values and gates.
    ff_in: Linear,
    ff_out: Linear,
}

impl TransformerBlock {
    fn load(builder: &Builder<'_>, config: TransformerConfig) -> Result<Self> {
        let dim = config.channels;
        let inner = 4 * dim;
        let norm = |name| LayerNorm::load(&builder.child(name), dim, LAYER_NORM_EPS);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: Attention::load(&builder.child("attn1"), config, dim)?,
            norm2: norm("norm2")?,
            attn2: Attention::load(&builder.child("attn2"), config, config.text_dim)?,
            norm3: norm("norm3")?,
            ff_in: Linear::load(&builder.child("ff.net.0.proj"), LinearConfig::new(dim, 2 * inner))?,
            ff_out: Linear::load(&builder.child("ff.net.2"), LinearConfig::new(inner, dim))?,
        })
    }

    fn forward(&self, x: &Tensor, text: &Tensor, users: Option<&Users>) -> TensorResult<Tensor> {
        let normed = self.norm1.forward(x)?;
        let x = (self.attn1.forward(&normed, &normed, None)? + x)?;
        let x = (self.attn2.forward(&self.norm2.forward(&x)?, text, users)? + x)?;
        let hidden = ops::geglu(&self.ff_in.forward(&self.norm3.forward(&x)?)?)?;
        Ok((self.ff_out.forward(&hidden)? + x)?)
    }
}

/// Multi-head attention from pixels to a context: themselves or the text.
#[derive(Debug)]
struct Attention {
    path: String,
    dim: usize,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: AttendConfig,
}

impl Attention {
    fn load(builder: &Builder<'_>, config: TransformerConfig, context_dim: usize) -> Result<Self> {
        let dim = config.channels;
        let input = |name, from| Linear::load(&builder.child(name), LinearConfig::new(from, dim).without_bias());
        Ok(Self {
            path: builder.path().to_owned(),
            dim,
            to_q: input("to_q", dim)?,
            to_k: input("to_k", context_dim)?,
            to_v: input("to_v", context_dim)?,
            to_out: Linear::load(&builder.child("to_out.0"), LinearConfig::new(dim, dim))?,
            heads: AttendConfig {
                num_heads: config.num_heads,
                mask: ops::AttentionMask::None,
                upcast: config.upcast_attention,
            },
        })
    }

    fn described(&self) -> CrossAttention {
        CrossAttention {
            path: self.path.clone(),
            dim: self.dim,
        }
    }

    /// (B, T, D) and (B, S, context), and users (B, S', dim), to (B, T, D).
    fn forward(&self, x: &Tensor, context: &Tensor, users: Option<&Users>) -> TensorResult<Tensor> {
        let (q, k, v) = (
            self.to_q.forward(x)?,
            self.to_k.forward(context)?,
            self.to_v.forward(context)?,
        );
        let mut attended = attend(&q, &k, &v, self.heads)?;
        if let Some(users) = users
            && let Some((k, v)) = users.attention.keys_and_values(&self.path, &users.vectors)?
        {
            attended = (attended + attend(&q, &k, &v, self.heads)?)?;
        }
        self.to_out.forward(&attended)
    }
}
