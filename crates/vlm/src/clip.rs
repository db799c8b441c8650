//! A CLIP in transformers' layout, which says how alike images are, or words and images.

use std::path::Path;

use diptych_models::clip::{ClipConfig, ClipModel, normalized};
use diptych_models::text_encoder::ClipTokenizer;
use diptych_models::vision::ImageProcessor;
use diptych_models::{Builder, BuilderConfig};
use diptych_tensor::{DType, Device, Tensor, Weights};
use image::RgbImage;

use crate::Result;

/// Texts and images of a pass.
pub(crate) const AT_ONCE: usize = 32;

/// The weights of a CLIP, in its directory.
const WEIGHTS: &str = "model.safetensors";

/// A CLIP: both halves, with their projections into one space.
#[derive(Debug)]
pub(crate) struct Clip {
    network: ClipModel,
    processor: ImageProcessor,
    device: Device,
}

impl Clip {
    /// # Errors
    /// When a file is missing, damaged or of no CLIP.
    pub(crate) fn load(path: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let weights = Weights::open(&path.join(WEIGHTS))?;
        let builder = Builder::new(BuilderConfig {
            device: device.clone(),
            dtype,
            ..BuilderConfig::new(Some(&weights))
        })?;
        let network = ClipModel::load(&builder, &ClipConfig::from_file(path.join("config.json"))?)?;
        builder.finish()?;
        Ok(Self {
            network,
            processor: ImageProcessor::from_dir(path)?,
            device: device.clone(),
        })
    }

    /// Numbers of its weights.
    ///
    /// # Errors
    /// When they are missing or damaged.
    pub(crate) fn num_weights(path: &Path) -> Result<u64> {
        let weights = Weights::open(&path.join(WEIGHTS))?;
        let shapes = weights.names().filter_map(|name| weights.shape(name));
        Ok(shapes.map(|shape| shape.iter().product::<usize>() as u64).sum())
    }

    /// Unit vectors of texts, [`AT_ONCE`] or fewer.
    pub(crate) fn texts(&self, tokenizer: &ClipTokenizer, texts: &[&String]) -> Result<Vec<Vec<f32>>> {
        let ids = tokenizer.encode_batch(texts, &self.device)?;
        rows(&self.network.text_features(&ids)?)
    }

    /// Unit vectors of images, [`AT_ONCE`] or fewer.
    pub(crate) fn images(&self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let pixels = self.processor.images(images, &self.device)?;
        rows(&self.network.image_features(&pixels)?)
    }
}

/// Rows of norm 1.
fn rows(features: &Tensor) -> Result<Vec<Vec<f32>>> {
    let read = || -> diptych_tensor::Result<Vec<Vec<f32>>> {
        let features = normalized(&features.detach().to_dtype(DType::F32)?)?;
        Ok(features.to_device(&Device::Cpu)?.to_vec2()?)
    };
    Ok(read()?)
}
