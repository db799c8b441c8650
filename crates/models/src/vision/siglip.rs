//! The vision tower of `SigLIP`: no vector for the whole image, a bias behind the patches, the tanh form of GELU.
//!
//! Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv:2303.15343.
//!
//! B batch, N patches, D width.

use std::path::Path;
use std::sync::Arc;

use diptych_tensor::autograd::{BlockCounter, CheckpointPolicy};
use diptych_tensor::{DType, Result as TensorResult, Tensor, checkpoint, ops};
use serde_json::{Value, json};

use super::WITHOUT_EFFECT;
use super::layer::{LayerNames, VisionActivation, VisionLayer, VisionLayerConfig, state_index, states};
use crate::config_json::ConfigFile;
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// Configuration of a `SiglipVisionModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipVisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each layer.
    pub num_attention_heads: usize,
    /// Side of the image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: VisionActivation,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
}

impl SiglipVisionConfig {
    /// Reads a parsed `config.json`, or the `vision_config` of a larger one; `path` is for messages. Missing keys have transformers'
    /// defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, [`Error::UnknownConfigKey`] for a key that has a value and is
    /// not known.
    pub fn from_json(value: Value, path: impl AsRef<Path>) -> Result<Self> {
        let file = ConfigFile::from_value(path.as_ref(), value)?;
        file.only("model_type", &[json!("siglip_vision_model")])?;
        file.only("num_channels", &[json!(3)])?;
        let config = Self {
            hidden_size: file.count("hidden_size", 768)?,
            intermediate_size: file.count("intermediate_size", 3072)?,
            num_hidden_layers: file.count("num_hidden_layers", 12)?,
            num_attention_heads: file.count("num_attention_heads", 12)?,
            image_size: file.count("image_size", 224)?,
            patch_size: file.count("patch_size", 16)?,
            hidden_act: file.name(
                "hidden_act",
                VisionActivation::EXPECTED,
                VisionActivation::GeluTanh,
                VisionActivation::from_name,
            )?,
            layer_norm_eps: file.number("layer_norm_eps", 1e-6)?,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of the width {}", config.hidden_size);
            return Err(file.error("num_attention_heads", expected));
        }
        if config.patch_size > config.image_size {
            let expected = format!("at most the image size {}", config.image_size);
            return Err(file.error("patch_size", expected));
        }
        file.any(&WITHOUT_EFFECT);
        // The head pools all patches into one vector, which is not computed here.
        file.any(&[
            "vision_use_head",
            "projection_dim",
            "vocab_size",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        ]);
        file.finish()?;
        Ok(config)
    }

