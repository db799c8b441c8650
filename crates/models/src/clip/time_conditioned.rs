//! A CLIP whose image half knows how far a sample is denoised: the step-aware preference model.
//!
//! Liang et al., "Step-aware Preference Optimization: Aligning Preference with Denoising Performance at Each Step", CVPR 2025,
//! arXiv:2406.04314, section 3.2. The time is embedded as by diffusion transformers and modulates every layer of the vision tower
//! (adaptive layer norm with gates) and its pooled output:
//!
//! ```text
//! c = W2 silu(W1 [cos(t w), sin(t w)])        w_k = 10000^(-k / 128), k = 0..128
//! (shift, scale, gate) x 2 = A_l silu(c)      x + gate attention(norm(x)(1 + scale) + shift), the same for the feed-forward layer
//! (shift, scale) = A silu(c)                  pooled (1 + scale) + shift
//! ```
//!
//! At the start of training every `A` is such that nothing changes: shifts and scales 0, gates 1.
//!
//! B batch, D width, E width of the joint space.

use std::collections::BTreeMap;

use diptych_tensor::{DType, Device, Result as TensorResult, Tensor, Weights, ops};

use super::{ClipConfig, ClipModel};
use crate::layers::{Linear, LinearConfig};
use crate::vision::layer::Modulation;
use crate::{Builder, Error, Init, Result};

/// Sines and cosines of the time.
const NUM_FREQUENCIES: usize = 128;
const MAX_PERIOD: f64 = 10_000.0;

/// CLIP with a time in its image half.
#[derive(Debug)]
pub struct TimeConditionedClip {
    /// The network without the time.
    pub clip: ClipModel,
    embed_in: Linear,
    embed_out: Linear,
    layers: Vec<Linear>,
    pooled: Linear,
    dtype: DType,
}

impl TimeConditionedClip {
    /// The network at the builder's place, under the names of the published checkpoints less their prefix `model.`: those of
    /// transformers' CLIP, `t_embedder.mlp.{0,2}`, and `adaLN_modulation.1` of the vision tower and of each of its layers.
    ///
    /// A plain CLIP lacks the time; [`with_neutral_time`] adds one that changes nothing yet.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &ClipConfig) -> Result<Self> {
        let width = config.vision.hidden_size;
        // The root of the tower may stay unprefixed only in files of a tower alone; a whole CLIP always has the prefix.
        let tower = builder.child("vision_model");
        let embedder = builder.child("t_embedder.mlp");
        let embed = |index: &str, from| {
            let config = LinearConfig::new(from, width).init(Init::Normal { std: 0.02 }, Init::Zeros);
            Linear::load(&embedder.child(index), config)
        };
        let modulation = |builder: &Builder<'_>, parts: usize| {
            let config = LinearConfig::new(width, parts * width).init(Init::Zeros, Init::Zeros);
            Linear::load(&builder.child("adaLN_modulation.1"), config)
        };
        let layers =
            (0..config.vision.num_hidden_layers).map(|i| modulation(&tower.child(format!("encoder.layers.{i}")), 6));
        Ok(Self {
            clip: ClipModel::load(builder, config)?,
            embed_in: embed("0", 2 * NUM_FREQUENCIES)?,
            embed_out: embed("2", width)?,
            layers: layers.collect::<Result<_>>()?,
            pooled: modulation(&tower, 2)?,
            dtype: builder.dtype(),
        })
    }

    /// Images in the joint space, not normalized, each at its time.
    ///
    /// # Shape
    /// (B, 3, S, S) and (B), to (B, E).
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many times as images.
    pub fn image_features(&self, pixel_values: &Tensor, timesteps: &Tensor) -> Result<Tensor> {
        let batch = pixel_values.dims().first().copied().unwrap_or(0);
        if timesteps.dims() != [batch] {
            return Err(Error::Shape {
                what: "timesteps",
                found: timesteps.dims().to_vec(),
                expected: format!("({batch}), one an image"),
            });
        }
        let (modulations, [shift, scale]) = self.modulations(timesteps)?;
        let pooled = self
            .clip
            .vision
            .forward_modulated(pixel_values, &modulations)?
            .pooler_output;
        let moved = || -> TensorResult<Tensor> { Ok(((pooled * (scale + 1.0)?)? + shift)?) };
        self.clip.project_image(&moved()?)
    }

    fn modulations(&self, timesteps: &Tensor) -> TensorResult<(Vec<Modulation>, [Tensor; 2])> {
        let embedded = sinusoids(timesteps)?.to_dtype(self.dtype)?;
        let condition = self
            .embed_out
            .forward(&ops::silu(&self.embed_in.forward(&embedded)?)?)?;
        let condition = ops::silu(&condition)?;
        let chunk = |all: &Tensor, index: usize| -> TensorResult<Tensor> {
            let width = condition.dim(1)?;
            Ok(all.narrow(1, index * width, width)?.contiguous()?)
        };
        let of_layer = |layer: &Linear| -> TensorResult<Modulation> {
            let all = layer.forward(&condition)?;
            Ok(Modulation {
                attention: [chunk(&all, 0)?, chunk(&all, 1)?, chunk(&all, 2)?],
                feed_forward: [chunk(&all, 3)?, chunk(&all, 4)?, chunk(&all, 5)?],
            })
        };
        let layers = self.layers.iter().map(of_layer).collect::<TensorResult<_>>()?;
        let all = self.pooled.forward(&condition)?;
        Ok((layers, [chunk(&all, 0)?, chunk(&all, 1)?]))
    }
}

