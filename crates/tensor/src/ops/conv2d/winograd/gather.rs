//! Planes to points: pixels of sixteen channels side by side, transformed along both axes.

use std::ops::Range;

use rayon::prelude::*;

use super::{POINTS, Sizes, TILE, transform};
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
    /// Writes the points of input tiles (points, blocks of channels, tiles, lanes) of some rows of tiles.
    pub(super) fn input_points(&self, sizes: &Sizes, rows: Range<usize>, points: &mut [T]) {
        self.points(sizes, rows, points, Pixels { height: TILE + 2, beyond: 2, columns: input_columns, rows: input_rows });
    }

    /// Writes the points of tiles of gradients of outputs.
    pub(super) fn gradient_points(&self, sizes: &Sizes, rows: Range<usize>, points: &mut [T]) {
        self.points(sizes, rows, points, Pixels { height: TILE, beyond: 0, columns: gradient_columns, rows: gradient_rows });
    }

    fn points(&self, sizes: &Sizes, rows: Range<usize>, points: &mut [T], pixels: Pixels<T>) {
        let (blocks, row_tiles) = (self.channels.div_ceil(LANES), sizes.row_tiles());
        let tiles = rows.len() * row_tiles;
        let width = row_tiles * TILE + pixels.beyond;
        let place = Shared::new(points);
        (0..rows.len() * blocks).into_par_iter().for_each(|task| {
            let (i, block) = (task / blocks, task % blocks);
            let row = rows.start + i;
            let (image, y) = (row / sizes.image_rows(), row % sizes.image_rows() * TILE);
            T::with_scratch(6 * width * LANES, |scratch| {
                let buffer = scratch.as_chunks_mut().0;
                for line in 0..pixels.height {
                    self.gather((image, block), y + line, &mut buffer[line * width..(line + 1) * width]);
                }
                (pixels.columns)(buffer, width);
                for (line, buffer) in buffer.chunks_exact(width).enumerate() {
                    let mut of_line: [&mut [Lanes<T>]; 6] = std::array::from_fn(|x| {
                        let start = ((line * 6 + x) * blocks + block) * tiles + i * row_tiles;
                        #[expect(unsafe_code, reason = "each task writes its own tiles")]
                        // SAFETY: tasks differ in the row of tiles or in the block of channels, lines in their points.
                        let part = unsafe { place.part(start * LANES, row_tiles * LANES) };
                        part.as_chunks_mut().0
                    });
                    (pixels.rows)(buffer, &mut of_line);
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

/// What the pixels of a tile are, and their maps along columns, in place, and along rows, from lines to six points each.
#[derive(Clone, Copy)]
struct Pixels<T> {
    height: usize,
    /// Columns that a tile has beyond the next one's first.
    beyond: usize,
    columns: fn(&mut [Lanes<T>], usize),
    rows: fn(&[Lanes<T>], &mut [&mut [Lanes<T>]; 6]),
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
    fn input_rows<T: Float>(line: &[Lanes<T>], points: &mut [&mut [Lanes<T>]; 6]) {
        for tile in 0..points[0].len() {
            let of_tile = transform::input(std::array::from_fn(|x| &line[tile * TILE + x]));
            for (points, point) in points.iter_mut().zip(&of_tile) {
                points[tile] = *point;
            }
        }
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
    fn gradient_rows<T: Float>(line: &[Lanes<T>], points: &mut [&mut [Lanes<T>]; 6]) {
        for tile in 0..points[0].len() {
            let of_tile = transform::output_transposed(std::array::from_fn(|x| &line[tile * TILE + x]));
            for (points, point) in points.iter_mut().zip(&of_tile) {
                points[tile] = *point;
            }
        }
    }
}
