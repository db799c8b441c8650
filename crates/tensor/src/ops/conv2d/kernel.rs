//! The three passes as products of matrices.
//!
//! With W (O, C ky kx), columns U (C ky kx, P) of an image and its output Y (O, P), P positions:
//!
//! ```text
//! Y = W U          dU = W^T dY, folded to dX          dW = dY U^T
//! ```
//!
//! - Forward: tiles of positions, one per task: a task unfolds its columns and multiplies, so that they are read from the
//!   cache. Where weights are large or positions few, all threads share one product after the other, each over the columns of some
//!   positions or of several images.
//! - Gradient of the input: blocks of input channels of some images, one per task: a task owns the planes that it folds into.
//! - Gradient of the weight: blocks of input channels, one per task: a task owns the columns of dW that it sums.
//! - One by one, the input itself is U: few large images are shared by all threads, of many small ones each has its own task, and the
//!   gradient of the weight is the sum of the parts that some images have.
//!
//! Small images with weights of three by three are convolved without columns: see `direct`.
//!
//! All sizes follow from the shape alone, so results do not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::geometry::Geometry;
use super::groups::{BLOCK_POSITIONS, Group, GroupGradient, groups, piece, pieces, same_images, scatter};
use super::{direct, winograd};
use crate::ops::kernel::{
    Accumulate, Float, Matrix, MatrixMut, Shared, Threads, add_all, filled_rows, matmul, sum, zeros,
};

/// Columns of one tile of the forward pass in bytes, about: they stay in the second or third cache.
const TILE_BYTES: usize = 4 << 20;
/// Columns shared by all threads, in bytes.
const SHARED_BYTES: usize = 32 << 20;
/// Weights above this do not stay in the cache between tiles, in bytes.
const LARGE_WEIGHT_BYTES: usize = 16 << 20;
/// Columns of one block of a backward pass in bytes, about.
const BLOCK_BYTES: usize = 1 << 20;
/// Multiplications of an image from which on all threads share its product.
const LARGE_IMAGE: usize = 1 << 26;
/// Elements of a gradient of a weight above which there are no partial sums of it.
const LARGE_SUM: usize = 1 << 18;
/// Partial sums of a gradient of a weight.
const PARTS: usize = 8;

/// The result (B, O, P).
pub(super) fn forward<T: Float>(g: &Geometry, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    if winograd::pays(g) {
        return winograd::forward(g, x, weight, bias);
    }
    if direct::pays(g) {
        return direct::forward(g, x, weight, bias);
    }
    let (positions, depth) = (g.positions(), g.depth());
    let len = g.images * g.outputs * positions;
    if len == 0 {
        return Vec::new();
    }
    let size = size_of::<T>();
    let tile = piece(positions, (TILE_BYTES / size / depth.max(1)).clamp(64, 512));
    let num_tiles = g.images * positions.div_ceil(tile);
    if !g.is_pointwise() && positions >= 256 && num_tiles >= 4 && size_of_val(weight) <= LARGE_WEIGHT_BYTES {
        let mut y = zeros(len);
        tiled(g, (x, weight, bias), &mut y, tile);
        return y;
    }
    let mut y = filled_rows(len, positions, |first, planes| {
        let Some(bias) = bias else { return };
        for (i, plane) in planes.chunks_exact_mut(positions).enumerate() {
            plane.fill(bias[(first + i) % g.outputs]);
        }
    });
    if g.is_pointwise() {
        pointwise(g, x, weight, &mut y);
    } else {
        shared(g, x, weight, &mut y);
    }
    y
}

fn pointwise<T: Float>(g: &Geometry, x: &[T], weight: &[T], y: &mut [T]) {
    let (positions, channels, outputs) = (g.positions(), g.channels, g.outputs);
    each_image(g, y, outputs * positions, |image, y, threads| {
        let x = &x[image * channels * positions..(image + 1) * channels * positions];
        let (weight, x) = (Matrix::rows(weight, channels), Matrix::rows(x, positions));
        let place = MatrixMut::rows(y, positions);
        matmul(
            (outputs, positions, channels),
            place,
            Accumulate::Add,
            weight,
            x,
            threads,
        );
    });
}

