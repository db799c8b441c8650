//! A vision-language model's `config.json`, of both generations: Qwen's keys of the decoder beside `vision_config`, or all of a
//! decoder's keys in `text_config`.

use std::path::Path;

use diptych_tensor::DType;
use serde_json::{Map, Value, json};

use super::images::ImageLayout;
use super::llava::LlavaVisionConfig;
use super::qwen::{QwenVisionConfig, text_config};
use super::{names, placeholders};
use crate::config_json::{ConfigFile, read_json};
use crate::lm::{LmConfig, stored_as};
use crate::vision::WITHOUT_EFFECT;
use crate::{Error, Result};

/// A family, as `model_type` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VlmFamily {
    /// `LLaVA` 1.5 and its likes. Liu et al., arXiv:2310.03744.
    Llava,
    /// `LLaVA-NeXT` (1.6): any resolution.
    LlavaNext,
    /// Qwen2-VL. Wang et al., arXiv:2409.12191.
    Qwen2Vl,
    /// Qwen2.5-VL: windows in the tower. Bai et al., arXiv:2502.13923.
    Qwen25Vl,
}

impl VlmFamily {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Llava, Self::LlavaNext, Self::Qwen2Vl, Self::Qwen25Vl];

    /// transformers' `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llava => "llava",
            Self::LlavaNext => "llava_next",
            Self::Qwen2Vl => "qwen2_vl",
            Self::Qwen25Vl => "qwen2_5_vl",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Self::Llava => "LlavaForConditionalGeneration",
            Self::LlavaNext => "LlavaNextForConditionalGeneration",
            Self::Qwen2Vl => "Qwen2VLForConditionalGeneration",
            Self::Qwen25Vl => "Qwen2_5_VLForConditionalGeneration",
        }
    }

    /// Whether tokens have three positions and images a size of their own.
    pub fn is_qwen(self) -> bool {
        matches!(self, Self::Qwen2Vl | Self::Qwen25Vl)
    }
}

/// What a vision-language model looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct VlmConfig {
    /// The family.
    pub family: VlmFamily,
    /// The decoder.
    pub text: LmConfig,
    /// Tower and projector.
    pub vision: VisionConfig,
    /// The token that stands for an image.
    pub image_token_id: u32,
    /// The file as it was read, to be written again.
    source: Map<String, Value>,
}

/// Tower and projector of a family.
#[derive(Debug, Clone, PartialEq)]
pub enum VisionConfig {
    /// `LLaVA` and `LLaVA-NeXT`.
    Llava(LlavaVisionConfig),
    /// Qwen2-VL and Qwen2.5-VL.
    Qwen(QwenVisionConfig),
}

