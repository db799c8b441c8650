//! The image to be read: floats, at most 64 px along a side, with an estimate of its noise.

use image::RgbImage;

/// Longest side that is read. Larger images gain nothing: objects are at least 18 px wide then.
pub(super) const MAX_SIDE: usize = 64;

/// An image in floats, row by row, 0 to 255.
#[derive(Debug, Clone)]
pub(super) struct Raster {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<[f32; 3]>,
    /// Standard deviation of the noise per channel and pixel.
    pub(super) noise: f32,
}

impl Raster {
    /// Neither side of the image may be zero.
    pub(super) fn new(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        let pixels = image.pixels().map(|pixel| pixel.0.map(f32::from)).collect();
        let mut raster = Self {
            width,
            height,
            pixels,
            noise: 0.0,
        };
        let longest = width.max(height);
        if longest > MAX_SIDE {
            let scaled = |side: usize| (side * MAX_SIDE).div_ceil(longest);
            // One axis after the other; rows first, so that the second pass runs on less.
            raster = raster
                .shrunk_transposed(scaled(width))
                .shrunk_transposed(scaled(height));
        }
        raster.noise = noise(&raster);
        raster
    }

    pub(super) fn at(&self, x: usize, y: usize) -> [f32; 3] {
        self.pixels[y * self.width + x]
    }

    /// Shorter side: the unit of sizes.
    pub(super) fn side(&self) -> f32 {
        self.width.min(self.height) as f32
    }

    /// Averages the columns down to `columns`, and swaps the axes.
    fn shrunk_transposed(&self, columns: usize) -> Self {
        let step = self.width as f64 / columns as f64;
        let mut pixels = Vec::with_capacity(columns * self.height);
        for column in 0..columns {
            let (from, to) = (
                column as f64 * step,
                ((column + 1) as f64 * step).min(self.width as f64),
            );
            for y in 0..self.height {
                pixels.push(self.row_mean(y, from, to));
            }
        }
        Self {
            width: self.height,
            height: columns,
            pixels,
            noise: 0.0,
        }
    }

    /// Mean of a row between two positions, pixels cut by them counted in part.
    fn row_mean(&self, y: usize, from: f64, to: f64) -> [f32; 3] {
        let mut sum = [0.0; 3];
        let last = (to.ceil() as usize).min(self.width);
        for x in from as usize..last {
            let share = (to.min((x + 1) as f64) - from.max(x as f64)) as f32;
            let pixel = self.at(x, y);
            for (sum, value) in sum.iter_mut().zip(pixel) {
                *sum += share * value;
            }
        }
        sum.map(|sum| sum / (to - from) as f32)
    }

    /// The image under as many 3 x 3 binomial filters as its noise asks for: averaging costs sharpness.
    pub(super) fn smoothed(&self) -> Self {
        // Share of the noise that is left: sums of squared binomial coefficients, 6/16 and 70/256.
        let (passes, left) = match self.noise {
            noise if noise > 28.0 => (2, 0.273),
            noise if noise > 12.0 => (1, 0.375),
            _ => (0, 1.0),
        };
        let mut smooth = self.clone();
        for _ in 0..passes {
            smooth = smooth.smoothed_along(1, |index| index % self.width, self.width);
            smooth = smooth.smoothed_along(self.width, |index| index / self.width, self.height);
        }
        smooth.noise = self.noise * left;
        smooth
    }

    fn smoothed_along(&self, stride: usize, position: impl Fn(usize) -> usize, len: usize) -> Self {
        let mut pixels = Vec::with_capacity(self.pixels.len());
        for (index, &middle) in self.pixels.iter().enumerate() {
            let at = position(index);
            let before = if at > 0 { self.pixels[index - stride] } else { middle };
            let after = if at + 1 < len {
                self.pixels[index + stride]
            } else {
                middle
            };
            let mut mean = [0.0; 3];
            for channel in 0..3 {
                mean[channel] = 0.25 * before[channel] + 0.5 * middle[channel] + 0.25 * after[channel];
            }
            pixels.push(mean);
        }
        Self {
            width: self.width,
            height: self.height,
            pixels,
            noise: self.noise,
        }
    }
}

/// Noise from the median of second differences across the diagonals of 2 x 2 blocks. They vanish where the image is flat
/// or has a straight edge along an axis, which is most of it.
fn noise(raster: &Raster) -> f32 {
    if raster.width < 2 || raster.height < 2 {
        return 0.0;
    }
    let mut differences = Vec::with_capacity(raster.pixels.len());
    for y in 1..raster.height {
        for x in 1..raster.width {
            let corners = [
                raster.at(x - 1, y - 1),
                raster.at(x, y - 1),
                raster.at(x - 1, y),
                raster.at(x, y),
            ];
            let sum: f32 = (0..3)
                .map(|c| (corners[0][c] - corners[1][c] - corners[2][c] + corners[3][c]).powi(2))
                .sum();
            differences.push(sum);
        }
    }
    let middle = differences.len() / 2;
    let (_, median, _) = differences.select_nth_unstable_by(middle, f32::total_cmp);
    // Per channel, the difference of four has twice the deviation; the median of chi-squared with three degrees is 2.366.
    (*median / 2.366).sqrt() / 2.0
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn averaging_down_keeps_the_mean() {
        for (width, height) in [(128, 128), (96, 96), (100, 70), (65, 3), (3, 1000)] {
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            let image = RgbImage::from_fn(width, height, |_, _| Rgb(rng.random()));
            let raster = Raster::new(&image);
            assert!(raster.width.max(raster.height) == MAX_SIDE && raster.width.min(raster.height) >= 1);
            let mean = |values: &mut dyn Iterator<Item = f32>| {
                let (sum, count) = values.fold((0.0_f64, 0), |(s, n), v| (s + f64::from(v), n + 1));
                sum / f64::from(count)
            };
            let before = mean(&mut image.pixels().map(|pixel| f32::from(pixel.0[1])));
            let after = mean(&mut raster.pixels.iter().map(|pixel| pixel[1]));
            assert!(
                (before - after).abs() < 0.01,
                "{width} x {height}: {before} became {after}"
            );
        }
    }

    #[test]
    fn noise_is_measured_within_a_tenth() {
        // Sum of twelve uniforms: close to a normal deviate.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut deviate = || (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0;
        for sigma in [5.0, 20.0] {
            let image = RgbImage::from_fn(48, 48, |_, _| {
                Rgb([0; 3].map(|_: u8| (128.0 + sigma * deviate()).round() as u8))
            });
            let measured = Raster::new(&image).noise;
            assert!((measured - sigma).abs() < 0.1 * sigma, "{measured} instead of {sigma}");
        }
        assert_eq!(Raster::new(&RgbImage::from_pixel(20, 20, Rgb([9, 99, 199]))).noise, 0.0);
    }
}
