//! Convolutions of three by three weights with stride 1 by Winograd's F(4x4, 3x3) (Lavin & Gray, arXiv:1509.09308).
//!
//! ```text
//! Y = A^T [sum over c of (G g G^T) * (B^T d B)] A          dG = G^T [sum over tiles of (A dY A^T) * (B^T d B)] G
//! ```
//!
//! A tile of 4x4 outputs takes 36 multiplications a pair of channels instead of 144. At each of the 36 points stands a product of
//! matrices, weights (O, C) and tiles (C, T) or gradients (O, T) and tiles (T, C). The gradient of the input is the same convolution
//! with the weight turned and transposed.
//!
//! Channels lie in blocks of sixteen lanes and tiles in blocks of six; the last blocks are filled up with zeros. Tiles are taken in
//! chunks and outputs in panels, so that what exists beside operands and result is a few tens of MiB.
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
use crate::ops::kernel::{Float, LANES, Lanes, Shared, Steps, lane_products, wide, zeros};

/// Points of a tile.
const POINTS: usize = 36;
/// Rows and columns of output pixels of a tile.
const TILE: usize = 4;
/// Images that [`pays`] counts with, however many there are.
const IMAGES: usize = 2;
/// Tiles of a block.
const BLOCK: usize = 6;
/// Transformed planes that exist at a time, in bytes, about.
const PLANE_BYTES: usize = 16 << 20;
/// Transformed weights that exist at a time, in bytes, about: they stay in the cache until they are used.
const WEIGHT_BYTES: usize = 4 << 20;

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
    fn chunks<T>(&self, blocks: usize) -> impl Iterator<Item = Chunk> {
        let row_tiles = self.row_tiles();
        let row_bytes = POINTS * blocks * row_tiles * size_of::<Lanes<T>>();
        pieces(self.rows(), (PLANE_BYTES / row_bytes.max(1)).max(1)).map(move |rows| Chunk {
            tiles: rows.len() * row_tiles,
            rows,
        })
    }

    /// Image, and first row and column of the output pixels of a tile of a chunk.
    fn place(&self, chunk: &Chunk, tile: usize) -> (usize, usize, usize) {
        let row = chunk.rows.start + tile / self.row_tiles();
        (
            row / self.image_rows(),
            row % self.image_rows() * TILE,
            tile % self.row_tiles() * TILE,
        )
    }
}

/// Some rows of tiles.
#[derive(Debug, Clone)]
struct Chunk {
    rows: Range<usize>,
    tiles: usize,
}

impl Chunk {
    /// Blocks of tiles.
    fn blocks(&self) -> usize {
        self.tiles.div_ceil(BLOCK)
    }

    /// Numbers at one point: tiles of so many blocks of channels.
    fn point_len(&self, channel_blocks: usize) -> usize {
        self.blocks() * channel_blocks * BLOCK * LANES
    }
}

/// Blocks of outputs whose transformed weights exist together.
fn panel_len<T>(inputs: usize, outputs: usize) -> usize {
    let block_bytes = POINTS * inputs * LANES * size_of::<Lanes<T>>();
    // Panels of one size leave no small one behind.
    let panels = outputs.div_ceil((WEIGHT_BYTES / block_bytes.max(1)).max(1));
    outputs.div_ceil(panels.max(1))
}

/// Whether this way is faster than columns and one product, by the number of multiplications and of numbers transformed.
pub(super) fn pays(g: &Geometry) -> bool {
    if (g.ky, g.kx, g.stride) != (3, 3, 1) || g.padding > 2 || g.images == 0 || g.outputs < LANES || g.channels < LANES
    {
        return false;
    }
    let sizes = Sizes::of(g);
    // An image's result must not depend on its company, so that the price of the weights is always shared by as many.
    let tiles = IMAGES * sizes.image_rows() * sizes.row_tiles();
    let filled = |channels: usize| channels.next_multiple_of(LANES);
    let (inputs, outputs) = (filled(g.channels), filled(g.outputs));
    // In multiplications, as measured: a tile of a channel is transformed at the price of about a thousand, a pair's weights of as
    // many.
    let transformed = 1000 * (tiles * (inputs + outputs) + inputs * outputs);
    POINTS * tiles * inputs * outputs + transformed < IMAGES * g.positions() * g.taps() * g.channels * g.outputs
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
    let mut y = zeros(sizes.images * sizes.outputs * sizes.out_height * sizes.out_width);
    let (inputs, outputs) = (sizes.inputs.div_ceil(LANES), sizes.outputs.div_ceil(LANES));
    let panel_len = panel_len::<T>(inputs, outputs);
    let planes = Planes {
        data: x,
        channels: sizes.inputs,
        height: sizes.height,
        width: sizes.width,
        padding: sizes.padding,
    };
    let place = Shared::new(&mut y);
    for chunk in sizes.chunks::<T>(inputs + panel_len) {
        let points_len = POINTS * chunk.point_len(inputs);
        let weights_len = POINTS * panel_len * inputs * LANES * LANES;
        let products_len = POINTS * chunk.point_len(panel_len);
        T::with_scratch(points_len + weights_len + products_len, |scratch| {
            let (points, rest) = scratch.split_at_mut(points_len);
            let (panel, products) = rest.split_at_mut(weights_len);
            planes.input_points(&sizes, &chunk, points);
            for blocks in pieces(outputs, panel_len) {
                let panel = &mut panel[..POINTS * blocks.len() * inputs * LANES * LANES];
                let products = &mut products[..POINTS * chunk.point_len(blocks.len())];
                weights.points(blocks.clone(), panel);
                multiply(&chunk, inputs, (points, panel.as_chunks().0), products);
                let channels = blocks.start * LANES..sizes.outputs.min(blocks.end * LANES);
                write(&sizes, &chunk, channels, products.as_chunks().0, bias, place);
            }
        });
    }
    y
}

