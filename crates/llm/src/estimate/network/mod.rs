//! The network of [`diptych_models::lm`] in shadows: the same operations in the same order, without numbers.
//!
//! B rows, T tokens of a row, N tokens of all rows, R response tokens, D width, V vocabulary.

mod load;
mod operations;
mod vision;

use std::rc::Rc;

use diptych_models::lm::LmConfig;
use diptych_tensor::CheckpointPolicy;

pub(in crate::estimate) use self::load::{Loading, VisionLoading};
use self::operations::{LogpsBuffers, add, attention_buffers, pointwise, product, rms_norm};
use self::vision::ShadowVision;
use super::heap::{Block, Heap, Use};
use super::shadow::{Fused, Pull, Shadow, Tape};
use super::sizes::{BatchSizes, ImageSizes};

/// Bytes of an element of a master, and of a fused kernel.
pub(super) const WIDE: usize = 4;

/// A causal language model without numbers.
pub(super) struct ShadowLm {
    embed_tokens: Shadow,
    layers: Vec<Rc<Layer>>,
    norm: Shadow,
    lm_head: Linear,
    vision: Option<ShadowVision>,
    config: LmConfig,
    width: usize,
    /// The trained parameters, in elements.
    pub(super) trained: Vec<usize>,
}

struct Layer {
    input_layernorm: Shadow,
    before_mlp: Shadow,
    post_norms: Option<[Shadow; 2]>,
    qk_norm: Option<[Shadow; 2]>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
    has_rope: bool,
}

struct Linear {
    weight: Weight,
    bias: Option<Shadow>,
    lora: Option<Lora>,
    from: usize,
    to: usize,
}

enum Weight {
    Dense(Shadow),
    Quantized { _arrays: Vec<Rc<Block>> },
}

struct Lora {
    a: Shadow,
    b: Shadow,
    /// The lengths of the rows of the adapted weight, where they are trained by themselves.
    magnitude: Option<Shadow>,
    rank: usize,
    is_scaled: bool,
}

/// Whether adapters take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Adapters {
    On,
    Off,
}

/// What of a layer is kept for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layers {
    /// All of it, or of these layers their input alone.
    Kept(CheckpointPolicy),
    /// There is no backward pass: nothing outlives its layer but its output.
    Detached,
}

/// What every layer is given beside its input.
#[derive(Clone)]
struct Context {
    sizes: BatchSizes,
    tables: Rc<Block>,
    adapters: Adapters,
    /// Bytes of the tables of one rotation in the kernel's type, where they are copied for it.
    copied_tables: Option<usize>,
}

impl ShadowLm {
    /// Log-probabilities of the response tokens of a batch, (R).
    pub(super) fn score(&self, tape: &Tape, sizes: BatchSizes, adapters: Adapters, layers: Layers) -> Shadow {
        let hidden = self.forward(tape, sizes, adapters, layers);
        let hidden = Tape::view(&hidden);
        let rows = tape.candle(Pull::View, sizes.targets * self.config.hidden_size, &[&hidden]);
        drop(hidden);
        self.token_logps(tape, &rows, sizes, adapters)
    }

    /// Log-probabilities (R) of other tokens behind states that are there.
    pub(super) fn score_others(&self, tape: &Tape, sizes: BatchSizes) -> Shadow {
        let states = tape.leaf(tape.results, sizes.targets * self.config.hidden_size, self.width);
        self.token_logps(tape, &states, sizes, Adapters::On)
    }

    /// Hidden states (N, D).
    fn forward(&self, tape: &Tape, sizes: BatchSizes, adapters: Adapters, layers: Layers) -> Shadow {
        let (tokens, width) = (sizes.tokens(), self.config.hidden_size);
        let rows = tape.candle(Pull::View, tokens * width, &[&self.embed_tokens]);
        let mut x = tape.cast(&Tape::view(&rows), self.width);
        drop(rows);
        if self.config.family.is_gemma() {
            x = tape.candle(Pull::Fresh, tokens * width, &[&x]);
        }
        if let Some(vision) = self.vision.as_ref().filter(|_| sizes.images.tokens > 0) {
            // Words and images side by side, then in the order of the tokens.
            let images = vision.embed(tape, sizes.images, adapters, layers);
            let all = tape.candle(Pull::View, tokens * width, &[&x, &images]);
            drop(images);
            x = tape.candle(Pull::Fresh, tokens * width, &[&all]);
        }
        let table = tokens * self.config.head_dim;
        let context = Context {
            sizes,
            // Cosines and sines, and which keys each token sees.
            tables: tape.heap.take(tape.results, table * self.width + 16 * tokens),
            adapters,
            copied_tables: (self.width != WIDE).then_some(table * WIDE),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            x = match layers {
                Layers::Kept(policy) if !policy.recomputes(index) => layer.forward(tape, &x, &self.config, &context),
                Layers::Detached => Tape::detached(&layer.forward(tape, &x, &self.config, &context)),
                Layers::Kept(_) => {
                    let of_segment = Segment {
                        layer: layer.clone(),
                        config: self.config.clone(),
                        context: context.clone(),
                    };
                    tape.checkpoint(&x, Rc::new(move |tape, x| of_segment.forward(tape, x)))
                }
            };
        }
        rms_norm(tape, &x, &self.norm)
    }

