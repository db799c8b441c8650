//! Forward and backward pass over tiles: some query rows of one unit.

use std::ops::Range;

use rayon::prelude::*;

use super::columns::{Columns, Mask, Piece};
use super::op::Scores;
use super::operands::{Rows, Sizes, Strides, Transposed};
use crate::ops::kernel::{Accumulate, Float, Matrix, MatrixMut, Shared, Threads, add_all, matmul, wide, zeros};
use crate::ops::softmax::{exponentials, scale};

/// Scores of one tile in bytes, about; in a backward pass there are two such matrices.
const TILE_BYTES: usize = 512 << 10;
/// Tasks of a backward pass below which the rows of a key unit are shared between tasks.
const MIN_TASKS: usize = 8;

/// The operands of one call.
pub(super) struct Inputs<'a, T> {
    sizes: Sizes,
    scores: &'a Scores,
    q: Rows<'a, T>,
    k: Rows<'a, T>,
    v: Rows<'a, T>,
    tile_rows: usize,
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

/// Some query rows of one unit and the keys that they see.
struct Tile {
    unit: usize,
    key_unit: usize,
    rows: Range<usize>,
    columns: Columns,
    /// Distance of two rows of its matrices.
    stride: usize,
}

impl Tile {
    /// Elements of one of its matrices.
    fn len(&self) -> usize {
        self.rows.len() * self.stride
    }
}

/// Rows so far apart that the rows of a column lie in different sets of the caches: an odd number of cache lines of f32.
pub(super) fn padded(len: usize) -> usize {
    const LINE: usize = 16;
    (len.div_ceil(LINE) | 1) * LINE
}

