//! Convolutions of three by three weights with stride 1 on small images, without columns.
//!
//! Unfolded columns of a small image are nine times as large as the image, and their products have few columns. Here the pixels of an
//! output row are sums over the taps and channels of padded input rows, read where they are, for sixteen outputs side by side.
//!
//! ```text
//! y[i, x, o]     = sum over tap rows t, channels c, tap columns s of  w[o, c, t, s] x[i + t, c, x + s]
//! dw[o, c, t, s] = sum over images, i, x of                           dy[i, x, o] x[i + t, c, x + s]
//! ```
//!
//! The gradient of the input is the same convolution with the weight turned and transposed. Each number is summed in one order, which
//! for the gradient of the weight depends on the number of images.

use std::ops::Range;

use rayon::prelude::*;

use super::geometry::Geometry;
use super::groups::pieces;
use crate::ops::kernel::{Float, LANES, Lanes, Shared, Steps, add_all, filled_rows, lane_products, zeros};

/// Rows and columns of taps.
const SIDE: usize = 3;
const TAPS: usize = SIDE * SIDE;
/// Most rows of a product of lanes.
const ROWS: usize = 6;
/// Widest output row: wider images are unfolded in long runs.
const MAX_WIDTH: usize = 16;
/// Largest weight in bytes: it stays in the cache while image after image is multiplied with it.
const MAX_WEIGHT_BYTES: usize = 1 << 20;
/// Images whose padded rows exist at a time.
const IMAGES: usize = 64;
/// Partial sums of the gradient of a weight.
const PARTS: usize = 4;

/// Whether this way is faster than columns and a product.
pub(super) fn pays(g: &Geometry) -> bool {
    let fills = |channels: usize| channels.next_multiple_of(LANES) * 4 <= channels * 5;
    (g.ky, g.kx, g.stride) == (SIDE, SIDE, 1)
        && g.padding <= 2
        && g.images > 0
        && g.width.max(g.out_width) <= MAX_WIDTH
        && fills(g.channels)
        && fills(g.outputs)
        && TAPS * g.channels * g.outputs * size_of::<f32>() <= MAX_WEIGHT_BYTES
}

/// Images of `channels` planes, to be read with zeros around them.
#[derive(Clone, Copy)]
struct Images<'a, T> {
    data: &'a [T],
    channels: usize,
    height: usize,
    width: usize,
    padding: usize,
}

impl<T: Float> Images<'_, T> {
    /// Length of a padded row of one channel.
    fn row_len(&self) -> usize {
        self.width + 2 * self.padding
    }

    /// Distance of two padded rows: those of all channels lie between them.
    fn line_len(&self) -> usize {
        self.channels * self.row_len()
    }

    fn image_len(&self) -> usize {
        (self.height + 2 * self.padding) * self.line_len()
    }

    /// Padded rows (images, rows, channels, columns).
    fn padded(&self, images: Range<usize>) -> Vec<T> {
        let (pixels, row_len) = (self.height * self.width, self.row_len());
        let planes = &self.data[images.start * self.channels * pixels..images.end * self.channels * pixels];
        filled_rows(images.len() * self.image_len(), self.image_len(), |first, images| {
            for (i, image) in images.chunks_exact_mut(self.image_len()).enumerate() {
                let planes = &planes[(first + i) * self.channels * pixels..][..self.channels * pixels];
                for (c, plane) in planes.chunks_exact(pixels).enumerate() {
                    for (y, row) in plane.chunks_exact(self.width).enumerate() {
                        let start = (y + self.padding) * self.line_len() + c * row_len + self.padding;
                        image[start..start + self.width].copy_from_slice(row);
                    }
                }
            }
        })
    }
}

/// A weight (blocks of outputs, tap rows, inputs, tap columns, lanes).
fn weight_lanes<T: Float>(inputs: usize, outputs: usize, at: impl Fn(usize, usize, usize) -> T + Sync) -> Vec<T> {
    let block_len = TAPS * inputs * LANES;
    filled_rows(outputs.div_ceil(LANES) * block_len, block_len, |first, blocks| {
        for (i, block) in blocks.chunks_exact_mut(block_len).enumerate() {
            let lanes = block.as_chunks_mut::<LANES>().0;
            let outputs = (first + i) * LANES..outputs.min((first + i + 1) * LANES);
            for (lane, output) in outputs.enumerate() {
                for input in 0..inputs {
                    for tap in 0..TAPS {
                        lanes[(tap / SIDE * inputs + input) * SIDE + tap % SIDE][lane] = at(output, input, tap);
                    }
                }
            }
        }
    })
}

/// The result (B, O, P).
pub(super) fn forward<T: Float>(g: &Geometry, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let images = Images {
        data: x,
        channels: g.channels,
        height: g.height,
        width: g.width,
        padding: g.padding,
    };
    let at = |output: usize, input: usize, tap: usize| weight[(output * g.channels + input) * TAPS + tap];
    let lanes = weight_lanes(g.channels, g.outputs, at);
    convolve(g.images, images, (&lanes, g.outputs), bias)
}

/// The gradient (B, C, Y, X) of the input.
pub(super) fn backward_input<T: Float>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    let images = Images {
        data: dy,
        channels: g.outputs,
        height: g.out_height,
        width: g.out_width,
        padding: SIDE - 1 - g.padding,
    };
    let turned =
        |output: usize, input: usize, tap: usize| weight[(input * g.channels + output) * TAPS + TAPS - 1 - tap];
    let lanes = weight_lanes(g.outputs, g.channels, turned);
    convolve(g.images, images, (&lanes, g.channels), None)
}

