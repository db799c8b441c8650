//! An image turned about its center.

use image::{Rgb, RgbImage};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{Fill, out_of_range, to_channel};
use crate::error::Result;

/// Turns the image counterclockwise by an angle drawn from a range. Pixels are blended bilinearly; what comes from outside the image has
/// the color of `fill`, and corners that leave it are lost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rotate {
    /// Least angle in degrees, from -360. Default -180.
    pub min_degrees: f64,
    /// Largest angle in degrees, up to 360. Default 180.
    pub max_degrees: f64,
    /// The color around it.
    pub fill: Fill,
}

impl Default for Rotate {
    fn default() -> Self {
        Self {
            min_degrees: -180.0,
            max_degrees: 180.0,
            fill: Fill::default(),
        }
    }
}

impl Rotate {
    pub(super) fn validate(&self) -> Result<()> {
        if !(-360.0..=360.0).contains(&self.min_degrees) {
            return Err(out_of_range(
                "rotate.min_degrees",
                &self.min_degrees,
                "degrees, -360 to 360",
            ));
        }
        if !(self.min_degrees..=360.0).contains(&self.max_degrees) {
            let expected = "degrees, min_degrees to 360";
            return Err(out_of_range("rotate.max_degrees", &self.max_degrees, expected));
        }
        Ok(())
    }

    pub(super) fn apply(&self, image: &RgbImage, rng: &mut impl Rng) -> RgbImage {
        let degrees = rng.random_range(self.min_degrees..=self.max_degrees);
        turned(image, degrees, self.fill.color(image))
    }
}

fn turned(image: &RgbImage, degrees: f64, fill: Rgb<u8>) -> RgbImage {
    let (sin, cos) = sin_cos(degrees);
    let (width, height) = image.dimensions();
    let [center_x, center_y] = [width, height].map(|length| (f64::from(length) - 1.0) / 2.0);
    let fill_values = fill.0.map(f64::from);
    let value = |x: f64, y: f64| {
        let is_inside = x >= 0.0 && y >= 0.0 && x < f64::from(width) && y < f64::from(height);
        if is_inside {
            image.get_pixel(x as u32, y as u32).0.map(f64::from)
        } else {
            fill_values
        }
    };
    RgbImage::from_fn(width, height, |x, y| {
        // Where this pixel was before: y points down, so counterclockwise on the screen.
        let (dx, dy) = (f64::from(x) - center_x, f64::from(y) - center_y);
        let (from_x, from_y) = (cos * dx - sin * dy + center_x, sin * dx + cos * dy + center_y);
        let (left, top) = (from_x.floor(), from_y.floor());
        let (across, down) = (from_x - left, from_y - top);
        let corners = [
            ((1.0 - across) * (1.0 - down), value(left, top)),
            (across * (1.0 - down), value(left + 1.0, top)),
            ((1.0 - across) * down, value(left, top + 1.0)),
            (across * down, value(left + 1.0, top + 1.0)),
        ];
        Rgb([0, 1, 2].map(|channel| to_channel(corners.iter().map(|(weight, color)| weight * color[channel]).sum())))
    })
}

/// Exact at quarter turns, so that these move pixels and blend nothing.
fn sin_cos(degrees: f64) -> (f64, f64) {
    match degrees.rem_euclid(360.0) {
        0.0 => (0.0, 1.0),
        90.0 => (1.0, 0.0),
        180.0 => (0.0, -1.0),
        270.0 => (-1.0, 0.0),
        other => other.to_radians().sin_cos(),
    }
}
