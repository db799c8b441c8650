//! Vision-language models: `LLaVA` 1.5, `LLaVA-NeXT`, Qwen2-VL and Qwen2.5-VL, in transformers' layout and under its names.
//!
//! A vision tower turns images into features, a projector turns features into vectors as wide as the decoder's embeddings, and the
//! decoder, a [`CausalLm`](crate::lm::CausalLm), reads these in the places of image tokens.
//!
//! ```no_run
//! use diptych_models::lm::{GenerateConfig, Sampling};
//! use diptych_models::vlm::{TowerTraining, VisionLanguageModel, VlmDir, VlmPrompt};
//! use diptych_models::{Builder, BuilderConfig};
//!
//! let dir = VlmDir::open("models/llava-1.5-7b-hf")?;
//! let weights = dir.weights()?;
//! let builder = Builder::new(BuilderConfig::new(Some(&weights)))?;
//! let vlm = VisionLanguageModel::load(&builder, dir.config(), TowerTraining::Frozen)?;
//! builder.finish()?;
//!
//! let image = dir.image_processor()?.process(&image::RgbImage::new(640, 480))?;
//! // One image token in the text becomes as many as the image has features.
//! let text = dir.config().expand(&[1, 32000, 13, 1724], &[image.layout])?;
//! let images = vlm.encode(&[&image])?;
//! let prompt = VlmPrompt { input_ids: &text.input_ids, images: &[&images[0]], example: 0 };
//! let config = GenerateConfig {
//!     max_new_tokens: 64,
//!     sampling: Sampling::GREEDY,
//!     eos_token_ids: dir.config().text.eos_token_ids.clone(),
//!     seed: 0,
//! };
//! let answers = vlm.generate(&[prompt], &config)?;
//! # Ok::<(), diptych_models::Error>(())
//! ```

mod attention_weights;
mod config;
mod directory;
mod generate;
mod images;
mod llava;
mod model;
mod names;
mod placeholders;
mod positions;
mod qwen;

pub use self::config::{VisionConfig, VlmConfig, VlmFamily};
pub use self::directory::{VlmDir, save};
pub use self::generate::VlmPrompt;
pub use self::images::{
    AnyResolution, DynamicResolution, ImageLayout, ImageProcessorKind, MAX_IMAGE_PIXELS, ProcessedImage,
    VlmImageProcessor,
};
pub use self::llava::{FeatureSelection, LlavaVisionConfig, TowerConfig};
pub use self::model::{ImageEmbeddings, TowerTraining, VisionFeatures, VisionLanguageModel};
pub use self::placeholders::Expanded;
pub use self::qwen::{QwenVisionConfig, QwenWindows};
