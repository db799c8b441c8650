//! The network.
//!
//! B batch, T tokens, N rows, D width, V vocabulary.

use std::sync::Arc;

use diptych_tensor::ops::{TokenHead, TokenLogpsConfig, TokenStatistics, VisibleKeys};
use diptych_tensor::{CheckpointPolicy, DType, Device, Result as TensorResult, Tensor, checkpoint, ops};

use super::cache::{KvCache, KvCacheSize};
use super::layer::{Context, DecoderLayer, norm_weight};
use super::rope::{Positions, Rope};
use super::{LmConfig, LmInput};
use crate::layers::{Linear, LinearConfig, RmsNorm};
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// transformers' `...ForCausalLM`: token ids to hidden states, logits and log-probabilities.
#[derive(Debug)]
pub struct CausalLm {
    embed_tokens: Tensor,
    pub(super) layers: Vec<Arc<DecoderLayer>>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: Rope,
    config: LmConfig,
    dtype: DType,
    device: Device,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside layers again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl CausalLm {
    /// The network at the builder's place. Parameters are called `model....` and `lm_head.weight`; a tied head has none of its own.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &LmConfig) -> Result<Self> {
        Self::load_at(&builder.child("model"), &builder.child("lm_head"), config)
    }

    /// The network with its layers and its head at two places.
    pub(crate) fn load_at(root: &Builder<'_>, head: &Builder<'_>, config: &LmConfig) -> Result<Self> {
        // Buffers in files of old, and the copy that some files of tied networks have.
        root.ignore_unused(format!("{}.rotary_emb.", root.path()));
        for i in 0..config.layers.len() {
            root.ignore_unused(format!("{}.layers.{i}.self_attn.rotary_emb.", root.path()));
        }
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let init = Init::Normal {
            std: config.initializer_range,
        };
        let embed_tokens = root.child("embed_tokens").get("weight", &[vocabulary, width], init)?;
        let lm_head = if config.tie_word_embeddings {
            head.ignore_unused(format!("{}.", head.path()));
            Linear::with_weight(head, &embed_tokens)?
        } else {
            Linear::load(
                head,
                LinearConfig::new(width, vocabulary)
                    .init(init, Init::Zeros)
                    .without_bias(),
            )?
        };
        let frozen = root.quantized();
        let layer = |i| DecoderLayer::load(&frozen.child(format!("layers.{i}")), config, i).map(Arc::new);
        Ok(Self {
            embed_tokens,
            layers: (0..config.layers.len()).map(layer).collect::<Result<_>>()?,
            norm: RmsNorm::load(&root.child("norm"), width, config.rms_norm_eps, norm_weight(config))?,
            lm_head,
            rope: Rope::new(&config.rope, config.head_dim),
            config: config.clone(),
            dtype: root.dtype(),
            device: root.device().clone(),
            switch: root.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &LmConfig {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// Where the network is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Hidden states of all tokens, after the final norm.
    ///
    /// # Shape
    /// (B, T) to (B, T, D), in the builder's compute type.
    ///
    /// # Errors
    /// When an id is not in the vocabulary; [`Error::ContextLength`] for positions that are not defined.
    pub fn forward(&self, input: &LmInput) -> Result<Tensor> {
        let embeddings = self.embed(&input.input_ids)?;
        self.forward_embeddings(&embeddings, input)
    }

    /// The vectors of ids, as the first layer takes them: (...) u32 to (..., D), in the builder's compute type.
    ///
    /// # Errors
    /// When an id is not in the vocabulary.
    pub fn embed(&self, input_ids: &Tensor) -> Result<Tensor> {
        let x = ops::embedding(input_ids, &self.embed_tokens)?;
        let scaled = || -> TensorResult<Tensor> {
            let x = x.to_dtype(self.dtype)?;
            if self.config.family.is_gemma() {
                Ok((x * (self.config.hidden_size as f64).sqrt())?)
            } else {
                Ok(x)
            }
        };
        Ok(scaled()?)
    }

    /// [`forward`](Self::forward) from vectors instead of ids: those of `input` give shape, positions and mask only.
    ///
    /// # Shape
    /// `embeddings` (B, T, D), unchanged.
    ///
    /// # Errors
    /// [`Error::Shape`] for vectors of another shape; otherwise as [`forward`](Self::forward).
    pub fn forward_embeddings(&self, embeddings: &Tensor, input: &LmInput) -> Result<Tensor> {
        self.check_embeddings(embeddings, input)?;
        let contexts = self.contexts(input.rotary_positions(), &input.visible)?;
        let mut x = embeddings.clone();
        for (index, (layer, context)) in self.layers.iter().zip(contexts).enumerate() {
            x = self.run_layer((index, layer), &x, context)?;
        }
        Ok(self.norm.forward(&x)?)
    }

    /// [`forward`](Self::forward) without a graph, also of a network that is trained: no more than one layer's activations are held
    /// at a time.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_detached(&self, input: &LmInput) -> Result<Tensor> {
        self.forward_embeddings_detached(&self.embed(&input.input_ids)?, input)
    }

    /// [`forward_embeddings`](Self::forward_embeddings) without a graph.
    ///
    /// # Errors
    /// As [`forward_embeddings`](Self::forward_embeddings).
    pub fn forward_embeddings_detached(&self, embeddings: &Tensor, input: &LmInput) -> Result<Tensor> {
        self.check_embeddings(embeddings, input)?;
        let contexts = self.contexts(input.rotary_positions(), &input.visible)?;
        let mut x = embeddings.detach();
        for (layer, context) in self.layers.iter().zip(contexts) {
            x = layer.forward(&x, &context, None)?.detach();
        }
        Ok(self.norm.forward(&x)?.detach())
    }

    pub(super) fn check_embeddings(&self, embeddings: &Tensor, input: &LmInput) -> Result<()> {
        let mut expected = input.input_ids.dims().to_vec();
        expected.push(self.config.hidden_size);
        if embeddings.dims() == expected {
            return Ok(());
        }
        Err(Error::Shape {
            what: "embeddings",
            found: embeddings.dims().to_vec(),
            expected: format!("{expected:?}"),
        })
    }

    /// What each layer is given beside its input.
    pub(super) fn contexts(&self, positions: Positions<'_>, visible: &VisibleKeys) -> Result<Vec<Context>> {
        self.rope.check(positions)?;
        let [cos, sin] = self.rope.tables(positions, (visible.batch(), visible.queries()))?;
        let place =
            |table: &Tensor| -> TensorResult<Tensor> { Ok(table.to_dtype(self.dtype)?.to_device(&self.device)?) };
        let (cos, sin) = (place(&cos)?, place(&sin)?);
        let context = |layer: &super::LmLayerConfig| -> Result<Context> {
            let visible = layer
                .window
                .map_or_else(|| Ok(visible.clone()), |window| visible.windowed(window))?;
            Ok(Context {
                cos: cos.clone(),
                sin: sin.clone(),
                visible,
            })
        };
        self.config.layers.iter().map(context).collect()
    }

    fn run_layer(
        &self,
        (index, layer): (usize, &Arc<DecoderLayer>),
        x: &Tensor,
        context: Context,
    ) -> TensorResult<Tensor> {
        if !self.gradient_checkpointing.recomputes(index) {
            return layer.forward(x, &context, None);
        }
        let (layer, switch, enabled) = (layer.clone(), self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            layer.forward(&inputs[0], &context, None)
        })
    }

    /// A cache with room for `capacity` tokens in each of `batch` rows.
    pub(super) fn cache(&self, batch: usize, capacity: usize) -> Result<KvCache> {
        let size = KvCacheSize {
            num_layers: self.layers.len(),
            batch,
            capacity,
            width: self.config.num_key_value_heads * self.config.head_dim,
        };
        Ok(KvCache::new(size, self.dtype, &self.device)?)
    }

    /// Hidden states of tokens that follow those of the cache, without a graph: (B, T, D), unchanged.
    pub(super) fn forward_cached(
        &self,
        embeddings: &Tensor,
        positions: Positions<'_>,
        visible: &VisibleKeys,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let contexts = self.contexts(positions, visible)?;
        let mut x = embeddings.detach();
        for (i, (layer, context)) in self.layers.iter().zip(contexts).enumerate() {
            x = layer.forward(&x, &context, Some(cache.layer(i)))?.detach();
        }
        cache.advance(visible.queries());
        Ok(self.norm.forward(&x)?.detach())
    }

    /// Logits of hidden states, in their type.
    ///
    /// # Shape
    /// (..., D) to (..., V).
    ///
    /// # Errors
    /// When the last dimension is not D.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let capped = || -> TensorResult<Tensor> {
            let logits = self.lm_head.forward(hidden)?;
            match self.config.logits_softcap {
                None => Ok(logits),
                Some(cap) => Ok(((logits / cap)?.tanh()? * cap)?),
            }
        };
        Ok(capped()?)
    }