/// Writes products (points, blocks of outputs, tiles, lanes) of points (points, blocks of tiles, blocks of inputs, tiles, lanes)
/// with weights (points, blocks of outputs, inputs, lanes).
fn multiply<T: Float>(chunk: &Chunk, inputs: usize, (points, weights): (&[T], &[Lanes<T>]), products: &mut [T]) {
    let at = Steps {
        row: LANES,
        step: 1,
        len: LANES,
        block: BLOCK * LANES,
        lanes: LANES,
        blocks: inputs,
    };
    let point_len = chunk.point_len(inputs);
    let weights_len = weights.len() / POINTS;
    products
        .par_chunks_exact_mut(products.len() / POINTS)
        .zip(
            points
                .par_chunks_exact(point_len)
                .zip(weights.par_chunks_exact(weights_len)),
        )
        .for_each(|(products, (points, weights))| {
            let outputs = products.as_chunks_mut().0.chunks_exact_mut(chunk.blocks() * BLOCK);
            for (products, weights) in outputs.zip(weights.chunks_exact(inputs * LANES)) {
                let blocks = products
                    .chunks_exact_mut(BLOCK)
                    .zip(points.chunks_exact(inputs * BLOCK * LANES));
                for (products, points) in blocks {
                    lane_products(points, at, weights, products);
                }
            }
        });
}

/// Writes the pixels of the outputs `channels` from their products.
fn write<T: Float>(
    sizes: &Sizes,
    chunk: &Chunk,
    channels: Range<usize>,
    products: &[Lanes<T>],
    bias: Option<&[T]>,
    place: Shared<'_, T>,
) {
    let (row_tiles, tiles) = (sizes.row_tiles(), chunk.blocks() * BLOCK);
    let blocks = channels.len().div_ceil(LANES);
    (0..chunk.rows.len() * blocks).into_par_iter().for_each(|task| {
        let (row, block) = (task / blocks, task % blocks);
        let channels = channels.start + block * LANES..channels.end.min(channels.start + (block + 1) * LANES);
        for tile in row * row_tiles..(row + 1) * row_tiles {
            let pixels = pixels(products, block * tiles + tile, blocks * tiles);
            let (image, y, x) = sizes.place(chunk, tile);
            let (height, width) = (TILE.min(sizes.out_height - y), TILE.min(sizes.out_width - x));
            for (lane, channel) in channels.clone().enumerate() {
                let plane = (image * sizes.outputs + channel) * sizes.out_height;
                let bias = bias.map_or(T::zero(), |bias| bias[channel]);
                for (i, pixels) in pixels.chunks_exact(TILE).take(height).enumerate() {
                    #[expect(unsafe_code, reason = "each task writes its own pixels")]
                    // SAFETY: tasks differ in the block of outputs or in the row of tiles, and tiles do not overlap.
                    let line = unsafe { place.part((plane + y + i) * sizes.out_width + x, width) };
                    for (to, pixel) in line.iter_mut().zip(pixels) {
                        *to = pixel[lane] + bias;
                    }
                }
            }
        }
    });
}