impl<'a, T: Float> Inputs<'a, T> {
    /// Operands q, k and v of a pass that holds so many matrices of scores at a time.
    pub(super) fn new(sizes: Sizes, scores: &'a Scores, [q, k, v]: [Rows<'a, T>; 3], matrices: usize) -> Self {
        // Few rows where each row sees other keys, since all columns of a tile are computed for each row.
        let most = match scores.mask {
            Mask::Positions(_) => 256,
            Mask::Ranges(_) => 64,
        };
        let rows = TILE_BYTES / matrices / size_of::<T>() / sizes.keys.max(1);
        Self {
            sizes,
            scores,
            q,
            k,
            v,
            tile_rows: rows.clamp(16, most),
        }
    }

    fn tiles(&self) -> usize {
        self.sizes.queries.div_ceil(self.tile_rows)
    }

    fn tile(&self, unit: usize, tile: usize) -> Tile {
        let (sizes, len) = (&self.sizes, self.tile_rows);
        let rows = tile * len..((tile + 1) * len).min(sizes.queries);
        let columns = self.scores.mask.columns(unit / sizes.heads, &rows, sizes.keys);
        Tile {
            unit,
            key_unit: unit / sizes.group(),
            stride: padded(columns.len()),
            columns,
            rows,
        }
    }

    /// The rows of keys or values as columns: also where one product needs them, since the gemm crate sums small products of rows with rows in
    /// another order than large ones, and a row is to be the same number in a batch of any size.
    fn transposed(&self, rows: &Rows<'_, T>) -> Transposed<T> {
        let sizes = &self.sizes;
        rows.transposed(sizes.key_units(), sizes.keys, sizes.head_dim)
    }

    /// Writes the products of `lhs`, which has the rows of the tile, with the keys or values that the tile sees.
    fn times_columns(&self, tile: &Tile, lhs: Matrix<'_, T>, rhs: &Transposed<T>, products: &mut [T]) {
        for Piece { keys, start } in tile.columns.pieces() {
            let place = MatrixMut::rows(&mut products[*start..], tile.stride);
            let rhs = rhs.matrix(tile.key_unit, keys.start);
            let sizes = (tile.rows.len(), keys.len(), self.sizes.head_dim);
            matmul(sizes, place, Accumulate::Replace, lhs, rhs, Threads::One);
        }
    }

    /// Writes `e^(score - max)` of the tile and the reciprocal of each row's sum. Where scores are capped, `slopes` gets the
    /// derivative of the scores with respect to the products of queries and keys, unless it is empty.
    fn exponentials(&self, tile: &Tile, k: &Transposed<T>, scores: &mut [T], reciprocals: &mut [T], slopes: &mut [T]) {
        let (rows, len) = (&tile.rows, tile.columns.len());
        self.times_columns(tile, self.q.matrix(tile.unit, rows.start), k, scores);
        let factor = match self.scores.softcap {
            None => T::of(self.scores.scale),
            Some(cap) => {
                cap_scores(scores, slopes, T::of(self.scores.scale), T::of(cap));
                T::one()
            }
        };
        let batch = tile.unit / self.sizes.heads;
        for (i, (row, reciprocal)) in scores.chunks_exact_mut(tile.stride).zip(reciprocals).enumerate() {
            let [first, second] = self.scores.mask.seen(batch, rows.start + i, &tile.columns);
            row[..first.start].fill(T::zero());
            row[second.end..len].fill(T::zero());
            row[first.end..second.start].fill(T::neg_infinity());
            *reciprocal = T::one() / exponentials(&mut row[first.start..second.end], factor);
        }
    }

    /// The result, heads beside each other.
    pub(super) fn forward(&self) -> Vec<T> {
        let sizes = &self.sizes;
        let mut out = zeros(sizes.units() * sizes.queries * sizes.head_dim);
        let strides = Strides::packed(sizes.heads, sizes.queries, sizes.head_dim);
        let (tiles, k) = (self.tiles(), self.transposed(&self.k));
        let place = Shared::new(&mut out);
        (0..sizes.units() * tiles).into_par_iter().for_each(|task| {
            let tile = self.tile(task / tiles, task % tiles);
            let rows = &tile.rows;
            T::with_scratch(tile.len() + rows.len(), |scratch| {
                let (scores, reciprocals) = scratch.split_at_mut(tile.len());
                self.exponentials(&tile, &k, scores, reciprocals, &mut []);
                let start = strides.at(tile.unit, rows.start);
                self.times_keys(&tile, scores, &self.v, (place, start, strides.row));
                for (i, &reciprocal) in reciprocals.iter().enumerate() {
                    #[expect(unsafe_code, reason = "each task writes its own rows")]
                    // SAFETY: tasks differ in the unit or in the rows; the block is no longer used.
                    scale(
                        unsafe { place.part(start + i * strides.row, sizes.head_dim) },
                        reciprocal,
                    );
                }
            });
        });
        out
    }

    /// Writes the product of a tile's matrix with the rows of `k` or `v` of its columns, for no other task to use.
    fn times_keys(&self, tile: &Tile, matrix: &[T], rhs: &Rows<'_, T>, place: (Shared<'_, T>, usize, usize)) {
        let (place, start, row) = place;
        for (i, piece) in tile.columns.pieces().iter().enumerate() {
            #[expect(unsafe_code, reason = "each task writes its own rows")]
            // SAFETY: tiles differ in the unit or in the rows, and no other block of this tile lives.
            let block = unsafe { MatrixMut::block(place, start, row) };
            let accumulate = if i == 0 { Accumulate::Replace } else { Accumulate::Add };
            let lhs = Matrix::rows(&matrix[piece.start..], tile.stride);
            let rhs = rhs.matrix(tile.key_unit, piece.keys.start);
            let sizes = (tile.rows.len(), self.sizes.head_dim, piece.keys.len());
            matmul(sizes, block, accumulate, lhs, rhs, Threads::One);
        }
    }

    /// Gradients of `tracked` operands; `strides` gives the layout of a gradient with so many heads and rows.
    pub(super) fn backward(
        &self,
        outputs: Outputs<'_, T>,
        tracked: [bool; 3],
        strides: fn(usize, usize, usize) -> Strides,
    ) -> Gradients<T> {
        let sizes = &self.sizes;
        let buffer = |tracked: bool, rows| tracked.then(|| zeros(rows * sizes.head_dim));
        let mut gradients = Gradients {
            q: buffer(tracked[0], sizes.units() * sizes.queries),
            k: buffer(tracked[1], sizes.key_units() * sizes.keys),
            v: buffer(tracked[2], sizes.key_units() * sizes.keys),
        };
        // All tiles of all units of a group add to the same keys.
        let (tiles, all) = (self.tiles(), sizes.group() * self.tiles());
        if sizes.units() == 0 || tiles == 0 {
            return gradients;
        }
        let segments = MIN_TASKS.div_ceil(sizes.key_units()).min(all);
        let of_queries = strides(sizes.heads, sizes.queries, sizes.head_dim);
        let of_keys = strides(sizes.key_heads, sizes.keys, sizes.head_dim);
        let pass = Backward {
            inputs: self,
            outputs,
            k: self.transposed(&self.k),
            v: tracked[..2].contains(&true).then(|| self.transposed(&self.v)),
            dq: gradients.q.as_mut().map(|dq| (Shared::new(dq), of_queries)),
        };
        let places = [&mut gradients.k, &mut gradients.v].map(|sum| sum.as_mut().map(|sum| Shared::new(sum)));
        let write = |key_unit: usize, sums: [Vec<T>; 2]| {
            for (place, sum) in places.into_iter().zip(sums) {
                if let Some(place) = place {
                    self.write_keys(&sum, place, (key_unit, of_keys));
                }
            }
        };
        // Each task sums dK and dV of its tiles; where a key unit has several tasks, their sums are added afterwards, in order.
        let task = |task: usize| {
            let (key_unit, segment) = (task / segments, task % segments);
            let zeros = |place: Option<_>| vec![T::zero(); place.map_or(0, |_| sizes.head_dim * padded(sizes.keys))];
            let mut sums = places.map(zeros);
            for tile in segment * all / segments..(segment + 1) * all / segments {
                let unit = key_unit * sizes.group() + tile / tiles;
                pass.tile(&self.tile(unit, tile % tiles), &mut sums);
            }
            if segments > 1 {
                return Some(sums);
            }
            write(key_unit, sums);
            None
        };
        let parts: Vec<Option<[Vec<T>; 2]>> = (0..sizes.key_units() * segments).into_par_iter().map(task).collect();
        let parts: Vec<[Vec<T>; 2]> = parts.into_iter().flatten().collect();
        for (key_unit, parts) in parts.chunks_exact(segments).enumerate() {
            let sum = |i: usize| add_all(parts.iter().map(|part| part[i].clone()).collect(), parts[0][i].len());
            write(key_unit, [sum(0), sum(1)]);
        }
        gradients
    }

    /// Writes a sum (K, S) of one key unit to its place in a gradient.
    fn write_keys(&self, sum: &[T], place: Shared<'_, T>, (key_unit, strides): (usize, Strides)) {
        let (head_dim, stride) = (self.sizes.head_dim, padded(self.sizes.keys));
        for key in 0..self.sizes.keys {
            #[expect(unsafe_code, reason = "each task writes its own keys")]
            // SAFETY: a key unit is written by one task, and its rows do not overlap.
            let row = unsafe { place.part(strides.at(key_unit, key), head_dim) };
            for (x, sum) in row.iter_mut().zip(sum.chunks_exact(stride)) {
                *x = sum[key];
            }
        }
    }
}

