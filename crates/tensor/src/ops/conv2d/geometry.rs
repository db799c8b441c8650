//! Sizes of a convolution, and the unfolding of inputs into columns and back.
//!
//! A column matrix has one row per (channel, ky, kx), in the order of the weight, and one column per output position.

use std::ops::Range;

use candle_core::{Shape, Tensor};

use super::{Conv2dConfig, OP};
use crate::ops::kernel::{Float, shape_error, wide};
use crate::{Error, Result};

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) outputs: usize,
    pub(super) ky: usize,
    pub(super) kx: usize,
    pub(super) stride: usize,
    pub(super) padding: usize,
    pub(super) out_height: usize,
    pub(super) out_width: usize,
}

impl Geometry {
    pub(super) fn of(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: Conv2dConfig) -> Result<Self> {
        let Conv2dConfig { stride, padding } = config;
        let &[images, channels, height, width] = x.dims() else {
            return Err(shape_error(OP, "shape of x", x.dims(), "(B, C, Y, X)"));
        };
        let &[outputs, weight_channels, ky, kx] = weight.dims() else {
            return Err(shape_error(OP, "shape of weight", weight.dims(), "(O, C, ky, kx)"));
        };
        if weight_channels != channels || ky == 0 || kx == 0 {
            let expected = format!(
                "(O, {channels}, ky, kx) with a kernel of at least 1, for x {:?}",
                x.dims()
            );
            return Err(shape_error(OP, "shape of weight", weight.dims(), expected));
        }
        if let Some(bias) = bias.filter(|bias| bias.dims() != [outputs]) {
            return Err(shape_error(OP, "shape of bias", bias.dims(), format!("[{outputs}]")));
        }
        if stride == 0 {
            return Err(Error::Operand {
                op: OP,
                what: "stride",
                found: "0".into(),
                expected: "at least 1".into(),
            });
        }
        if height + 2 * padding < ky || width + 2 * padding < kx {
            let expected = format!("at least the kernel, {ky} x {kx}, with padding {padding}");
            return Err(shape_error(OP, "shape of x", x.dims(), expected));
        }
        let out_len = |len: usize, k: usize| (len + 2 * padding - k) / stride + 1;
        let (out_height, out_width) = (out_len(height, ky), out_len(width, kx));
        Ok(Self {
            images,
            channels,
            height,
            width,
            outputs,
            ky,
            kx,
            stride,
            padding,
            out_height,
            out_width,
        })
    }

    pub(super) fn output_shape(&self) -> Shape {
        Shape::from((self.images, self.outputs, self.out_height, self.out_width))
    }

    /// Pixels of one input channel.
    pub(super) fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// Positions of one output channel.
    pub(super) fn positions(&self) -> usize {
        self.out_height * self.out_width
    }

    /// Weights of one pair of channels.
    pub(super) fn taps(&self) -> usize {
        self.ky * self.kx
    }

    /// Rows of the column matrix.
    pub(super) fn depth(&self) -> usize {
        self.channels * self.taps()
    }

