//! The memory of parameters, taken in the order in which a network is loaded.

use std::collections::BTreeSet;
use std::rc::Rc;

use diptych_models::lm::{AttentionBias, LmConfig};
use diptych_models::vlm::VisionConfig;
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_tensor::{DType, Quantization};

use super::super::heap::{Heap, Use};
use super::super::shadow::{Shadow, Tape};
use super::vision::ShadowVision;
use super::{Layer, Linear, Lora, ShadowLm, WIDE, Weight};
use crate::Result;

/// How a network is loaded.
pub(in crate::estimate) struct Loading<'a> {
    pub(in crate::estimate) config: &'a LmConfig,
    /// What is trained; `None` for a network that is not.
    pub(in crate::estimate) trained: Option<&'a AdapterConfig>,
    /// Type of frozen parameters and of activations.
    pub(in crate::estimate) dtype: DType,
    /// Bytes of a stored element.
    pub(in crate::estimate) stored_width: usize,
    /// What the weights of the decoder's linear layers are kept in.
    pub(in crate::estimate) quantization: Option<Quantization>,
    /// What its frozen and its trained parameters are counted as.
    pub(in crate::estimate) of: [Use; 2],
    /// What reads images for it.
    pub(in crate::estimate) vision: Option<VisionLoading<'a>>,
}

/// A tower with its projector.
#[derive(Clone, Copy)]
pub(in crate::estimate) struct VisionLoading<'a> {
    pub(in crate::estimate) config: &'a VisionConfig,
    /// Whether an adapter or full training reaches the tower.
    pub(in crate::estimate) is_tower_trained: bool,
    /// Names and shapes of the layers of the whole network that could carry an adapter.
    pub(in crate::estimate) layers: &'a [(String, Vec<usize>)],
}

impl ShadowLm {
    /// Takes the memory of a network.
    pub(in crate::estimate) fn load(heap: &Heap, loading: &Loading<'_>) -> Result<Self> {
        let config = loading.config;
        let lora = match loading.trained {
            Some(AdapterConfig::Lora(lora)) => Some(lora),
            Some(AdapterConfig::Full(_)) | None => None,
        };
        let mut loader = Loader {
            loading,
            heap,
            lora,
            targets: targets(loading, lora)?,
            is_frozen: false,
            trained: Vec::new(),
        };
        let (width, vocabulary) = (config.hidden_size, config.vocab_size);
        let vision = loading
            .vision
            .map(|vision| ShadowVision::load(&mut loader, vision.config, width, loading.dtype.size_in_bytes()));
        let embed_tokens = loader.get(vocabulary * width);
        let lm_head = if config.tie_word_embeddings {
            let weight = Weight::Dense(embed_tokens.clone());
            loader.adapted("lm_head", weight, None, (width, vocabulary))
        } else {
            loader.linear("lm_head", (width, vocabulary), false)
        };
        let layers = (0..config.layers.len())
            .map(|i| Rc::new(loader.layer(config, i)))
            .collect();
        Ok(Self {
            embed_tokens,
            layers,
            norm: loader.get(width),
            lm_head,
            config: config.clone(),
            width: loading.dtype.size_in_bytes(),
            vision,
            trained: loader.trained,
        })
    }
}

/// Names of the layers that get an adapter.
fn targets(loading: &Loading<'_>, lora: Option<&LoraConfig>) -> Result<BTreeSet<String>> {
    let Some(lora) = lora else {
        return Ok(BTreeSet::new());
    };
    let own;
    let layers = if let Some(vision) = loading.vision {
        vision.layers
    } else {
        own = linear_layers(loading.config);
        own.as_slice()
    };
    let targeted = lora.targeted(layers)?;
    let names = layers.iter().zip(targeted).filter(|(_, is_targeted)| *is_targeted);
    Ok(names.map(|((name, _), _)| name.clone()).collect())
}

/// Takes parameters one after another.
pub(super) struct Loader<'a> {
    loading: &'a Loading<'a>,
    heap: &'a Heap,
    lora: Option<&'a LoraConfig>,
    targets: BTreeSet<String>,
    /// Whether nothing of what comes next is trained.
    is_frozen: bool,
    trained: Vec<usize>,
}

/// Name and shape of every layer that could carry an adapter, in the order in which they are loaded.
pub(super) fn linear_layers(config: &LmConfig) -> Vec<(String, Vec<usize>)> {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let [q, kv] = [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * config.head_dim);
    let of_layer = [
        ("self_attn.q_proj", q, width),
        ("self_attn.k_proj", kv, width),
        ("self_attn.v_proj", kv, width),
        ("self_attn.o_proj", width, q),
        ("mlp.gate_proj", inner, width),
        ("mlp.up_proj", inner, width),
        ("mlp.down_proj", width, inner),
    ];
    let head = ("lm_head".to_owned(), vec![config.vocab_size, width]);
    let layers = (0..config.layers.len())
        .flat_map(|i| of_layer.map(|(name, to, from)| (format!("model.layers.{i}.{name}"), vec![to, from])));
    std::iter::once(head).chain(layers).collect()
}

