//! Attention of one stream, or of text and image together.
//!
//! B batch, S text tokens, T image tokens, D width, H heads, K head dimension.

use diptych_tensor::{Result as TensorResult, Tensor, ops};

use super::EPS;
use crate::attention::{AttendConfig, attend};
use crate::layers::{Linear, LinearConfig, RmsNorm, RmsNormWeight};
use crate::{Builder, Result};

/// What the attention's text stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// There is one stream only.
    One,
    /// One stream, whose output is not projected: Flux's single blocks.
    OneWithoutOutput,
    /// Text with its own projections.
    Joint,
    /// Text with its own projections and no output: the last block of Stable Diffusion 3.
    JointWithoutTextOutput,
}

/// What an [`Attention`] looks like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionConfig {
    pub(crate) dim: usize,
    pub(crate) num_heads: usize,
    /// Whether queries and keys are divided by their root mean square.
    pub(crate) qk_norm: bool,
    pub(crate) streams: Streams,
    /// Whether the projections of queries, keys and values have a bias.
    pub(crate) has_bias: bool,
}

/// Rotations of queries and keys by the place of their token, for pairs of neighboring channels.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// (S + T, K/2) in f32.
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Rope {
    /// Channels are sorted into the first of all pairs and the second of all pairs, which is the order of [`ops::rope`]. Queries and
    /// keys are sorted alike, so their products stay what they are.
    fn rotate(&self, x: &Tensor, num_heads: usize) -> TensorResult<Tensor> {
        let (b, t, width) = x.dims3()?;
        let half = width / num_heads / 2;
        let sorted = x
            .reshape((b, t, num_heads, half, 2))?
            .transpose(3, 4)?
            .contiguous()?
            .reshape((b, t, width))?;
        ops::rope(&sorted, num_heads, &self.cos, &self.sin)
    }
}

/// Queries, keys and values of one stream.
#[derive(Debug)]
struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    norms: Option<[RmsNorm; 2]>,
}