    /// Log-probabilities (R) of tokens after hidden states (R, D).
    fn token_logps(&self, tape: &Tape, rows: &Shadow, sizes: BatchSizes, adapters: Adapters) -> Shadow {
        let (count, mut width) = (sizes.targets, self.config.hidden_size);
        let vocabulary = self.config.vocab_size;
        let mut weight = match &self.lm_head.weight {
            Weight::Dense(weight) => tape.cast(weight, rows.width()),
            // Its operands would be asked for as tensors.
            Weight::Quantized { .. } => tape.leaf(tape.results, vocabulary * width, rows.width()),
        };
        let mut hidden = rows.clone();
        if let Some(lora) = self.lm_head.lora.as_ref().filter(|_| adapters == Adapters::On) {
            let ax = lora.down(tape, rows, self.lm_head.from);
            width += lora.rank;
            hidden = tape.candle(Pull::View, count * width, &[rows, &ax]);
            let b = tape.cast(&lora.b, rows.width());
            weight = tape.candle(Pull::View, vocabulary * width, &[&weight, &b]);
        }
        let hidden = tape.cast(&hidden, WIDE);
        let logps = LogpsBuffers::of(count, width, vocabulary);
        let mut kept = vec![tape.heap.take(tape.results, 48 * count)];
        let flop = 2.0 * (count * vocabulary * width) as f64;
        let mut forward_flop = flop;
        let mut parts = logps.rows_in_flight * logps.segments * 48;
        if hidden.is_tracked() {
            kept.push(tape.heap.take(tape.results, count * width * WIDE));
            parts += logps.rows_in_flight * logps.segments * width * WIDE;
            forward_flop += flop;
        }
        drop(tape.heap.take(Use::Activations, parts));
        let fused = Fused {
            elements: count,
            forward_flop,
            // The gradient of hidden is only scaled; that of the weight computes the logits again.
            backward_flop: [0.0, 2.0 * flop],
            buffers: if weight.is_tracked() { logps.weight_gradient } else { 0 },
            kept,
        };
        tape.fused(fused, &[&hidden, &weight])
    }

    /// What the tower holds while it makes the features of an image that are kept, one after the other.
    pub(super) fn encode(&self, heap: &Heap, images: ImageSizes) {
        let tape = Tape {
            heap: heap.clone(),
            results: Use::Activations,
        };
        if let Some(vision) = &self.vision {
            drop(vision.features(&tape, images, Adapters::On, Layers::Detached));
        }
    }

    /// What continuing texts holds: keys and values of every layer, a pass over the longest prompts, logits.
    pub(super) fn sample(
        &self,
        heap: &Heap,
        images: ImageSizes,
        (batch, longest): (usize, usize),
        max_new_tokens: usize,
    ) {
        let tape = Tape {
            heap: heap.clone(),
            results: Use::Sampling,
        };
        let config = &self.config;
        let row = config.num_key_value_heads * config.head_dim * self.width;
        let capacity = batch * (longest + max_new_tokens) * row;
        let _cache: Vec<_> = (0..2 * config.layers.len())
            .map(|_| heap.take(Use::Sampling, capacity))
            .collect();
        let sizes = BatchSizes::prompts(batch, longest);
        let context = Context {
            sizes,
            tables: heap.take(Use::Sampling, sizes.tokens() * (config.head_dim * self.width + 16)),
            adapters: Adapters::On,
            copied_tables: (self.width != WIDE).then_some(sizes.tokens() * config.head_dim * WIDE),
        };
        let elements = sizes.tokens() * config.hidden_size;
        let mut x = tape.leaf(Use::Sampling, elements, self.width);
        if let Some(vision) = self.vision.as_ref().filter(|_| images.tokens > 0) {
            drop(vision.embed(&tape, images.times(batch), Adapters::On, Layers::Detached));
        }
        for layer in &self.layers {
            x = Tape::detached(&layer.forward(&tape, &x, config, &context));
        }
        let logits = tape.leaf(Use::Sampling, batch * config.vocab_size, self.width);
        drop((
            tape.cast(&logits, WIDE),
            heap.take(Use::Sampling, batch * config.vocab_size * WIDE),
        ));
    }
}

/// A layer with what it needs to run again.
struct Segment {
    layer: Rc<Layer>,
    config: LmConfig,
    context: Context,
}

impl Segment {
    fn forward(&self, tape: &Tape, x: &Shadow) -> Shadow {
        self.layer.forward(tape, x, &self.config, &self.context)
    }
}

