//! The vision tower of CLIP.
//!
//! B batch, N patches, D width.

use std::sync::Arc;

use diptych_tensor::autograd::{BlockCounter, CheckpointPolicy};
use diptych_tensor::{DType, Result as TensorResult, Tensor, checkpoint, ops};

use super::ClipVisionConfig;
use super::layer::{LayerNames, Modulation, VisionLayer, VisionLayerConfig, state_index, states};
use crate::layers::LayerNorm;
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// What a vision tower returns.
#[derive(Debug, Clone)]
pub struct ClipVisionOutput {
    /// One vector for the whole image, then one per patch, row by row; without a final norm: (B, N + 1, D).
    pub last_hidden_state: Tensor,
    /// The vector for the whole image after the final norm: (B, D).
    pub pooler_output: Tensor,
}

/// transformers' `CLIPVisionModel`: pixels to vectors.
#[derive(Debug)]
pub struct ClipVisionModel {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    /// Before the first layer; the published parameters are called `pre_layrnorm`.
    pre_norm: LayerNorm,
    layers: Vec<Arc<VisionLayer>>,
    post_norm: LayerNorm,
    config: ClipVisionConfig,
    dtype: DType,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside layers again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl ClipVisionModel {
    /// The network at the builder's place. Parameters are called `vision_model....` as published files call them; a file without that
    /// prefix, which transformers 5 can write, loads too.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &ClipVisionConfig) -> Result<Self> {
        // A buffer in files written before transformers 4.31, and the text half of a whole CLIP.
        for unused in [
            "vision_model.embeddings.position_ids",
            "embeddings.position_ids",
            "text_model.",
            "text_projection.",
            "visual_projection.",
            "logit_scale",
        ] {
            builder.ignore_unused(unused);
        }
        let root = if builder.source_has("embeddings") {
            builder.child_without_source("vision_model")
        } else {
            builder.child("vision_model")
        };
        Self::load_tower(&root, config, None)
    }

