//! Resizing of images as PIL and PyTorch do it.
//!
//! Both pass over the rows, then over the columns; an output pixel is a weighted mean of the input pixels around it:
//!
//! ```text
//! center = (i + 1/2) in / out        s = max(in / out, 1) when antialiased, else 1
//! w_j    = f((j + 1/2 - center) / s), over the j for which f is not 0, divided by their sum
//! ```
//!
//! PIL does this in fixed point and rounds to 8 bits after each pass ([`resize_rounded`], equal to PIL bit for bit); PyTorch does
//! it in floating point ([`resize_tensor`], differentiable).
//!
//! B batch, C channels, Y x X pixels.

use std::ops::Range;

use diptych_tensor::{Device, Result as TensorResult, Tensor, ops};
use image::RgbImage;

/// The weight of a pixel by its distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Linear, over one pixel to each side. PIL's 2.
    Bilinear,
    /// Keys' cubic with a = -1/2, over two pixels. PIL's 3, and PyTorch's `bicubic` with `antialias=True`.
    Bicubic,
    /// A windowed sinc, over three pixels. PIL's 1.
    Lanczos,
    /// Keys' cubic with a = -3/4, never stretched: PyTorch's `bicubic` without `antialias`. It skips pixels when it shrinks.
    BicubicAliased,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic | Self::BicubicAliased => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic => cubic(x, -0.5),
            Self::BicubicAliased => cubic(x, -0.75),
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, Eq. 15.
fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// A resize, of which only a part may be wanted: what lies outside it is not computed, however large the whole would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resized {
    /// Of the whole.
    pub width: usize,
    /// Of the whole.
    pub height: usize,
    /// The wanted columns.
    pub columns: Range<usize>,
    /// The wanted rows.
    pub rows: Range<usize>,
}

impl Resized {
    pub(crate) fn whole((width, height): (usize, usize)) -> Self {
        Self {
            width,
            height,
            columns: 0..width,
            rows: 0..height,
        }
    }
}

/// The input pixels that an output pixel is made of: the first of them, and their weights.
type Taps = (usize, Vec<f64>);

/// The taps of some of the output pixels along one axis.
fn taps(from: usize, to: usize, wanted: &Range<usize>, filter: Filter) -> Vec<Taps> {
    let ratio = from as f64 / to as f64;
    wanted
        .clone()
        .map(|index| {
            let center = (index as f64 + 0.5) * ratio;
            if filter == Filter::BicubicAliased {
                aliased(center, from)
            } else {
                antialiased(center, ratio.max(1.0), from, filter)
            }
        })
        .collect()
}

/// PIL's: pixels outside the image do not exist.
fn antialiased(center: f64, stretch: f64, from: usize, filter: Filter) -> Taps {
    let support = filter.support() * stretch;
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(from);
    let inverse = 1.0 / stretch;
    let mut weights: Vec<f64> = (first..end)
        .map(|j| filter.weight((j as f64 - center + 0.5) * inverse))
        .collect();
    let sum: f64 = weights.iter().sum();
    if sum != 0.0 {
        for weight in &mut weights {
            *weight /= sum;
        }
    }
    (first, weights)
}

/// PyTorch's without antialiasing: four pixels, those outside the image being the nearest inside.
fn aliased(center: f64, from: usize) -> Taps {
    let position = center - 0.5;
    let below = position.floor();
    let last = from as i64 - 1;
    let place = |tap: i64| (below as i64 - 1 + tap).clamp(0, last) as usize;
    let first = place(0);
    let mut weights = vec![0.0; place(3) - first + 1];
    for tap in 0..4 {
        let distance = position - (below - 1.0 + tap as f64);
        weights[place(tap) - first] += Filter::BicubicAliased.weight(distance);
    }
    (first, weights)
}

/// The image at another size, as `PIL.Image.resize` gives it: each pass rounds to 8 bits.
///
/// # Panics
/// When a side, before or after, is 0.
pub fn resize_rounded(image: &RgbImage, size: (usize, usize), filter: Filter) -> RgbImage {
    resize_rounded_part(image, &Resized::whole(size), filter)
}

