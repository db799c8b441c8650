//! Matrix products over strided slices.

use std::marker::PhantomData;

use gemm::Parallelism;

use super::{Float, Shared, filled_rows};

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

    /// The first `len` elements of a row of a matrix whose columns are adjacent.
    pub(in crate::ops) fn row_of(&self, row: usize, len: usize) -> &'a [T] {
        &self.data[row * self.row..][..len]
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

/// Columns of a result that the gemm crate takes together, and twice as many of them.
const FEW_COLUMNS: usize = 48;
/// Columns of a result up to which the gemm crate brings the right side into order before it starts other threads.
const PACKED_COLUMNS: usize = 384;
/// Steps of a sum from which on it matters in which order the left side is read.
const FEW_STEPS: usize = 64;

/// `lhs * rhs` in a new buffer, with `lhs` (m, k) and `rhs` (k, n).
pub(in crate::ops) fn product<T: Float>(
    (m, n, k): (usize, usize, usize),
    lhs: Matrix<'_, T>,
    rhs: Matrix<'_, T>,
    threads: Threads,
) -> Vec<T> {
    let mut data = Vec::with_capacity(m * n);
    let place = MatrixMut {
        start: data.as_mut_ptr(),
        len: m * n,
        row: n,
        col: 1,
        buffer: PhantomData,
    };
    matmul((m, n, k), place, Accumulate::Replace, lhs, rhs, threads);
    #[expect(unsafe_code, reason = "a buffer that need not be zeroed")]
    // SAFETY: a product that replaces writes every element and reads none, as the tests show for every path of the gemm crate.
    unsafe {
        data.set_len(m * n);
    }
    data
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
/// Each element is summed over k in an order that depends on the sizes and the layouts only, and not on m and n where there are more than
/// 256 of them: fewer, of rows with rows, the gemm crate sums in lanes.
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
    let last = |rows: usize, cols: usize, row: usize, col: usize| (rows - 1) * row + (cols - 1) * col;
    assert!(
        last(m, n, dst.row, dst.col) < dst.len,
        "destination of a product out of range"
    );
    assert!(
        k == 0 || last(m, k, lhs.row, lhs.col) < lhs.data.len(),
        "left side of a product out of range"
    );
    assert!(
        k == 0 || last(k, n, rhs.row, rhs.col) < rhs.data.len(),
        "right side of a product out of range"
    );
    if n <= FEW_COLUMNS && m > FEW_COLUMNS && k >= FEW_STEPS && lhs.row == 1 && lhs.col > 1 {
        return turned((m, n), &dst, accumulate, &product((n, m, k), rhs.t(), lhs.t(), threads));
    }
    let copied;
    let rhs = if threads == Threads::All && n <= PACKED_COLUMNS && m > FEW_COLUMNS && rhs.row == 1 && rhs.col > 1 {
        copied = in_order(rhs, (k, n));
        Matrix::rows(&copied, n)
    } else {
        rhs
    };
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
            dst.start,
            dst.col as isize,
            dst.row as isize,
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

/// Writes or adds a product (n, m) that was computed the other way round: the gemm crate would read the left side row by row, four
/// numbers of each.
fn turned<T: Float>((m, n): (usize, usize), dst: &MatrixMut<'_, T>, accumulate: Accumulate, product: &[T]) {
    for i in 0..m {
        for j in 0..n {
            let x = product[j * m + i];
            #[expect(unsafe_code, reason = "an element of a destination given by strides")]
            // SAFETY: the caller asserts that the element is inside the destination, which is an exclusive borrow of it.
            unsafe {
                let place = dst.start.add(i * dst.row + j * dst.col);
                *place = if accumulate == Accumulate::Add { *place + x } else { x };
            }
        }
    }
}

/// A transposed right side (k, n) with its columns side by side: the gemm crate would bring so few of them into order on one thread.
fn in_order<T: Float>(rhs: Matrix<'_, T>, (k, n): (usize, usize)) -> Vec<T> {
    filled_rows(k * n, n, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(n).enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                *x = rhs.data[first + i + j * rhs.col];
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was at the place of a product does not matter, and products of all kinds of sizes and layouts are sums.
    #[test]
    fn a_product_that_replaces_reads_nothing_of_its_place() {
        let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let data: Vec<f32> = (0..200 * 200).map(number).collect();
        let mut checked = 0;
        for (m, n, k) in [
            (1, 1, 1),
            (1, 7, 5),
            (9, 1, 30),
            (3, 4, 0),
            (5, 6, 1),
            (6, 5, 2),
            (8, 8, 40),
            (17, 33, 20),
        ]
        .into_iter()
        .chain([
            (65, 130, 70),
            (130, 66, 9),
            (1, 150, 150),
            (150, 1, 150),
            (90, 40, 100),
            (90, 48, 64),
        ]) {
            for lhs in [Matrix::rows(&data, k.max(1)), Matrix::rows(&data, m).t()] {
                for rhs in [Matrix::rows(&data, n), Matrix::rows(&data, k.max(1)).t()] {
                    let mut found = vec![f32::NAN; m * n];
                    let place = MatrixMut::rows(&mut found, n);
                    matmul((m, n, k), place, Accumulate::Replace, lhs, rhs, Threads::One);
                    for (i, &found) in found.iter().enumerate() {
                        let terms = (0..k).map(|j| {
                            let a = lhs.data[i / n * lhs.row + j * lhs.col];
                            f64::from(a) * f64::from(rhs.data[j * rhs.row + i % n * rhs.col])
                        });
                        let expected: f64 = terms.sum();
                        assert!(
                            (f64::from(found) - expected).abs() < 1e-4,
                            "{m} {n} {k}: {found} {expected}"
                        );
                        checked += 1;
                    }
                    for threads in [Threads::One, Threads::All] {
                        assert_eq!(found, product((m, n, k), lhs, rhs, threads), "{m} {n} {k}");
                    }
                    let mut sum = vec![1.0; m * n];
                    matmul(
                        (m, n, k),
                        MatrixMut::rows(&mut sum, n),
                        Accumulate::Add,
                        lhs,
                        rhs,
                        Threads::All,
                    );
                    assert!(
                        sum.iter().zip(&found).all(|(sum, x)| (sum - (1.0 + x)).abs() < 1e-4),
                        "{m} {n} {k}"
                    );
                }
            }
        }
        assert!(checked > 80_000, "{checked}");
    }
}
