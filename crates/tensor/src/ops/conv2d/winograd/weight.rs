//! Weights to points, and gradients at points to weights.

use std::ops::Range;

use rayon::prelude::*;

use super::gather::Planes;
use super::{POINTS, Sizes, transform};
use crate::ops::conv2d::geometry::Geometry;
use crate::ops::conv2d::groups::pieces;
use crate::ops::kernel::{Float, LANES, Lanes, Shared, Steps, lane_products, wide};

const TAPS: usize = 9;
/// Outputs of a block of products.
const ROWS: usize = 4;

/// Which convolution a weight is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// From inputs to outputs.
    Forward,
    /// From outputs to inputs, with the taps in reverse.
    Backward,
}

/// A weight (O, C, 3, 3), read as one of a convolution from `inputs` to `outputs`.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a, T> {
    data: &'a [T],
    inputs: usize,
    outputs: usize,
    turn: Turn,
}

impl<'a, T: Float> Weights<'a, T> {
    pub(super) fn new(data: &'a [T], g: &Geometry, turn: Turn) -> Self {
        let (inputs, outputs) = match turn {
            Turn::Forward => (g.channels, g.outputs),
            Turn::Backward => (g.outputs, g.channels),
        };
        Self {
            data,
            inputs,
            outputs,
            turn,
        }
    }

    /// Writes the points of blocks of outputs: (blocks, points, channels, lanes).
    pub(super) fn points(&self, blocks: Range<usize>, points: &mut [T]) {
        let inputs = self.inputs.div_ceil(LANES);
        let place = Shared::new(points);
        (0..blocks.len() * inputs).into_par_iter().for_each(|task| {
            let (i, from) = (task / inputs, task % inputs);
            let mut places: [&mut [Lanes<T>]; POINTS] = std::array::from_fn(|point| {
                let start = ((i * POINTS + point) * inputs + from) * LANES;
                #[expect(unsafe_code, reason = "each task writes its own channels")]
                // SAFETY: tasks differ in the block of outputs or in the block of inputs.
                let part = unsafe { place.part(start * LANES, LANES * LANES) };
                part.as_chunks_mut().0
            });
            for lane in 0..LANES {
                let taps = self.taps(blocks.start + i, from * LANES + lane);
                weight_points(&taps, &mut places, lane);
            }
        });
    }

    /// The weights of one input and a block of outputs; zeros beyond the channels.
    fn taps(&self, block: usize, input: usize) -> [Lanes<T>; TAPS] {
        let mut taps = [[T::zero(); LANES]; TAPS];
        if input >= self.inputs {
            return taps;
        }
        for (lane, output) in (block * LANES..self.outputs.min((block + 1) * LANES)).enumerate() {
            let pair = match self.turn {
                Turn::Forward => output * self.inputs + input,
                Turn::Backward => input * self.outputs + output,
            };
            let weights = &self.data[pair * TAPS..(pair + 1) * TAPS];
            match self.turn {
                Turn::Forward => taps.iter_mut().zip(weights).for_each(|(tap, &w)| tap[lane] = w),
                Turn::Backward => taps.iter_mut().rev().zip(weights).for_each(|(tap, &w)| tap[lane] = w),
            }
        }
        taps
    }
}

wide! {
    /// Writes the points of one input channel, which is `lane` of its block.
    fn weight_points<T: Float>(taps: &[Lanes<T>; TAPS], places: &mut [&mut [Lanes<T>]; POINTS], lane: usize) {
        let mut columns = [[[T::zero(); LANES]; 3]; 6];
        for x in 0..3 {
            let column = transform::weight([&taps[x], &taps[3 + x], &taps[6 + x]]);
            for (y, point) in column.iter().enumerate() {
                columns[y][x] = *point;
            }
        }
        for (row, places) in columns.iter().zip(places.chunks_exact_mut(6)) {
            for (point, place) in transform::weight(row.each_ref()).iter().zip(places) {
                place[lane] = *point;
            }
        }
    }
}