    /// Patches along a side of the image; what does not fill a patch is left out.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// transformers' `SiglipVisionModel` up to its layers: pixels to one vector a patch. What is behind the last layer, the norm and the
/// pooling head, is not built, because no language model with images reads it.
#[derive(Debug)]
pub struct SiglipVisionModel {
    patch_embedding: (Tensor, Tensor),
    position_embedding: Tensor,
    layers: Vec<Arc<VisionLayer>>,
    config: SiglipVisionConfig,
    dtype: DType,
    switch: AdapterSwitch,
    /// Of which layers the backward pass computes the activations again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl SiglipVisionModel {
    /// The network at the builder's place, whose parameters are called `embeddings....` and `encoder....`. Only the first `num_used`
    /// layers are ever run, so the rest is not trained.
    pub(crate) fn load_tower(root: &Builder<'_>, config: &SiglipVisionConfig, num_used: usize) -> Result<Self> {
        for unused in ["embeddings.position_ids", "post_layernorm.", "head."] {
            root.ignore_unused(format!("{}.{unused}", root.path()));
        }
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let xavier = (2.0 / (width + inner) as f64).sqrt();
        let within = (1.0 / width as f64).sqrt();
        let layer = VisionLayerConfig {
            width,
            inner,
            num_heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            activation: config.hidden_act,
            stds: [within, within, xavier],
            names: LayerNames::Clip,
        };
        let unused = root.frozen();
        let layers = (0..config.num_hidden_layers).map(|i| {
            let place = if i < num_used { root } else { &unused };
            VisionLayer::load(&place.child(format!("encoder.layers.{i}")), &layer).map(Arc::new)
        });
        let embeddings = root.child("embeddings");
        let patches = embeddings.child("patch_embedding");
        let normal = |fan_in: usize| Init::Normal {
            std: (1.0 / fan_in as f64).sqrt(),
        };
        let patch = [width, 3, config.patch_size, config.patch_size];
        let positions = [config.patches_per_side().pow(2), width];
        Ok(Self {
            patch_embedding: (
                patches.get("weight", &patch, normal(3 * config.patch_size.pow(2)))?,
                patches.get("bias", &[width], Init::Zeros)?,
            ),
            position_embedding: embeddings
                .child("position_embedding")
                .get("weight", &positions, normal(width))?,
            layers: layers.collect::<Result<_>>()?,
            config: config.clone(),
            dtype: root.dtype(),
            switch: root.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// Several of transformers' `hidden_states` in one pass: 0 is what the first layer sees, `n` what layer n returns, -1 the last
    /// one's. Later layers are not computed.
    ///
    /// # Shape
    /// (B, 3, S, S) with S the configuration's image size, to (B, N, D) each, in the builder's compute type.
    ///
    /// # Errors
    /// [`Error::Shape`] for pixels of another shape, [`Error::LayerIndex`] for a layer that is not there.
    pub fn hidden_states(&self, pixel_values: &Tensor, layers: &[i64]) -> Result<Vec<Tensor>> {
        self.states(pixel_values, layers, |x| x)
    }

    /// [`Self::hidden_states`] with every layer's result passed through `cut`.
    pub(crate) fn states(
        &self,
        pixel_values: &Tensor,
        layers: &[i64],
        cut: impl Fn(Tensor) -> Tensor,
    ) -> Result<Vec<Tensor>> {
        let side = self.config.image_size;
        match *pixel_values.dims() {
            [_, 3, height, width] if (height, width) == (side, side) => {}
            ref found => {
                return Err(Error::Shape {
                    what: "pixel_values",
                    found: found.to_vec(),
                    expected: format!("(B, 3, {side}, {side})"),
                });
            }
        }
        let wanted = layers
            .iter()
            .map(|&layer| state_index(layer, self.layers.len()))
            .collect::<Result<Vec<_>>>()?;
        let blocks = BlockCounter::new(self.gradient_checkpointing);
        let run = |layer: &Arc<VisionLayer>, x: &Tensor| Ok(cut(self.run_layer(&blocks, layer, x)?));
        Ok(states(cut(self.embed(pixel_values)?), &self.layers, &wanted, run)?)
    }

    fn embed(&self, pixel_values: &Tensor) -> TensorResult<Tensor> {
        let config = ops::Conv2dConfig {
            stride: self.config.patch_size,
            padding: 0,
        };
        let (weight, bias) = &self.patch_embedding;
        let (weight, bias) = (weight.to_dtype(self.dtype)?, bias.to_dtype(self.dtype)?);
        let patches_bdyx = ops::conv2d(&pixel_values.to_dtype(self.dtype)?, &weight, Some(&bias), config)?;
        let patches_bnd = patches_bdyx.flatten(2, 3)?.transpose(1, 2)?;
        let positions = self.position_embedding.to_dtype(self.dtype)?.unsqueeze(0)?;
        Ok(patches_bnd.broadcast_add(&positions)?)
    }

    fn run_layer(&self, blocks: &BlockCounter, layer: &Arc<VisionLayer>, x: &Tensor) -> TensorResult<Tensor> {
        if !blocks.recomputes_next() {
            return layer.forward(x, None);
        }
        let (layer, switch, enabled) = (layer.clone(), self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            layer.forward(&inputs[0], None)
        })
    }
}
