//! The encoder.
//!
//! B batch, T tokens, D width, H heads, K head dimension.

use std::sync::Arc;

use diptych_tensor::{CheckpointPolicy, DType, Result as TensorResult, Tensor, checkpoint, ops};

use super::T5Config;
use super::position_bias::PositionBias;
use crate::layers::{Linear, LinearConfig, RmsNorm, RmsNormWeight};
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// Added to the scores of masked keys: so low that their probability is zero, and finite.
const MASKED: f64 = -1e30;

/// transformers' `T5EncoderModel`: token ids to vectors.
///
/// Between layers activations are in f32 also where the rest is in half precision, because they grow beyond the range of f16.
#[derive(Debug)]
pub struct T5EncoderModel {
    shared: Tensor,
    position_bias: PositionBias,
    layers: Vec<Arc<EncoderLayer>>,
    final_layer_norm: RmsNorm,
    config: T5Config,
    dtype: DType,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside layers again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl T5EncoderModel {
    /// The network at the builder's place. Of the file of a whole T5 the decoder is left out.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &T5Config) -> Result<Self> {
        // The embedding is in files under one or both of its names.
        for unused in ["shared.", "encoder.embed_tokens.", "decoder.", "lm_head."] {
            builder.ignore_unused(unused);
        }
        let embedding = builder.child_from("shared", &["shared", "encoder.embed_tokens"]);
        let std = config.initializer_factor;
        let encoder = builder.child("encoder");
        let layer = |i| EncoderLayer::load(&encoder.child(format!("block.{i}")), config).map(Arc::new);
        let bias = encoder.child("block.0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            shared: embedding.get("weight", &[config.vocab_size, config.d_model], Init::Normal { std })?,
            position_bias: PositionBias::load(&bias, config)?,
            layers: (0..config.num_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: norm(&encoder.child("final_layer_norm"), config)?,
            config: config.clone(),
            dtype: builder.dtype(),
            switch: builder.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The vectors of `input_ids`, after the final norm. With a mask, tokens attend to those where it is 1 only; Stable Diffusion 3 and
    /// Flux use none, so that tokens attend to the filling too, and `PixArt` uses the tokenizer's.
    ///
    /// # Shape
    /// (B, T) in u32 and a mask (B, T) of zeros and ones, to (B, T, D) in the builder's compute type.
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape does not fit, or when an id is not in the vocabulary.
    pub fn forward(&self, input_ids: &Tensor, attention_mask: Option<&Tensor>) -> Result<Tensor> {
        let wrong = |what, tensor: &Tensor, expected: String| {
            let found = tensor.dims().to_vec();
            Err(Error::Shape { what, found, expected })
        };
        let [batch, tokens] = match *input_ids.dims() {
            [batch, tokens] if tokens > 0 => [batch, tokens],
            _ => return wrong("input_ids", input_ids, "(B, T)".to_owned()),
        };
        match attention_mask {
            Some(mask) if mask.dims() != [batch, tokens] => {
                wrong("attention_mask", mask, format!("({batch}, {tokens})"))
            }
            _ => Ok(self.run(input_ids, attention_mask)?),
        }
    }

    fn run(&self, input_ids: &Tensor, mask: Option<&Tensor>) -> TensorResult<Tensor> {
        let (batch, tokens) = input_ids.dims2()?;
        let wide = wide_dtype(self.dtype);
        let mask = mask
            .map(|mask| -> TensorResult<Tensor> {
                let masked = mask.to_dtype(wide)?.affine(-MASKED, MASKED)?;
                Ok(masked.reshape((batch, 1, 1, tokens))?)
            })
            .transpose()?;
        let bias = self.position_bias.forward(tokens)?.to_dtype(wide)?;
        let mut x = ops::embedding(input_ids, &self.shared)?.to_dtype(wide)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = self.run_layer((index, layer), (&x, &bias), mask.as_ref())?;
        }
        Ok(self.final_layer_norm.forward(&x)?.to_dtype(self.dtype)?)
    }

    fn run_layer(
        &self,
        (index, layer): (usize, &Arc<EncoderLayer>),
        (x, bias): (&Tensor, &Tensor),
        mask: Option<&Tensor>,
    ) -> TensorResult<Tensor> {
        if !self.gradient_checkpointing.recomputes(index) {
            return layer.forward(x, bias, mask);
        }
        let (layer, mask) = (layer.clone(), mask.cloned());
        let (switch, enabled) = (self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x, bias], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            layer.forward(&inputs[0], &inputs[1], mask.as_ref())
        })
    }
}

