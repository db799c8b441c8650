//! Sums with a fixed order.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{Float, LANES, Operand, wide};
use crate::Result;

/// Elements summed in the type itself before they are added in f64.
pub(in crate::ops) const BLOCK: usize = 2048;
/// Rows summed into one partial result.
const ROWS: usize = 64;

/// Sum of the terms that `f` makes of elements of both rows, in f64 over blocks: for the bodies of vector loops.
#[inline(always)]
pub(in crate::ops) fn sum_terms<T: Float>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> f64 {
    let mut total = 0.0;
    for (x, y) in x.chunks(BLOCK).zip(y.chunks(BLOCK)) {
        let ((x_whole, x_rest), (y_whole, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
        let mut sums = [T::zero(); LANES];
        for (x, y) in x_whole.iter().zip(y_whole) {
            for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
                *sum += f(x, y);
            }
        }
        let rest = x_rest.iter().zip(y_rest).fold(T::zero(), |sum, (&x, &y)| sum + f(x, y));
        total += (folded(sums) + rest).double();
    }
    total
}

/// Both sums of the terms that `f` makes of elements of three rows, in f64 over blocks: for the bodies of vector loops.
#[inline(always)]
pub(in crate::ops) fn sum_pairs<T: Float>(x: &[T], y: &[T], z: &[T], f: impl Fn(T, T, T) -> (T, T)) -> (f64, f64) {
    let mut totals = (0.0, 0.0);
    for ((x, y), z) in x.chunks(BLOCK).zip(y.chunks(BLOCK)).zip(z.chunks(BLOCK)) {
        let (mut sums, mut others) = ([T::zero(); LANES], [T::zero(); LANES]);
        let (x, x_rest) = x.as_chunks::<LANES>();
        let (y, y_rest) = y.as_chunks::<LANES>();
        let (z, z_rest) = z.as_chunks::<LANES>();
        for ((x, y), z) in x.iter().zip(y).zip(z) {
            for i in 0..LANES {
                let (term, other) = f(x[i], y[i], z[i]);
                sums[i] += term;
                others[i] += other;
            }
        }
        let (mut rest, mut other_rest) = (T::zero(), T::zero());
        for ((&x, &y), &z) in x_rest.iter().zip(y_rest).zip(z_rest) {
            let (term, other) = f(x, y, z);
            rest += term;
            other_rest += other;
        }
        totals.0 += (folded(sums) + rest).double();
        totals.1 += (folded(others) + other_rest).double();
    }
    totals
}

/// Sum of partial sums, halves of them added to halves.
#[inline(always)]
pub(in crate::ops) fn folded<T: Float>(mut sums: [T; LANES]) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

wide! {
    /// Sum, in f64 over blocks.
    pub(in crate::ops) fn sum<T: Float>(x: &[T]) -> f64 {
        sum_terms(x, x, |x, _| x)
    }
}

wide! {
    /// Adds a row to a sum.
    pub(in crate::ops) fn add<T: Float>(x: &[T], sum: &mut [T]) {
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

wide! {
    fn squares<T: Float>(x: &[T]) -> f64 {
        sum_terms(x, x, |x, y| x * y)
    }
}

/// Sum of the squares of all elements, in f64 over blocks on the CPU; elsewhere as the device sums.
///
/// # Errors
/// When the device fails.
pub(crate) fn sum_of_squares(x: &Tensor) -> Result<f64> {
    const PIECE: usize = 1 << 16;
    fn pieces<T: Float>(x: &Tensor) -> Result<f64> {
        let operand = Operand::of(x);
        let sums: Vec<f64> = operand.slice::<T>()?.par_chunks(PIECE).map(squares).collect();
        Ok(sums.into_iter().sum())
    }
    let x = match x.dtype() {
        DType::F64 | DType::F32 => x.detach(),
        _ => x.detach().to_dtype(DType::F32)?,
    };
    match (x.dtype(), x.device().is_cpu()) {
        (DType::F64, true) => pieces::<f64>(&x.contiguous()?),
        (_, true) => pieces::<f32>(&x.contiguous()?),
        _ => Ok(x
            .sqr()?
            .sum_all()?
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F64)?
            .to_scalar()?),
    }
}

/// Sum of partial results, in their order.
pub(in crate::ops) fn add_all<T: Float>(partials: Vec<Vec<T>>, width: usize) -> Vec<T> {
    let mut partials = partials.into_iter();
    let mut total = partials.next().unwrap_or_else(|| vec![T::zero(); width]);
    partials.for_each(|partial| add(&partial, &mut total));
    total
}