wide! {
    /// The sixteen pixels of one tile, whose products are at `first` and every `step` behind it.
    fn pixels<T: Float>(products: &[Lanes<T>], first: usize, step: usize) -> [Lanes<T>; TILE * TILE] {
        let mut columns = [[[T::zero(); LANES]; 6]; TILE];
        for x in 0..6 {
            let column = transform::output(std::array::from_fn(|y| &products[(y * 6 + x) * step + first]));
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::ops::conv2d::Conv2dConfig;

    fn geometry(x: [usize; 4], outputs: usize, padding: usize) -> Geometry {
        let zeros = |shape: [usize; 4]| Tensor::zeros(shape.as_slice(), candle_core::DType::U8, &Device::Cpu).unwrap();
        let config = Conv2dConfig { stride: 1, padding };
        Geometry::of(&zeros(x), &zeros([outputs, x[1], 3, 3]), None, config).unwrap()
    }

    fn numbers<T: Float>(len: usize, seed: f64) -> Vec<T> {
        (0..len).map(|i| T::of((i as f64 * 0.7341 + seed).sin())).collect()
    }

    /// Terms `x[image][c][y + ky - padding][x + kx - padding]` with their place in y and in the weight, of every output pixel.
    fn each_term(g: &Geometry, mut f: impl FnMut([usize; 3])) {
        for image in 0..g.images {
            for (o, c) in (0..g.outputs).flat_map(|o| (0..g.channels).map(move |c| (o, c))) {
                for position in 0..g.positions() {
                    for tap in 0..9 {
                        let y = position / g.out_width + tap / 3;
                        let x = position % g.out_width + tap % 3;
                        let inside = |at: usize, len: usize| at >= g.padding && at < len + g.padding;
                        if inside(y, g.height) && inside(x, g.width) {
                            let pixel = (y - g.padding) * g.width + x - g.padding;
                            f([
                                (image * g.channels + c) * g.pixels() + pixel,
                                (o * g.channels + c) * 9 + tap,
                                (image * g.outputs + o) * g.positions() + position,
                            ]);
                        }
                    }
                }
            }
        }
    }

    /// Largest difference to the sums written out in f64, over the largest number, of the three passes.
    fn errors<T: Float>(g: &Geometry) -> [f64; 3] {
        let (x, weight) = (
            numbers::<T>(g.images * g.channels * g.pixels(), 0.1),
            numbers::<T>(g.outputs * g.depth(), 0.5),
        );
        let dy = numbers::<T>(g.images * g.outputs * g.positions(), 0.9);
        let mut expected = [vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weight.len()]];
        each_term(g, |[of_x, of_weight, of_y]| {
            let (x, w, dy) = (x[of_x].double(), weight[of_weight].double(), dy[of_y].double());
            expected[0][of_y] += x * w;
            expected[1][of_x] += w * dy;
            expected[2][of_weight] += x * dy;
        });
        let found = [
            forward(g, &x, &weight, None),
            backward_input(g, &weight, &dy),
            backward_weight(g, &x, &dy),
        ];
        std::array::from_fn(|pass| {
            let pairs = found[pass].iter().zip(&expected[pass]);
            let difference = pairs.fold(0.0f64, |most, (x, y)| most.max((x.double() - y).abs()));
            difference / expected[pass].iter().fold(0.0f64, |most, x| most.max(x.abs()))
        })
    }

    /// Waves cancel each other in these sums, so that the largest of them is small beside its terms: of random numbers the errors are a
    /// fifth of these.
    #[test]
    fn sums_are_those_written_out_to_rounding() {
        for (shape, outputs, padding) in [([1, 16, 4, 4], 16, 1), ([3, 20, 5, 9], 35, 0), ([2, 17, 3, 2], 16, 2)] {
            let g = geometry(shape, outputs, padding);
            assert!(
                errors::<f64>(&g).iter().all(|&error| error < 1e-13),
                "{g:?} {:?}",
                errors::<f64>(&g)
            );
            assert!(
                errors::<f32>(&g).iter().all(|&error| error < 3e-5),
                "{g:?} {:?}",
                errors::<f32>(&g)
            );
        }
        // As many terms as a layer of Stable Diffusion sums.
        let g = geometry([1, 320, 8, 8], 32, 1);
        assert!(
            errors::<f32>(&g).iter().all(|&error| error < 3e-5),
            "{:?}",
            errors::<f32>(&g)
        );
    }

    #[test]
    fn the_shape_of_an_image_alone_decides() {
        for num_images in [1, 2, 32] {
            assert!(pays(&geometry([num_images, 320, 32, 32], 320, 1)));
            assert!(
                pays(&geometry([num_images, 64, 17, 19], 60, 1)) && pays(&geometry([num_images, 64, 10, 11], 62, 2))
            );
            // Few channels, padding beyond what tiles reach, nothing to share the price of the weights.
            assert!(!pays(&geometry([num_images, 15, 64, 64], 320, 1)));
            assert!(!pays(&geometry([num_images, 320, 32, 32], 320, 3)));
            assert!(!pays(&geometry([num_images, 320, 2, 2], 320, 1)));
        }
        assert!(!pays(&geometry([0, 320, 32, 32], 320, 1)));
    }

    /// Several chunks of tiles and several panels of outputs.
    #[test]
    fn large_images_and_weights_are_taken_in_parts() {
        let g = geometry([1, 48, 130, 150], 16, 1);
        assert!(Sizes::of(&g).chunks::<f64>(3).count() > 1);
        assert!(errors::<f64>(&g).iter().all(|&error| error < 1e-13));
        let g = geometry([1, 48, 6, 5], 330, 1);
        assert!(panel_len::<f64>(3, 21) < 21);
        assert!(errors::<f64>(&g).iter().all(|&error| error < 1e-13));
    }
}
