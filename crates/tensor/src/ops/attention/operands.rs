//! Where the heads of the operands lie in memory.

use candle_core::{Layout, Shape};

use super::kernel::padded;
use crate::ops::kernel::{Float, LANES, Matrix, filled_rows};

/// Where the heads are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// `(B, H, T, K)`.
    Split,
    /// `(B, T, H K)` for queries, `(B, S, G K)` for keys and values.
    Packed { queries: usize, keys: usize },
}

/// Sizes of one call. A unit is one head of the queries of one image, a key unit one head of its keys; the units
/// `key unit * group ..` of a group attend to one key unit.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    pub(super) key_heads: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) head_dim: usize,
}

impl Sizes {
    pub(super) fn of(q: &Shape, k: &Shape, heads: Heads) -> Self {
        match (heads, q.dims(), k.dims()) {
            (Heads::Split, &[batch, heads, queries, head_dim], &[_, _, keys, _]) => Self {
                batch,
                heads,
                key_heads: heads,
                queries,
                keys,
                head_dim,
            },
            (
                Heads::Packed {
                    queries: heads,
                    keys: key_heads,
                },
                &[batch, queries, width],
                &[_, keys, _],
            ) => Self {
                batch,
                heads,
                key_heads,
                queries,
                keys,
                head_dim: width / heads,
            },
            (_, q, _) => unreachable!("the rank was checked: {q:?}"),
        }
    }

    pub(super) fn units(&self) -> usize {
        self.batch * self.heads
    }

    pub(super) fn key_units(&self) -> usize {
        self.batch * self.key_heads
    }

    /// Units that share a key unit.
    pub(super) fn group(&self) -> usize {
        self.heads / self.key_heads
    }
}

/// Distances between elements of an operand; the elements of one row of one head are adjacent.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    heads: usize,
    start: usize,
    batch: usize,
    head: usize,
    pub(super) row: usize,
}

impl Strides {
    /// Of an operand with so many heads.
    pub(super) fn of(layout: &Layout, heads: usize, head_dim: usize) -> Self {
        let start = layout.start_offset();
        match layout.stride() {
            &[batch, head, row, _] => Self {
                heads,
                start,
                batch,
                head,
                row,
            },
            &[batch, row, _] => Self {
                heads,
                start,
                batch,
                head: head_dim,
                row,
            },
            strides => unreachable!("the rank was checked: {strides:?}"),
        }
    }

    /// A contiguous `(B, H, rows, K)`.
    pub(super) fn split(heads: usize, rows: usize, head_dim: usize) -> Self {
        Self {
            heads,
            start: 0,
            batch: heads * rows * head_dim,
            head: rows * head_dim,
            row: head_dim,
        }
    }

    /// A contiguous `(B, rows, H, K)` or `(B, rows, H K)`.
    pub(super) fn packed(heads: usize, rows: usize, head_dim: usize) -> Self {
        Self {
            heads,
            start: 0,
            batch: rows * heads * head_dim,
            head: head_dim,
            row: heads * head_dim,
        }
    }

    /// First element of a row of a unit.
    pub(super) fn at(&self, unit: usize, row: usize) -> usize {
        self.start + unit / self.heads * self.batch + unit % self.heads * self.head + row * self.row
    }
}

/// An operand.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub(super) data: &'a [T],
    pub(super) strides: Strides,
}

impl<'a, T: Float> Rows<'a, T> {
    /// The rows of a unit from `row` on.
    pub(super) fn matrix(&self, unit: usize, row: usize) -> Matrix<'a, T> {
        Matrix::rows(&self.data[self.strides.at(unit, row)..], self.strides.row)
    }

    /// One row of a unit.
    pub(super) fn row(&self, unit: usize, row: usize, head_dim: usize) -> &'a [T] {
        &self.data[self.strides.at(unit, row)..][..head_dim]
    }
}

impl<T: Float> Rows<'_, T> {
    /// Columns of keys or values, of so many key units and keys.
    pub(super) fn transposed(&self, key_units: usize, keys: usize, head_dim: usize) -> Transposed<T> {
        let stride = padded(keys);
        let unit_len = head_dim * stride;
        let data = filled_rows(key_units * unit_len, unit_len, |first, units| {
            for (i, unit) in units.chunks_exact_mut(unit_len).enumerate() {
                for start in (0..keys).step_by(LANES) {
                    let len = LANES.min(keys - start);
                    let rows: [&[T]; LANES] =
                        std::array::from_fn(|key| self.row(first + i, start + key.min(len - 1), head_dim));
                    for (d, column) in unit.chunks_exact_mut(stride).enumerate() {
                        for (x, row) in column[start..start + len].iter_mut().zip(&rows) {
                            *x = row[d];
                        }
                    }
                }
            }
        });
        Transposed { data, stride, unit_len }
    }
}

/// Keys or values as matrices (K, S), one a key unit: their rows are the columns of products, and are needed side by side there.
pub(super) struct Transposed<T> {
    data: Vec<T>,
    stride: usize,
    unit_len: usize,
}

impl<T: Float> Transposed<T> {
    /// The columns of a key unit from `key` on.
    pub(super) fn matrix(&self, key_unit: usize, key: usize) -> Matrix<'_, T> {
        Matrix::rows(&self.data[key_unit * self.unit_len + key..], self.stride)
    }
}
