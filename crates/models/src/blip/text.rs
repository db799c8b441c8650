//! The text encoder of BLIP: BERT whose layers also look at an image.
//!
//! B batch, T tokens, D width, N image tokens.

use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

use super::BlipConfig;
use super::vision::attend_biased;
use crate::attention::{AttendConfig, attend};
use crate::layers::{LayerNorm, Linear, LinearConfig};
use crate::{Builder, Init, Result};

/// `text_encoder`, without a pooler.
#[derive(Debug)]
pub(super) struct BlipText {
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    norm: LayerNorm,
    layers: Vec<TextLayer>,
    dtype: DType,
}

impl BlipText {
    pub(super) fn load(builder: &Builder<'_>, config: &BlipConfig) -> Result<Self> {
        let embeddings = builder.child("embeddings");
        let table = |name: &str, len| {
            let init = Init::Normal { std: 0.02 };
            embeddings.child(name).get("weight", &[len, config.hidden_size], init)
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| TextLayer::load(&builder.child(format!("encoder.layer.{i}")), config));
        Ok(Self {
            word_embeddings: table("word_embeddings", config.vocab_size)?,
            position_embeddings: table("position_embeddings", config.max_position_embeddings)?,
            norm: LayerNorm::load(
                &embeddings.child("LayerNorm"),
                config.hidden_size,
                config.layer_norm_eps,
            )?,
            layers: layers.collect::<Result<_>>()?,
            dtype: builder.dtype(),
        })
    }

    /// `input_ids` and `attention_mask` (B, T), and the image (B, N, D'), to (B, T, D).
    pub(super) fn forward(&self, input_ids: &Tensor, mask: &Tensor, image: &Tensor) -> TensorResult<Tensor> {
        let (_, tokens) = input_ids.dims2()?;
        let x = ops::embedding(input_ids, &self.word_embeddings)?;
        let x = x.broadcast_add(&self.position_embeddings.narrow(0, 0, tokens)?.unsqueeze(0)?)?;
        let mut x = self.norm.forward(&x.to_dtype(self.dtype)?)?;
        // Far below every score, and inside the range of half precision.
        let bias = ((mask.to_dtype(DType::F32)? - 1.0)? * 3e4)?.to_dtype(self.dtype)?;
        let bias = bias.unsqueeze(1)?.unsqueeze(1)?;
        for layer in &self.layers {
            x = layer.forward(&x, &bias, image)?;
        }
        Ok(x)
    }
}

/// Attention to the text, then to the image, then a feed-forward layer; a norm behind each.
#[derive(Debug)]
struct TextLayer {
    attention: Attention,
    crossattention: Attention,
    intermediate: Linear,
    output: Linear,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    norm: LayerNorm,
    num_heads: usize,
}

impl Attention {
    fn load(builder: &Builder<'_>, config: &BlipConfig, keys: usize) -> Result<Self> {
        let width = config.hidden_size;
        let linear = |name: &str, from| linear(&builder.child(name), (from, width));
        Ok(Self {
            query: linear("self.query", width)?,
            key: linear("self.key", keys)?,
            value: linear("self.value", keys)?,
            dense: linear("output.dense", width)?,
            norm: LayerNorm::load(&builder.child("output.LayerNorm"), width, config.layer_norm_eps)?,
            num_heads: config.num_attention_heads,
        })
    }

    /// To `others`: with a bias of each key, or all of them.
    fn forward(&self, x: &Tensor, others: &Tensor, bias: Option<&Tensor>) -> TensorResult<Tensor> {
        let (q, k, v) = (
            self.query.forward(x)?,
            self.key.forward(others)?,
            self.value.forward(others)?,
        );
        let seen = if let Some(bias) = bias {
            attend_biased([&q, &k, &v], self.num_heads, bias)?
        } else {
            let heads = AttendConfig {
                num_heads: self.num_heads,
                mask: ops::AttentionMask::None,
                upcast: false,
            };
            attend(&q, &k, &v, heads)?
        };
        self.norm.forward(&(self.dense.forward(&seen)? + x)?)
    }
}

impl TextLayer {
    fn load(builder: &Builder<'_>, config: &BlipConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            attention: Attention::load(&builder.child("attention"), config, width)?,
            crossattention: Attention::load(&builder.child("crossattention"), config, config.vision_width)?,
            intermediate: linear(&builder.child("intermediate.dense"), (width, inner))?,
            output: linear(&builder.child("output.dense"), (inner, width))?,
            norm: LayerNorm::load(&builder.child("output.LayerNorm"), width, config.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor, bias: &Tensor, image: &Tensor) -> TensorResult<Tensor> {
        let x = self.attention.forward(x, x, Some(bias))?;
        let x = self.crossattention.forward(&x, image, None)?;
        let h = ops::gelu(&self.intermediate.forward(&x)?)?;
        self.norm.forward(&(self.output.forward(&h)? + x)?)
    }
}

fn linear(builder: &Builder<'_>, (from, to): (usize, usize)) -> Result<Linear> {
    let init = Init::Normal { std: 0.02 };
    Linear::load(builder, LinearConfig::new(from, to).init(init, Init::Zeros))
}
