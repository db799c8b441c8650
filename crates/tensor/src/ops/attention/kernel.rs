//! Forward and backward pass over tiles: some query rows of one unit.

use std::ops::Range;

use rayon::prelude::*;

use super::operands::{Rows, Sizes, Strides};
use super::{AttentionConfig, AttentionMask};
use crate::ops::kernel::{Accumulate, Float, Matrix, MatrixMut, Shared, Threads, add_all, matmul, wide};
use crate::ops::softmax::{exponentials, scale};

/// Scores of one tile in bytes, about.
const TILE_BYTES: usize = 512 << 10;
/// Tasks of a backward pass below which the rows of a unit are shared between tasks.
const MIN_TASKS: usize = 8;

/// The operands of one call.
pub(super) struct Inputs<'a, T> {
    pub(super) sizes: Sizes,
    pub(super) config: AttentionConfig,
    pub(super) q: Rows<'a, T>,
    pub(super) k: Rows<'a, T>,
    pub(super) v: Rows<'a, T>,
}

/// The result of a forward pass and its gradient.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a, T> {
    pub(super) out: Rows<'a, T>,
    pub(super) grad: Rows<'a, T>,
}

/// Gradients of q, k and v, where they are wanted.
pub(super) struct Gradients<T> {
    pub(super) q: Option<Vec<T>>,
    pub(super) k: Option<Vec<T>>,
    pub(super) v: Option<Vec<T>>,
}