impl VlmConfig {
    /// Reads a `config.json`. Missing keys have transformers' defaults, but `model_type`, `vision_config` and, for `LLaVA`,
    /// `text_config` must be there.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, [`Error::UnknownConfigKey`] for a key that is not known.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_json(read_json(path.as_ref())?, path)
    }

    /// Reads an already parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_json(value: Value, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let source = value.as_object().cloned().unwrap_or_default();
        let file = ConfigFile::from_value(path, value)?;
        let expected = VlmFamily::ALL
            .map(|family| format!("{:?}", family.model_type()))
            .join(", ");
        let parse = |name: &str| VlmFamily::ALL.into_iter().find(|family| family.model_type() == name);
        let family = file
            .value("model_type")
            .and_then(|value| parse(value.as_str()?))
            .ok_or_else(|| file.error("model_type", format!("one of {expected}")))?;
        file.only("quantization_config", &[])?;
        let vision = file
            .value("vision_config")
            .filter(|value| value.is_object())
            .ok_or_else(|| file.error("vision_config", "an object"))?
            .clone();
        let (text, vision, image_token_id) = if family.is_qwen() {
            let text = text_config(&file, &source, path)?;
            let vision = QwenVisionConfig::from_json(vision, family, path)?;
            let token = file.token("image_token_id", 151_655)?;
            if vision.out_size != text.hidden_size {
                let expected = format!("a tower whose results are as wide as the decoder, {}", text.hidden_size);
                return Err(file.error("vision_config", expected));
            }
            (text, VisionConfig::Qwen(vision), token)
        } else {
            let (text, token) = llava_text(&file, path)?;
            let vision = LlavaVisionConfig::from_file(&file, vision, family, path)?;
            finish_llava(file)?;
            (text, VisionConfig::Llava(vision), token)
        };
        Ok(Self {
            family,
            text,
            vision,
            image_token_id,
            source,
        })
    }

    /// Number of scalars in all parameters that are built.
    pub fn num_parameters(&self) -> usize {
        let vision = match &self.vision {
            VisionConfig::Llava(vision) => vision.num_parameters(self.text.hidden_size),
            VisionConfig::Qwen(vision) => vision.num_parameters(),
        };
        self.text.num_parameters() + vision
    }

    /// The number of features of an image: of image tokens in the text.
    ///
    /// # Errors
    /// [`Error::Condition`] for a layout of another family; [`Error::ImageSize`] for one that this network has no grid for.
    pub fn num_image_tokens(&self, layout: &ImageLayout) -> Result<usize> {
        match (&self.vision, layout) {
            (VisionConfig::Llava(vision), ImageLayout::Whole) if vision.grid_pinpoints.is_none() => {
                Ok(vision.features_per_picture())
            }
            (VisionConfig::Llava(vision), ImageLayout::Tiles { size }) if vision.grid_pinpoints.is_some() => {
                vision.features_of_tiles(*size)
            }
            (VisionConfig::Qwen(vision), ImageLayout::Grid { thw }) => Ok(vision.merged_grid(*thw)?.iter().product()),
            _ => Err(foreign_layout()),
        }
    }

    /// Puts as many image tokens as an image has features in the place of its one image token. `layouts` are those of the text's
    /// images, in their order.
    ///
    /// # Errors
    /// [`Error::Placeholders`] for another number of image tokens than images; as [`Self::num_image_tokens`].
    pub fn expand(&self, input_ids: &[u32], layouts: &[ImageLayout]) -> Result<placeholders::Expanded> {
        let counts = layouts
            .iter()
            .map(|layout| self.num_image_tokens(layout))
            .collect::<Result<Vec<_>>>()?;
        placeholders::expand(input_ids, self.image_token_id, &counts)
    }

    /// Frames, rows and columns of the features of images; empty for families without grids.
    pub(super) fn merged_grids<'a>(&self, layouts: impl Iterator<Item = &'a ImageLayout>) -> Result<Vec<[usize; 3]>> {
        let VisionConfig::Qwen(vision) = &self.vision else {
            return Ok(Vec::new());
        };
        layouts
            .map(|layout| match layout {
                ImageLayout::Grid { thw } => vision.merged_grid(*thw),
                _ => Err(foreign_layout()),
            })
            .collect()
    }

    /// The name that a tensor or layer has here, for one of any generation of transformers: see [`super`].
    pub fn name_in_memory(&self, name: &str) -> String {
        names::in_memory(self.family, name)
    }

    /// The name that a tensor has in published files.
    pub fn published_name(&self, name: &str) -> String {
        names::published(self.family, name)
    }

    /// Whether a parameter is part of tower or projector, so that features of images change while it is trained.
    pub fn is_vision_parameter(&self, name: &str) -> bool {
        self.is_tower_parameter(name)
            || ["model.multi_modal_projector.", "model.image_newline", "model.visual."]
                .iter()
                .any(|prefix| name.starts_with(prefix))
    }

    /// Whether a parameter is part of the tower alone, so that [`VisionFeatures`](super::VisionFeatures) change while it is trained.
    pub fn is_tower_parameter(&self, name: &str) -> bool {
        name.starts_with("model.vision_tower.")
            || (name.starts_with("model.visual.") && !name.starts_with("model.visual.merger."))
    }

    /// The same with a head of its own.
    #[must_use]
    pub fn untied(&self) -> Self {
        let mut config = self.clone();
        config.text = config.text.untied();
        config.source.insert("tie_word_embeddings".into(), json!(false));
        if let Some(Value::Object(text)) = config.source.get_mut("text_config") {
            text.insert("tie_word_embeddings".into(), json!(false));
        }
        config
    }

    /// The `config.json` that transformers reads: the one this was read from, with the type that tensors are stored in.
    pub fn to_json(&self, dtype: DType) -> Value {
        stored_as(self.source.clone(), self.family.class(), dtype)
    }
}

pub(super) fn foreign_layout() -> Error {
    Error::Condition {
        name: "image layout",
        problem: "is that of another family's processor",
    }
}

/// The decoder of `LLaVA`, any of those that there are, and the id of the image token.
fn llava_text(file: &ConfigFile, path: &Path) -> Result<(LmConfig, u32)> {
    let text = file.value("text_config").and_then(Value::as_object);
    let mut text = text.cloned().ok_or_else(|| file.error("text_config", "an object"))?;
    text.entry("model_type").or_insert(json!("llama"));
    let mut text = LmConfig::from_json(Value::Object(text), path)?;
    text.tie_word_embeddings |= file.flag("tie_word_embeddings", false)?;
    if let Some(ids) = file.optional_tokens("pad_token_id")? {
        text.pad_token_id = ids.first().copied().or(text.pad_token_id);
    }
    let older = file.token("image_token_index", 32_000)?;
    Ok((text, file.token("image_token_id", older)?))
}

/// Checks that every key of a `LLaVA` file was looked at.
fn finish_llava(file: ConfigFile) -> Result<()> {
    file.any(&WITHOUT_EFFECT);
    // Numbers of tokens that follow from the rest, the loss's own constant, and names that old files repeat from the decoder.
    file.any(&[
        "image_seq_length",
        "ignore_index",
        "vocab_size",
        "bos_token_id",
        "eos_token_id",
        "hidden_size",
    ]);
    file.finish()
}