fn convolve<T: Float>(
    num_images: usize,
    images: Images<'_, T>,
    (weight, outputs): (&[T], usize),
    bias: Option<&[T]>,
) -> Vec<T> {
    let (row_len, line_len) = (images.row_len(), images.line_len());
    let (height, width) = (images.height + 2 * images.padding + 1 - SIDE, row_len + 1 - SIDE);
    let at = Steps {
        row: 1,
        step: 1,
        len: SIDE,
        block: row_len,
        lanes: SIDE,
        blocks: SIDE * images.channels,
    };
    let (weight, blocks) = (weight.as_chunks::<LANES>().0, outputs.div_ceil(LANES));
    // Pieces of one length leave no small one behind.
    let piece = width.div_ceil(width.div_ceil(ROWS));
    let mut y = zeros(num_images * outputs * height * width);
    let place = Shared::new(&mut y);
    for together in pieces(num_images, IMAGES) {
        let padded = images.padded(together.clone());
        (0..together.len() * blocks).into_par_iter().for_each(|task| {
            let (image, block) = (task / blocks, task % blocks);
            let channels = block * LANES..outputs.min((block + 1) * LANES);
            let image_lines = &padded[image * images.image_len()..(image + 1) * images.image_len()];
            let weight = &weight[block * TAPS * images.channels..(block + 1) * TAPS * images.channels];
            let start = ((together.start + image) * outputs + channels.start) * height * width;
            #[expect(unsafe_code, reason = "each task writes its own planes")]
            // SAFETY: tasks differ in the image or in the block of outputs.
            let planes = unsafe { place.part(start, channels.len() * height * width) };
            for (line, lines) in (0..height).map(|line| (line, &image_lines[line * line_len..])) {
                for pixels in pieces(width, piece) {
                    let mut sums = [[T::zero(); LANES]; ROWS];
                    let sums = &mut sums[..pixels.len()];
                    lane_products(&lines[pixels.start..], at, weight, sums);
                    for (lane, channel) in channels.clone().enumerate() {
                        let bias = bias.map_or(T::zero(), |bias| bias[channel]);
                        let to = &mut planes[(lane * height + line) * width..][pixels.clone()];
                        for (to, sum) in to.iter_mut().zip(&*sums) {
                            *to = sum[lane] + bias;
                        }
                    }
                }
            }
        });
    }
    y
}

/// The gradient (O, C, 3, 3) of the weight.
pub(super) fn backward_weight<T: Float>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let images = Images {
        data: x,
        channels: g.channels,
        height: g.height,
        width: g.width,
        padding: g.padding,
    };
    let (blocks, block_len) = (g.outputs.div_ceil(LANES), TAPS * g.channels * LANES);
    let parts: Vec<Range<usize>> = pieces(g.images, g.images.div_ceil(PARTS)).collect();
    let sums = (0..parts.len() * blocks).into_par_iter().map(|task| {
        let (images_of_part, block) = (parts[task / blocks].clone(), task % blocks);
        let mut sums = vec![T::zero(); block_len];
        for image in images_of_part {
            let padded = images.padded(image..image + 1);
            let slopes = slope_lanes(g, &dy[image * g.outputs * g.positions()..], block);
            add_image(g, images, (&padded, &slopes), sums.as_chunks_mut().0);
        }
        sums
    });
    let sums: Vec<Vec<T>> = sums.collect();
    let parts = sums.chunks_exact(blocks).map(<[Vec<T>]>::concat).collect();
    let sums = add_all(parts, blocks * block_len);
    let sums = sums.as_chunks::<LANES>().0;
    filled_rows(g.outputs * g.channels * TAPS, g.channels * TAPS, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(g.channels * TAPS).enumerate() {
            let (block, lane) = ((first + i) / LANES, (first + i) % LANES);
            for (j, dw) in row.iter_mut().enumerate() {
                *dw = sums[(block * TAPS + j % TAPS) * g.channels + j / TAPS][lane];
            }
        }
    })
}

/// Gradients of a block of outputs of one image, (positions, lanes).
fn slope_lanes<T: Float>(g: &Geometry, dy: &[T], block: usize) -> Vec<Lanes<T>> {
    let mut lanes = vec![[T::zero(); LANES]; g.positions()];
    let channels = block * LANES..g.outputs.min((block + 1) * LANES);
    for (lane, channel) in channels.enumerate() {
        let plane = &dy[channel * g.positions()..(channel + 1) * g.positions()];
        for (lanes, &slope) in lanes.iter_mut().zip(plane) {
            lanes[lane] = slope;
        }
    }
    lanes
}

/// Adds the gradients of one image to the sums (taps, inputs, lanes) of a block of outputs.
fn add_image<T: Float>(
    g: &Geometry,
    images: Images<'_, T>,
    (padded, slopes): (&[T], &[Lanes<T>]),
    sums: &mut [Lanes<T>],
) {
    let at = Steps {
        row: images.row_len(),
        step: 1,
        len: g.out_width,
        block: images.line_len(),
        lanes: g.out_width,
        blocks: g.out_height,
    };
    for (tap, sums) in sums.chunks_exact_mut(g.channels).enumerate() {
        let lines = &padded[tap / SIDE * images.line_len() + tap % SIDE..];
        for (i, sums) in sums.chunks_mut(ROWS).enumerate() {
            let mut of_image = [[T::zero(); LANES]; ROWS];
            let of_image = &mut of_image[..sums.len()];
            lane_products(&lines[i * ROWS * images.row_len()..], at, slopes, of_image);
            for (sums, of_image) in sums.iter_mut().zip(of_image) {
                for (sum, &x) in sums.iter_mut().zip(&*of_image) {
                    *sum += x;
                }
            }
        }
    }
}