    /// The network at a place of its own. With `num_used`, only so many layers are ever run: the rest is not trained.
    pub(crate) fn load_tower(root: &Builder<'_>, config: &ClipVisionConfig, num_used: Option<usize>) -> Result<Self> {
        root.ignore_unused(format!("{}.embeddings.position_ids", root.path()));
        let unused = root.frozen();
        let place_of = |layer: usize| {
            if num_used.is_none_or(|num_used| layer < num_used) {
                root
            } else {
                &unused
            }
        };
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        // transformers' `CLIPPreTrainedModel._init_weights`.
        let factor = config.initializer_factor;
        let out_std = (width as f64).powf(-0.5) * factor;
        let in_std = out_std * (2.0 * config.num_hidden_layers as f64).powf(-0.5);
        let layer = VisionLayerConfig {
            width,
            inner: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps,
            activation: config.hidden_act.into(),
            stds: [in_std, out_std, (2.0 * width as f64).powf(-0.5) * factor],
            names: LayerNames::Clip,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|i| VisionLayer::load(&place_of(i).child(format!("encoder.layers.{i}")), &layer).map(Arc::new));
        let normal = |std| Init::Normal { std: std * factor };
        let embeddings = root.child("embeddings");
        let post_norm = place_of(config.num_hidden_layers).child("post_layernorm");
        let patch = [width, 3, config.patch_size, config.patch_size];
        let positions = [config.num_patches() + 1, width];
        Ok(Self {
            class_embedding: embeddings.get("class_embedding", &[width], normal((width as f64).powf(-0.5)))?,
            patch_embedding: embeddings
                .child("patch_embedding")
                .get("weight", &patch, normal(0.02))?,
            position_embedding: embeddings
                .child("position_embedding")
                .get("weight", &positions, normal(0.02))?,
            pre_norm: LayerNorm::load(&root.child("pre_layrnorm"), width, eps)?,
            layers: layers.collect::<Result<_>>()?,
            post_norm: LayerNorm::load(&post_norm, width, eps)?,
            config: config.clone(),
            dtype: root.dtype(),
            switch: root.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The vectors of images. Differentiable in the pixels and, where they are trained, in the parameters.
    ///
    /// # Shape
    /// (B, 3, S, S) with S the configuration's image size, to (B, N + 1, D) and (B, D), in the builder's compute type.
    ///
    /// # Errors
    /// [`Error::Shape`] for another shape.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<ClipVisionOutput> {
        self.check(pixel_values)?;
        Ok(self.run(pixel_values, None)?)
    }

    /// With a modulation of each layer, in order.
    pub(crate) fn forward_modulated(
        &self,
        pixel_values: &Tensor,
        modulations: &[Modulation],
    ) -> Result<ClipVisionOutput> {
        self.check(pixel_values)?;
        Ok(self.run(pixel_values, Some(modulations))?)
    }

    /// One of transformers' `hidden_states`: 0 is what the first layer sees, `n` what layer n returns, -1 the last one's. Later
    /// layers are not computed.
    ///
    /// # Shape
    /// (B, 3, S, S) to (B, N + 1, D).
    ///
    /// # Errors
    /// [`Error::Shape`] for pixels of another shape, [`Error::LayerIndex`] for a layer that is not there.
    pub fn hidden_state(&self, pixel_values: &Tensor, layer: i64) -> Result<Tensor> {
        self.check(pixel_values)?;
        let index = state_index(layer, self.layers.len())?;
        Ok(self.run_layers(pixel_values, index, None)?)
    }

    /// Several of transformers' `hidden_states` in one pass, each (B, N + 1, D): see [`Self::hidden_state`].
    ///
    /// # Errors
    /// As [`Self::hidden_state`].
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
        self.check(pixel_values)?;
        let wanted = layers
            .iter()
            .map(|&layer| state_index(layer, self.layers.len()))
            .collect::<Result<Vec<_>>>()?;
        let start = || Ok::<_, diptych_tensor::Error>(cut(self.pre_norm.forward(&self.embed(pixel_values)?)?));
        let blocks = BlockCounter::new(self.gradient_checkpointing);
        let run = |layer: &Arc<VisionLayer>, x: &Tensor| Ok(cut(self.run_layer(&blocks, layer, x)?));
        Ok(states(start()?, &self.layers, &wanted, run)?)
    }

    /// [`Self::hidden_state`] of the patches alone, without the vector for the whole image: what language models with images read.
    ///
    /// # Shape
    /// (B, 3, S, S) to (B, N, D).
    ///
    /// # Errors
    /// As [`Self::hidden_state`].
    pub fn patch_features(&self, pixel_values: &Tensor, layer: i64) -> Result<Tensor> {
        let hidden = self.hidden_state(pixel_values, layer)?;
        let patches = || -> TensorResult<Tensor> { Ok(hidden.narrow(1, 1, hidden.dim(1)? - 1)?.contiguous()?) };
        Ok(patches()?)
    }

    fn check(&self, pixel_values: &Tensor) -> Result<()> {
        let side = self.config.image_size;
        match *pixel_values.dims() {
            [_, 3, height, width] if (height, width) == (side, side) => Ok(()),
            ref found => Err(Error::Shape {
                what: "pixel_values",
                found: found.to_vec(),
                expected: format!("(B, 3, {side}, {side})"),
            }),
        }
    }

    fn run(&self, pixel_values: &Tensor, modulations: Option<&[Modulation]>) -> TensorResult<ClipVisionOutput> {
        let last_hidden_state = self.run_layers(pixel_values, self.layers.len(), modulations)?;
        let whole = last_hidden_state.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
        Ok(ClipVisionOutput {
            pooler_output: self.post_norm.forward(&whole)?,
            last_hidden_state,
        })
    }

    /// The first `count` layers.
    fn run_layers(
        &self,
        pixel_values: &Tensor,
        count: usize,
        modulations: Option<&[Modulation]>,
    ) -> TensorResult<Tensor> {
        let mut x = self.pre_norm.forward(&self.embed(pixel_values)?)?;
        let blocks = BlockCounter::new(self.gradient_checkpointing);
        for (index, layer) in self.layers[..count].iter().enumerate() {
            x = match modulations {
                Some(modulations) => layer.forward(&x, Some(&modulations[index]))?,
                None => self.run_layer(&blocks, layer, &x)?,
            };
        }
        Ok(x)
    }

    fn embed(&self, pixel_values: &Tensor) -> TensorResult<Tensor> {
        let pixels = pixel_values.to_dtype(self.dtype)?;
        let config = ops::Conv2dConfig {
            stride: self.config.patch_size,
            padding: 0,
        };
        let patches_bdyx = ops::conv2d(&pixels, &self.patch_embedding.to_dtype(self.dtype)?, None, config)?;
        let patches_bnd = patches_bdyx.flatten(2, 3)?.transpose(1, 2)?;
        let (batch, _, width) = patches_bnd.dims3()?;
        let whole = self.class_embedding.to_dtype(self.dtype)?;
        let whole = whole.reshape((1, 1, width))?.broadcast_as((batch, 1, width))?;
        let x = Tensor::cat(&[&whole, &patches_bnd], 1)?;
        let positions = self.position_embedding.to_dtype(self.dtype)?.unsqueeze(0)?;
        Ok(x.broadcast_add(&positions)?)
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