impl<T: Float> Inputs<'_, T> {
    /// Query rows of a tile.
    fn tile(&self) -> usize {
        (TILE_BYTES / size_of::<T>() / self.sizes.keys).clamp(16, 256)
    }

    fn rows(&self, tile: usize) -> Range<usize> {
        tile * self.tile()..((tile + 1) * self.tile()).min(self.sizes.queries)
    }

    /// Writes `e^(scale (score - max))` of the rows, `keys` columns, and the reciprocal of each row's sum.
    fn exponentials(&self, unit: usize, rows: &Range<usize>, keys: usize, scores: &mut [T], reciprocals: &mut [T]) {
        let sizes = &self.sizes;
        let (q, k) = (
            self.q.matrix(sizes, unit, rows.start),
            self.k.matrix(sizes, unit, 0).t(),
        );
        let place = MatrixMut::rows(scores, keys);
        matmul(
            (rows.len(), keys, sizes.head_dim),
            place,
            Accumulate::Replace,
            q,
            k,
            Threads::One,
        );
        let factor = T::of(self.config.scale);
        for (i, (row, reciprocal)) in scores.chunks_exact_mut(keys).zip(reciprocals).enumerate() {
            let seen = match self.config.mask {
                AttentionMask::None => keys,
                AttentionMask::Causal => keys.min(rows.start + i + 1),
            };
            let (row, hidden) = row.split_at_mut(seen);
            hidden.fill(T::zero());
            *reciprocal = T::one() / exponentials(row, factor);
        }
    }

    /// The result, heads beside each other.
    pub(super) fn forward(&self) -> Vec<T> {
        let sizes = &self.sizes;
        let mut out = vec![T::zero(); sizes.units() * sizes.queries * sizes.head_dim];
        let strides = Strides::packed(sizes, sizes.queries);
        let tiles = sizes.queries.div_ceil(self.tile());
        let place = Shared::new(&mut out);
        (0..sizes.units() * tiles).into_par_iter().for_each(|task| {
            let (unit, rows) = (task / tiles, self.rows(task % tiles));
            let keys = sizes.visible(self.config.mask, &rows);
            T::with_scratch(rows.len() * (keys + 1), |scratch| {
                let (reciprocals, scores) = scratch.split_at_mut(rows.len());
                self.exponentials(unit, &rows, keys, scores, reciprocals);
                let start = strides.at(sizes, unit, rows.start);
                let (p, v) = (Matrix::rows(scores, keys), self.v.matrix(sizes, unit, 0));
                #[expect(unsafe_code, reason = "each task writes its own rows")]
                // SAFETY: tasks differ in the unit or in the rows.
                let block = unsafe { MatrixMut::block(place, start, strides.row) };
                matmul(
                    (rows.len(), sizes.head_dim, keys),
                    block,
                    Accumulate::Replace,
                    p,
                    v,
                    Threads::One,
                );
                for (i, &reciprocal) in reciprocals.iter().enumerate() {
                    #[expect(unsafe_code, reason = "each task writes its own rows")]
                    // SAFETY: as above; the block is no longer used.
                    scale(
                        unsafe { place.part(start + i * strides.row, sizes.head_dim) },
                        reciprocal,
                    );
                }
            });
        });
        out
    }

    /// Gradients of `tracked` operands; `strides` gives the layout of a gradient with so many rows.
    pub(super) fn backward(
        &self,
        outputs: Outputs<'_, T>,
        tracked: [bool; 3],
        strides: impl Fn(&Sizes, usize) -> Strides + Sync,
    ) -> Gradients<T> {
        let sizes = &self.sizes;
        let zeros = |tracked: bool, rows| tracked.then(|| vec![T::zero(); sizes.units() * rows * sizes.head_dim]);
        let mut gradients = Gradients {
            q: zeros(tracked[0], sizes.queries),
            k: zeros(tracked[1], sizes.keys),
            v: zeros(tracked[2], sizes.keys),
        };
        let tiles = sizes.queries.div_ceil(self.tile());
        if sizes.units() == 0 || tiles == 0 {
            return gradients;
        }
        let segments = MIN_TASKS.div_ceil(sizes.units()).min(tiles);
        let dq = gradients
            .q
            .as_mut()
            .map(|dq| (Shared::new(dq), strides(sizes, sizes.queries)));
        // Each task sums dK and dV of its tiles; a unit's tasks are added afterwards, in order.
        let task = |task: usize| {
            let (unit, segment) = (task / segments, task % segments);
            let partial = |tracked: bool| vec![T::zero(); if tracked { sizes.keys * sizes.head_dim } else { 0 }];
            let mut sums = KeySums {
                k: partial(tracked[1]),
                v: partial(tracked[2]),
            };
            for tile in segment * tiles / segments..(segment + 1) * tiles / segments {
                self.backward_tile(unit, self.rows(tile), outputs, dq, &mut sums);
            }
            sums
        };
        let sums: Vec<KeySums<T>> = (0..sizes.units() * segments).into_par_iter().map(task).collect();
        let (dk, dv): (Vec<_>, Vec<_>) = sums.into_iter().map(|sums| (sums.k, sums.v)).unzip();
        for (gradient, parts) in [(&mut gradients.k, dk), (&mut gradients.v, dv)] {
            if let Some(gradient) = gradient {
                self.collect(parts, segments, strides(sizes, sizes.keys), gradient);
            }
        }
        gradients
    }

    /// Adds the `segments` parts of each unit and writes them to their place.
    fn collect(&self, parts: Vec<Vec<T>>, segments: usize, strides: Strides, gradient: &mut [T]) {
        let sizes = &self.sizes;
        let mut parts = parts.into_iter();
        for unit in 0..sizes.units() {
            let sum = add_all(parts.by_ref().take(segments).collect(), sizes.keys * sizes.head_dim);
            for (row, sum) in sum.chunks_exact(sizes.head_dim.max(1)).enumerate() {
                gradient[strides.at(sizes, unit, row)..][..sizes.head_dim].copy_from_slice(sum);
            }
        }
    }

    fn backward_tile(
        &self,
        unit: usize,
        rows: Range<usize>,
        outputs: Outputs<'_, T>,
        dq: Option<(Shared<'_, T>, Strides)>,
        sums: &mut KeySums<T>,
    ) {
        let (sizes, head_dim) = (&self.sizes, self.sizes.head_dim);
        let keys = sizes.visible(self.config.mask, &rows);
        let len = rows.len() * keys;
        T::with_scratch(2 * len + rows.len(), |scratch| {
            let (p, rest) = scratch.split_at_mut(len);
            let (ds, reciprocals) = rest.split_at_mut(len);
            self.exponentials(unit, &rows, keys, p, reciprocals);
            for (row, &reciprocal) in p.chunks_exact_mut(keys).zip(&*reciprocals) {
                scale(row, reciprocal);
            }
            if !sums.v.is_empty() {
                let (p, dout) = (Matrix::rows(p, keys).t(), outputs.grad.matrix(sizes, unit, rows.start));
                let place = MatrixMut::rows(&mut sums.v, head_dim);
                matmul(
                    (keys, head_dim, rows.len()),
                    place,
                    Accumulate::Add,
                    p,
                    dout,
                    Threads::One,
                );
            }
            if dq.is_none() && sums.k.is_empty() {
                return;
            }
            self.score_gradients(unit, &rows, outputs, p, ds);
            if let Some((place, strides)) = dq {
                #[expect(unsafe_code, reason = "each task writes its own rows")]
                // SAFETY: tiles differ in the unit or in the rows.
                let block = unsafe { MatrixMut::block(place, strides.at(sizes, unit, rows.start), strides.row) };
                let (ds, k) = (Matrix::rows(ds, keys), self.k.matrix(sizes, unit, 0));
                matmul(
                    (rows.len(), head_dim, keys),
                    block,
                    Accumulate::Replace,
                    ds,
                    k,
                    Threads::One,
                );
            }
            if !sums.k.is_empty() {
                let (ds, q) = (Matrix::rows(ds, keys).t(), self.q.matrix(sizes, unit, rows.start));
                let place = MatrixMut::rows(&mut sums.k, head_dim);
                matmul(
                    (keys, head_dim, rows.len()),
                    place,
                    Accumulate::Add,
                    ds,
                    q,
                    Threads::One,
                );
            }
        });
    }

    /// Writes the gradient of the scores of a tile with probabilities `p`: `p (dP - sum(p dP)) scale` with `dP = dO V^T`,
    /// where the sum of a row is that of `O dO`.
    fn score_gradients(&self, unit: usize, rows: &Range<usize>, outputs: Outputs<'_, T>, p: &[T], ds: &mut [T]) {
        let sizes = &self.sizes;
        let keys = p.len() / rows.len();
        let (dout, v) = (
            outputs.grad.matrix(sizes, unit, rows.start),
            self.v.matrix(sizes, unit, 0).t(),
        );
        let place = MatrixMut::rows(ds, keys);
        matmul(
            (rows.len(), keys, sizes.head_dim),
            place,
            Accumulate::Replace,
            dout,
            v,
            Threads::One,
        );
        let factor = T::of(self.config.scale);
        for (i, (p, ds)) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
            let row = rows.start + i;
            let products = outputs
                .out
                .row(sizes, unit, row)
                .iter()
                .zip(outputs.grad.row(sizes, unit, row));
            let sum = products.fold(T::zero(), |sum, (&o, &g)| sum + o * g);
            score_slopes(p, ds, sum, factor);
        }
    }
}

/// dK and dV of one unit, as far as they are summed; empty where they are not wanted.
struct KeySums<T> {
    k: Vec<T>,
    v: Vec<T>,
}

wide! {
    /// `ds = p (ds - mean) factor`.
    fn score_slopes<T: Float>(p: &[T], ds: &mut [T], mean: T, factor: T) {
        for (&p, ds) in p.iter().zip(ds) {
            *ds = p * (*ds - mean) * factor;
        }
    }
}