/// (B) to (B, 256): cosines, then sines.
fn sinusoids(timesteps: &Tensor) -> TensorResult<Tensor> {
    let exponent = |k: usize| -(k as f64) / NUM_FREQUENCIES as f64;
    let frequencies: Vec<f64> = (0..NUM_FREQUENCIES).map(|k| MAX_PERIOD.powf(exponent(k))).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, NUM_FREQUENCIES), &Device::Cpu)?;
    // A time times a frequency needs more digits than some devices have.
    let on_host = timesteps.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let angles = on_host.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    let embedded = Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?.to_dtype(DType::F32)?;
    Ok(embedded.to_device(timesteps.device())?)
}

/// The tensors of a plain CLIP, with a time added that changes nothing yet: shifts and scales 0, gates 1, and a time embedding drawn
/// from `seed`. Training of a step-aware preference model starts from these.
///
/// # Errors
/// Those of reading the file.
pub fn with_neutral_time(weights: &Weights, config: &ClipConfig, seed: u64) -> Result<Weights> {
    let width = config.vision.hidden_size;
    let mut tensors = BTreeMap::new();
    for name in weights.names() {
        let dtype = weights.dtype(name).unwrap_or(DType::F32);
        tensors.insert(name.to_owned(), weights.read(name, dtype, &Device::Cpu)?);
    }
    let drawn = |name: &str, shape: &[usize], init: Init| init.tensor(shape, DType::F32, &Device::Cpu, (seed, name));
    for (index, from) in [("0", 2 * NUM_FREQUENCIES), ("2", width)] {
        let (weight, bias) = (
            format!("t_embedder.mlp.{index}.weight"),
            format!("t_embedder.mlp.{index}.bias"),
        );
        let values = drawn(&weight, &[width, from], Init::Normal { std: 0.02 })?;
        tensors.insert(weight, values);
        tensors.insert(bias, drawn("", &[width], Init::Zeros)?);
    }
    let layers = (0..config.vision.num_hidden_layers).map(|i| (format!("encoder.layers.{i}."), 6));
    for (place, parts) in layers.chain([(String::new(), 2)]) {
        let name = format!("vision_model.{place}adaLN_modulation.1");
        let is_gate = |index: usize| parts == 6 && (index / width) % 3 == 2;
        let bias: Vec<f32> = (0..parts * width)
            .map(|index| f32::from(u8::from(is_gate(index))))
            .collect();
        let bias = Tensor::new(bias, &Device::Cpu).map_err(diptych_tensor::Error::from)?;
        tensors.insert(
            format!("{name}.weight"),
            drawn("", &[parts * width, width], Init::Zeros)?,
        );
        tensors.insert(format!("{name}.bias"), bias);
    }
    Ok(Weights::from_tensors(weights.origin(), tensors))
}
