//! Who looks at images to say which of them are alike.

use std::path::Path;

use diptych_llm::policy::NetworkOptions;
use diptych_models::clip::{ClipConfig, ClipModel};
use diptych_models::vision::ImageProcessor;
use diptych_models::{Builder, BuilderConfig};
use diptych_tensor::{DType, Device, Tensor, Weights};
use image::RgbImage;

use super::speaker::Speaker;
use crate::Result;

/// Turns images into vectors.
#[derive(Debug)]
pub(super) enum Embedder<'a> {
    /// The tower of the model that answers: the mean of its features over the patches of the whole image.
    Tower(&'a Speaker),
    /// A CLIP: its image half with projection.
    Clip(Box<Clip>),
}

/// A CLIP in transformers' layout.
#[derive(Debug)]
pub(super) struct Clip {
    model: ClipModel,
    processor: ImageProcessor,
    device: Device,
}

impl Clip {
    /// # Errors
    /// What is missing, damaged or no CLIP.
    pub(super) fn open(path: &Path, options: &NetworkOptions) -> Result<Self> {
        let config = ClipConfig::from_file(path.join("config.json"))?;
        let weights = Weights::open(&path.join("model.safetensors"))?;
        let builder = Builder::new(BuilderConfig {
            dtype: options.dtype,
            device: options.device.clone(),
            ..BuilderConfig::new(Some(&weights))
        })?;
        let model = ClipModel::load(&builder, &config)?;
        builder.finish()?;
        Ok(Self {
            model,
            processor: ImageProcessor::from_dir(path)?,
            device: options.device.clone(),
        })
    }
}

impl Embedder<'_> {
    /// The vector of an image, not normalized.
    pub(super) fn vector(&self, image: &RgbImage) -> Result<Vec<f32>> {
        match self {
            Self::Tower(speaker) => of_tower(speaker, image),
            Self::Clip(clip) => {
                let pixels = clip.processor.images(std::slice::from_ref(image), &clip.device)?;
                let features = clip.model.image_features(&pixels)?;
                let read = || -> diptych_tensor::Result<Vec<f32>> {
                    Ok(features.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
                };
                Ok(read()?)
            }
        }
    }
}

/// The mean over the patches of an image, of its first picture where it is several.
fn of_tower(speaker: &Speaker, image: &RgbImage) -> Result<Vec<f32>> {
    let processed = speaker.processor().process(image)?;
    let features = speaker.model().vision_features(&[&processed])?;
    let mean = |features: &Tensor| -> diptych_tensor::Result<Vec<f32>> {
        let features = features.to_dtype(DType::F32)?;
        let patches = if features.dims().len() == 3 {
            features.narrow(0, 0, 1)?.squeeze(0)?
        } else {
            features
        };
        Ok(patches.mean(0)?.to_vec1()?)
    };
    Ok(match features.first() {
        Some(features) => mean(&features.features)?,
        None => Vec::new(),
    })
}