/// What the tiles of a backward pass share.
struct Backward<'a, T> {
    inputs: &'a Inputs<'a, T>,
    outputs: Outputs<'a, T>,
    k: Transposed<T>,
    /// None where neither dQ nor dK is wanted.
    v: Option<Transposed<T>>,
    dq: Option<(Shared<'a, T>, Strides)>,
}

impl<T: Float> Backward<'_, T> {
    /// Adds what a tile adds to the sums (K, S) of dK and dV, which are empty where they are not wanted.
    fn tile(&self, tile: &Tile, [dk, dv]: &mut [Vec<T>; 2]) {
        let (rows, len, inputs) = (&tile.rows, tile.len(), self.inputs);
        let head_dim = inputs.sizes.head_dim;
        let slopes = if inputs.scores.softcap.is_some() { len } else { 0 };
        T::with_scratch(2 * len + slopes + rows.len() * (head_dim + 1), |scratch| {
            let (e, rest) = scratch.split_at_mut(len);
            let (ds, rest) = rest.split_at_mut(len);
            let (slopes, rest) = rest.split_at_mut(slopes);
            let (reciprocals, dout) = rest.split_at_mut(rows.len());
            inputs.exponentials(tile, &self.k, e, reciprocals, slopes);
            // P is e over the sum of its row: dividing dO instead takes a pass over fewer numbers, for P^T dO and dO V^T alike.
            for (i, (dout, &reciprocal)) in dout.chunks_exact_mut(head_dim.max(1)).zip(&*reciprocals).enumerate() {
                dout.copy_from_slice(self.outputs.grad.row(tile.unit, rows.start + i, head_dim));
                scale(dout, reciprocal);
            }
            let dout = Matrix::rows(&*dout, head_dim);
            self.add_to_keys(tile, e, dout, dv);
            let Some(v) = &self.v else { return };
            self.score_gradients(tile, (dout, v), e, ds);
            multiply(slopes, ds);
            if let Some((place, strides)) = self.dq {
                let start = strides.at(tile.unit, rows.start);
                inputs.times_keys(tile, ds, &inputs.k, (place, start, strides.row));
            }
            self.add_to_keys(tile, ds, inputs.q.matrix(tile.unit, rows.start), dk);
        });
    }

    /// Adds the products of the columns of `lhs`, which has the rows of the tile, with those of the tile's matrix to the sum (K, S) of
    /// its keys, where it is wanted: this way round the columns of the matrix lie side by side.
    fn add_to_keys(&self, tile: &Tile, matrix: &[T], lhs: Matrix<'_, T>, sum: &mut [T]) {
        if sum.is_empty() {
            return;
        }
        let stride = padded(self.inputs.sizes.keys);
        for Piece { keys, start } in tile.columns.pieces() {
            let rhs = Matrix::rows(&matrix[*start..], tile.stride);
            let place = MatrixMut::rows(&mut sum[keys.start..], stride);
            let sizes = (self.inputs.sizes.head_dim, keys.len(), tile.rows.len());
            matmul(sizes, place, Accumulate::Add, lhs.t(), rhs, Threads::One);
        }
    }

    /// Writes the gradient of the scores of a tile with probabilities P: `P (dP - sum(P dP)) scale` with `dP = dO V^T`, where the sum
    /// of a row is that of `O dO`. With `e` and `dout`, dO over the sums of e, that is `e (dout V^T - sum(O dout)) scale`. The scale of
    /// capped scores is part of their slopes.
    fn score_gradients(&self, tile: &Tile, (dout, v): (Matrix<'_, T>, &Transposed<T>), e: &[T], ds: &mut [T]) {
        let (rows, len, inputs) = (&tile.rows, tile.columns.len(), self.inputs);
        let head_dim = inputs.sizes.head_dim;
        inputs.times_columns(tile, dout, v, ds);
        let factor = match inputs.scores.softcap {
            None => T::of(inputs.scores.scale),
            Some(_) => T::one(),
        };
        let matrices = e.chunks_exact(tile.stride).zip(ds.chunks_exact_mut(tile.stride));
        for (i, (e, ds)) in matrices.enumerate() {
            let products = self
                .outputs
                .out
                .row(tile.unit, rows.start + i, head_dim)
                .iter()
                .zip(dout.row_of(i, head_dim));
            let sum = products.fold(T::zero(), |sum, (&o, &g)| sum + o * g);
            score_slopes(&e[..len], &mut ds[..len], sum, factor);
        }
    }
}

