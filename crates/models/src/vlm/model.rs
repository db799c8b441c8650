//! The network.
//!
//! B batch, T tokens, D width of the decoder, M features of an image.

use diptych_tensor::{CheckpointPolicy, DType, Device, Result as TensorResult, Tensor};

use super::config::{VisionConfig, VlmConfig};
use super::images::{ImageLayout, ProcessedImage};
use super::llava::LlavaVision;
use super::positions;
use super::qwen::QwenVision;
use crate::lm::{CausalLm, LmInput};
use crate::{AdapterSwitch, Builder, Error, Result};

/// Whether the tower takes part in training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TowerTraining {
    /// Nothing of it is trained, and targets of an adapter name none of its layers. What an adapter already has for it is kept.
    #[default]
    Frozen,
    /// It is trained as the rest of the network is. Layers behind the last one whose features are read are not.
    Included,
}

impl TowerTraining {
    /// The place that the tower is built at.
    pub(super) fn place<'a>(self, place: &Builder<'a>) -> Builder<'a> {
        match self {
            Self::Frozen => place.frozen(),
            Self::Included => place.child(""),
        }
    }
}

/// Whether a backward pass will come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vlm) enum Graph {
    Kept,
    /// Every layer's result is cut off, so that no more than one layer's activations are held at a time.
    Detached,
}

impl Graph {
    /// A layer's result.
    pub(in crate::vlm) fn cut(self, x: Tensor) -> Tensor {
        match self {
            Self::Kept => x,
            Self::Detached => x.detach(),
        }
    }
}

/// What the tower makes of an image: all that changes only when the tower does.
#[derive(Debug, Clone)]
pub struct VisionFeatures {
    /// `LLaVA`: (pictures, features of a picture, width of the tower times layers read). Qwen: (patches, width of the tower), in
    /// the order in which patches are merged.
    pub features: Tensor,
    /// The image's layout.
    pub layout: ImageLayout,
}

/// What the decoder reads in the place of an image's tokens.
#[derive(Debug, Clone)]
pub struct ImageEmbeddings {
    /// (M, D).
    pub embeddings: Tensor,
    /// The image's layout.
    pub layout: ImageLayout,
}

impl ImageEmbeddings {
    /// The same without a graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            embeddings: self.embeddings.detach(),
            layout: self.layout,
        }
    }
}

#[derive(Debug)]
enum Vision {
    Llava(LlavaVision),
    Qwen(QwenVision),
}

/// transformers' `...ForConditionalGeneration`: token ids and images to hidden states, logits and log-probabilities.
#[derive(Debug)]
pub struct VisionLanguageModel {
    vision: Vision,
    language_model: CausalLm,
    /// One element of the network's type, where the network is.
    anchor: Tensor,
    config: VlmConfig,
}