impl Layer {
    fn forward(&self, tape: &Tape, x: &Shadow, config: &LmConfig, context: &Context) -> Shadow {
        let attended = {
            let normed = rms_norm(tape, x, &self.input_layernorm);
            self.attention(tape, &normed, config, context)
        };
        let x = add(tape, x, &self.behind(tape, 0, attended));
        let fed = {
            let normed = rms_norm(tape, &x, &self.before_mlp);
            self.mlp(tape, &normed, context)
        };
        add(tape, &x, &self.behind(tape, 1, fed))
    }

    fn behind(&self, tape: &Tape, half: usize, x: Shadow) -> Shadow {
        match &self.post_norms {
            Some(norms) => rms_norm(tape, &x, &norms[half]),
            None => x,
        }
    }

    fn attention(&self, tape: &Tape, x: &Shadow, config: &LmConfig, context: &Context) -> Shadow {
        let q = self.placed(tape, self.q.forward(tape, x, context), 0, context);
        let k = self.placed(tape, self.k.forward(tape, x, context), 1, context);
        let v = self.v.forward(tape, x, context);
        let [q, k, v] = [&q, &k, &v].map(|x| tape.cast(x, WIDE));
        let flop = 4.0 * context.sizes.visible as f64 * (config.num_attention_heads * config.head_dim) as f64;
        let fused = Fused {
            elements: q.elements(),
            forward_flop: flop,
            backward_flop: [1.25 * flop, 1.25 * flop],
            buffers: attention_buffers(
                (config.num_attention_heads, config.num_key_value_heads, config.head_dim),
                context.sizes,
            ),
            kept: Vec::new(),
        };
        let attended = tape.fused(fused, &[&q, &k, &v]);
        drop((q, k, v));
        let attended = tape.cast(&attended, x.width());
        self.o.forward(tape, &attended, context)
    }

    /// Queries or keys, normalized and rotated.
    fn placed(&self, tape: &Tape, x: Shadow, which: usize, context: &Context) -> Shadow {
        let x = match &self.qk_norm {
            None => x,
            Some(norms) => Tape::view(&rms_norm(tape, &Tape::view(&x), &norms[which])),
        };
        if !self.has_rope {
            return x;
        }
        let wide = tape.cast(&x, WIDE);
        let mut kept = vec![context.tables.clone()];
        kept.extend(context.copied_tables.map(|bytes| tape.heap.take(tape.results, bytes)));
        let fused = Fused {
            elements: wide.elements(),
            kept,
            ..Fused::default()
        };
        let rotated = tape.fused(fused, &[&wide]);
        tape.cast(&rotated, x.width())
    }

    fn mlp(&self, tape: &Tape, x: &Shadow, context: &Context) -> Shadow {
        let (gate, up) = (self.gate.forward(tape, x, context), self.up.forward(tape, x, context));
        let h = pointwise(tape, &[&gate, &up]);
        drop((gate, up));
        self.down.forward(tape, &h, context)
    }
}

impl Linear {
    fn is_trained(&self) -> bool {
        let is_tracked = match &self.weight {
            Weight::Dense(weight) => weight.is_tracked(),
            Weight::Quantized { .. } => false,
        };
        is_tracked || self.lora.is_some()
    }

    fn forward(&self, tape: &Tape, x: &Shadow, context: &Context) -> Shadow {
        let (bias, size) = (self.bias.as_ref(), (self.from, self.to));
        let y = match &self.weight {
            Weight::Dense(weight) => product(tape, x, Some(weight), bias, size),
            Weight::Quantized { .. } => product(tape, x, None, bias, size),
        };
        match self.lora.as_ref().filter(|_| context.adapters == Adapters::On) {
            None => y,
            Some(lora) => {
                let ax = lora.down(tape, x, self.from);
                let sum = add(tape, &y, &product(tape, &ax, Some(&lora.b), None, (lora.rank, self.to)));
                let Some(factors) = lora.row_factors(tape, &self.weight, (self.from, self.to)) else {
                    return sum;
                };
                tape.candle(Pull::Fresh, sum.elements(), &[&sum, &factors])
            }
        }
    }
}

impl Lora {
    /// What the rows are multiplied by, where they have magnitudes: the adapted weight and its squares exist for their lengths.
    fn row_factors(&self, tape: &Tape, weight: &Weight, (from, to): (usize, usize)) -> Option<Shadow> {
        let magnitude = self.magnitude.as_ref()?;
        // A quantized weight is dequantized for it.
        let dense = match weight {
            Weight::Dense(_) => None,
            Weight::Quantized { .. } => Some(tape.heap.take(tape.results, from * to * WIDE)),
        };
        let matrices = [0, 1, 2].map(|_| tape.heap.take(tape.results, from * to * WIDE));
        let lengths = tape.leaf(tape.results, to, WIDE);
        drop((matrices, dense));
        Some(tape.candle(Pull::Fresh, to, &[magnitude, &lengths]))
    }

    /// The input at the rank's width.
    fn down(&self, tape: &Tape, x: &Shadow, from: usize) -> Shadow {
        let ax = product(tape, x, Some(&self.a), None, (from, self.rank));
        if self.is_scaled {
            tape.candle(Pull::Fresh, ax.elements(), &[&ax])
        } else {
            ax
        }
    }
}
