//! The two blocks of a Stable Diffusion denoiser, from the layers that its network is made of.

use diptych::models::layers::{Conv2d, Conv2dConfig, GroupNorm, LayerNorm, Linear, LinearConfig};
use diptych::models::{Builder, BuilderConfig, Result as ModelResult, Trainable};
use diptych::tensor::ops::{self, AttentionConfig, AttentionMask};
use diptych::tensor::{Params, Result as TensorResult, Tensor};

use crate::cases::{Case, Job, Pass, normal, run_of};

/// Tokens and width of the text.
const TOKENS: usize = 77;
const TEXT: usize = 768;

/// diffusers' `ResnetBlock2D` of one width.
struct ResnetBlock {
    norms: [GroupNorm; 2],
    convs: [Conv2d; 2],
    time: Linear,
}

impl ResnetBlock {
    fn load(builder: &Builder<'_>, channels: usize, time: usize) -> ModelResult<Self> {
        let norm = |name| GroupNorm::load(&builder.child(name), channels, 32, 1e-5);
        let conv = |name| Conv2d::load(&builder.child(name), Conv2dConfig::new(channels, channels, 3));
        Ok(Self {
            norms: [norm("norm1")?, norm("norm2")?],
            convs: [conv("conv1")?, conv("conv2")?],
            time: Linear::load(&builder.child("time_emb_proj"), LinearConfig::new(time, channels))?,
        })
    }

    fn forward(&self, x: &Tensor, time: &Tensor) -> TensorResult<Tensor> {
        let h = self.convs[0].forward(&self.norms[0].forward_silu(x)?)?;
        let time = self.time.forward(&ops::silu(time)?)?.unsqueeze(2)?.unsqueeze(3)?;
        let h = h.broadcast_add(&time)?;
        Ok((x + self.convs[1].forward(&self.norms[1].forward_silu(&h)?)?)?)
    }
}

/// diffusers' `Transformer2DModel` of one layer with convolutions as projections.
struct TransformerBlock {
    norm: GroupNorm,
    projections: [Conv2d; 2],
    norms: [LayerNorm; 3],
    /// Queries, keys, values and output of the attention to pixels and of that to the text.
    attentions: [[Linear; 4]; 2],
    feed_forward: [Linear; 2],
    heads: usize,
}

impl TransformerBlock {
    fn load(builder: &Builder<'_>, channels: usize, heads: usize) -> ModelResult<Self> {
        let conv = |name| Conv2d::load(&builder.child(name), Conv2dConfig::new(channels, channels, 1));
        let norm = |name| LayerNorm::load(&builder.child(name), channels, 1e-5);
        let attention = |name: &str, from| -> ModelResult<[Linear; 4]> {
            let place = builder.child(name);
            let input = |name, from| Linear::load(&place.child(name), LinearConfig::new(from, channels).without_bias());
            Ok([
                input("to_q", channels)?,
                input("to_k", from)?,
                input("to_v", from)?,
                Linear::load(&place.child("to_out"), LinearConfig::new(channels, channels))?,
            ])
        };
        Ok(Self {
            norm: GroupNorm::load(&builder.child("norm"), channels, 32, 1e-6)?,
            projections: [conv("proj_in")?, conv("proj_out")?],
            norms: [norm("norm1")?, norm("norm2")?, norm("norm3")?],
            attentions: [attention("attn1", channels)?, attention("attn2", TEXT)?],
            feed_forward: [
                Linear::load(&builder.child("ff_in"), LinearConfig::new(channels, 8 * channels))?,
                Linear::load(&builder.child("ff_out"), LinearConfig::new(4 * channels, channels))?,
            ],
            heads,
        })
    }

    fn attend(&self, [q, k, v, out]: &[Linear; 4], x: &Tensor, context: &Tensor) -> TensorResult<Tensor> {
        let config = AttentionConfig {
            scale: 1.0 / ((x.dim(2)? / self.heads) as f64).sqrt(),
            mask: AttentionMask::None,
        };
        let (q, k, v) = (q.forward(x)?, k.forward(context)?, v.forward(context)?);
        out.forward(&ops::attention_packed(&q, &k, &v, self.heads, config)?)
    }

    fn forward(&self, x: &Tensor, text: &Tensor) -> TensorResult<Tensor> {
        let inside = self.projections[0].forward(&self.norm.forward(x)?)?;
        let mut t = inside.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let normed = self.norms[0].forward(&t)?;
        t = (self.attend(&self.attentions[0], &normed, &normed)? + t)?;
        t = (self.attend(&self.attentions[1], &self.norms[1].forward(&t)?, text)? + t)?;
        let hidden = ops::geglu(&self.feed_forward[0].forward(&self.norms[2].forward(&t)?)?)?;
        t = (self.feed_forward[1].forward(&hidden)? + t)?;
        let image = t.transpose(1, 2)?.contiguous()?.reshape(x.dims())?;
        Ok((self.projections[1].forward(&image)? + x)?)
    }
}

/// A block whose parameters and two inputs all get gradients.
fn built<B>(load: impl Fn(&Builder<'_>) -> ModelResult<B>, inputs: [&[usize]; 2]) -> anyhow::Result<(B, Params, [Tensor; 2])> {
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    })?;
    let block = load(&builder)?;
    let mut params = builder.finish()?;
    let x = params.insert("x", &normal(inputs[0], 0)?)?;
    let context = params.insert("context", &normal(inputs[1], 1)?)?;
    Ok((block, params, [x, context]))
}

pub(crate) fn resnet_case(b: usize, c: usize, y: usize, time: usize) -> Case {
    Case {
        name: format!("residual block {b}×{c}@{y}, forward and backward"),
        job: Job {
            op: "resnet_block",
            shape: vec![b, c, y, time],
            backward: true,
        },
        flops: 3.0 * 2.0 * (2 * b * y * y * c * c * 9 + b * time * c) as f64,
        bytes: 0.0,
        prepare: Box::new(move || {
            let inputs: [&[usize]; 2] = [&[b, c, y, y], &[b, time]];
            let (block, params, [x, context]) = built(|builder| ResnetBlock::load(builder, c, time), inputs)?;
            run_of(params, Pass::Both, move || block.forward(&x, &context))
        }),
    }
}

pub(crate) fn transformer_case(b: usize, c: usize, y: usize, heads: usize) -> Case {
    let tokens = y * y;
    let projections = tokens * c * c * (2 + 4 + 2 + 8 + 4) + 2 * TOKENS * TEXT * c;
    let attentions = 2 * tokens * (tokens + TOKENS) * c;
    Case {
        name: format!("transformer block {b}×{c}@{y}, forward and backward"),
        job: Job {
            op: "transformer_block",
            shape: vec![b, c, y, heads, TOKENS, TEXT],
            backward: true,
        },
        flops: 3.0 * 2.0 * (b * (projections + attentions)) as f64,
        bytes: 0.0,
        prepare: Box::new(move || {
            let inputs: [&[usize]; 2] = [&[b, c, y, y], &[b, TOKENS, TEXT]];
            let (block, params, [x, context]) = built(|builder| TransformerBlock::load(builder, c, heads), inputs)?;
            run_of(params, Pass::Both, move || block.forward(&x, &context))
        }),
    }
}
