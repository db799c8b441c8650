//! A share of an image covered, pixel by pixel or patch by patch.

use image::RgbImage;
use rand::Rng;
use rand::seq::index;
use serde::{Deserialize, Serialize};

use super::patch_shuffle::check_patch;
use super::{Fill, out_of_range};
use crate::error::Result;

/// Covers patches drawn without replacement: `share` of them, rounded to a whole number.
///
/// OPA-DPO (arXiv:2501.09695) covers 30 % of the pixels with the mean color.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mask {
    /// Share that is covered, in `[0, 1]`. Default 0.3.
    pub share: f64,
    /// Side of a patch in pixels, from 1: single pixels. Patches begin at the left and the top; those at the other borders may be cut.
    /// Default 1.
    pub patch: u32,
    /// The color.
    pub fill: Fill,
}

impl Default for Mask {
    fn default() -> Self {
        Self {
            share: 0.3,
            patch: 1,
            fill: Fill::default(),
        }
    }
}

impl Mask {
    pub(super) fn validate(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(out_of_range("mask.share", &self.share, "a share, 0 to 1"));
        }
        check_patch("mask.patch", self.patch)
    }

    pub(super) fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let patch = self.patch.max(1);
        let (width, height) = image.dimensions();
        let columns = width.div_ceil(patch) as usize;
        let count = columns * height.div_ceil(patch) as usize;
        let num_covered = (count as f64 * self.share.clamp(0.0, 1.0)).round() as usize;
        let color = self.fill.color(image);
        let mut covered = image.clone();
        for place in index::sample(rng, count, num_covered) {
            let (left, top) = ((place % columns) as u32 * patch, (place / columns) as u32 * patch);
            for y in top..top.saturating_add(patch).min(height) {
                for x in left..left.saturating_add(patch).min(width) {
                    covered.put_pixel(x, y, color);
                }
            }
        }
        covered
    }
}
