//! The text encoder.
//!
//! B batch, T tokens, D width, P width of the projection.

use std::sync::Arc;

use diptych_tensor::{CheckpointPolicy, DType, Result as TensorResult, Tensor, checkpoint, ops};

use super::{ClipTextConfig, TextActivation};
use crate::attention::{AttendConfig, attend};
use crate::layers::{LayerNorm, Linear, LinearConfig};
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// What a text encoder returns.
#[derive(Debug, Clone)]
pub struct ClipTextOutput {
    /// One vector per token, after the final norm: (B, T, D).
    pub last_hidden_state: Tensor,
    /// What the last layer is given, `hidden_states[-2]` of transformers: (B, T, D). SDXL and SD3 take this.
    pub penultimate_hidden_state: Tensor,
    /// The vector at the end of each text: (B, D).
    pub pooler_output: Tensor,
    /// That vector projected, (B, P), where the network has a projection.
    pub text_embeds: Option<Tensor>,
}

/// transformers' `CLIPTextModel` or `CLIPTextModelWithProjection`: token ids to vectors.
#[derive(Debug)]
pub struct ClipTextModel {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Arc<EncoderLayer>>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
    dtype: DType,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside layers again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl ClipTextModel {
    /// The network at the builder's place. Parameters are called `text_model....` as published files call them; a file without that
    /// prefix, which transformers 5 can write, loads too.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &ClipTextConfig) -> Result<Self> {
        // A buffer in files written before transformers 4.31, and the image half of a whole CLIP.
        for unused in [
            "text_model.embeddings.position_ids",
            "embeddings.position_ids",
            "vision_model.",
            "visual_projection.",
        ] {
            builder.ignore_unused(unused);
        }
        builder.ignore_unused("logit_scale");
        if !config.has_projection {
            builder.ignore_unused("text_projection.");
        }
        let root = if builder.source_has("embeddings") {
            builder.child_without_source("text_model")
        } else {
            builder.child("text_model")
        };
        let width = config.hidden_size;
        let table = |name: &str, len| {
            let init = Init::Normal {
                std: 0.02 * config.initializer_factor,
            };
            root.child(format!("embeddings.{name}"))
                .get("weight", &[len, width], init)
        };
        let projection = || {
            let std = (width as f64).powf(-0.5) * config.initializer_factor;
            let linear = LinearConfig::new(width, config.projection_dim).without_bias();
            Linear::load(
                &builder.child("text_projection"),
                linear.init(Init::Normal { std }, Init::Zeros),
            )
        };
        let layer = |i| EncoderLayer::load(&root.child(format!("encoder.layers.{i}")), config).map(Arc::new);
        Ok(Self {
            token_embedding: table("token_embedding", config.vocab_size)?,
            position_embedding: table("position_embedding", config.max_position_embeddings)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::load(&root.child("final_layer_norm"), width, config.layer_norm_eps)?,
            text_projection: config.has_projection.then(projection).transpose()?,
            config: config.clone(),
            dtype: builder.dtype(),
            switch: builder.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The vectors of `input_ids`. Every token attends to itself and to those before it; padding is not masked, as Stable Diffusion
    /// was trained without a mask.
    ///
    /// # Shape
    /// (B, T) in u32, T at most the number of positions, to (B, T, D), (B, D) and (B, P), in the builder's compute type.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are too many tokens, or when an id is not in the vocabulary.
    pub fn forward(&self, input_ids: &Tensor) -> Result<ClipTextOutput> {
        self.check_shape(input_ids)?;
        Ok(self.run(input_ids)?)
    }

    /// The states that the layer `from_last` before the end gives out, before the final norm: `hidden_states[-1 - from_last]` of
    /// transformers. diffusers' `clip_skip = n` is `from_last = n` through [`Self::final_norm`] for Stable Diffusion 1.x and 2.x, and
    /// `from_last = n + 1` for SDXL. The layers behind are not computed.
    ///
    /// # Shape
    /// (B, T) in u32 to (B, T, D).
    ///
    /// # Errors
    /// As [`Self::forward`]; [`Error::Condition`] when there are not that many layers.
    pub fn hidden_state(&self, input_ids: &Tensor, from_last: usize) -> Result<Tensor> {
        self.check_shape(input_ids)?;
        let Some(num_layers) = self.layers.len().checked_sub(from_last) else {
            return Err(Error::Condition {
                name: "from_last",
                problem: "skips more layers than the text encoder has",
            });
        };
        let mut x = self.embed(input_ids)?;
        for (index, layer) in self.layers[..num_layers].iter().enumerate() {
            x = self.run_layer((index, layer), &x)?;
        }
        Ok(x)
    }

    /// The final norm of states, (B, T, D) to (B, T, D).
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn final_norm(&self, hidden_states: &Tensor) -> Result<Tensor> {
        Ok(self.final_layer_norm.forward(hidden_states)?)
    }

    fn check_shape(&self, input_ids: &Tensor) -> Result<()> {
        let limit = self.config.max_position_embeddings;
        match *input_ids.dims() {
            [_, tokens] if (1..=limit).contains(&tokens) => Ok(()),
            _ => {
                let expected = format!("(B, T) with T from 1 to {limit}");
                Err(Error::Shape {
                    what: "input_ids",
                    found: input_ids.dims().to_vec(),
                    expected,
                })
            }
        }
    }

    fn embed(&self, input_ids: &Tensor) -> TensorResult<Tensor> {
        let (_, tokens) = input_ids.dims2()?;
        let token_btd = ops::embedding(input_ids, &self.token_embedding)?;
        let x = token_btd.broadcast_add(&self.position_embedding.narrow(0, 0, tokens)?.unsqueeze(0)?)?;
        Ok(x.to_dtype(self.dtype)?)
    }

    fn run(&self, input_ids: &Tensor) -> TensorResult<ClipTextOutput> {
        let (batch, tokens) = input_ids.dims2()?;
        let mut x = self.embed(input_ids)?;
        let mut penultimate_hidden_state = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            penultimate_hidden_state = x;
            x = self.run_layer((index, layer), &penultimate_hidden_state)?;
        }
        let last_hidden_state = self.final_layer_norm.forward(&x)?;
        let ids = input_ids.to_vec2::<u32>()?;
        let rows: Vec<u32> = ids
            .iter()
            .enumerate()
            .map(|(b, ids)| (b * tokens + self.end_of(ids)) as u32)
            .collect();
        let rows = Tensor::from_vec(rows, batch, input_ids.device())?;
        let pooler_output = last_hidden_state.flatten(0, 1)?.index_select(&rows, 0)?;
        let project = |projection: &Linear| projection.forward(&pooler_output);
        Ok(ClipTextOutput {
            last_hidden_state,
            penultimate_hidden_state,
            text_embeds: self.text_projection.as_ref().map(project).transpose()?,
            pooler_output,
        })
    }

    fn run_layer(&self, (index, layer): (usize, &Arc<EncoderLayer>), x: &Tensor) -> TensorResult<Tensor> {
        if !self.gradient_checkpointing.recomputes(index) {
            return layer.forward(x);
        }
        let (layer, switch, enabled) = (layer.clone(), self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            layer.forward(&inputs[0])
        })
    }

    /// Position of the token that ends a text; the first one without such a token, as in transformers.
    fn end_of(&self, ids: &[u32]) -> usize {
        /// What configurations said before transformers 4.31, whatever the vocabulary.
        const LEGACY_EOS: u32 = 2;
        let end = if self.config.eos_token_id == LEGACY_EOS {
            let highest = ids.iter().max();
            ids.iter().position(|id| Some(id) == highest)
        } else {
            ids.iter().position(|&id| id == self.config.eos_token_id)
        };
        end.unwrap_or(0)
    }
}

/// One layer: causal attention and a feed-forward layer, each on a normed input.
#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: AttendConfig,
    activation: TextActivation,
}