wide! {
    /// `ds = e (ds - mean) factor`.
    fn score_slopes<T: Float>(e: &[T], ds: &mut [T], mean: T, factor: T) {
        for (&e, ds) in e.iter().zip(ds) {
            *ds = e * (*ds - mean) * factor;
        }
    }
}

wide! {
    fn multiply<T: Float>(factors: &[T], x: &mut [T]) {
        for (&factor, x) in factors.iter().zip(x) {
            *x *= factor;
        }
    }
}

/// Replaces products s by `cap tanh(scale s / cap)` and writes the slopes, unless their place is empty.
fn cap_scores<T: Float>(scores: &mut [T], slopes: &mut [T], scale: T, cap: T) {
    if slopes.is_empty() {
        capped(scores, scale, cap);
    } else {
        capped_with_slopes(scores, slopes, scale, cap);
    }
}

wide! {
    fn capped<T: Float>(scores: &mut [T], scale: T, cap: T) {
        let inner = scale / cap;
        for s in scores {
            *s = (*s * inner).fast_tanh() * cap;
        }
    }
}

wide! {
    fn capped_with_slopes<T: Float>(scores: &mut [T], slopes: &mut [T], scale: T, cap: T) {
        let inner = scale / cap;
        for (s, slope) in scores.iter_mut().zip(slopes) {
            let tanh = (*s * inner).fast_tanh();
            *s = tanh * cap;
            *slope = (T::one() - tanh * tanh) * scale;
        }
    }
}
