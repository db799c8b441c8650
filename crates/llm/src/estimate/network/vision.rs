//! Vision tower and projector in shadows: the operations of [`diptych_models::vlm`] without numbers.
//!
//! N patches of all images of a batch, D width of the tower, M tokens of these images, E width of the decoder.

use std::rc::Rc;

use diptych_models::vlm::{LlavaVisionConfig, QwenVisionConfig, TowerConfig, VisionConfig};

use super::super::heap::{Block, Use};
use super::super::shadow::{Fused, Pull, Shadow, Tape};
use super::super::sizes::{BatchSizes, ImageSizes};
use super::load::Loader;
use super::operations::{add, attention_buffers, pointwise};
use super::{Adapters, Context, Layers, Linear, WIDE};

/// Tower and projector.
pub(super) struct ShadowVision {
    layers: Vec<Rc<TowerLayer>>,
    /// Parameters before and behind the layers, through which their input comes.
    embeddings: Vec<Shadow>,
    projector_norm: Vec<Shadow>,
    projector: [Linear; 2],
    /// What ends the rows of joined tiles.
    newline: Vec<Shadow>,
    shape: Shape,
    width: usize,
}

struct TowerLayer {
    norms: [Vec<Shadow>; 2],
    projections: Vec<Linear>,
    out: Linear,
    mlp: Vec<Linear>,
    has_rope: bool,
    heads: usize,
}

/// What there is to know of a configuration.
#[derive(Debug, Clone)]
struct Shape {
    /// The place of the tower, and of its layers below it.
    place: [&'static str; 2],
    width: usize,
    inner: usize,
    heads: usize,
    num_layers: usize,
    /// Layers that are run; the others are loaded only.
    num_used: usize,
    /// Elements of the parameters that are in no layer, and of those that are never read.
    around: Vec<usize>,
    unread: Vec<usize>,
    norm_parts: usize,
    is_qwen: bool,
    is_gated: bool,
    /// Width of what the projector reads of a token, and of what it makes.
    projector: [usize; 3],
    has_projector_bias: bool,
    num_newlines: usize,
    /// Layers whose features are read.
    num_read: usize,
}

impl Shape {
    fn of(config: &VisionConfig, text_width: usize) -> Self {
        match config {
            VisionConfig::Llava(llava) => Self::of_llava(llava, text_width),
            VisionConfig::Qwen(qwen) => Self::of_qwen(qwen),
        }
    }

    fn of_llava(llava: &LlavaVisionConfig, text_width: usize) -> Self {
        let width = llava.tower.width();
        let patches = llava.tower.patches_per_side().pow(2);
        let (inner, heads, num_layers, around, unread) = match &llava.tower {
            // The vector for the whole image, patches, positions, the norm before the layers; the norm behind them.
            TowerConfig::Clip(clip) => (
                clip.intermediate_size,
                clip.num_attention_heads,
                clip.num_hidden_layers,
                vec![1, 3 * clip.patch_size.pow(2), patches + 1, 1, 1],
                2,
            ),
            // Patches with a bias, positions.
            TowerConfig::Siglip(siglip) => (
                siglip.intermediate_size,
                siglip.num_attention_heads,
                siglip.num_hidden_layers,
                vec![3 * siglip.patch_size.pow(2), 1, patches],
                0,
            ),
        };
        // How many layers are behind what transformers counts as a state: from the end, where the number is negative.
        let behind = |state: &i64| {
            let from_end = usize::try_from(-1 - *state).map(|back| num_layers.saturating_sub(back));
            from_end.or(usize::try_from(*state)).unwrap_or(num_layers)
        };
        Self {
            place: ["model.vision_tower", "encoder.layers"],
            width,
            inner,
            heads,
            num_layers,
            num_used: llava.feature_layers.iter().map(behind).max().unwrap_or(num_layers),
            around: around.into_iter().map(|rows| rows * width).collect(),
            unread: vec![width; unread],
            norm_parts: 2,
            is_qwen: false,
            is_gated: false,
            projector: [width * llava.feature_layers.len(), text_width, text_width],
            has_projector_bias: llava.projector_bias,
            num_newlines: usize::from(llava.grid_pinpoints.is_some()),
            num_read: llava.feature_layers.len(),
        }
    }