impl Projections {
    fn load(builder: &Builder<'_>, config: AttentionConfig, linears: [&str; 3], norms: [&str; 2]) -> Result<Self> {
        let dim = config.dim;
        let linear = LinearConfig::new(dim, dim);
        let linear = if config.has_bias { linear } else { linear.without_bias() };
        let [q, k, v] = linears.map(|name| Linear::load(&builder.child(name), linear));
        let head_dim = dim / config.num_heads;
        let norm = |name: &str| RmsNorm::load(&builder.child(name), head_dim, EPS, RmsNormWeight::Factor);
        let load_norms = || Ok::<_, crate::Error>([norm(norms[0])?, norm(norms[1])?]);
        Ok(Self {
            q: q?,
            k: k?,
            v: v?,
            norms: config.qk_norm.then(load_norms).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor, num_heads: usize) -> TensorResult<[Tensor; 3]> {
        let (q, k, v) = (self.q.forward(x)?, self.k.forward(x)?, self.v.forward(x)?);
        let Some([norm_q, norm_k]) = &self.norms else {
            return Ok([q, k, v]);
        };
        let normed = |x: &Tensor, norm: &RmsNorm| -> TensorResult<Tensor> {
            let (b, t, width) = x.dims3()?;
            let heads = x.reshape((b, t, num_heads, width / num_heads))?;
            Ok(norm.forward(&heads)?.reshape((b, t, width))?)
        };
        Ok([normed(&q, norm_q)?, normed(&k, norm_k)?, v])
    }
}

/// Multi-head attention, with diffusers' names.
#[derive(Debug)]
pub(crate) struct Attention {
    image: Projections,
    to_out: Option<Linear>,
    text: Option<Projections>,
    to_add_out: Option<Linear>,
    heads: AttendConfig,
}

impl Attention {
    pub(crate) fn load(builder: &Builder<'_>, config: AttentionConfig) -> Result<Self> {
        let dim = config.dim;
        let output = |name: &str| Linear::load(&builder.child(name), LinearConfig::new(dim, dim));
        let added = || {
            Projections::load(
                builder,
                config,
                ["add_q_proj", "add_k_proj", "add_v_proj"],
                ["norm_added_q", "norm_added_k"],
            )
        };
        let is_joint = matches!(config.streams, Streams::Joint | Streams::JointWithoutTextOutput);
        Ok(Self {
            image: Projections::load(builder, config, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"])?,
            to_out: (config.streams != Streams::OneWithoutOutput)
                .then(|| output("to_out.0"))
                .transpose()?,
            text: is_joint.then(added).transpose()?,
            to_add_out: (config.streams == Streams::Joint)
                .then(|| output("to_add_out"))
                .transpose()?,
            heads: AttendConfig {
                num_heads: config.num_heads,
                mask: ops::AttentionMask::None,
                upcast: false,
            },
        })
    }

    /// One stream to itself: (B, T, D), unchanged.
    pub(crate) fn forward(&self, x: &Tensor, rope: Option<&Rope>) -> TensorResult<Tensor> {
        let [q, k, v] = self.image.forward(x, self.heads.num_heads)?;
        let out = self.attend([q, k, v], rope)?;
        match &self.to_out {
            Some(to_out) => to_out.forward(&out),
            None => Ok(out),
        }
    }

    /// An image (B, T, D) to text (B, S, D), of which each row has so many tokens that are seen: (B, T, D). Without norms.
    pub(crate) fn forward_cross(&self, x: &Tensor, text: &Tensor, text_lens: Option<&[usize]>) -> TensorResult<Tensor> {
        let (q, k, v) = (
            self.image.q.forward(x)?,
            self.image.k.forward(text)?,
            self.image.v.forward(text)?,
        );
        let out = match text_lens {
            None => attend(&q, &k, &v, self.heads)?,
            Some(lens) => {
                let (batch, queries, keys) = (q.dim(0)?, q.dim(1)?, k.dim(1)?);
                let seen = |&len: &usize| std::iter::repeat_n([0, len as u32, len as u32, len as u32], queries);
                let ranges = lens.iter().flat_map(seen).collect();
                let visible = ops::VisibleKeys::from_ranges(batch, queries, keys, ranges)?;
                let num_heads = self.heads.num_heads;
                let config = ops::GroupedAttentionConfig {
                    num_heads,
                    num_kv_heads: num_heads,
                    scale: 1.0 / ((q.dim(2)? / num_heads) as f64).sqrt(),
                    softcap: None,
                };
                ops::attention_grouped(&q, &k, &v, &visible, config)?
            }
        };
        match &self.to_out {
            Some(to_out) => to_out.forward(&out),
            None => Ok(out),
        }
    }

    /// Text (B, S, D) and image (B, T, D) to both, and to the same shapes; the text's output is not projected if there is no layer for it.
    pub(crate) fn forward_joint(
        &self,
        text: &Tensor,
        image: &Tensor,
        rope: Option<&Rope>,
    ) -> TensorResult<(Tensor, Tensor)> {
        let (text_len, image_len) = (text.dim(1)?, image.dim(1)?);
        let [mut q, mut k, mut v] = self.image.forward(image, self.heads.num_heads)?;
        if let Some(projections) = &self.text {
            let [text_q, text_k, text_v] = projections.forward(text, self.heads.num_heads)?;
            q = Tensor::cat(&[&text_q, &q], 1)?;
            k = Tensor::cat(&[&text_k, &k], 1)?;
            v = Tensor::cat(&[&text_v, &v], 1)?;
        }
        let out = self.attend([q, k, v], rope)?;
        let (text, image) = (out.narrow(1, 0, text_len)?, out.narrow(1, text_len, image_len)?);
        let project = |linear: Option<&Linear>, x: Tensor| linear.map_or(Ok(x.clone()), |linear| linear.forward(&x));
        Ok((
            project(self.to_add_out.as_ref(), text)?,
            project(self.to_out.as_ref(), image)?,
        ))
    }

    fn attend(&self, [q, k, v]: [Tensor; 3], rope: Option<&Rope>) -> TensorResult<Tensor> {
        match rope {
            Some(rope) => {
                let (q, k) = (
                    rope.rotate(&q, self.heads.num_heads)?,
                    rope.rotate(&k, self.heads.num_heads)?,
                );
                attend(&q, &k, &v, self.heads)
            }
            None => attend(&q, &k, &v, self.heads),
        }
    }
}
