//! Other brightness, contrast, saturation and hue.
//!
//! Deng et al., "Enhancing Large Vision Language Models with Self-Training on Image Comprehension" (STIC), `NeurIPS` 2024, arXiv:2405.19716, describes images
//! with jittered colors for its rejected answers. The operations are torchvision's `ColorJitter`, which for images are those of PIL:
//!
//! ```text
//! brightness: f v      contrast: f v + (1 - f) mean(gray)      saturation: f v + (1 - f) gray      hue: H + f turns
//! ```
//!
//! gray = 0.299 R + 0.587 G + 0.114 B, rounded as PIL rounds it; hue is that of HSV.

use image::{Rgb, RgbImage};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::out_of_range;
use crate::error::Result;

/// Draws a factor for each operation, and the order in which they come. An operation of strength 0 is left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColorJitter {
    /// The factor is uniform in `[max(0, 1 - brightness), 1 + brightness]`; 0 to 10. Default 0.5.
    pub brightness: f64,
    /// As brightness. Default 0.5.
    pub contrast: f64,
    /// As brightness. Default 0.5.
    pub saturation: f64,
    /// Turns of the hue are uniform in `[-hue, hue]`; 0 to 0.5. Default 0.1.
    pub hue: f64,
}

impl Default for ColorJitter {
    fn default() -> Self {
        Self {
            brightness: 0.5,
            contrast: 0.5,
            saturation: 0.5,
            hue: 0.1,
        }
    }
}

/// One operation with its factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    Brightness(f64),
    Contrast(f64),
    Saturation(f64),
    /// In turns.
    Hue(f64),
}

impl ColorJitter {
    pub(super) fn validate(&self) -> Result<()> {
        let strengths = [
            ("color_jitter.brightness", self.brightness),
            ("color_jitter.contrast", self.contrast),
            ("color_jitter.saturation", self.saturation),
        ];
        for (key, strength) in strengths {
            if !(0.0..=10.0).contains(&strength) {
                return Err(out_of_range(key, &strength, "a strength, 0 to 10"));
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return Err(out_of_range("color_jitter.hue", &self.hue, "turns, 0 to 0.5"));
        }
        Ok(())
    }

    pub(super) fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let mut factor = |strength: f64| rng.random_range((1.0 - strength).max(0.0)..=1.0 + strength);
        let mut changes = Vec::new();
        if self.brightness > 0.0 {
            changes.push(Change::Brightness(factor(self.brightness)));
        }
        if self.contrast > 0.0 {
            changes.push(Change::Contrast(factor(self.contrast)));
        }
        if self.saturation > 0.0 {
            changes.push(Change::Saturation(factor(self.saturation)));
        }
        if self.hue > 0.0 {
            changes.push(Change::Hue(rng.random_range(-self.hue..=self.hue)));
        }
        changes.shuffle(rng);
        changes
            .into_iter()
            .fold(image.clone(), |image, change| change.apply(&image))
    }
}

impl Change {
    pub(super) fn apply(self, image: &RgbImage) -> RgbImage {
        let mut changed = image.clone();
        match self {
            Self::Brightness(factor) => {
                for value in changed.iter_mut() {
                    *value = blend(0.0, *value, factor);
                }
            }
            Self::Contrast(factor) => {
                let total: u64 = image.pixels().map(|pixel| u64::from(gray(*pixel))).sum();
                let count = f64::from(image.width()) * f64::from(image.height());
                let mean = (total as f64 / count + 0.5).floor();
                for value in changed.iter_mut() {
                    *value = blend(mean, *value, factor);
                }
            }
            Self::Saturation(factor) => {
                for pixel in changed.pixels_mut() {
                    let gray = f64::from(gray(*pixel));
                    pixel.0 = pixel.0.map(|value| blend(gray, value, factor));
                }
            }
            Self::Hue(turns) => {
                for pixel in changed.pixels_mut() {
                    *pixel = with_hue(*pixel, turns);
                }
            }
        }
        changed
    }
}

/// `(1 - factor) degenerate + factor value`, cut off below and above and its fraction dropped, as PIL does.
fn blend(degenerate: f64, value: u8, factor: f64) -> u8 {
    (degenerate + factor * (f64::from(value) - degenerate)).clamp(0.0, 255.0) as u8
}

/// PIL's luma, with weights in 65536ths.
fn gray(pixel: Rgb<u8>) -> u8 {
    let [r, g, b] = pixel.0.map(u32::from);
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

/// The color with its hue turned, in exact HSV: unlike PIL's, hues have no steps.
fn with_hue(pixel: Rgb<u8>, turns: f64) -> Rgb<u8> {
    let [r, g, b] = pixel.0.map(f64::from);
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let span = high - low;
    if span == 0.0 {
        return pixel;
    }
    let sixths = if high == r {
        (g - b) / span
    } else if high == g {
        2.0 + (b - r) / span
    } else {
        4.0 + (r - g) / span
    };
    let sixths = (sixths + 6.0 * turns).rem_euclid(6.0);
    // How far each channel is from the highest one, as a share of the span.
    let channel = |offset: f64| {
        let at = (offset + sixths).rem_euclid(6.0);
        super::to_channel(high - span * at.min(4.0 - at).clamp(0.0, 1.0))
    };
    Rgb([channel(5.0), channel(3.0), channel(1.0)])
}
