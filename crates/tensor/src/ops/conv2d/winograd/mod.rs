//! Convolutions of three by three weights with stride 1 by Winograd's F(4x4, 3x3) (Lavin & Gray, arXiv:1509.09308).
//!
//! ```text
//! Y = A^T [sum over c of (G g G^T) * (B^T d B)] A          dG = G^T [sum over tiles of (A dY A^T) * (B^T d B)] G
//! ```
//!
//! A tile of 4x4 outputs takes 36 multiplications a pair of channels instead of 144. At each of the 36 points stands a product of
//! matrices, weights (O, C) and tiles (C, T) or gradients (O, T) and tiles (T, C). The gradient of the input is the same convolution
//! with the weight turned and transposed. Channels lie in blocks of sixteen lanes; the last block is filled up with zeros.
//!
//! Sums are in another order than those of columns and weights, so results differ by some units in the sixth digit of the largest.

mod gather;
mod transform;
mod weight;

use std::ops::Range;

use rayon::prelude::*;

use self::gather::Planes;
pub(super) use self::weight::backward_weight;
use self::weight::{Turn, Weights};
use super::geometry::Geometry;
use super::groups::pieces;
use crate::ops::kernel::{Float, LANES, Lanes, Shared, Steps, lane_products, wide};

/// Points of a tile.
const POINTS: usize = 36;
/// Rows and columns of output pixels of a tile.
const TILE: usize = 4;
/// Transformed input that exists at a time, in bytes, about.
const INPUT_BYTES: usize = 16 << 20;
/// Transformed weights that exist at a time, in bytes, about: they stay in the cache until they are used.
const WEIGHT_BYTES: usize = 4 << 20;
/// Tiles of a block of products.
const ROWS: usize = 6;
/// Products of one task, in tiles: at most as many as keep the points of sixteen outputs in the second cache.
const TASK_TILES: usize = 192;
/// Tasks to make of a panel of weights, at least.
const MIN_TASKS: usize = 8;

/// Sizes of one pass: `inputs` channels of (height, width) to `outputs` of (`out_height`, `out_width`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    images: usize,
    inputs: usize,
    outputs: usize,
    height: usize,
    width: usize,
    padding: usize,
    out_height: usize,
    out_width: usize,
}

impl Sizes {
    fn of(g: &Geometry) -> Self {
        Self {
            images: g.images,
            inputs: g.channels,
            outputs: g.outputs,
            height: g.height,
            width: g.width,
            padding: g.padding,
            out_height: g.out_height,
            out_width: g.out_width,
        }
    }

    /// The gradient of the input: from the planes of the result to those of the input.
    fn backward(g: &Geometry) -> Self {
        Self {
            images: g.images,
            inputs: g.outputs,
            outputs: g.channels,
            height: g.out_height,
            width: g.out_width,
            padding: 2 - g.padding,
            out_height: g.height,
            out_width: g.width,
        }
    }

    /// Tiles side by side.
    fn row_tiles(&self) -> usize {
        self.out_width.div_ceil(TILE)
    }

    /// Rows of tiles of one image.
    fn image_rows(&self) -> usize {
        self.out_height.div_ceil(TILE)
    }

    /// Rows of tiles of all images.
    fn rows(&self) -> usize {
        self.images * self.image_rows()
    }

    /// Groups of rows of tiles whose transformed planes of so many blocks of channels exist together.
    fn chunks<T>(&self, blocks: usize) -> impl Iterator<Item = Range<usize>> {
        let row_bytes = POINTS * blocks * self.row_tiles() * size_of::<Lanes<T>>();
        pieces(self.rows(), (INPUT_BYTES / row_bytes.max(1)).max(1))
    }
}

/// Whether this way is faster than columns and one product, by the number of multiplications and of numbers transformed.
pub(super) fn pays(g: &Geometry) -> bool {
    if (g.ky, g.kx, g.stride) != (3, 3, 1) || g.padding > 2 || g.images == 0 || g.outputs < LANES || g.channels < LANES {
        return false;
    }
    let sizes = Sizes::of(g);
    let tiles = sizes.rows() * sizes.row_tiles();
    let filled = |channels: usize| channels.next_multiple_of(LANES);
    let (inputs, outputs) = (filled(g.channels), filled(g.outputs));
    // In multiplications: a tile of a channel is transformed at the price of about a thousand, a pair's weights of six hundred.
    let transformed = 1000 * tiles * (inputs + outputs) + 600 * inputs * outputs;
    POINTS * tiles * inputs * outputs + transformed < g.images * g.positions() * g.taps() * g.channels * g.outputs
}

/// The result (B, O, P).
pub(super) fn forward<T: Float>(g: &Geometry, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    convolve(Sizes::of(g), x, Weights::new(weight, g, Turn::Forward), bias)
}

/// The gradient (B, C, Y, X) of the input.
pub(super) fn backward_input<T: Float>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    convolve(Sizes::backward(g), dy, Weights::new(weight, g, Turn::Backward), None)
}

