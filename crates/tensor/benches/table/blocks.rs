//! The two blocks of a Stable Diffusion denoiser, from the operations that its network is made of.

use diptych_tensor::ops::{self, AttentionConfig, AttentionMask, Conv2dConfig};
use diptych_tensor::{Params, Result as TensorResult, Tensor};

use crate::cases::{Case, Job, Pass, normal, run_of};

/// Tokens and width of the text.
const TOKENS: usize = 77;
const TEXT: usize = 768;

/// Parameters of a block, by name, with values that keep activations of one size.
struct Block {
    params: Params,
}

impl Block {
    fn insert(&mut self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor> {
        let inputs: usize = shape.iter().skip(1).product();
        let value = (normal(shape, self.params.len() as u64)? / (inputs as f64).sqrt())?;
        Ok(self.params.insert(name, &value)?)
    }

    /// Weight and bias.
    fn layer(&mut self, name: &str, shape: &[usize]) -> anyhow::Result<[Tensor; 2]> {
        Ok([
            self.insert(&format!("{name}.weight"), shape)?,
            self.insert(&format!("{name}.bias"), &shape[..1])?,
        ])
    }
}

fn conv(x: &Tensor, [weight, bias]: &[Tensor; 2]) -> TensorResult<Tensor> {
    let padding = weight.dim(2)? / 2;
    ops::conv2d(x, weight, Some(bias), Conv2dConfig { stride: 1, padding })
}

fn linear(x: &Tensor, [weight, bias]: &[Tensor; 2]) -> TensorResult<Tensor> {
    ops::linear(x, weight, Some(bias))
}

/// diffusers' `ResnetBlock2D` of one width: norm, SiLU, convolution, time, norm, SiLU, convolution, and the input added.
pub(crate) fn resnet_case(b: usize, c: usize, y: usize, time: usize) -> Case {
    let prepare = move || {
        let mut block = Block { params: Params::new() };
        let (x, context) = (block.insert("x", &[b, c, y, y])?, block.insert("time", &[b, time])?);
        let norms = [block.layer("norm1", &[c])?, block.layer("norm2", &[c])?];
        let convs = [
            block.layer("conv1", &[c, c, 3, 3])?,
            block.layer("conv2", &[c, c, 3, 3])?,
        ];
        let of_time = block.layer("time_emb_proj", &[c, time])?;
        run_of(block.params, Pass::Both, move || {
            let norm = |x: &Tensor, [weight, bias]: &[Tensor; 2]| ops::group_norm_silu(x, weight, bias, 32, 1e-5);
            let h = conv(&norm(&x, &norms[0])?, &convs[0])?;
            let time = linear(&ops::silu(&context)?, &of_time)?.unsqueeze(2)?.unsqueeze(3)?;
            let h = h.broadcast_add(&time)?;
            Ok((&x + conv(&norm(&h, &norms[1])?, &convs[1])?)?)
        })
    };
    Case {
        name: format!("residual block {b}×{c}@{y}, forward and backward"),
        job: Job {
            op: "resnet_block",
            shape: vec![b, c, y, time],
            backward: true,
        },
        flops: 3.0 * 2.0 * (2 * b * y * y * c * c * 9 + b * time * c) as f64,
        bytes: 0.0,
        prepare: Box::new(prepare),
    }
}

/// Weights of queries, keys and values, and of the output with its bias.
struct Attention {
    inputs: [Tensor; 3],
    out: [Tensor; 2],
    heads: usize,
}

impl Attention {
    fn new(block: &mut Block, name: &str, (width, context): (usize, usize), heads: usize) -> anyhow::Result<Self> {
        let mut input = |part: &str, from| block.insert(&format!("{name}.{part}.weight"), &[width, from]);
        Ok(Self {
            inputs: [input("to_q", width)?, input("to_k", context)?, input("to_v", context)?],
            out: block.layer(&format!("{name}.to_out"), &[width, width])?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> TensorResult<Tensor> {
        let config = AttentionConfig {
            scale: 1.0 / ((x.dim(2)? / self.heads) as f64).sqrt(),
            mask: AttentionMask::None,
        };
        let [q, k, v] = &self.inputs;
        let (q, k) = (ops::linear(x, q, None)?, ops::linear(context, k, None)?);
        let v = ops::linear(context, v, None)?;
        linear(&ops::attention_packed(&q, &k, &v, self.heads, config)?, &self.out)
    }
}

/// diffusers' `Transformer2DModel` of one layer with convolutions as projections.
pub(crate) fn transformer_case(b: usize, c: usize, y: usize, heads: usize) -> Case {
    let tokens = y * y;
    let prepare = move || {
        let mut block = Block { params: Params::new() };
        let (x, text) = (
            block.insert("x", &[b, c, y, y])?,
            block.insert("text", &[b, TOKENS, TEXT])?,
        );
        let group = block.layer("norm", &[c])?;
        let (proj_in, proj_out) = (
            block.layer("proj_in", &[c, c, 1, 1])?,
            block.layer("proj_out", &[c, c, 1, 1])?,
        );
        let norms = [
            block.layer("norm1", &[c])?,
            block.layer("norm2", &[c])?,
            block.layer("norm3", &[c])?,
        ];
        let to_pixels = Attention::new(&mut block, "attn1", (c, c), heads)?;
        let to_text = Attention::new(&mut block, "attn2", (c, TEXT), heads)?;
        let (ff_in, ff_out) = (block.layer("ff_in", &[8 * c, c])?, block.layer("ff_out", &[c, 4 * c])?);
        run_of(block.params, Pass::Both, move || {
            let norm = |x: &Tensor, [weight, bias]: &[Tensor; 2]| ops::layer_norm(x, weight, bias, 1e-5);
            let inside = conv(&ops::group_norm(&x, &group[0], &group[1], 32, 1e-6)?, &proj_in)?;
            let mut t = ops::image_to_tokens(&inside)?;
            let normed = norm(&t, &norms[0])?;
            t = (to_pixels.forward(&normed, &normed)? + t)?;
            t = (to_text.forward(&norm(&t, &norms[1])?, &text)? + t)?;
            let hidden = ops::geglu(&linear(&norm(&t, &norms[2])?, &ff_in)?)?;
            t = (linear(&hidden, &ff_out)? + t)?;
            let image = ops::tokens_to_image(&t, y, y)?;
            Ok((conv(&image, &proj_out)? + &x)?)
        })
    };
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
        prepare: Box::new(prepare),
    }
}
