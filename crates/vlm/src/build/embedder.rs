//! Who looks at images to say which of them are alike.

use diptych_tensor::{DType, Tensor};
use image::RgbImage;

use super::speaker::Speaker;
use crate::Result;
use crate::clip::Clip;

/// Turns images into vectors.
#[derive(Debug)]
pub(super) enum Embedder<'a> {
    /// The tower of the model that answers: the mean of its features over the patches of the whole image.
    Tower(&'a Speaker),
    /// A CLIP: its image half with projection.
    Clip(Box<Clip>),
}

impl Embedder<'_> {
    /// The vector of an image, of any length.
    pub(super) fn vector(&self, image: &RgbImage) -> Result<Vec<f32>> {
        match self {
            Self::Tower(speaker) => of_tower(speaker, image),
            Self::Clip(clip) => Ok(clip.images(std::slice::from_ref(image))?.remove(0)),
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