/// Runs `f(image, planes, threads of its product)` on the planes of each image: small images beside each other, of few and large
/// ones each by all threads.
fn each_image<T: Float>(g: &Geometry, planes: &mut [T], image_len: usize, f: impl Fn(usize, &mut [T], Threads) + Sync) {
    if has_large_images(g) {
        for (image, planes) in planes.chunks_exact_mut(image_len).enumerate() {
            f(image, planes, Threads::All);
        }
    } else {
        planes
            .par_chunks_exact_mut(image_len)
            .enumerate()
            .for_each(|(image, planes)| f(image, planes, Threads::One));
    }
}

/// Whether one image is work enough for all threads.
fn has_large_images(g: &Geometry) -> bool {
    g.images == 1 || g.images < 8 && g.channels * g.outputs * g.positions() > LARGE_IMAGE
}

fn tiled<T: Float>(g: &Geometry, (x, weight, bias): (&[T], &[T], Option<&[T]>), y: &mut [T], tile: usize) {
    let (positions, depth, outputs) = (g.positions(), g.depth(), g.outputs);
    let tiles: Vec<(usize, Range<usize>)> = (0..g.images)
        .flat_map(|image| pieces(positions, tile).map(move |range| (image, range)))
        .collect();
    let place = Shared::new(y);
    tiles.into_par_iter().for_each(|(image, range)| {
        T::with_scratch(depth * range.len(), |columns| {
            let planes = image * g.channels..(image + 1) * g.channels;
            unfold_channels(g, x, planes, range.clone(), columns, range.len());
            let start = image * outputs * positions + range.start;
            let mut accumulate = Accumulate::Replace;
            if let Some(bias) = bias {
                accumulate = Accumulate::Add;
                for (o, &bias) in bias.iter().enumerate() {
                    #[expect(unsafe_code, reason = "each task writes its own positions")]
                    // SAFETY: tiles of positions do not overlap.
                    unsafe { place.part(start + o * positions, range.len()) }.fill(bias);
                }
            }
            #[expect(unsafe_code, reason = "each task writes its own positions")]
            // SAFETY: tiles of positions do not overlap, and the rows of a block are `positions` apart.
            let block = unsafe { MatrixMut::block(place, start, positions) };
            let (weight, columns) = (Matrix::rows(weight, depth), Matrix::rows(columns, range.len()));
            matmul(
                (outputs, range.len(), depth),
                block,
                accumulate,
                weight,
                columns,
                Threads::One,
            );
        });
    });
}

/// Unfolds `positions` of the given planes of `x` (counted over all images) into rows `row_len` apart.
fn unfold_channels<T: Float>(
    g: &Geometry,
    x: &[T],
    planes: Range<usize>,
    positions: Range<usize>,
    columns: &mut [T],
    row_len: usize,
) {
    let x = &x[planes.start * g.pixels()..planes.end * g.pixels()];
    // Not in chunks: the last row may end before `row_len`.
    for (c, plane) in x.chunks_exact(g.pixels()).enumerate() {
        g.unfold(
            plane,
            positions.clone(),
            &mut columns[c * g.taps() * row_len..],
            row_len,
        );
    }
}