impl Loader<'_> {
    /// Says whether anything of what comes next may be trained, and gives what was said before.
    pub(super) fn freeze(&mut self, is_frozen: bool) -> bool {
        std::mem::replace(&mut self.is_frozen, is_frozen)
    }

    pub(super) fn trains_tower(&self) -> bool {
        self.loading.vision.is_some_and(|vision| vision.is_tower_trained)
    }

    /// A parameter of the network.
    pub(super) fn get(&mut self, elements: usize) -> Shadow {
        let is_trained = !self.is_frozen && matches!(self.loading.trained, Some(AdapterConfig::Full(_)));
        let width = if is_trained {
            WIDE
        } else {
            self.loading.dtype.size_in_bytes()
        };
        // The file's bytes, and a tensor of them in the stored type.
        let read = self.heap.take(Use::Loading, elements * self.loading.stored_width);
        let stored = self.heap.take(Use::Loading, elements * self.loading.stored_width);
        drop(read);
        let [frozen, trained] = self.loading.of;
        if !is_trained {
            if width == self.loading.stored_width {
                drop(stored);
            }
            return self.tape(frozen).leaf(frozen, elements, width);
        }
        let cast = (width != self.loading.stored_width).then(|| self.heap.take(Use::Loading, elements * width));
        let variable = self.variable(trained, elements);
        drop((stored, cast));
        variable
    }

    fn variable(&mut self, of: Use, elements: usize) -> Shadow {
        self.trained.push(elements);
        self.tape(of).variable(of, elements, WIDE)
    }

    fn tape(&self, results: Use) -> Tape {
        Tape {
            heap: self.heap.clone(),
            results,
        }
    }

    pub(super) fn linear(&mut self, name: &str, (from, to): (usize, usize), has_bias: bool) -> Linear {
        let weight = Weight::Dense(self.get(from * to));
        let bias = has_bias.then(|| self.get(to));
        self.adapted(name, weight, bias, (from, to))
    }

    /// A linear layer of the decoder, whose weight may be quantized.
    fn decoder_linear(&mut self, name: &str, (from, to): (usize, usize), has_bias: bool) -> Linear {
        let Some(quantization) = self.loading.quantization else {
            return self.linear(name, (from, to), has_bias);
        };
        // The file's bytes, and a tensor of them in the stored type.
        let read = self.heap.take(Use::Loading, from * to * self.loading.stored_width);
        let stored = self.heap.take(Use::Loading, from * to * self.loading.stored_width);
        drop(read);
        let arrays = quantization.array_bytes(to, from).into_iter();
        let weight = Weight::Quantized {
            _arrays: arrays.map(|bytes| self.heap.take(self.loading.of[0], bytes)).collect(),
        };
        drop(stored);
        let bias = has_bias.then(|| self.get(to));
        self.adapted(name, weight, bias, (from, to))
    }

    fn adapted(&mut self, name: &str, weight: Weight, bias: Option<Shadow>, (from, to): (usize, usize)) -> Linear {
        let is_target = !self.is_frozen && self.targets.contains(name);
        let lora = self.lora.filter(|_| is_target).map(|lora| {
            let of = self.loading.of[1];
            Lora {
                a: self.variable(of, lora.rank * from),
                b: self.variable(of, lora.rank * to),
                magnitude: lora.use_dora.then(|| self.variable(of, to)),
                rank: lora.rank,
                is_scaled: lora.scale() != 1.0,
            }
        });
        Linear {
            weight,
            bias,
            lora,
            from,
            to,
        }
    }

    fn layer(&mut self, config: &LmConfig, index: usize) -> Layer {
        let (width, inner, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let [q, kv] = [config.num_attention_heads, config.num_key_value_heads].map(|heads| heads * head_dim);
        let (has_bias, has_output_bias) = (
            config.attention_bias != AttentionBias::None,
            config.attention_bias == AttentionBias::All,
        );
        let place = match self.loading.vision {
            Some(_) => "model.language_model.layers",
            None => "model.layers",
        };
        let mut two = |has: bool, elements: usize| has.then(|| [self.get(elements), self.get(elements)]);
        let post_norms = two(config.family.has_post_norms(), width);
        let qk_norm = two(config.family.has_qk_norm(), head_dim);
        let linear = |loader: &mut Self, name: &str, size, has_bias| {
            loader.decoder_linear(&format!("{place}.{index}.{name}"), size, has_bias)
        };
        Layer {
            input_layernorm: self.get(width),
            before_mlp: self.get(width),
            post_norms,
            qk_norm,
            q: linear(self, "self_attn.q_proj", (width, q), has_bias),
            k: linear(self, "self_attn.k_proj", (width, kv), has_bias),
            v: linear(self, "self_attn.v_proj", (width, kv), has_bias),
            o: linear(self, "self_attn.o_proj", (q, width), has_output_bias),
            gate: linear(self, "mlp.gate_proj", (width, inner), config.mlp_bias),
            up: linear(self, "mlp.up_proj", (width, inner), config.mlp_bias),
            down: linear(self, "mlp.down_proj", (inner, width), config.mlp_bias),
            has_rope: config.layers[index].has_rope,
        }
    }
}
