//! Sums with a fixed order.

use rayon::prelude::*;

use super::{Float, wide};

/// Partial sums of a row, so that loops over it become vector code.
const LANES: usize = 16;
/// Elements summed in the type itself before they are added in f64.
const BLOCK: usize = 2048;
/// Rows summed into one partial result.
const ROWS: usize = 64;

wide! {
    /// Sum, in f64 over blocks.
    pub(in crate::ops) fn sum<T: Float>(x: &[T]) -> f64 {
        let mut total = 0.0;
        for block in x.chunks(BLOCK) {
            let (whole, rest) = block.as_chunks::<LANES>();
            let mut sums = [T::zero(); LANES];
            for x in whole {
                for (sum, &x) in sums.iter_mut().zip(x) {
                    *sum += x;
                }
            }
            let rest = rest.iter().fold(T::zero(), |sum, &x| sum + x);
            total += sums.iter().fold(rest, |sum, &x| sum + x).double();
        }
        total
    }
}

wide! {
    /// Sum of squared differences to `center`, in f64 over blocks.
    pub(in crate::ops) fn sum_squares<T: Float>(x: &[T], center: T) -> f64 {
        let mut total = 0.0;
        for block in x.chunks(BLOCK) {
            let (whole, rest) = block.as_chunks::<LANES>();
            let mut sums = [T::zero(); LANES];
            for x in whole {
                for (sum, &x) in sums.iter_mut().zip(x) {
                    *sum += (x - center) * (x - center);
                }
            }
            let rest = rest.iter().fold(T::zero(), |sum, &x| sum + (x - center) * (x - center));
            total += sums.iter().fold(rest, |sum, &x| sum + x).double();
        }
        total
    }
}

wide! {
    /// Sum of `a (b - center)`, in f64 over blocks.
    pub(in crate::ops) fn dot_centered<T: Float>(a: &[T], b: &[T], center: T) -> f64 {
        let mut total = 0.0;
        for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
            let ((a_whole, a_rest), (b_whole, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
            let mut sums = [T::zero(); LANES];
            for (a, b) in a_whole.iter().zip(b_whole) {
                for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
                    *sum += a * (b - center);
                }
            }
            let rest = a_rest.iter().zip(b_rest).fold(T::zero(), |sum, (&a, &b)| sum + a * (b - center));
            total += sums.iter().fold(rest, |sum, &x| sum + x).double();
        }
        total
    }
}

wide! {
    fn add<T: Float>(x: &[T], sum: &mut [T]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

/// Sum over the rows of a contiguous matrix with `width` columns.
pub(in crate::ops) fn sum_rows<T: Float>(x: &[T], width: usize) -> Vec<T> {
    if width == 0 {
        return Vec::new();
    }
    let partial = |rows: &[T]| {
        let mut sums = vec![T::zero(); width];
        rows.chunks_exact(width).for_each(|row| add(row, &mut sums));
        sums
    };
    add_all(x.par_chunks(ROWS * width).map(partial).collect(), width)
}

/// Sum of partial results, in their order.
pub(in crate::ops) fn add_all<T: Float>(partials: Vec<Vec<T>>, width: usize) -> Vec<T> {
    let mut partials = partials.into_iter();
    let mut total = partials.next().unwrap_or_else(|| vec![T::zero(); width]);
    partials.for_each(|partial| add(&partial, &mut total));
    total
}
