//! A small part of an image, blown up to its size.
//!
//! Wang et al., "mDPO: Conditional Preference Optimization for Multimodal Large Language Models", EMNLP 2024, arXiv:2406.11839: the rejected image
//! is a random crop of less than 20 % of the original. Reference code: `RandomResizedCrop(scale=(0.01, 0.2))` of torchvision, drawn
//! anew for policy and reference; here both see the same.

use image::RgbImage;
use image::imageops::{self, FilterType};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::out_of_range;
use crate::error::Result;

/// Boxes drawn before the largest one in the middle is taken, as in torchvision.
const ATTEMPTS: usize = 10;

/// A box whose area and aspect ratio are drawn, scaled to the size of the image with a bilinear filter.
///
/// The area is uniform in its range, the aspect ratio log-uniform, the place uniform. A box that does not fit is drawn again, ten times; then the
/// largest one in the middle with an aspect ratio in range is taken.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Crop {
    /// Least share of the image's area, above 0. Default 0.01.
    pub min_area: f64,
    /// Largest share, up to 1. Default 0.2.
    pub max_area: f64,
    /// Least width over height, above 0. Default 3/4.
    pub min_ratio: f64,
    /// Largest width over height. Default 4/3.
    pub max_ratio: f64,
}

impl Default for Crop {
    fn default() -> Self {
        Self {
            min_area: 0.01,
            max_area: 0.2,
            min_ratio: 3.0 / 4.0,
            max_ratio: 4.0 / 3.0,
        }
    }
}

/// Left, top, width and height in pixels.
type CropBox = [u32; 4];

impl Crop {
    pub(super) fn validate(&self) -> Result<()> {
        if !(self.min_area > 0.0 && self.min_area <= 1.0) {
            return Err(out_of_range(
                "crop.min_area",
                &self.min_area,
                "a share above 0, up to 1",
            ));
        }
        if !(self.min_area..=1.0).contains(&self.max_area) {
            return Err(out_of_range("crop.max_area", &self.max_area, "a share, min_area to 1"));
        }
        if !(self.min_ratio > 0.0 && self.min_ratio.is_finite()) {
            return Err(out_of_range("crop.min_ratio", &self.min_ratio, "a number above 0"));
        }
        if !(self.max_ratio >= self.min_ratio && self.max_ratio.is_finite()) {
            return Err(out_of_range(
                "crop.max_ratio",
                &self.max_ratio,
                "a number from min_ratio on",
            ));
        }
        Ok(())
    }

    pub(super) fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let (width, height) = image.dimensions();
        let [left, top, crop_width, crop_height] = self.draw(rng, width, height);
        let part = imageops::crop_imm(image, left, top, crop_width, crop_height).to_image();
        imageops::resize(&part, width, height, FilterType::Triangle)
    }

    pub(super) fn draw(&self, rng: &mut impl Rng, width: u32, height: u32) -> CropBox {
        let area = f64::from(width) * f64::from(height);
        let (low, high) = (self.min_ratio.ln(), self.max_ratio.ln());
        for _ in 0..ATTEMPTS {
            let target = area * rng.random_range(self.min_area..=self.max_area);
            let ratio = rng.random_range(low..=high).exp();
            let crop_width = (target * ratio).sqrt().round() as u32;
            let crop_height = (target / ratio).sqrt().round() as u32;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                let left = rng.random_range(0..=width - crop_width);
                let top = rng.random_range(0..=height - crop_height);
                return [left, top, crop_width, crop_height];
            }
        }
        self.in_the_middle(width, height)
    }

    fn in_the_middle(&self, width: u32, height: u32) -> CropBox {
        let ratio = f64::from(width) / f64::from(height);
        let scaled = |length: f64, limit: u32| (length.round() as u32).clamp(1, limit);
        let (crop_width, crop_height) = if ratio < self.min_ratio {
            (width, scaled(f64::from(width) / self.min_ratio, height))
        } else if ratio > self.max_ratio {
            (scaled(f64::from(height) * self.max_ratio, width), height)
        } else {
            (width, height)
        };
        [
            (width - crop_width) / 2,
            (height - crop_height) / 2,
            crop_width,
            crop_height,
        ]
    }
}