/// A part of what [`resize_rounded`] gives.
///
/// # Panics
/// As [`resize_rounded`], and without a wanted pixel.
pub(crate) fn resize_rounded_part(image: &RgbImage, to: &Resized, filter: Filter) -> RgbImage {
    let (from_width, from_height) = (image.width() as usize, image.height() as usize);
    let (width, height) = (to.columns.len(), to.rows.len());
    assert!(
        from_width * from_height * width * height > 0,
        "an image has at least one pixel"
    );
    let mut pixels = image.as_raw().clone();
    if to.width != from_width || width != from_width {
        let taps = fixed_point(&taps(from_width, to.width, &to.columns, filter));
        let mut out = Vec::with_capacity(from_height * width * 3);
        for row in pixels.chunks_exact(from_width * 3) {
            for (first, weights) in &taps {
                out.extend((0..3).map(|channel| accumulate(weights, |j| row[(first + j) * 3 + channel])));
            }
        }
        pixels = out;
    }
    if to.height != from_height || height != from_height {
        let stride = width * 3;
        let mut out = Vec::with_capacity(height * stride);
        for (first, weights) in fixed_point(&taps(from_height, to.height, &to.rows, filter)) {
            out.extend((0..stride).map(|x| accumulate(&weights, |j| pixels[(first + j) * stride + x])));
        }
        pixels = out;
    }
    RgbImage::from_raw(width as u32, height as u32, pixels).expect("three values a pixel were computed")
}

/// Bits behind the point of PIL's weights: 32, less 8 of the pixel and 2 for sums beyond its range.
const PRECISION_BITS: u32 = 22;

fn fixed_point(taps: &[Taps]) -> Vec<(usize, Vec<i64>)> {
    let one = f64::from(1_u32 << PRECISION_BITS);
    let round = |weight: &f64| (weight * one + 0.5_f64.copysign(*weight)) as i64;
    taps.iter()
        .map(|(first, weights)| (*first, weights.iter().map(round).collect()))
        .collect()
}

fn accumulate(weights: &[i64], pixel: impl Fn(usize) -> u8) -> u8 {
    let half = 1_i64 << (PRECISION_BITS - 1);
    let sum = weights
        .iter()
        .enumerate()
        .fold(half, |sum, (j, weight)| sum + weight * i64::from(pixel(j)));
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// The images at another size, in floating point; values may leave the range of the input. Differentiable.
///
/// # Shape
/// (B, C, Y, X) to (B, C, `height`, `width`).
///
/// # Errors
/// When the tensor does not have four dimensions.
pub fn resize_tensor(pixels_bcyx: &Tensor, size: (usize, usize), filter: Filter) -> TensorResult<Tensor> {
    resize_tensor_part(pixels_bcyx, &Resized::whole(size), filter)
}

/// A part of what [`resize_tensor`] gives.
///
/// # Errors
/// As [`resize_tensor`].
pub(crate) fn resize_tensor_part(pixels_bcyx: &Tensor, to: &Resized, filter: Filter) -> TensorResult<Tensor> {
    let (_, _, from_height, from_width) = pixels_bcyx.dims4()?;
    let mut x = pixels_bcyx.clone();
    // Each pass is a product with a fixed matrix over the last dimension.
    if to.width != from_width || to.columns.len() != from_width {
        let weights = matrix(from_width, to.width, &to.columns, filter, pixels_bcyx)?;
        x = ops::linear(&x.contiguous()?, &weights, None)?;
    }
    if to.height != from_height || to.rows.len() != from_height {
        let weights = matrix(from_height, to.height, &to.rows, filter, pixels_bcyx)?;
        x = ops::linear(&x.transpose(2, 3)?.contiguous()?, &weights, None)?.transpose(2, 3)?;
    }
    Ok(x.contiguous()?)
}

/// (wanted, from), in the type and the place of `like`.
fn matrix(from: usize, to: usize, wanted: &Range<usize>, filter: Filter, like: &Tensor) -> TensorResult<Tensor> {
    let mut values = vec![0.0_f64; wanted.len() * from];
    for (index, (first, weights)) in taps(from, to, wanted, filter).iter().enumerate() {
        let start = index * from + first;
        values[start..start + weights.len()].copy_from_slice(weights);
    }
    let matrix = Tensor::from_vec(values, (wanted.len(), from), &Device::Cpu)?;
    Ok(matrix.to_dtype(like.dtype())?.to_device(like.device())?)
}