/// The type of sums and scores.
fn wide_dtype(dtype: DType) -> DType {
    if dtype.size_in_bytes() < 4 { DType::F32 } else { dtype }
}

fn norm(builder: &Builder<'_>, config: &T5Config) -> Result<RmsNorm> {
    RmsNorm::load(
        builder,
        config.d_model,
        config.layer_norm_epsilon,
        RmsNormWeight::Factor,
    )
}

/// One layer: attention without a scale of the scores, and a gated feed-forward layer, each on a normed input.
#[derive(Debug)]
struct EncoderLayer {
    attention_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    feed_forward_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    num_heads: usize,
    dtype: DType,
}

impl EncoderLayer {
    fn load(builder: &Builder<'_>, config: &T5Config) -> Result<Self> {
        let (width, inner, d_ff) = (config.d_model, config.num_heads * config.d_kv, config.d_ff);
        // transformers' `T5PreTrainedModel._init_weights`.
        let linear = |name: &str, (from, to): (usize, usize), variance: usize| {
            let std = config.initializer_factor * (variance as f64).powf(-0.5);
            let linear = LinearConfig::new(from, to).without_bias();
            Linear::load(&builder.child(name), linear.init(Init::Normal { std }, Init::Zeros))
        };
        let attention = |name: &str, sides, variance| linear(&format!("layer.0.SelfAttention.{name}"), sides, variance);
        let dense = |name: &str, sides, variance| linear(&format!("layer.1.DenseReluDense.{name}"), sides, variance);
        Ok(Self {
            attention_norm: norm(&builder.child("layer.0.layer_norm"), config)?,
            q: attention("q", (width, inner), width * config.d_kv)?,
            k: attention("k", (width, inner), width)?,
            v: attention("v", (width, inner), width)?,
            o: attention("o", (inner, width), inner)?,
            feed_forward_norm: norm(&builder.child("layer.1.layer_norm"), config)?,
            gate: dense("wi_0", (width, d_ff), width)?,
            up: dense("wi_1", (width, d_ff), width)?,
            down: dense("wo", (d_ff, width), d_ff)?,
            num_heads: config.num_heads,
            dtype: builder.dtype(),
        })
    }

    /// x (B, T, D), bias (1, H, T, T) and mask (B, 1, 1, T), all in the wide type, to (B, T, D).
    fn forward(&self, x: &Tensor, bias: &Tensor, mask: Option<&Tensor>) -> TensorResult<Tensor> {
        let h = self.attention_norm.forward(x)?.to_dtype(self.dtype)?;
        let attended = self.o.forward(&self.attend(&h, bias, mask)?)?;
        let x = (attended.to_dtype(x.dtype())? + x)?;
        let h = self.feed_forward_norm.forward(&x)?.to_dtype(self.dtype)?;
        let (mut gate, mut up) = (self.gate.forward(&h)?, self.up.forward(&h)?);
        if self.dtype == DType::F16 {
            // Their product leaves the range of f16; transformers keeps the last layer in f32 for it too.
            (gate, up) = (gate.to_dtype(x.dtype())?, up.to_dtype(x.dtype())?);
        }
        let out = self.down.forward(&ops::geglu_tanh(&gate, &up)?)?;
        Ok((out.to_dtype(x.dtype())? + x)?)
    }

    fn attend(&self, h: &Tensor, bias: &Tensor, mask: Option<&Tensor>) -> TensorResult<Tensor> {
        let (batch, tokens, _) = h.dims3()?;
        let heads = |linear: &Linear| -> TensorResult<Tensor> {
            let x = linear.forward(h)?.to_dtype(bias.dtype())?;
            let width = x.dim(2)? / self.num_heads;
            Ok(x.reshape((batch, tokens, self.num_heads, width))?
                .transpose(1, 2)?
                .contiguous()?)
        };
        let (q_bhtk, k_bhtk, v_bhtk) = (heads(&self.q)?, heads(&self.k)?, heads(&self.v)?);
        let mut scores = q_bhtk.matmul(&k_bhtk.t()?.contiguous()?)?.broadcast_add(bias)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let out = ops::softmax(&scores)?.matmul(&v_bhtk)?;
        Ok(out
            .transpose(1, 2)?
            .contiguous()?
            .flatten_from(2)?
            .to_dtype(h.dtype())?)
    }
}
