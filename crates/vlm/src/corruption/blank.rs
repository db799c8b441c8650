//! No image at all: one color.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::Fill;

/// An image of one color: what is said of it is said of no image. V-DPO (arXiv:2411.02712) compares with zeros in the place of pixels, which
/// [`Fill::ProcessorMean`] becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blank {
    /// The color.
    pub fill: Fill,
}

impl Blank {
    pub(super) fn apply(self, image: &RgbImage) -> RgbImage {
        RgbImage::from_pixel(image.width(), image.height(), self.fill.color(image))
    }
}