/// Products over groups of columns, one after the other, each by all threads.
fn shared<T: Float>(g: &Geometry, x: &[T], weight: &[T], y: &mut [T]) {
    let (positions, depth, outputs, taps) = (g.positions(), g.depth(), g.outputs, g.taps());
    let max = (SHARED_BYTES / size_of::<T>() / depth.max(1)).max(8);
    for group in groups(g, max) {
        let len = group.len();
        T::with_scratch(depth * len, |columns| {
            columns
                .par_chunks_exact_mut(taps * len)
                .enumerate()
                .for_each(|(c, columns)| {
                    for (i, image) in group.images.clone().enumerate() {
                        let plane = image * g.channels + c;
                        let columns = &mut columns[i * group.positions.len()..];
                        unfold_channels(g, x, plane..plane + 1, group.positions.clone(), columns, len);
                    }
                });
            let (weight, columns) = (Matrix::rows(weight, depth), Matrix::rows(columns, len));
            if group.images.len() == 1 {
                let place = &mut y[group.images.start * outputs * positions + group.positions.start..];
                let place = MatrixMut::rows(place, positions);
                matmul(
                    (outputs, len, depth),
                    place,
                    Accumulate::Add,
                    weight,
                    columns,
                    Threads::All,
                );
            } else {
                let mut joint = vec![T::zero(); outputs * len];
                let place = MatrixMut::rows(&mut joint, len);
                matmul(
                    (outputs, len, depth),
                    place,
                    Accumulate::Replace,
                    weight,
                    columns,
                    Threads::All,
                );
                scatter(g, &joint, &group, y);
            }
        });
    }
}

/// Input channels of one task.
fn block_channels<T>(g: &Geometry) -> usize {
    let columns = BLOCK_POSITIONS.min(g.images * g.positions()).max(1);
    let max = (BLOCK_BYTES / size_of::<T>() / g.taps() / columns).max(1);
    // At least eight tasks where there are as many channels.
    g.channels.div_ceil(g.channels.div_ceil(max).max(8))
}

/// The gradient (B, C, Y, X) of the input.
pub(super) fn backward_input<T: Float>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    if winograd::pays(g) {
        return winograd::backward_input(g, weight, dy);
    }
    if direct::pays(g) {
        return direct::backward_input(g, weight, dy);
    }
    let (positions, pixels, outputs, taps, depth) = (g.positions(), g.pixels(), g.outputs, g.taps(), g.depth());
    let mut dx = zeros(g.images * g.channels * pixels);
    if dx.is_empty() || outputs == 0 || positions == 0 {
        return dx;
    }
    if g.is_pointwise() {
        each_image(g, &mut dx, g.channels * pixels, |image, dx, threads| {
            let dy = &dy[image * outputs * positions..(image + 1) * outputs * positions];
            let (weight, dy) = (Matrix::rows(weight, depth).t(), Matrix::rows(dy, positions));
            let place = MatrixMut::rows(dx, pixels);
            matmul(
                (depth, positions, outputs),
                place,
                Accumulate::Replace,
                weight,
                dy,
                threads,
            );
        });
        return dx;
    }
    let groups = groups(g, BLOCK_POSITIONS);
    let gradients: Vec<_> = groups.iter().map(|group| GroupGradient::of(g, group, dy)).collect();
    let block = block_channels::<T>(g);
    let of_set = |set: Range<usize>| pieces(g.channels, block).map(move |channels| (set.clone(), channels));
    let tasks: Vec<(Range<usize>, Range<usize>)> = same_images(&groups).into_iter().flat_map(of_set).collect();
    let place = Shared::new(&mut dx);
    tasks.into_par_iter().for_each(|(set, channels)| {
        for (group, dy) in groups[set.clone()].iter().zip(&gradients[set]) {
            let (rows, len) = (channels.len() * taps, group.len());
            T::with_scratch(rows * len, |columns| {
                let weight = Matrix::rows(&weight[channels.start * taps..], depth).t();
                let into = MatrixMut::rows(columns, len);
                matmul(
                    (rows, len, outputs),
                    into,
                    Accumulate::Replace,
                    weight,
                    dy.matrix(g, group),
                    Threads::One,
                );
                #[expect(unsafe_code, reason = "each task writes its own planes")]
                // SAFETY: tasks differ in their images or in their channels.
                let plane = |plane: usize| unsafe { place.part(plane * pixels, pixels) };
                fold_channels(g, group, channels.clone(), columns, plane);
            });
        }
    });
    dx
}

