//! A Gaussian blur.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::{out_of_range, to_channel};
use crate::error::Result;

/// Each pixel the mean of those around it, with Gaussian weights up to three deviations away, rows first. Beyond the border the image is
/// continued by its mirror image, the border pixel not repeated, as torchvision does. The same for every draw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Blur {
    /// Deviation in pixels, 0.1 to 100. Default 5.
    pub sigma: f64,
}

impl Default for Blur {
    fn default() -> Self {
        Self { sigma: 5.0 }
    }
}

impl Blur {
    pub(super) fn validate(self) -> Result<()> {
        if (0.1..=100.0).contains(&self.sigma) {
            return Ok(());
        }
        Err(out_of_range("blur.sigma", &self.sigma, "pixels, 0.1 to 100"))
    }

    pub(super) fn apply(self, image: &RgbImage) -> RgbImage {
        let weights = weights(self.sigma.clamp(0.1, 100.0));
        let (width, height) = (image.width() as usize, image.height() as usize);
        let values: Vec<f64> = image.iter().map(|value| f64::from(*value)).collect();
        let at = |x: usize, y: usize| 3 * (y * width + x);
        let rows = filter(&weights, (width, height), |x, y, channel| values[at(x, y) + channel]);
        // The same once more with the axes exchanged.
        let turned = |x: usize, y: usize| 3 * (x * width + y);
        let columns = filter(&weights, (height, width), |x, y, channel| rows[turned(x, y) + channel]);
        RgbImage::from_fn(image.width(), image.height(), |x, y| {
            let start = 3 * (x as usize * height + y as usize);
            image::Rgb([0, 1, 2].map(|channel| to_channel(columns[start + channel])))
        })
    }
}

/// Weights from the center on, which sum to 1 with their mirror image.
fn weights(sigma: f64) -> Vec<f64> {
    let radius = (3.0 * sigma).ceil() as usize;
    let mut weights: Vec<f64> = (0..=radius)
        .map(|offset| (-0.5 * (offset as f64 / sigma).powi(2)).exp())
        .collect();
    let total = 2.0 * weights.iter().sum::<f64>() - weights[0];
    for weight in &mut weights {
        *weight /= total;
    }
    weights
}

/// Rows of (width, height) filtered, three channels a pixel.
fn filter(weights: &[f64], (width, height): (usize, usize), value: impl Fn(usize, usize, usize) -> f64) -> Vec<f64> {
    let mut filtered = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let mut sum = weights[0] * value(x, y, channel);
                for (offset, weight) in weights.iter().enumerate().skip(1) {
                    let offset = offset as i64;
                    let [before, after] = [x as i64 - offset, x as i64 + offset].map(|at| mirrored(at, width));
                    sum += weight * (value(before, y, channel) + value(after, y, channel));
                }
                filtered.push(sum);
            }
        }
    }
    filtered
}

/// The place inside of `length` for one outside, however far.
fn mirrored(at: i64, length: usize) -> usize {
    let last = length as i64 - 1;
    if last == 0 {
        return 0;
    }
    let at = at.rem_euclid(2 * last);
    at.min(2 * last - at) as usize
}
