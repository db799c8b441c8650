//! Matrix products over strided slices.

use std::marker::PhantomData;

use gemm::Parallelism;

use super::{Float, Shared};

/// A matrix in a slice: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Matrix<'a, T> {
    data: &'a [T],
    row: usize,
    col: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows are `row` elements apart, columns are adjacent.
    pub(in crate::ops) fn rows(data: &'a [T], row: usize) -> Self {
        Self { data, row, col: 1 }
    }

    /// The transposed matrix.
    pub(in crate::ops) fn t(self) -> Self {
        Self {
            data: self.data,
            row: self.col,
            col: self.row,
        }
    }
}

/// The place of a product: element (i, j) is `row * i + col * j` after the start.
pub(in crate::ops) struct MatrixMut<'a, T> {
    start: *mut T,
    len: usize,
    row: usize,
    col: usize,
    buffer: PhantomData<&'a mut [T]>,
}

impl<'a, T> MatrixMut<'a, T> {
    /// Rows are `row` elements apart, columns are adjacent.
    pub(in crate::ops) fn rows(data: &'a mut [T], row: usize) -> Self {
        Self {
            start: data.as_mut_ptr(),
            len: data.len(),
            row,
            col: 1,
            buffer: PhantomData,
        }
    }

    /// A block of a buffer that other threads write beside it: rows `row` apart from element `start` on.
    ///
    /// # Safety
    /// While the block lives, no other thread uses the elements of the block that a product writes.
    #[expect(unsafe_code, reason = "disjoint blocks of one matrix on several threads")]
    pub(in crate::ops) unsafe fn block(shared: Shared<'a, T>, start: usize, row: usize) -> Self {
        let (start, len) = shared.from(start);
        Self {
            start,
            len,
            row,
            col: 1,
            buffer: PhantomData,
        }
    }
}

/// Whether a product replaces the destination or is added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Accumulate {
    Replace,
    Add,
}

/// Threads of one product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Threads {
    /// The calling one: for products inside parallel tasks.
    One,
    /// Those of rayon's current pool.
    All,
}

/// `dst = lhs * rhs` or `dst += lhs * rhs`, with `lhs` (m, k) and `rhs` (k, n).
///
/// Each element is summed over k in an order that depends on the sizes only.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the place is an exclusive borrow, and ends with the product"
)]
pub(in crate::ops) fn matmul<T: Float>(
    (m, n, k): (usize, usize, usize),
    dst: MatrixMut<'_, T>,
    accumulate: Accumulate,
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    threads: Threads,
) {
    if m == 0 || n == 0 {
        return;
    }
    let MatrixMut {
        start,
        len,
        row,
        col,
        buffer: _,
    } = dst;
    let last = |rows: usize, cols: usize, row: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(last(m, n, row, col) < len, "destination of a product out of range");
    assert!(
        k == 0 || last(m, k, lhs.row, lhs.col) < lhs.data.len(),
        "left side of a product out of range"
    );
    assert!(
        k == 0 || last(k, n, rhs.row, rhs.col) < rhs.data.len(),
        "right side of a product out of range"
    );
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => match rayon::current_num_threads() {
            1 => Parallelism::None,
            threads => Parallelism::Rayon(threads),
        },
    };
    #[expect(unsafe_code, reason = "the gemm crate takes pointers")]
    // SAFETY: all elements addressed are inside the three buffers by the assertions above; `dst` is an exclusive borrow
    // of the elements written (see `MatrixMut`), so it overlaps neither side. T is f32 or f64, which gemm supports.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            start,
            col as isize,
            row as isize,
            accumulate == Accumulate::Add,
            lhs.data.as_ptr(),
            lhs.col as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.col as isize,
            rhs.row as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}
