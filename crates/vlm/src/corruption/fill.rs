//! What covers an image or a part of it.

use image::{Rgb, RgbImage};
use serde::{Deserialize, Serialize};

use super::to_channel;

/// CLIP's mean of each channel times 255, rounded down: the color that transformers pads `LLaVA`'s images with, and about 0 after
/// normalization.
const PROCESSOR_MEAN: [u8; 3] = [122, 116, 104];

/// A color to cover with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// The mean color of CLIP's processor, which the network reads as zeros: (122, 116, 104).
    #[default]
    ProcessorMean,
    /// The mean color of the image itself.
    ImageMean,
    /// Black.
    Black,
    /// White.
    White,
}

impl Fill {
    /// The color for an image that has pixels.
    pub fn color(self, image: &RgbImage) -> Rgb<u8> {
        match self {
            Self::ProcessorMean => Rgb(PROCESSOR_MEAN),
            Self::Black => Rgb([0; 3]),
            Self::White => Rgb([255; 3]),
            Self::ImageMean => {
                let mut sums = [0_u64; 3];
                for pixel in image.pixels() {
                    for (sum, value) in sums.iter_mut().zip(pixel.0) {
                        *sum += u64::from(value);
                    }
                }
                let count = f64::from(image.width()) * f64::from(image.height());
                Rgb(sums.map(|sum| to_channel(sum as f64 / count)))
            }
        }
    }
}