impl EncoderLayer {
    fn load(builder: &Builder<'_>, config: &ClipTextConfig) -> Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        // transformers' `CLIPPreTrainedModel._init_weights`.
        let (factor, depth) = (config.initializer_factor, config.num_hidden_layers);
        let out_std = (width as f64).powf(-0.5) * factor;
        let in_std = out_std * (2.0 * depth as f64).powf(-0.5);
        let fc_std = (2.0 * width as f64).powf(-0.5) * factor;
        let linear = |name: &str, (from, to): (usize, usize), std| {
            let config = LinearConfig::new(from, to).init(Init::Normal { std }, Init::Zeros);
            Linear::load(&builder.child(name), config)
        };
        let attention = |name: &str, std| linear(&format!("self_attn.{name}"), (width, width), std);
        Ok(Self {
            layer_norm1: LayerNorm::load(&builder.child("layer_norm1"), width, eps)?,
            q_proj: attention("q_proj", in_std)?,
            k_proj: attention("k_proj", in_std)?,
            v_proj: attention("v_proj", in_std)?,
            out_proj: attention("out_proj", out_std)?,
            layer_norm2: LayerNorm::load(&builder.child("layer_norm2"), width, eps)?,
            fc1: linear("mlp.fc1", (width, inner), fc_std)?,
            fc2: linear("mlp.fc2", (inner, width), in_std)?,
            heads: AttendConfig {
                num_heads: config.num_attention_heads,
                mask: ops::AttentionMask::Causal,
                upcast: false,
            },
            activation: config.hidden_act,
        })
    }

    fn forward(&self, x: &Tensor) -> TensorResult<Tensor> {
        let h = self.layer_norm1.forward(x)?;
        let (q, k, v) = (
            self.q_proj.forward(&h)?,
            self.k_proj.forward(&h)?,
            self.v_proj.forward(&h)?,
        );
        let x = (self.out_proj.forward(&attend(&q, &k, &v, self.heads)?)? + x)?;
        let h = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        let h = match self.activation {
            TextActivation::QuickGelu => ops::quick_gelu(&h)?,
            TextActivation::Gelu => ops::gelu(&h)?,
        };
        Ok((self.fc2.forward(&h)? + x)?)
    }
}
