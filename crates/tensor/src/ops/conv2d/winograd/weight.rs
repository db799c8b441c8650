//! Weights to points, and gradients at points to weights.

use std::ops::Range;

use rayon::prelude::*;

use super::gather::Planes;
use super::{BLOCK, Chunk, POINTS, Sizes, panel_len, transform};
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

    /// Writes the points of blocks of outputs: (points, blocks, channels, lanes).
    pub(super) fn points(&self, blocks: Range<usize>, points: &mut [T]) {
        let inputs = self.inputs.div_ceil(LANES);
        let place = Shared::new(points);
        (0..blocks.len() * inputs).into_par_iter().for_each(|task| {
            let (i, from) = (task / inputs, task % inputs);
            let mut places: [&mut [Lanes<T>]; POINTS] = std::array::from_fn(|point| {
                let start = ((point * blocks.len() + i) * inputs + from) * LANES;
                #[expect(unsafe_code, reason = "each task writes its own channels")]
                // SAFETY: tasks differ in the block of outputs or in the block of inputs.
                let part = unsafe { place.part(start * LANES, LANES * LANES) };
                part.as_chunks_mut().0
            });
            let taps = self.taps(blocks.start + i, from);
            for (lane, taps) in taps.iter().enumerate() {
                weight_points(taps, &mut places, lane);
            }
        });
    }

    /// The weights between a block of inputs and a block of outputs, for each input; zeros beyond the channels.
    ///
    /// They are read in the order in which they lie: rows of many channels are far apart.
    fn taps(&self, block: usize, from: usize) -> [[Lanes<T>; TAPS]; LANES] {
        let mut taps = [[[T::zero(); LANES]; TAPS]; LANES];
        let inputs = from * LANES..self.inputs.min((from + 1) * LANES);
        let outputs = block * LANES..self.outputs.min((block + 1) * LANES);
        match self.turn {
            Turn::Forward => {
                for (lane, output) in outputs.enumerate() {
                    let start = (output * self.inputs + inputs.start) * TAPS;
                    let weights = self.data[start..start + inputs.len() * TAPS].chunks_exact(TAPS);
                    for (taps, weights) in taps.iter_mut().zip(weights) {
                        taps.iter_mut().zip(weights).for_each(|(tap, &w)| tap[lane] = w);
                    }
                }
            }
            Turn::Backward => {
                for (taps, input) in taps.iter_mut().zip(inputs) {
                    let start = (input * self.outputs + outputs.start) * TAPS;
                    let weights = self.data[start..start + outputs.len() * TAPS].chunks_exact(TAPS);
                    for (lane, weights) in weights.enumerate() {
                        taps.iter_mut().rev().zip(weights).for_each(|(tap, &w)| tap[lane] = w);
                    }
                }
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
    let panel_len = panel_len::<T>(inputs, outputs);
    let place = Shared::new(&mut dw);
    for chunk in sizes.chunks::<T>(inputs + outputs) {
        let (points_len, slopes_len) = (POINTS * chunk.point_len(inputs), POINTS * chunk.point_len(outputs));
        let products_len = POINTS * panel_len * inputs * LANES * LANES;
        T::with_scratch(points_len + slopes_len + products_len, |scratch| {
            let (points, rest) = scratch.split_at_mut(points_len);
            let (slopes, products) = rest.split_at_mut(slopes_len);
            planes.input_points(&sizes, &chunk, points);
            gradients.gradient_points(&sizes, &chunk, slopes);
            for blocks in pieces(outputs, panel_len) {
                let products = &mut products[..POINTS * blocks.len() * inputs * LANES * LANES];
                multiply(&chunk, (outputs, &blocks), (slopes, points.as_chunks().0), products);
                add(g, &blocks, products.as_chunks().0, place);
            }
        });
    }
    dw
}

/// Writes products (points, blocks of outputs, blocks of inputs, outputs, lanes of inputs) of gradients and tiles.
fn multiply<T: Float>(
    chunk: &Chunk,
    (outputs, blocks): (usize, &Range<usize>),
    (slopes, points): (&[T], &[Lanes<T>]),
    products: &mut [T],
) {
    let inputs = points.len() / POINTS / BLOCK / chunk.blocks();
    let at = Steps {
        row: 1,
        step: LANES,
        len: BLOCK,
        block: outputs * BLOCK * LANES,
        lanes: inputs * BLOCK,
        blocks: chunk.blocks(),
    };
    let operands = slopes.par_chunks_exact(slopes.len() / POINTS);
    let operands = operands.zip(points.par_chunks_exact(points.len() / POINTS));
    let products = products.par_chunks_exact_mut(products.len() / POINTS);
    products.zip(operands).for_each(|(products, (slopes, points))| {
        let pairs = products.as_chunks_mut().0.chunks_exact_mut(LANES);
        for (pair, products) in pairs.enumerate() {
            let slopes = &slopes[(blocks.start + pair / inputs) * BLOCK * LANES..];
            let points = &points[pair % inputs * BLOCK..];
            for (i, products) in products.chunks_exact_mut(ROWS).enumerate() {
                lane_products(&slopes[i * ROWS..], at, points, products);
            }
        }
    });
}

/// Adds the gradients of blocks of outputs to the weight.
fn add<T: Float>(g: &Geometry, blocks: &Range<usize>, products: &[Lanes<T>], place: Shared<'_, T>) {
    let inputs = g.channels.div_ceil(LANES);
    let pairs = blocks.len() * inputs;
    (0..pairs).into_par_iter().for_each(|pair| {
        let (to, from) = (blocks.start + pair / inputs, pair % inputs);
        let channels = from * LANES..g.channels.min((from + 1) * LANES);
        for (lane, output) in (to * LANES..g.outputs.min((to + 1) * LANES)).enumerate() {
            let start = (output * g.channels + channels.start) * TAPS;
            #[expect(unsafe_code, reason = "each task writes its own pairs of channels")]
            // SAFETY: tasks differ in the block of outputs or of inputs.
            let dw = unsafe { place.part(start, channels.len() * TAPS) };
            let taps = weight_slopes(products, pair * LANES + lane, pairs * LANES);
            for (channel, dw) in dw.chunks_exact_mut(TAPS).enumerate() {
                for (dw, tap) in dw.iter_mut().zip(&taps) {
                    *dw += tap[channel];
                }
            }
        }
    });
}

wide! {
    /// The gradients of the nine weights of one output, whose products are at `first` and every `step` behind it.
    fn weight_slopes<T: Float>(products: &[Lanes<T>], first: usize, step: usize) -> [Lanes<T>; TAPS] {
        let mut columns = [[[T::zero(); LANES]; 6]; 3];
        for x in 0..6 {
            let column = transform::weight_transposed(std::array::from_fn(|y| &products[(y * 6 + x) * step + first]));
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