    fn of_qwen(qwen: &QwenVisionConfig) -> Self {
        let merged = qwen.width * qwen.merge_size.pow(2);
        let patch = 3 * qwen.temporal_patch_size * qwen.patch_size.pow(2);
        Self {
            place: ["model.visual", "blocks"],
            width: qwen.width,
            inner: qwen.inner,
            heads: qwen.num_heads,
            num_layers: qwen.depth,
            num_used: qwen.depth,
            around: vec![patch * qwen.width],
            unread: Vec::new(),
            norm_parts: if qwen.windows.is_some() { 1 } else { 2 },
            is_qwen: true,
            is_gated: qwen.windows.is_some(),
            projector: [merged, merged, qwen.out_size],
            has_projector_bias: true,
            num_newlines: 0,
            num_read: 1,
        }
    }
}

impl ShadowVision {
    /// Takes the memory of tower and projector, in the order in which they are loaded.
    pub(super) fn load(loader: &mut Loader<'_>, config: &VisionConfig, text_width: usize, width: usize) -> Self {
        let shape = Shape::of(config, text_width);
        let [tower, below] = shape.place;
        let is_frozen = loader.freeze(!loader.trains_tower());
        let mut embeddings: Vec<Shadow> = shape.around.iter().map(|elements| loader.get(*elements)).collect();
        let layers = (0..shape.num_layers)
            .map(|index| {
                let was_frozen = loader.freeze(is_frozen || !loader.trains_tower() || index >= shape.num_used);
                let layer = TowerLayer::load(loader, &format!("{tower}.{below}.{index}"), &shape);
                loader.freeze(was_frozen);
                Rc::new(layer)
            })
            .collect();
        loader.freeze(true);
        for elements in &shape.unread {
            embeddings.push(loader.get(*elements));
        }
        loader.freeze(is_frozen);
        let (place, names) = if shape.is_qwen {
            ("model.visual.merger", ["mlp.0", "mlp.2"])
        } else {
            ("model.multi_modal_projector", ["linear_1", "linear_2"])
        };
        let norms = if shape.is_qwen { shape.norm_parts } else { 0 };
        let [from, inner, to] = shape.projector;
        Self {
            layers,
            embeddings,
            projector_norm: (0..norms).map(|_| loader.get(shape.width)).collect(),
            projector: [
                loader.linear(
                    &format!("{place}.{}", names[0]),
                    (from, inner),
                    shape.has_projector_bias,
                ),
                loader.linear(&format!("{place}.{}", names[1]), (inner, to), shape.has_projector_bias),
            ],
            newline: (0..shape.num_newlines).map(|_| loader.get(text_width)).collect(),
            shape,
            width,
        }
    }

    /// What the decoder reads of the images of a batch, (M, E). Of a tower that is frozen the features are there already.
    pub(super) fn embed(&self, tape: &Tape, images: ImageSizes, adapters: Adapters, layers: Layers) -> Shadow {
        let features = if self.is_trained() {
            self.features(tape, images, adapters, layers)
        } else {
            // Those of all images side by side.
            tape.leaf(tape.results, self.num_features(images), self.width)
        };
        let context = context(tape, adapters, 0, 0);
        let mut x = Tape::view(&features);
        drop(features);
        if !self.projector_norm.is_empty() {
            x = norm(tape, &x, &self.projector_norm);
        }
        let h = self.projector[0].forward(tape, &Tape::view(&x), &context);
        let h = pointwise(tape, &[&h]);
        let mut embeddings = self.projector[1].forward(tape, &h, &context);
        if let Some(newline) = self.newline.first() {
            // Tiles are joined in new tensors.
            embeddings = tape.candle(Pull::Fresh, images.tokens * newline.elements(), &[&embeddings, newline]);
        }
        if layers == Layers::Detached {
            Tape::detached(&embeddings)
        } else {
            embeddings
        }
    }

    /// What the tower makes of images.
    pub(super) fn features(&self, tape: &Tape, images: ImageSizes, adapters: Adapters, layers: Layers) -> Shadow {
        let elements = images.patches * self.shape.width;
        let pixels = tape.leaf(tape.results, images.pixels, WIDE);
        let head_dim = self.shape.width / self.shape.heads.max(1);
        let tables = if self.shape.is_qwen {
            images.patches * head_dim * WIDE
        } else {
            0
        };
        let context = context(tape, adapters, images.patches, tables);
        let operands: Vec<&Shadow> = std::iter::once(&pixels).chain(&self.embeddings).collect();
        let mut x = tape.candle(Pull::Fresh, elements, &operands);
        x = tape.cast(&x, self.width);
        drop(pixels);
        for (index, layer) in self.layers.iter().take(self.shape.num_used).enumerate() {
            x = match layers {
                Layers::Kept(policy) if !policy.recomputes(index) => layer.forward(tape, &x, &context),
                Layers::Detached => Tape::detached(&layer.forward(tape, &x, &context)),
                Layers::Kept(_) => {
                    let (layer, context) = (layer.clone(), context.clone());
                    tape.checkpoint(
                        &x,
                        Rc::new(move |tape: &Tape, x: &Shadow| layer.forward(tape, x, &context)),
                    )
                }
            };
        }
        // Layers side by side, without the vectors that are not read, in order again.
        tape.candle(Pull::Fresh, self.num_features(images), &[&x])
    }

    fn num_features(&self, images: ImageSizes) -> usize {
        images.features * self.shape.width * self.shape.num_read
    }