impl VisionLanguageModel {
    /// The network at the builder's place. Parameters are called `model.language_model....`, `lm_head.weight`, and
    /// `model.vision_tower....` and `model.multi_modal_projector....` (`LLaVA`) or `model.visual....` (Qwen); files that name them otherwise
    /// are read through [`VlmDir::weights`](super::VlmDir::weights).
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &VlmConfig, tower: TowerTraining) -> Result<Self> {
        let model = builder.child("model");
        let text = &config.text;
        let vision = match &config.vision {
            VisionConfig::Llava(vision) => {
                let of_text = (text.hidden_size, text.initializer_range);
                Vision::Llava(LlavaVision::load(&model, vision, of_text, tower)?)
            }
            VisionConfig::Qwen(vision) => Vision::Qwen(QwenVision::load(&model, vision, tower)?),
        };
        let language_model = CausalLm::load_at(&model.child("language_model"), &builder.child("lm_head"), text)?;
        let anchor = Tensor::zeros(1, builder.dtype(), builder.device()).map_err(diptych_tensor::Error::from)?;
        Ok(Self {
            vision,
            language_model,
            anchor,
            config: config.clone(),
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &VlmConfig {
        &self.config
    }

    /// The decoder, for logits and log-probabilities of hidden states, and for text without images.
    pub fn language_model(&self) -> &CausalLm {
        &self.language_model
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        self.language_model.adapter_switch()
    }

    /// Where the network is.
    pub fn device(&self) -> &Device {
        self.language_model.device()
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        self.anchor.dtype()
    }

    /// From now on the backward pass computes the activations inside these layers of the tower, and of the decoder, again instead of
    /// keeping them.
    pub fn checkpoint_gradients(&mut self, policy: CheckpointPolicy) {
        match &mut self.vision {
            Vision::Llava(vision) => vision.checkpoint_gradients(policy),
            Vision::Qwen(vision) => vision.checkpoint_gradients(policy),
        }
        self.language_model.gradient_checkpointing = policy;
    }

    /// What the tower makes of images, in one pass. With a frozen tower it is the same in every step, and can be kept.
    ///
    /// # Errors
    /// [`Error::Shape`] for pixels that do not fit their layout, [`Error::Condition`] for a layout of another family.
    pub fn vision_features(&self, images: &[&ProcessedImage]) -> Result<Vec<VisionFeatures>> {
        self.features(images, Graph::Kept)
    }

    /// [`vision_features`](Self::vision_features) without a graph, also of a tower that is trained.
    ///
    /// # Errors
    /// As [`vision_features`](Self::vision_features).
    pub fn vision_features_detached(&self, images: &[&ProcessedImage]) -> Result<Vec<VisionFeatures>> {
        self.features(images, Graph::Detached)
    }

    fn features(&self, images: &[&ProcessedImage], graph: Graph) -> Result<Vec<VisionFeatures>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        match &self.vision {
            Vision::Llava(vision) => vision.features(images, &self.anchor, graph),
            Vision::Qwen(vision) => vision.features(images, graph),
        }
    }

    /// What the projector makes of the tower's features.
    ///
    /// # Errors
    /// When features are not those of this network's tower.
    pub fn image_embeddings(&self, features: &[&VisionFeatures]) -> Result<Vec<ImageEmbeddings>> {
        if features.is_empty() {
            return Ok(Vec::new());
        }
        let embeddings = match &self.vision {
            Vision::Llava(vision) => vision.project(features)?,
            Vision::Qwen(vision) => vision.merge(features)?,
        };
        let pairs = embeddings.into_iter().zip(features);
        Ok(pairs
            .map(|(embeddings, features)| ImageEmbeddings {
                embeddings,
                layout: features.layout,
            })
            .collect())
    }

    /// Tower and projector, in one pass over all images.
    ///
    /// # Errors
    /// As [`vision_features`](Self::vision_features).
    pub fn encode(&self, images: &[&ProcessedImage]) -> Result<Vec<ImageEmbeddings>> {
        let features = self.vision_features(images)?;
        self.image_embeddings(&features.iter().collect::<Vec<_>>())
    }

    /// The batch with the positions that its images give it, where tokens have three; unchanged elsewhere. `images` are those of
    /// the batch in the order of their tokens, row after row: an image of a shared prefix once, one of every copy of a prompt as
    /// often.
    ///
    /// # Errors
    /// [`Error::ImageTokens`] when image tokens are not as many as features, or an image is cut.
    pub fn positioned(&self, input: &LmInput, layouts: &[ImageLayout]) -> Result<LmInput> {
        if !self.config.family.is_qwen() {
            return Ok(input.clone());
        }
        let grids = self.config.merged_grids(layouts.iter())?;
        let before = input.predecessors();
        let space = positions::spatial(&host_ids(input)?, &before, self.config.image_token_id, &grids)?;
        input.clone().with_spatial_positions(space)
    }

    /// The vectors of a batch's tokens, with those of images in the place of image tokens, row after row.
    ///
    /// # Shape
    /// (B, T, D), in the builder's compute type.
    ///
    /// # Errors
    /// [`Error::ImageTokens`] when image tokens are not as many as features; when an id is not in the vocabulary.
    pub fn embed(&self, input: &LmInput, images: &[&ImageEmbeddings]) -> Result<Tensor> {
        let (ids, token) = (host_ids(input)?, self.config.image_token_id);
        let tokens = ids.iter().filter(|id| **id == token).count();
        let mut features = 0;
        for image in images {
            features += image.embeddings.dim(0).map_err(diptych_tensor::Error::from)?;
        }
        if tokens != features {
            return Err(Error::ImageTokens {
                tokens,
                images: images.len(),
                features,
            });
        }
        if images.is_empty() {
            return self.language_model.embed(input.input_ids());
        }
        // The id of the image token need not be in the vocabulary: only text is looked up.
        let text: Vec<u32> = ids.iter().copied().filter(|id| *id != token).collect();
        let (mut next_text, mut next_image) = (0, text.len() as u32);
        let places: Vec<u32> = ids
            .iter()
            .map(|id| {
                let next = if *id == token { &mut next_image } else { &mut next_text };
                *next += 1;
                *next - 1
            })
            .collect();
        let device = self.device();
        let text = Tensor::from_vec(text, next_text as usize, device).map_err(diptych_tensor::Error::from)?;
        let text = self.language_model.embed(&text)?;
        let placed = || -> TensorResult<Tensor> {
            let mut parts = vec![text.clone()];
            for image in images {
                parts.push(image.embeddings.to_dtype(text.dtype())?);
            }
            let all = Tensor::cat(&parts, 0)?.index_select(&Tensor::new(places.as_slice(), device)?, 0)?;
            let mut shape = input.input_ids().dims().to_vec();
            shape.push(all.dim(1)?);
            Ok(all.reshape(shape)?)
        };
        Ok(placed()?)
    }

    /// Hidden states of all tokens, after the final norm. `images` as in [`positioned`](Self::positioned).
    ///
    /// # Shape
    /// (B, T, D), in the builder's compute type.
    ///
    /// # Errors
    /// As [`positioned`](Self::positioned) and [`embed`](Self::embed); [`Error::ContextLength`] for positions that are not defined.
    pub fn forward(&self, input: &LmInput, images: &[&ImageEmbeddings]) -> Result<Tensor> {
        let embeddings = self.embed(input, images)?;
        self.language_model
            .forward_embeddings(&embeddings, &self.positioned(input, &layouts(images))?)
    }

    /// [`forward`](Self::forward) without a graph.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_detached(&self, input: &LmInput, images: &[&ImageEmbeddings]) -> Result<Tensor> {
        let embeddings = self.embed(input, images)?;
        self.language_model
            .forward_embeddings_detached(&embeddings, &self.positioned(input, &layouts(images))?)
    }
}

pub(super) fn layouts(images: &[&ImageEmbeddings]) -> Vec<ImageLayout> {
    images.iter().map(|image| image.layout).collect()
}

/// The ids of a batch, row after row.
fn host_ids(input: &LmInput) -> Result<Vec<u32>> {
    let read = || -> TensorResult<Vec<u32>> { Ok(input.input_ids().flatten_all()?.to_vec1()?) };
    Ok(read()?)
}
