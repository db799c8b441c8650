//! Planes to points: pixels of sixteen channels side by side, transformed along both axes.

use rayon::prelude::*;

use super::{BLOCK, Chunk, POINTS, Sizes, TILE, transform};
use crate::ops::kernel::{Float, LANES, Lanes, Shared, wide};

/// Images as planes of channels.
#[derive(Clone, Copy)]
pub(super) struct Planes<'a, T> {
    pub(super) data: &'a [T],
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    /// Rows and columns of zeros before the first.
    pub(super) padding: usize,
}

impl<T: Float> Planes<'_, T> {
    /// Writes the points of input tiles: (points, blocks of tiles, blocks of channels, tiles, lanes).
    pub(super) fn input_points(&self, sizes: &Sizes, chunk: &Chunk, points: &mut [T]) {
        let pixels = Pixels {
            height: TILE + 2,
            beyond: 2,
            columns: input_columns,
            tile: input_tile,
        };
        self.points(sizes, chunk, points, pixels);
    }

    /// Writes the points of tiles of gradients of outputs.
    pub(super) fn gradient_points(&self, sizes: &Sizes, chunk: &Chunk, points: &mut [T]) {
        let pixels = Pixels {
            height: TILE,
            beyond: 0,
            columns: gradient_columns,
            tile: gradient_tile,
        };
        self.points(sizes, chunk, points, pixels);
    }

    fn points(&self, sizes: &Sizes, chunk: &Chunk, points: &mut [T], pixels: Pixels<T>) {
        let (blocks, row_tiles) = (self.channels.div_ceil(LANES), sizes.row_tiles());
        let point_len = chunk.point_len(blocks);
        for point in points.chunks_exact_mut(point_len) {
            fill_up(chunk, &mut point[(chunk.blocks() - 1) * blocks * BLOCK * LANES..]);
        }
        let width = row_tiles * TILE + pixels.beyond;
        let place = Shared::new(points);
        (0..chunk.rows.len() * blocks).into_par_iter().for_each(|task| {
            let (row, block) = (task / blocks, task % blocks);
            let (image, y, _) = sizes.place(chunk, row * row_tiles);
            T::with_scratch(6 * width * LANES, |scratch| {
                let buffer = scratch.as_chunks_mut().0;
                for line in 0..pixels.height {
                    self.gather((image, block), y + line, &mut buffer[line * width..(line + 1) * width]);
                }
                (pixels.columns)(buffer, width);
                for (line, buffer) in buffer.chunks_exact(width).enumerate() {
                    for x in 0..row_tiles {
                        let of_tile = (pixels.tile)(&buffer[x * TILE..]);
                        let tile = row * row_tiles + x;
                        let start = ((tile / BLOCK * blocks + block) * BLOCK + tile % BLOCK) * LANES;
                        for (i, point) in of_tile.iter().enumerate() {
                            #[expect(unsafe_code, reason = "each task writes its own tiles")]
                            // SAFETY: tasks differ in the row of tiles or in the block of channels.
                            let place = unsafe { place.part((line * 6 + i) * point_len + start, LANES) };
                            place.copy_from_slice(point);
                        }
                    }
                }
            });
        });
    }

    /// One line of pixels, channels side by side; zeros outside of the planes and behind the last channel.
    fn gather(&self, (image, block): (usize, usize), y: usize, line: &mut [Lanes<T>]) {
        let channels = block * LANES..self.channels.min((block + 1) * LANES);
        let inside = y >= self.padding && y < self.height + self.padding;
        if channels.len() < LANES || !inside {
            line.fill([T::zero(); LANES]);
        }
        if !inside {
            return;
        }
        let before = self.padding.min(line.len());
        let len = self.width.min(line.len() - before);
        line[..before].fill([T::zero(); LANES]);
        line[before + len..].fill([T::zero(); LANES]);
        for (lane, channel) in channels.enumerate() {
            let start = ((image * self.channels + channel) * self.height + y - self.padding) * self.width;
            for (to, &pixel) in line[before..].iter_mut().zip(&self.data[start..start + len]) {
                to[lane] = pixel;
            }
        }
    }
}

/// Sets the tiles of the last block that are none to zero.
fn fill_up<T: Float>(chunk: &Chunk, last_block: &mut [T]) {
    let tiles = chunk.tiles - (chunk.blocks() - 1) * BLOCK;
    for block in last_block.chunks_exact_mut(BLOCK * LANES) {
        block[tiles * LANES..].fill(T::zero());
    }
}

/// What the pixels of a tile are, and their maps along columns, in place, and along rows, from pixels of a line to six points.
#[derive(Clone, Copy)]
struct Pixels<T> {
    height: usize,
    /// Columns that a tile has beyond the next one's first.
    beyond: usize,
    columns: fn(&mut [Lanes<T>], usize),
    tile: fn(&[Lanes<T>]) -> [Lanes<T>; 6],
}

const _: () = assert!(POINTS == 6 * 6);

wide! {
    fn input_columns<T: Float>(buffer: &mut [Lanes<T>], width: usize) {
        for x in 0..width {
            let points = transform::input(std::array::from_fn(|y| &buffer[y * width + x]));
            for (y, point) in points.iter().enumerate() {
                buffer[y * width + x] = *point;
            }
        }
    }
}

wide! {
    fn input_tile<T: Float>(line: &[Lanes<T>]) -> [Lanes<T>; 6] {
        transform::input(std::array::from_fn(|x| &line[x]))
    }
}

wide! {
    fn gradient_columns<T: Float>(buffer: &mut [Lanes<T>], width: usize) {
        for x in 0..width {
            let points = transform::output_transposed(std::array::from_fn(|y| &buffer[y * width + x]));
            for (y, point) in points.iter().enumerate() {
                buffer[y * width + x] = *point;
            }
        }
    }
}

wide! {
    fn gradient_tile<T: Float>(line: &[Lanes<T>]) -> [Lanes<T>; 6] {
        transform::output_transposed(std::array::from_fn(|x| &line[x]))
    }
}
