//! Where the heads of the operands lie in memory.

use std::ops::Range;

use candle_core::{Layout, Shape};

use super::AttentionMask;
use crate::ops::kernel::{Float, Matrix};

/// Where the heads are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// `(B, H, T, K)`.
    Split,
    /// `(B, T, H K)` with this many heads.
    Packed(usize),
}

/// Sizes of one call. A unit is one head of one image.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
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

    pub(super) fn units(&self) -> usize {
        self.batch * self.heads
    }

    /// Keys that some of these query rows see.
    pub(super) fn visible(&self, mask: AttentionMask, rows: &Range<usize>) -> usize {
        match mask {
            AttentionMask::None => self.keys,
            AttentionMask::Causal => self.keys.min(rows.end),
        }
    }
}

/// Distances between elements of an operand; the elements of one row of one head are adjacent.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    start: usize,
    batch: usize,
    head: usize,
    pub(super) row: usize,
}

impl Strides {
    pub(super) fn of(layout: &Layout, heads: Heads, sizes: &Sizes) -> Self {
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
                head: sizes.head_dim,
                row,
            },
            (_, strides) => unreachable!("the rank was checked: {strides:?}"),
        }
    }

    /// A contiguous `(B, H, rows, K)`.
    pub(super) fn split(sizes: &Sizes, rows: usize) -> Self {
        let head = rows * sizes.head_dim;
        Self {
            start: 0,
            batch: sizes.heads * head,
            head,
            row: sizes.head_dim,
        }
    }

    /// A contiguous `(B, rows, H, K)` or `(B, rows, H K)`.
    pub(super) fn packed(sizes: &Sizes, rows: usize) -> Self {
        let row = sizes.heads * sizes.head_dim;
        Self {
            start: 0,
            batch: rows * row,
            head: sizes.head_dim,
            row,
        }
    }

    /// First element of a row of a unit.
    pub(super) fn at(&self, sizes: &Sizes, unit: usize, row: usize) -> usize {
        self.start + unit / sizes.heads * self.batch + unit % sizes.heads * self.head + row * self.row
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
    pub(super) fn matrix(&self, sizes: &Sizes, unit: usize, row: usize) -> Matrix<'a, T> {
        Matrix::rows(&self.data[self.strides.at(sizes, unit, row)..], self.strides.row)
    }

    /// One row of a unit.
    pub(super) fn row(&self, sizes: &Sizes, unit: usize, row: usize) -> &'a [T] {
        &self.data[self.strides.at(sizes, unit, row)..][..sizes.head_dim]
    }
}
