//! An image that was made small and brought back to its size.
//!
//! Deng et al., "Enhancing Large Vision Language Models with Self-Training on Image Comprehension" (STIC), `NeurIPS` 2024, arXiv:2405.19716. Reference
//! code: `Resize(size=20)` of torchvision, which leaves the image small; here it has its size again, as the tower would give it anyway.

use image::RgbImage;
use image::imageops::{self, FilterType};
use serde::{Deserialize, Serialize};

use super::out_of_range;
use crate::error::Result;

/// The shorter side is brought to a number of pixels and back, with a bilinear filter. An image that is as small already stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LowResolution {
    /// Pixels of the shorter side, at least 1. Default 20.
    pub side: u32,
}

impl Default for LowResolution {
    fn default() -> Self {
        Self { side: 20 }
    }
}

impl LowResolution {
    pub(super) fn validate(self) -> Result<()> {
        if self.side > 0 {
            return Ok(());
        }
        Err(out_of_range("low_resolution.side", &self.side, "a number, at least 1"))
    }

    pub(super) fn apply(self, image: &RgbImage) -> RgbImage {
        let (width, height) = image.dimensions();
        let shorter = width.min(height);
        if shorter <= self.side {
            return image.clone();
        }
        let scaled = |length: u32| {
            let exact = f64::from(length) * f64::from(self.side.max(1)) / f64::from(shorter);
            (exact.round() as u32).max(1)
        };
        let small = imageops::resize(image, scaled(width), scaled(height), FilterType::Triangle);
        imageops::resize(&small, width, height, FilterType::Triangle)
    }
}