    /// A product with the input itself: no unfolding.
    pub(super) fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.stride == 1 && self.padding == 0
    }

    /// Whether a tap only shifts the plane, apart from its edges.
    fn keeps_width(&self) -> bool {
        self.stride == 1 && self.out_width == self.width
    }

    /// Writes the columns of `positions` for one channel `plane`: `ky kx` rows, `row_len` apart.
    pub(super) fn unfold<T: Float>(&self, plane: &[T], positions: Range<usize>, columns: &mut [T], row_len: usize) {
        for tap in 0..self.taps() {
            let row = &mut columns[tap * row_len..tap * row_len + positions.len()];
            if self.keeps_width() {
                self.unfold_shift(plane, tap, positions.clone(), row);
            } else {
                self.unfold_rows(plane, tap, positions.clone(), row);
            }
        }
    }

    /// Adds the columns of `positions` to one channel `plane`; the inverse pass of [`Self::unfold`]. Columns that fell on
    /// the padding are set to zero on the way.
    pub(super) fn fold<T: Float>(&self, columns: &mut [T], row_len: usize, positions: Range<usize>, plane: &mut [T]) {
        for tap in 0..self.taps() {
            let row = &mut columns[tap * row_len..tap * row_len + positions.len()];
            if self.keeps_width() {
                let (range, shift) = self.shift(tap, &positions);
                if range.is_empty() {
                    continue;
                }
                self.clear_edges(tap, &positions, row);
                let start = (range.start as isize + shift) as usize;
                add(
                    &row[range.start - positions.start..range.end - positions.start],
                    &mut plane[start..start + range.len()],
                );
            } else {
                self.each_run(tap, positions.clone(), |pixels, columns| {
                    let Some((first, len)) = pixels else { return };
                    for (i, &x) in row[columns].iter().take(len).enumerate() {
                        plane[first + i * self.stride] += x;
                    }
                });
            }
        }
    }

    /// Positions of a tap whose row lies in the plane, and what to add to a position to get its pixel.
    fn shift(&self, tap: usize, positions: &Range<usize>) -> (Range<usize>, isize) {
        let dy = (tap / self.kx) as isize - self.padding as isize;
        let dx = (tap % self.kx) as isize - self.padding as isize;
        let shift = dy * self.width as isize + dx;
        // Pixel indices must lie in the plane as a whole; what wraps around a row's end is cleared as an edge.
        let start = positions.start.max((-shift).max(0) as usize);
        let end = positions.end.min((self.pixels() as isize - shift).max(0) as usize);
        (start..end.max(start), shift)
    }

    fn unfold_shift<T: Float>(&self, plane: &[T], tap: usize, positions: Range<usize>, row: &mut [T]) {
        let (range, shift) = self.shift(tap, &positions);
        if range.is_empty() {
            row.fill(T::zero());
            return;
        }
        let (before, after) = (range.start - positions.start, range.end - positions.start);
        row[..before].fill(T::zero());
        let start = (range.start as isize + shift) as usize;
        row[before..after].copy_from_slice(&plane[start..start + range.len()]);
        row[after..].fill(T::zero());
        self.clear_edges(tap, &positions, row);
    }

    /// Sets to zero the columns whose pixel is left or right of the plane.
    fn clear_edges<T: Float>(&self, tap: usize, positions: &Range<usize>, row: &mut [T]) {
        let dx = (tap % self.kx) as isize - self.padding as isize;
        let edge = dx.unsigned_abs().min(self.width);
        if edge == 0 {
            return;
        }
        let first = if dx < 0 { 0 } else { self.width - edge };
        let y_range = positions.start / self.width..positions.end.div_ceil(self.width);
        for y in y_range {
            let start = (y * self.width + first).clamp(positions.start, positions.end);
            let end = (y * self.width + first + edge).clamp(positions.start, positions.end);
            row[start - positions.start..end - positions.start].fill(T::zero());
        }
    }

    fn unfold_rows<T: Float>(&self, plane: &[T], tap: usize, positions: Range<usize>, row: &mut [T]) {
        self.each_run(tap, positions, |pixels, columns| {
            let row = &mut row[columns];
            match pixels {
                None => row.fill(T::zero()),
                Some((first, len)) if self.stride == 1 => row.copy_from_slice(&plane[first..first + len]),
                Some((first, _)) => {
                    for (x, &pixel) in row.iter_mut().zip(plane[first..].iter().step_by(self.stride)) {
                        *x = pixel;
                    }
                }
            }
        });
    }

    /// Splits the columns of one tap into runs within one output row that lie in the plane (first pixel and length) or
    /// on the padding (`None`).
    fn each_run(&self, tap: usize, positions: Range<usize>, mut f: impl FnMut(Option<(usize, usize)>, Range<usize>)) {
        let (tap_y, tap_x) = (tap / self.kx, tap % self.kx);
        // Output columns whose pixel `x stride + tap_x - padding` is in 0..width.
        let valid_start = self.padding.saturating_sub(tap_x).div_ceil(self.stride);
        let valid_end = (self.width + self.padding).saturating_sub(tap_x).div_ceil(self.stride);
        let mut position = positions.start;
        while position < positions.end {
            let (y, x) = (position / self.out_width, position % self.out_width);
            let x_end = self.out_width.min(x + positions.end - position);
            let at = |x: usize| position - positions.start + (x - (position % self.out_width));
            let pixel_y = y * self.stride + tap_y;
            if pixel_y < self.padding || pixel_y >= self.height + self.padding {
                f(None, at(x)..at(x_end));
            } else {
                let (start, end) = (valid_start.clamp(x, x_end), valid_end.clamp(x, x_end));
                let end = end.max(start);
                f(None, at(x)..at(start));
                if start < end {
                    let pixel_x = start * self.stride + tap_x - self.padding;
                    let first = (pixel_y - self.padding) * self.width + pixel_x;
                    f(Some((first, end - start)), at(start)..at(end));
                }
                f(None, at(end)..at(x_end));
            }
            position += x_end - x;
        }
    }
}

wide! {
    fn add<T: Float>(x: &[T], sum: &mut [T]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}
