//! Small products of matrices whose columns are lanes: sixteen adjacent numbers.

use super::Float;

/// Numbers that a vector loop takes together.
pub(in crate::ops) const LANES: usize = 16;

/// One row of a block.
pub(in crate::ops) type Lanes<T> = [T; LANES];

/// Where the sides of a product lie: element (row, s) of block b is `a[b * block + s * step + row * row]`, its lanes are
/// `b[b * lanes + s]`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Steps {
    /// Distance of two rows.
    pub(in crate::ops) row: usize,
    /// Distance of two steps of a block.
    pub(in crate::ops) step: usize,
    /// Steps of a block.
    pub(in crate::ops) len: usize,
    /// Distance of two blocks on the left.
    pub(in crate::ops) block: usize,
    /// Distance of two blocks on the right, in lanes.
    pub(in crate::ops) lanes: usize,
    /// Blocks.
    pub(in crate::ops) blocks: usize,
}

/// `out[row] = sum over steps of a(row, step) b[step]`: at most six rows, the steps of all blocks in order.
///
/// Each number is summed by fused multiplications and additions in the order of the steps, on every processor.
pub(in crate::ops) fn lane_products<T: Float>(a: &[T], at: Steps, b: &[Lanes<T>], out: &mut [Lanes<T>]) {
    let rows = out.len();
    if at.len * at.blocks == 0 || rows == 0 {
        out.fill([T::zero(); LANES]);
        return;
    }
    let last = (at.blocks - 1) * at.lanes + at.len - 1;
    assert!(last < b.len(), "right side of a product out of range");
    let last = (at.blocks - 1) * at.block + (at.len - 1) * at.step + (rows - 1) * at.row;
    assert!(last < a.len(), "left side of a product out of range");
    match out.len() {
        1 => rows_of::<T, 1>(a, at, b, out),
        2 => rows_of::<T, 2>(a, at, b, out),
        3 => rows_of::<T, 3>(a, at, b, out),
        4 => rows_of::<T, 4>(a, at, b, out),
        5 => rows_of::<T, 5>(a, at, b, out),
        6 => rows_of::<T, 6>(a, at, b, out),
        rows => panic!("a block of lanes has at most six rows, not {rows}"),
    }
}

fn rows_of<T: Float, const R: usize>(a: &[T], at: Steps, b: &[Lanes<T>], out: &mut [Lanes<T>]) {
    let Some(out) = out.first_chunk_mut::<R>() else {
        return;
    };
    if !T::lane_products(a, at, b, out) {
        portable(a, at, b, out);
    }
}

/// The same without instructions of one processor.
fn portable<T: Float, const R: usize>(a: &[T], at: Steps, b: &[Lanes<T>], out: &mut [Lanes<T>; R]) {
    *out = [[T::zero(); LANES]; R];
    for block in 0..at.blocks {
        for step in 0..at.len {
            let b = &b[block * at.lanes + step];
            for (row, out) in out.iter_mut().enumerate() {
                let a = a[block * at.block + step * at.step + row * at.row];
                for (out, &b) in out.iter_mut().zip(b) {
                    *out = num_traits::Float::mul_add(a, b, *out);
                }
            }
        }
    }
}

/// With vectors of eight numbers, if the processor has them; otherwise nothing is done and the answer is `false`.
#[cfg(target_arch = "x86_64")]
pub(super) fn avx2_products<const R: usize>(a: &[f32], at: Steps, b: &[Lanes<f32>], out: &mut [Lanes<f32>; R]) -> bool {
    use std::arch::x86_64::{
        __m256, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };

    /// # Safety
    /// The elements that `at` addresses are in `a` and `b`.
    #[expect(unsafe_code, reason = "reads whose range was asserted once for all of them")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run<const R: usize>(a: *const f32, at: Steps, b: *const Lanes<f32>, out: &mut [Lanes<f32>; R]) {
        let mut sums: [[__m256; 2]; R] = [[_mm256_setzero_ps(); 2]; R];
        for block in 0..at.blocks {
            let mut a = a.wrapping_add(block * at.block);
            let mut b = b.wrapping_add(block * at.lanes).cast::<f32>();
            for _ in 0..at.len {
                // SAFETY: the caller's promise.
                unsafe {
                    let (low, high) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_broadcast_ss(&*a.add(row * at.row));
                        sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
                        sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
                    }
                }
                a = a.wrapping_add(at.step);
                b = b.wrapping_add(LANES);
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            // SAFETY: sixteen numbers are written to sixteen places.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
            }
        }
    }

    let found = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
    if found {
        #[expect(unsafe_code, reason = "a function compiled for a CPU feature")]
        // SAFETY: both features were just detected; `lane_products` asserts the ranges.
        unsafe {
            run(a.as_ptr(), at, b.as_ptr(), out);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks, steps and rows against the sum written out, and both kernels against each other bit by bit.
    #[test]
    fn products_are_sums_over_steps() {
        let at = Steps {
            row: 5,
            step: 2,
            len: 3,
            block: 40,
            lanes: 4,
            blocks: 4,
        };
        let a: Vec<f32> = (0..200).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<Lanes<f32>> = (0..15)
            .map(|i| std::array::from_fn(|lane| ((i * 16 + lane) as f32 * 0.3).cos()))
            .collect();
        for rows in 1..=6 {
            let mut out = vec![[f32::NAN; LANES]; rows];
            lane_products(&a, at, &b, &mut out);
            for (row, out) in out.iter().enumerate() {
                for (lane, &found) in out.iter().enumerate() {
                    let terms = (0..12).map(|i| {
                        let a = a[i / 3 * 40 + i % 3 * 2 + row * 5];
                        f64::from(a) * f64::from(b[i / 3 * 4 + i % 3][lane])
                    });
                    let expected: f64 = terms.sum();
                    assert!((f64::from(found) - expected).abs() < 1e-5, "{rows} {row} {lane}");
                }
            }
        }
        let (mut fast, mut slow) = ([[0.0; LANES]; 5], [[0.0; LANES]; 5]);
        lane_products(&a, at, &b, &mut fast);
        portable(&a, at, &b, &mut slow);
        assert_eq!(fast, slow);
    }
}