/// The gradient (O, C, 3, 3) of the weight.
pub(in crate::ops::conv2d) fn backward_weight<T: Float>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let sizes = Sizes::of(g);
    let mut dw = vec![T::zero(); g.outputs * g.channels * TAPS];
    let (inputs, outputs) = (g.channels.div_ceil(LANES), g.outputs.div_ceil(LANES));
    let planes = Planes {
        data: x,
        channels: g.channels,
        height: g.height,
        width: g.width,
        padding: g.padding,
    };
    let gradients = Planes {
        data: dy,
        channels: g.outputs,
        height: g.out_height,
        width: g.out_width,
        padding: 0,
    };
    for rows in sizes.chunks::<T>(inputs + outputs) {
        let tiles = rows.len() * sizes.row_tiles();
        let plane = POINTS * tiles * LANES;
        T::with_scratch((inputs + outputs) * plane, |scratch| {
            let (points, slopes) = scratch.split_at_mut(inputs * plane);
            planes.input_points(&sizes, rows.clone(), points);
            gradients.gradient_points(&sizes, rows, slopes);
            add_products(g, (slopes, points.as_chunks().0), tiles, &mut dw);
        });
    }
    dw
}

/// Adds the gradients that come from `tiles` tiles to the weight.
fn add_products<T: Float>(g: &Geometry, (slopes, points): (&[T], &[Lanes<T>]), tiles: usize, dw: &mut [T]) {
    let (inputs, outputs) = (g.channels.div_ceil(LANES), g.outputs.div_ceil(LANES));
    let at = Steps {
        row: 1,
        step: LANES,
        steps: tiles,
        block: 0,
        blocks: 1,
    };
    let place = Shared::new(dw);
    (0..inputs * outputs).into_par_iter().for_each(|task| {
        let (to, from) = (task / inputs, task % inputs);
        T::with_scratch(POINTS * LANES * LANES, |scratch| {
            let products: &mut [Lanes<T>] = scratch.as_chunks_mut().0;
            for (point, products) in products.chunks_exact_mut(LANES).enumerate() {
                let slopes = &slopes[(point * outputs + to) * tiles * LANES..][..tiles * LANES];
                let points = &points[(point * inputs + from) * tiles..][..tiles];
                for (i, products) in products.chunks_exact_mut(ROWS).enumerate() {
                    lane_products(&slopes[i * ROWS..], at, points, products);
                }
            }
            let channels = pieces(g.channels, LANES).nth(from).unwrap_or_default();
            for (lane, output) in (to * LANES..g.outputs.min((to + 1) * LANES)).enumerate() {
                let start = (output * g.channels + channels.start) * TAPS;
                #[expect(unsafe_code, reason = "each task writes its own pairs of channels")]
                // SAFETY: tasks differ in the block of outputs or of inputs.
                let dw = unsafe { place.part(start, channels.len() * TAPS) };
                let taps = weight_slopes(products, lane);
                for (channel, dw) in dw.chunks_exact_mut(TAPS).enumerate() {
                    for (dw, tap) in dw.iter_mut().zip(&taps) {
                        *dw += tap[channel];
                    }
                }
            }
        });
    });
}

wide! {
    /// The gradients of the nine weights of one output, from products (points, outputs, lanes of inputs).
    fn weight_slopes<T: Float>(products: &[Lanes<T>], output: usize) -> [Lanes<T>; TAPS] {
        let mut columns = [[[T::zero(); LANES]; 6]; 3];
        for x in 0..6 {
            let column = transform::weight_transposed(std::array::from_fn(|y| &products[(y * 6 + x) * LANES + output]));
            for (y, slope) in column.iter().enumerate() {
                columns[y][x] = *slope;
            }
        }
        let mut taps = [[T::zero(); LANES]; TAPS];
        for (y, row) in columns.iter().enumerate() {
            taps[y * 3..(y + 1) * 3].copy_from_slice(&transform::weight_transposed(row.each_ref()));
        }
        taps
    }
}
