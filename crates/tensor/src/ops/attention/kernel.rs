//! The fused attention. A unit is one head of one image; a tile is some of its query rows.

use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use super::{AttentionConfig, AttentionMask, OP};
use crate::ops::kernel::{
    Accumulate, Float, Matrix, MatrixMut, Operand, Shared, Threads, add_all, matmul, on_float, output, wide,
};
use crate::ops::softmax::{exponentials, scale};

/// Scores of one tile in bytes, about.
const TILE_BYTES: usize = 1 << 20;
/// Tasks of a backward pass below which the rows of a head are shared between tasks.
const MIN_TASKS: usize = 8;

/// Where the heads are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// `(B, H, T, K)`.
    Split,
    /// `(B, T, H K)` with this many heads.
    Packed(usize),
}

pub(super) struct Attention {
    pub(super) config: AttentionConfig,
    pub(super) heads: Heads,
}

/// Distances between elements of an operand; the elements of a head's row are adjacent.
#[derive(Clone, Copy)]
struct Strides {
    start: usize,
    batch: usize,
    head: usize,
    row: usize,
}

impl Strides {
    fn of(layout: &Layout, heads: Heads, head_dim: usize) -> Self {
        let start = layout.start_offset();
        match (heads, layout.stride()) {
            (Heads::Split, &[batch, head, row, _]) => Self {
                start,
                batch,
                head,
                row,
            },
            (Heads::Packed(_), &[batch, row, _]) => Self {
                start,
                batch,
                head: head_dim,
                row,
            },
            (_, strides) => unreachable!("the rank was checked: {strides:?}"),
        }
    }

    fn at(&self, sizes: &Sizes, unit: usize) -> usize {
        self.start + unit / sizes.heads * self.batch + unit % sizes.heads * self.head
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    head_dim: usize,
}

impl Sizes {
    fn of(q: &Shape, k: &Shape, heads: Heads) -> Self {
        match (heads, q.dims(), k.dims()) {
            (Heads::Split, &[batch, heads, queries, head_dim], &[_, _, keys, _]) => Self {
                batch,
                heads,
                queries,
                keys,
                head_dim,
            },
            (Heads::Packed(heads), &[batch, queries, width], &[_, keys, _]) => Self {
                batch,
                heads,
                queries,
                keys,
                head_dim: width / heads,
            },
            (_, q, _) => unreachable!("the rank was checked: {q:?}"),
        }
    }

    fn units(&self) -> usize {
        self.batch * self.heads
    }

    /// Query rows of a tile.
    fn tile<T>(&self) -> usize {
        (TILE_BYTES / size_of::<T>() / self.keys).clamp(16, 256)
    }

    fn tiles<T>(&self) -> usize {
        self.queries.div_ceil(self.tile::<T>())
    }

    fn rows<T>(&self, tile: usize) -> Range<usize> {
        tile * self.tile::<T>()..((tile + 1) * self.tile::<T>()).min(self.queries)
    }

    /// Strides of a contiguous tensor of `rows` rows per head, heads first.
    fn split(&self, rows: usize) -> Strides {
        let head = rows * self.head_dim;
        Strides {
            start: 0,
            batch: self.heads * head,
            head,
            row: self.head_dim,
        }
    }