    fn is_trained(&self) -> bool {
        let of_layers = self.layers.iter().any(|layer| layer.is_trained());
        of_layers || self.embeddings.iter().any(|parameter| parameter.is_tracked())
    }
}

impl TowerLayer {
    fn load(loader: &mut Loader<'_>, place: &str, shape: &Shape) -> Self {
        let (width, inner) = (shape.width, shape.inner);
        let mut norms = || (0..shape.norm_parts).map(|_| loader.get(width)).collect::<Vec<_>>();
        let norms = [norms(), norms()];
        let mut linear = |name: &str, size| loader.linear(&format!("{place}.{name}"), size, true);
        let (projections, out, mlp): (Vec<Linear>, Linear, Vec<Linear>) = if shape.is_qwen {
            let names: &[&str] = if shape.is_gated {
                &["mlp.gate_proj", "mlp.up_proj"]
            } else {
                &["mlp.fc1"]
            };
            let last = if shape.is_gated { "mlp.down_proj" } else { "mlp.fc2" };
            let qkv = vec![linear("attn.qkv", (width, 3 * width))];
            let out = linear("attn.proj", (width, width));
            let mut mlp: Vec<Linear> = names.iter().map(|name| linear(name, (width, inner))).collect();
            mlp.push(linear(last, (inner, width)));
            (qkv, out, mlp)
        } else {
            let of = ["q_proj", "k_proj", "v_proj"].map(|name| linear(&format!("self_attn.{name}"), (width, width)));
            let out = linear("self_attn.out_proj", (width, width));
            let mlp = vec![linear("mlp.fc1", (width, inner)), linear("mlp.fc2", (inner, width))];
            (of.into(), out, mlp)
        };
        Self {
            norms,
            projections,
            out,
            mlp,
            has_rope: shape.is_qwen,
            heads: shape.heads,
        }
    }

    fn is_trained(&self) -> bool {
        let linear = self.projections.iter().chain([&self.out]).chain(&self.mlp);
        linear.into_iter().any(Linear::is_trained) || self.norms.iter().flatten().any(|part| part.is_tracked())
    }

    fn forward(&self, tape: &Tape, x: &Shadow, context: &Context) -> Shadow {
        let attended = {
            let normed = norm(tape, x, &self.norms[0]);
            self.attention(tape, &normed, context)
        };
        let x = add(tape, x, &attended);
        drop(attended);
        let h = {
            let normed = norm(tape, &x, &self.norms[1]);
            let parts: Vec<Shadow> = self.mlp[..self.mlp.len() - 1]
                .iter()
                .map(|linear| linear.forward(tape, &normed, context))
                .collect();
            pointwise(tape, &parts.iter().collect::<Vec<_>>())
        };
        let fed = self.mlp[self.mlp.len() - 1].forward(tape, &h, context);
        add(tape, &x, &fed)
    }

    fn attention(&self, tape: &Tape, x: &Shadow, context: &Context) -> Shadow {
        let rows: Vec<Shadow> = self
            .projections
            .iter()
            .map(|linear| linear.forward(tape, x, context))
            .collect();
        let [q, k, v] = if let [all] = &rows[..] {
            [0, 1, 2].map(|_| tape.candle(Pull::Fresh, x.elements(), &[all]))
        } else {
            [0, 1, 2].map(|part| rows[part].clone())
        };
        drop(rows);
        let turned = |x: Shadow| -> Shadow {
            if !self.has_rope {
                return x;
            }
            let fused = Fused {
                elements: x.elements(),
                kept: vec![context.tables.clone()],
                ..Fused::default()
            };
            tape.cast(&tape.fused(fused, &[&tape.cast(&x, WIDE)]), x.width())
        };
        let (q, k) = (turned(q), turned(k));
        let [q, k, v] = [&q, &k, &v].map(|part| tape.cast(part, WIDE));
        let (patches, head_dim) = (
            context.sizes.row_len,
            x.elements() / context.sizes.row_len.max(1) / self.heads.max(1),
        );
        let flop = 4.0 * (patches * patches * self.heads * head_dim) as f64;
        let fused = Fused {
            elements: q.elements(),
            forward_flop: flop,
            backward_flop: [1.25 * flop, 1.25 * flop],
            buffers: attention_buffers((self.heads, self.heads, head_dim), context.sizes),
            kept: Vec::new(),
        };
        let attended = tape.fused(fused, &[&q, &k, &v]);
        drop((q, k, v));
        let attended = tape.cast(&attended, x.width());
        self.out.forward(tape, &attended, context)
    }
}

fn norm(tape: &Tape, x: &Shadow, parts: &[Shadow]) -> Shadow {
    let parts: Vec<Shadow> = parts.iter().map(|part| tape.cast(part, x.width())).collect();
    let operands: Vec<&Shadow> = std::iter::once(x).chain(&parts).collect();
    pointwise(tape, &operands)
}

fn context(tape: &Tape, adapters: Adapters, patches: usize, table_bytes: usize) -> Context {
    let tables: Rc<Block> = tape.heap.take(Use::Activations, table_bytes);
    Context {
        sizes: BatchSizes {
            rows: 1,
            row_len: patches,
            ..BatchSizes::default()
        },
        tables,
        adapters,
        copied_tables: None,
    }
}
