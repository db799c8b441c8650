//! A layer of the decoder: attention and a gated feed-forward layer, each on a normed input.
//!
//! B batch, T query tokens, S key tokens, D width, H heads, G key heads, K head width.

use diptych_tensor::ops::{GroupedAttentionConfig, VisibleKeys};
use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::cache::LayerCache;
use super::{AttentionBias, LmActivation, LmConfig};
use crate::layers::{Linear, LinearConfig, RmsNorm, RmsNormWeight};
use crate::{Builder, Init, Result};

/// What every layer of a forward pass is given beside its input.
#[derive(Debug, Clone)]
pub(super) struct Context {
    /// Cosines and sines, (B, T, K/2).
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
    /// Keys that each query sees in this layer.
    pub(super) visible: VisibleKeys,
}

#[derive(Debug)]
pub(super) struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    /// The norm before the feed-forward layer, whatever its name.
    before_mlp: RmsNorm,
    mlp: Mlp,
    /// Gemma 2's norms behind attention and feed-forward layer.
    post_norms: Option<[RmsNorm; 2]>,
}

impl DecoderLayer {
    pub(super) fn load(builder: &Builder<'_>, config: &LmConfig, index: usize) -> Result<Self> {
        let norm = |name: &str| {
            RmsNorm::load(
                &builder.child(name),
                config.hidden_size,
                config.rms_norm_eps,
                norm_weight(config),
            )
        };
        let (before_mlp, post_norms) = if config.family.has_post_norms() {
            let post_norms = [norm("post_attention_layernorm")?, norm("post_feedforward_layernorm")?];
            (norm("pre_feedforward_layernorm")?, Some(post_norms))
        } else {
            (norm("post_attention_layernorm")?, None)
        };
        Ok(Self {
            input_layernorm: norm("input_layernorm")?,
            self_attn: SelfAttention::load(&builder.child("self_attn"), config, config.layers[index].has_rope)?,
            before_mlp,
            mlp: Mlp::load(&builder.child("mlp"), config)?,
            post_norms,
        })
    }

    /// (B, T, D), unchanged.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        context: &Context,
        cache: Option<(&mut LayerCache, usize)>,
    ) -> TensorResult<Tensor> {
        let attended = self
            .self_attn
            .forward(&self.input_layernorm.forward(x)?, context, cache)?;
        let x = (x + self.behind(0, attended)?)?;
        let fed = self.mlp.forward(&self.before_mlp.forward(&x)?)?;
        Ok((&x + self.behind(1, fed)?)?)
    }

    /// Queries and keys as attention compares them: (B, T, H K) and (B, T, G K).
    pub(super) fn queries_and_keys(&self, x: &Tensor, context: &Context) -> TensorResult<[Tensor; 2]> {
        let x = self.input_layernorm.forward(x)?;
        let attention = &self.self_attn;
        Ok([
            attention.placed(attention.q_proj.forward(&x)?, 0, context)?,
            attention.placed(attention.k_proj.forward(&x)?, 1, context)?,
        ])
    }

    /// How its attention compares them.
    pub(super) fn heads(&self) -> GroupedAttentionConfig {
        self.self_attn.heads
    }

    fn behind(&self, half: usize, x: Tensor) -> TensorResult<Tensor> {
        match &self.post_norms {
            Some(norms) => norms[half].forward(&x),
            None => Ok(x),
        }
    }
}

/// What the weights of a family's norms stand for.
pub(super) fn norm_weight(config: &LmConfig) -> RmsNormWeight {
    if config.family.is_gemma() {
        RmsNormWeight::BesideOne
    } else {
        RmsNormWeight::Factor
    }
}

fn linear(builder: &Builder<'_>, (from, to): (usize, usize), has_bias: bool, config: &LmConfig) -> Result<Linear> {
    let weight = Init::Normal {
        std: config.initializer_range,
    };
    let layer = LinearConfig::new(from, to).init(weight, Init::Zeros);
    Linear::load(builder, if has_bias { layer } else { layer.without_bias() })
}

#[derive(Debug)]
struct SelfAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of each head of queries and keys.
    qk_norm: Option<[RmsNorm; 2]>,
    heads: GroupedAttentionConfig,
    head_dim: usize,
    has_rope: bool,
}

impl SelfAttention {
    fn load(builder: &Builder<'_>, config: &LmConfig, has_rope: bool) -> Result<Self> {
        let (width, head_dim) = (config.hidden_size, config.head_dim);
        let [inner, kv] = [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * head_dim);
        let has_bias = config.attention_bias != AttentionBias::None;
        let input = |name: &str, to| linear(&builder.child(name), (width, to), has_bias, config);
        let norm = |name: &str| RmsNorm::load(&builder.child(name), head_dim, config.rms_norm_eps, norm_weight(config));
        let has_output_bias = config.attention_bias == AttentionBias::All;
        Ok(Self {
            q_proj: input("q_proj", inner)?,
            k_proj: input("k_proj", kv)?,
            v_proj: input("v_proj", kv)?,
            o_proj: linear(&builder.child("o_proj"), (inner, width), has_output_bias, config)?,
            qk_norm: config
                .family
                .has_qk_norm()
                .then(|| Ok::<_, crate::Error>([norm("q_norm")?, norm("k_norm")?]))
                .transpose()?,
            heads: GroupedAttentionConfig {
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                scale: config.attention_scale,
                softcap: config.attention_softcap,
            },
            head_dim,
            has_rope,
        })
    }

    /// (B, T, D), unchanged.
    fn forward(&self, x: &Tensor, context: &Context, cache: Option<(&mut LayerCache, usize)>) -> TensorResult<Tensor> {
        let q = self.placed(self.q_proj.forward(x)?, 0, context)?;
        let mut k = self.placed(self.k_proj.forward(x)?, 1, context)?;
        let mut v = self.v_proj.forward(x)?;
        if let Some((cache, len)) = cache {
            (k, v) = cache.append(len, &k, &v)?;
        }
        self.o_proj
            .forward(&ops::attention_grouped(&q, &k, &v, &context.visible, self.heads)?)
    }

    /// Queries (`which` 0) or keys (1), normalized and rotated: (B, T, H K) or (B, T, G K), unchanged.
    fn placed(&self, x: Tensor, which: usize, context: &Context) -> TensorResult<Tensor> {
        let num_heads = [self.heads.num_heads, self.heads.num_kv_heads][which];
        let x = match &self.qk_norm {
            None => x,
            Some(norms) => {
                let (batch, tokens, width) = x.dims3()?;
                let x_bthk = x.reshape((batch, tokens, num_heads, self.head_dim))?;
                norms[which].forward(&x_bthk)?.reshape((batch, tokens, width))?
            }
        };
        if self.has_rope {
            ops::rope(&x, num_heads, &context.cos, &context.sin)
        } else {
            Ok(x)
        }
    }
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    activation: LmActivation,
}

impl Mlp {
    fn load(builder: &Builder<'_>, config: &LmConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let layer = |name: &str, size| linear(&builder.child(name), size, config.mlp_bias, config);
        Ok(Self {
            gate_proj: layer("gate_proj", (width, inner))?,
            up_proj: layer("up_proj", (width, inner))?,
            down_proj: layer("down_proj", (inner, width))?,
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        let h = match self.activation {
            LmActivation::Silu => ops::swiglu(&gate, &up)?,
            LmActivation::GeluTanh => ops::geglu_tanh(&gate, &up)?,
        };
        self.down_proj.forward(&h)
    }
}