    /// What [`token_logps`](Self::token_logps) does beside its operands: the cap of the logits, and defaults.
    pub fn token_logps_config(&self) -> TokenLogpsConfig {
        TokenLogpsConfig {
            softcap: self.config.logits_softcap,
            ..TokenLogpsConfig::default()
        }
    }

    /// What the logits of hidden states are products of, with the adapter of the projection where one is switched on: for whole
    /// distributions, where [`token_logps`](Self::token_logps) gives those of single tokens.
    ///
    /// # Errors
    /// When the width of `hidden`, (N, D), is another one.
    pub fn token_head(&self, hidden: &Tensor) -> Result<TokenHead> {
        let (hidden, weight) = self.lm_head.operands(hidden)?;
        Ok(TokenHead {
            hidden,
            weight,
            config: self.token_logps_config(),
        })
    }

    /// Log-probabilities of the tokens `targets` after the hidden states. The logits of all rows never exist at once.
    ///
    /// `config` is that of [`token_logps_config`](Self::token_logps_config), perhaps with another temperature or chunk.
    ///
    /// # Shape
    /// `hidden` (N, D), the states that precede the tokens; `targets` (N) u32; result (N), f32 (f64 for f64).
    ///
    /// # Errors
    /// When shapes do not fit or a target is not in the vocabulary.
    pub fn token_logps(&self, hidden: &Tensor, targets: &Tensor, config: TokenLogpsConfig) -> Result<Tensor> {
        let (hidden, weight) = self.lm_head.operands(hidden)?;
        Ok(ops::token_logps(&hidden, &weight, targets, config)?)
    }

    /// [`token_logps`](Self::token_logps) and what the distributions look like, in the same pass.
    ///
    /// # Errors
    /// As [`token_logps`](Self::token_logps).
    pub fn token_logps_and_statistics(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        config: TokenLogpsConfig,
    ) -> Result<(Tensor, TokenStatistics)> {
        let (hidden, weight) = self.lm_head.operands(hidden)?;
        Ok(ops::token_logps_and_statistics(&hidden, &weight, targets, config)?)
    }
}