/// Adds the columns of a group, rows of `channels`, to the planes that `plane` gives.
fn fold_channels<'a, T: Float>(
    g: &Geometry,
    group: &Group,
    channels: Range<usize>,
    columns: &mut [T],
    plane: impl Fn(usize) -> &'a mut [T],
) {
    for (i, image) in group.images.clone().enumerate() {
        for (c, channel) in channels.clone().enumerate() {
            let columns = &mut columns[c * g.taps() * group.len() + i * group.positions.len()..];
            g.fold(
                columns,
                group.len(),
                group.positions.clone(),
                plane(image * g.channels + channel),
            );
        }
    }
}

/// The gradient (O, C, ky, kx) of the weight.
pub(super) fn backward_weight<T: Float>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    if winograd::pays(g) {
        return winograd::backward_weight(g, x, dy);
    }
    if direct::pays(g) {
        return direct::backward_weight(g, x, dy);
    }
    if g.is_pointwise() {
        return pointwise_weight(g, x, dy);
    }
    let (outputs, taps, depth) = (g.outputs, g.taps(), g.depth());
    let mut dw = zeros(outputs * depth);
    if dw.is_empty() || dy.is_empty() {
        return dw;
    }
    let groups = groups(g, BLOCK_POSITIONS);
    let gradients: Vec<_> = groups.iter().map(|group| GroupGradient::of(g, group, dy)).collect();
    let blocks: Vec<Range<usize>> = pieces(g.channels, block_channels::<T>(g)).collect();
    let place = Shared::new(&mut dw);
    blocks.into_par_iter().for_each(|channels| {
        for (group, dy) in groups.iter().zip(&gradients) {
            let (rows, len) = (channels.len() * taps, group.len());
            T::with_scratch(rows * len, |columns| {
                for (i, image) in group.images.clone().enumerate() {
                    let planes = image * g.channels + channels.start..image * g.channels + channels.end;
                    let columns = &mut columns[i * group.positions.len()..];
                    unfold_channels(g, x, planes, group.positions.clone(), columns, len);
                }
                #[expect(unsafe_code, reason = "each task writes its own columns")]
                // SAFETY: blocks of channels are disjoint columns of dW, whose rows are `depth` apart.
                let block = unsafe { MatrixMut::block(place, channels.start * taps, depth) };
                let (dy, columns) = (dy.matrix(g, group), Matrix::rows(columns, len).t());
                matmul((outputs, rows, len), block, Accumulate::Add, dy, columns, Threads::One);
            });
        }
    });
    dw
}

/// The gradient (O, C) of the weight of a product with the input itself.
fn pointwise_weight<T: Float>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let (positions, channels, outputs) = (g.positions(), g.channels, g.outputs);
    let sum = |images: Range<usize>, threads: Threads| {
        let mut dw = vec![T::zero(); outputs * channels];
        for image in images {
            let x = Matrix::rows(
                &x[image * channels * positions..(image + 1) * channels * positions],
                positions,
            )
            .t();
            let dy = Matrix::rows(
                &dy[image * outputs * positions..(image + 1) * outputs * positions],
                positions,
            );
            let place = MatrixMut::rows(&mut dw, channels);
            matmul((outputs, channels, positions), place, Accumulate::Add, dy, x, threads);
        }
        dw
    };
    if dy.is_empty() || x.is_empty() || has_large_images(g) || outputs * channels > LARGE_SUM {
        return sum(
            0..if dy.is_empty() || x.is_empty() { 0 } else { g.images },
            Threads::All,
        );
    }
    let parts: Vec<Range<usize>> = pieces(g.images, g.images.div_ceil(PARTS)).collect();
    let parts: Vec<Vec<T>> = parts.into_par_iter().map(|images| sum(images, Threads::One)).collect();
    add_all(parts, outputs * channels)
}

/// The gradient (O) of the bias.
pub(super) fn backward_bias<T: Float>(g: &Geometry, dy: &[T]) -> Vec<T> {
    let positions = g.positions();
    let plane = |image: usize, o: usize| sum(&dy[(image * g.outputs + o) * positions..][..positions]);
    (0..g.outputs)
        .into_par_iter()
        .map(|o| T::of((0..g.images).map(|image| plane(image, o)).sum()))
        .collect()
}