    /// Strides of a contiguous tensor of `rows` rows, each with all heads.
    fn packed(&self, rows: usize) -> Strides {
        let row = self.heads * self.head_dim;
        Strides {
            start: 0,
            batch: rows * row,
            head: self.head_dim,
            row,
        }
    }
}

/// The operands of one call.
struct Inputs<'a, T> {
    sizes: Sizes,
    config: AttentionConfig,
    q: (&'a [T], Strides),
    k: (&'a [T], Strides),
    v: (&'a [T], Strides),
}

impl<T: Float> Inputs<'_, T> {
    fn matrix<'a>(&self, (data, strides): (&'a [T], Strides), unit: usize, row: usize) -> Matrix<'a, T> {
        Matrix::rows(&data[strides.at(&self.sizes, unit) + row * strides.row..], strides.row)
    }

    /// Keys that some of these rows see.
    fn visible(&self, rows: &Range<usize>) -> usize {
        match self.config.mask {
            AttentionMask::None => self.sizes.keys,
            AttentionMask::Causal => self.sizes.keys.min(rows.end),
        }
    }

    /// Writes `e^(scale (score - max))` of the rows, `keys` columns, and the reciprocal of each row's sum.
    fn exponentials(&self, unit: usize, rows: &Range<usize>, keys: usize, scores: &mut [T], reciprocals: &mut [T]) {
        let (q, k) = (self.matrix(self.q, unit, rows.start), self.matrix(self.k, unit, 0).t());
        let place = MatrixMut::rows(scores, keys);
        matmul(
            (rows.len(), keys, self.sizes.head_dim),
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

    fn forward(&self) -> Vec<T> {
        let Sizes {
            head_dim,
            queries,
            keys,
            ..
        } = self.sizes;
        let mut out = vec![T::zero(); self.sizes.units() * queries * head_dim];
        let strides = self.sizes.packed(queries);
        let (tile, tiles) = (self.sizes.tile::<T>(), self.sizes.tiles::<T>());
        let place = Shared::new(&mut out);
        (0..self.sizes.units() * tiles).into_par_iter().for_each(|task| {
            let (unit, rows) = (task / tiles, self.sizes.rows::<T>(task % tiles));
            let keys = self.visible(&rows).min(keys);
            T::with_scratch(tile * (keys + 1), |scratch| {
                let (reciprocals, scores) = scratch.split_at_mut(tile);
                let scores = &mut scores[..rows.len() * keys];
                self.exponentials(unit, &rows, keys, scores, reciprocals);
                let start = strides.at(&self.sizes, unit) + rows.start * strides.row;
                let (p, v) = (Matrix::rows(scores, keys), self.matrix(self.v, unit, 0));
                #[expect(unsafe_code, reason = "each task writes its own rows")]
                // SAFETY: tasks differ in the unit or in the rows.
                let block = unsafe { MatrixMut::block(place, start, strides.row) };
                matmul(
                    (rows.len(), head_dim, keys),
                    block,
                    Accumulate::Replace,
                    p,
                    v,
                    Threads::One,
                );
                for (i, &reciprocal) in reciprocals[..rows.len()].iter().enumerate() {
                    #[expect(unsafe_code, reason = "each task writes its own rows")]
                    // SAFETY: as above; the block is no longer used.
                    scale(unsafe { place.part(start + i * strides.row, head_dim) }, reciprocal);
                }
            });
        });
        out
    }

    /// Gradients of q, k and v, each only where `tracked`.
    fn backward(
        &self,
        out: (&[T], Strides),
        grad: (&[T], Strides),
        tracked: [bool; 3],
        split: bool,
    ) -> [Option<Vec<T>>; 3] {
        let Sizes {
            head_dim,
            queries,
            keys,
            ..
        } = self.sizes;
        let units = self.sizes.units();
        let strides = |rows: usize| {
            if split {
                self.sizes.split(rows)
            } else {
                self.sizes.packed(rows)
            }
        };
        let zeros = |tracked: bool, rows: usize| tracked.then(|| vec![T::zero(); units * rows * head_dim]);
        let [mut dq, mut dk, mut dv] = [
            zeros(tracked[0], queries),
            zeros(tracked[1], keys),
            zeros(tracked[2], keys),
        ];
        let tiles = self.sizes.tiles::<T>();
        if units == 0 || tiles == 0 {
            return [dq, dk, dv];
        }
        let segments = MIN_TASKS.div_ceil(units).min(tiles);
        let dq_place = dq.as_mut().map(|dq| Shared::new(dq));
        // Each task sums dK and dV of its tiles; a head's tasks are added afterwards, in order.
        let partials: Vec<(Vec<T>, Vec<T>)> = (0..units * segments)
            .into_par_iter()
            .map(|task| {
                let (unit, segment) = (task / segments, task % segments);
                let partial = |tracked: bool| vec![T::zero(); if tracked { keys * head_dim } else { 0 }];
                let mut sums = (partial(tracked[1]), partial(tracked[2]));
                for tile in segment * tiles / segments..(segment + 1) * tiles / segments {
                    let rows = self.sizes.rows::<T>(tile);
                    let dq = dq_place.map(|place| (place, strides(queries)));
                    self.backward_tile(unit, rows, (out, grad), dq, &mut sums);
                }
                sums
            })
            .collect();
        let mut partials = partials.into_iter();
        let strides = strides(keys);
        for unit in 0..units {
            let (dk_parts, dv_parts): (Vec<_>, Vec<_>) = partials.by_ref().take(segments).unzip();
            for (whole, parts) in [(&mut dk, dk_parts), (&mut dv, dv_parts)] {
                let Some(whole) = whole else { continue };
                let sum = add_all(parts, keys * head_dim);
                for (row, sum) in sum.chunks_exact(head_dim.max(1)).enumerate() {
                    let start = strides.at(&self.sizes, unit) + row * strides.row;
                    whole[start..start + head_dim].copy_from_slice(sum);
                }
            }
        }
        [dq, dk, dv]
    }

    fn backward_tile(
        &self,
        unit: usize,
        rows: Range<usize>,
        (out, grad): ((&[T], Strides), (&[T], Strides)),
        dq: Option<(Shared<'_, T>, Strides)>,
        (dk, dv): &mut (Vec<T>, Vec<T>),
    ) {
        let head_dim = self.sizes.head_dim;
        let keys = self.visible(&rows);
        let len = rows.len() * keys;
        T::with_scratch(2 * len + rows.len(), |scratch| {
            let (p, rest) = scratch.split_at_mut(len);
            let (ds, reciprocals) = rest.split_at_mut(len);
            self.exponentials(unit, &rows, keys, p, reciprocals);
            for (row, &reciprocal) in p.chunks_exact_mut(keys).zip(&*reciprocals) {
                scale(row, reciprocal);
            }
            let dout = self.matrix(grad, unit, rows.start);
            if !dv.is_empty() {
                let place = MatrixMut::rows(dv, head_dim);
                let p = Matrix::rows(p, keys).t();
                matmul(
                    (keys, head_dim, rows.len()),
                    place,
                    Accumulate::Add,
                    p,
                    dout,
                    Threads::One,
                );
            }
            if dq.is_none() && dk.is_empty() {
                return;
            }
            let v = self.matrix(self.v, unit, 0).t();
            matmul(
                (rows.len(), keys, head_dim),
                MatrixMut::rows(ds, keys),
                Accumulate::Replace,
                dout,
                v,
                Threads::One,
            );
            let factor = T::of(self.config.scale);
            for (i, (p, ds)) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
                let row = |(data, strides): (&[T], Strides)| {
                    let start = strides.at(&self.sizes, unit) + (rows.start + i) * strides.row;
                    start..start + head_dim.min(data.len())
                };
                let products = out.0[row(out)].iter().zip(&grad.0[row(grad)]);
                let mean = products.fold(T::zero(), |sum, (&o, &g)| sum + o * g);
                score_slopes(p, ds, mean, factor);
            }
            if let Some((place, strides)) = dq {
                let start = strides.at(&self.sizes, unit) + rows.start * strides.row;
                #[expect(unsafe_code, reason = "each task writes its own rows")]
                // SAFETY: tiles differ in the unit or in the rows.
                let block = unsafe { MatrixMut::block(place, start, strides.row) };
                let (ds, k) = (Matrix::rows(ds, keys), self.matrix(self.k, unit, 0));
                matmul(
                    (rows.len(), head_dim, keys),
                    block,
                    Accumulate::Replace,
                    ds,
                    k,
                    Threads::One,
                );
            }
            if !dk.is_empty() {
                let (ds, q) = (Matrix::rows(ds, keys).t(), self.matrix(self.q, unit, rows.start));
                let place = MatrixMut::rows(dk, head_dim);
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
}

wide! {
    /// `ds = p (dp - mean) factor`, where `mean` is the row's sum of `p dp`.
    fn score_slopes<T: Float>(p: &[T], ds: &mut [T], mean: T, factor: T) {
        for (&p, ds) in p.iter().zip(ds) {
            *ds = p * (*ds - mean) * factor;
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let sizes = Sizes::of(q_layout.shape(), k_layout.shape(), self.heads);
        let shape = match self.heads {
            Heads::Split => Shape::from((sizes.batch, sizes.queries, sizes.heads, sizes.head_dim)),
            Heads::Packed(_) => q_layout.shape().clone(),
        };
        on_float!(q.dtype(), OP, T => {
            let strides = |layout: &Layout| Strides::of(layout, self.heads, sizes.head_dim);
            let inputs = Inputs {
                sizes,
                config: self.config,
                q: (candle_core::WithDType::cpu_storage_as_slice(q)?, strides(q_layout)),
                k: (candle_core::WithDType::cpu_storage_as_slice(k)?, strides(k_layout)),
                v: (candle_core::WithDType::cpu_storage_as_slice(v)?, strides(v_layout)),
            };
            Ok(output::<T>(inputs.forward(), shape))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(q.shape(), k.shape(), self.heads);
        let grad = grad.contiguous()?;
        let [q_operand, k_operand, v_operand, out_operand, grad_operand] = [q, k, v, out, &grad].map(Operand::of);
        on_float!(q.dtype(), OP, T => {
            let strides = |operand: &Operand<'_>| Strides::of(operand.layout(), self.heads, sizes.head_dim);
            let inputs = Inputs::<T> {
                sizes,
                config: self.config,
                q: (q_operand.storage()?, strides(&q_operand)),
                k: (k_operand.storage()?, strides(&k_operand)),
                v: (v_operand.storage()?, strides(&v_operand)),
            };
            // The result and its gradient are (B, T, H, K) or (B, T, H K): the same elements.
            let rows = sizes.packed(sizes.queries);
            let tracked = [q.track_op(), k.track_op(), v.track_op()];
            let (out, grad) = ((out_operand.slice()?, rows), (grad_operand.slice()?, rows));
            let [dq, dk, dv] = inputs.backward(out, grad, tracked, self.heads == Heads::Split);
            let tensor = |data: Option<Vec<T>>, like: &Tensor| {
                data.map(|data| Tensor::from_vec(data, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
        })
    }
}