fn convolve<T: Float>(sizes: Sizes, x: &[T], weights: Weights<'_, T>, bias: Option<&[T]>) -> Vec<T> {
    let mut y = vec![T::zero(); sizes.images * sizes.outputs * sizes.out_height * sizes.out_width];
    let (inputs, outputs) = (sizes.inputs.div_ceil(LANES), sizes.outputs.div_ceil(LANES));
    let block_len = POINTS * inputs * LANES * LANES;
    let panel_len = (WEIGHT_BYTES / size_of::<T>() / block_len).clamp(1, outputs);
    let planes = Planes {
        data: x,
        channels: sizes.inputs,
        height: sizes.height,
        width: sizes.width,
        padding: sizes.padding,
    };
    let place = Shared::new(&mut y);
    for rows in sizes.chunks::<T>(inputs) {
        let tiles = rows.len() * sizes.row_tiles();
        let points_len = POINTS * inputs * tiles * LANES;
        T::with_scratch(points_len + panel_len * block_len, |scratch| {
            let (points, panel) = scratch.split_at_mut(points_len);
            planes.input_points(&sizes, rows.clone(), points);
            for blocks in pieces(outputs, panel_len) {
                let panel = &mut panel[..blocks.len() * block_len];
                weights.points(blocks.clone(), panel);
                let products = Products {
                    sizes,
                    points,
                    tiles,
                    first_row: rows.start,
                    bias,
                };
                products.run(&blocks, panel.as_chunks().0, place);
            }
        });
    }
    y
}

/// Transformed planes, to be multiplied with transformed weights.
struct Products<'a, T> {
    sizes: Sizes,
    /// (points, blocks of channels, tiles, lanes).
    points: &'a [T],
    tiles: usize,
    /// The row of tiles that the first tile is in.
    first_row: usize,
    bias: Option<&'a [T]>,
}

impl<T: Float> Products<'_, T> {
    /// Computes the outputs of `blocks` with their weights (blocks, points, channels, lanes).
    fn run(&self, blocks: &Range<usize>, panel: &[Lanes<T>], place: Shared<'_, T>) {
        let fewest = MIN_TASKS.div_ceil(blocks.len()).max(self.tiles.div_ceil(TASK_TILES));
        let piece = self.tiles.div_ceil(fewest).next_multiple_of(ROWS);
        let of_block = |block| pieces(self.tiles, piece).map(move |tiles| (block, tiles));
        let tasks: Vec<(usize, Range<usize>)> = blocks.clone().flat_map(of_block).collect();
        let block_len = panel.len() / blocks.len();
        tasks.into_par_iter().for_each(|(block, tiles)| {
            let weights = &panel[(block - blocks.start) * block_len..][..block_len];
            T::with_scratch(POINTS * tiles.len() * LANES, |scratch| {
                let products = scratch.as_chunks_mut().0;
                self.multiply(weights, &tiles, products);
                self.write(block, &tiles, products, place);
            });
        });
    }

    /// Writes the products (points, tiles, lanes) of one block of outputs.
    fn multiply(&self, weights: &[Lanes<T>], tiles: &Range<usize>, products: &mut [Lanes<T>]) {
        let channels = self.sizes.inputs.div_ceil(LANES);
        let at = Steps {
            row: LANES,
            step: 1,
            steps: LANES,
            block: self.tiles * LANES,
            blocks: channels,
        };
        let (of_points, of_weights) = (channels * self.tiles * LANES, channels * LANES);
        for (point, products) in products.chunks_exact_mut(tiles.len()).enumerate() {
            let points = &self.points[point * of_points..(point + 1) * of_points];
            let weights = &weights[point * of_weights..(point + 1) * of_weights];
            for (i, products) in products.chunks_mut(ROWS).enumerate() {
                lane_products(&points[(tiles.start + i * ROWS) * LANES..], at, weights, products);
            }
        }
    }

    /// Writes the pixels of some tiles of one block of outputs.
    fn write(&self, block: usize, tiles: &Range<usize>, products: &[Lanes<T>], place: Shared<'_, T>) {
        let sizes = &self.sizes;
        let channels = block * LANES..sizes.outputs.min((block + 1) * LANES);
        for (i, tile) in tiles.clone().enumerate() {
            let pixels = pixels(products, tiles.len(), i);
            let row = self.first_row + tile / sizes.row_tiles();
            let (image, y) = (row / sizes.image_rows(), row % sizes.image_rows() * TILE);
            let x = tile % sizes.row_tiles() * TILE;
            let (height, width) = (TILE.min(sizes.out_height - y), TILE.min(sizes.out_width - x));
            for (lane, channel) in channels.clone().enumerate() {
                let plane = (image * sizes.outputs + channel) * sizes.out_height;
                let bias = self.bias.map_or(T::zero(), |bias| bias[channel]);
                for (i, pixels) in pixels.chunks_exact(TILE).take(height).enumerate() {
                    #[expect(unsafe_code, reason = "each task writes its own pixels")]
                    // SAFETY: tasks differ in the block of outputs or in the tiles, and tiles do not overlap.
                    let line = unsafe { place.part((plane + y + i) * sizes.out_width + x, width) };
                    for (to, pixel) in line.iter_mut().zip(pixels) {
                        *to = pixel[lane] + bias;
                    }
                }
            }
        }
    }
}

wide! {
    /// The sixteen pixels of one of `tiles` tiles.
    fn pixels<T: Float>(products: &[Lanes<T>], tiles: usize, tile: usize) -> [Lanes<T>; TILE * TILE] {
        let mut columns = [[[T::zero(); LANES]; 6]; TILE];
        for x in 0..6 {
            let column = transform::output(std::array::from_fn(|y| &products[(y * 6 + x) * tiles + tile]));
            for (y, pixel) in column.iter().enumerate() {
                columns[y][x] = *pixel;
            }
        }
        let mut pixels = [[T::zero(); LANES]; TILE * TILE];
        for (y, row) in columns.iter().enumerate() {
            pixels[y * TILE..(y + 1) * TILE].copy_from_slice(&transform::output(row.each_ref()));
        }
        pixels
    }
}
