//! The linear maps of Winograd's F(4x4, 3x3), on lanes of sixteen channels.
//!
//! Toom-Cook with the points 0, +-1/sqrt 2, +-sqrt 2 and infinity, whose squares multiply to one: rounding errors are a third
//! to a fifth of those with the usual points 0, +-1, +-2 (points compared as in Barabasz et al., arXiv:1803.10986).
//! Every map is applied along one axis, then along the other.

use crate::ops::kernel::{Float, LANES, Lanes};

/// The points: `A^2 = 1/2`, `B = 2 A`, `B^2 = 2`.
const A: f64 = std::f64::consts::FRAC_1_SQRT_2;
const B: f64 = std::f64::consts::SQRT_2;
/// Factors of the weights at the points `+-A` and `+-B`: reciprocals of `2 A^2 (A^2 - B^2)` and `2 B^2 (B^2 - A^2)`.
const AT_A: f64 = -2.0 / 3.0;
const AT_B: f64 = 1.0 / 6.0;

/// `a b + c`, rounded once.
#[inline(always)]
fn fma<T: Float>(a: T, b: f64, c: T) -> T {
    num_traits::Float::mul_add(a, T::of(b), c)
}

/// Six input pixels to six points, `B^T d`.
#[inline(always)]
pub(super) fn input<T: Float>(d: [&Lanes<T>; 6]) -> [Lanes<T>; 6] {
    let mut out = [[T::zero(); LANES]; 6];
    for lane in 0..LANES {
        let [d0, d1, d2, d3, d4, d5] = d.map(|d| d[lane]);
        let (even_a, odd_a) = (fma(d2, -2.0, d4), fma(d1, -2.0, d3) * T::of(A));
        let (even_b, odd_b) = (fma(d2, -0.5, d4), fma(d1, -0.5, d3) * T::of(B));
        out[0][lane] = fma(d2, -2.5, d0 + d4);
        out[1][lane] = even_a + odd_a;
        out[2][lane] = even_a - odd_a;
        out[3][lane] = even_b + odd_b;
        out[4][lane] = even_b - odd_b;
        out[5][lane] = fma(d3, -2.5, d1 + d5);
    }
    out
}

/// Six points to four output pixels, `A^T m`.
#[inline(always)]
pub(super) fn output<T: Float>(m: [&Lanes<T>; 6]) -> [Lanes<T>; 4] {
    let mut out = [[T::zero(); LANES]; 4];
    for lane in 0..LANES {
        let [m0, m1, m2, m3, m4, m5] = m.map(|m| m[lane]);
        let (sum_a, difference_a) = (m1 + m2, (m1 - m2) * T::of(A));
        let (sum_b, difference_b) = (m3 + m4, (m3 - m4) * T::of(B));
        out[0][lane] = m0 + sum_a + sum_b;
        out[1][lane] = difference_a + difference_b;
        out[2][lane] = fma(sum_a, 0.5, sum_b * T::of(2.0));
        out[3][lane] = fma(difference_a, 0.5, fma(difference_b, 2.0, m5));
    }
    out
}

/// Four gradients of output pixels to six points: the transposed [`output`].
#[inline(always)]
pub(super) fn output_transposed<T: Float>(y: [&Lanes<T>; 4]) -> [Lanes<T>; 6] {
    let mut out = [[T::zero(); LANES]; 6];
    for lane in 0..LANES {
        let [y0, y1, y2, y3] = y.map(|y| y[lane]);
        let (even_a, odd_a) = (fma(y2, 0.5, y0), fma(y3, 0.5, y1) * T::of(A));
        let (even_b, odd_b) = (fma(y2, 2.0, y0), fma(y3, 2.0, y1) * T::of(B));
        out[0][lane] = y0;
        out[1][lane] = even_a + odd_a;
        out[2][lane] = even_a - odd_a;
        out[3][lane] = even_b + odd_b;
        out[4][lane] = even_b - odd_b;
        out[5][lane] = y3;
    }
    out
}

/// Three weights to six points, `G g`.
#[inline(always)]
pub(super) fn weight<T: Float>(w: [&Lanes<T>; 3]) -> [Lanes<T>; 6] {
    let mut out = [[T::zero(); LANES]; 6];
    for lane in 0..LANES {
        let [w0, w1, w2] = w.map(|w| w[lane]);
        let (even_a, odd_a) = (fma(w2, 0.5, w0) * T::of(AT_A), w1 * T::of(A * AT_A));
        let (even_b, odd_b) = (fma(w2, 2.0, w0) * T::of(AT_B), w1 * T::of(B * AT_B));
        out[0][lane] = w0;
        out[1][lane] = even_a + odd_a;
        out[2][lane] = even_a - odd_a;
        out[3][lane] = even_b + odd_b;
        out[4][lane] = even_b - odd_b;
        out[5][lane] = w2;
    }
    out
}

/// Six gradients at points to three weights: the transposed [`weight`].
#[inline(always)]
pub(super) fn weight_transposed<T: Float>(u: [&Lanes<T>; 6]) -> [Lanes<T>; 3] {
    let mut out = [[T::zero(); LANES]; 3];
    for lane in 0..LANES {
        let [u0, u1, u2, u3, u4, u5] = u.map(|u| u[lane]);
        let (sum_a, difference_a) = ((u1 + u2) * T::of(AT_A), (u1 - u2) * T::of(A * AT_A));
        let (sum_b, difference_b) = ((u3 + u4) * T::of(AT_B), (u3 - u4) * T::of(B * AT_B));
        out[0][lane] = u0 + sum_a + sum_b;
        out[1][lane] = difference_a + difference_b;
        out[2][lane] = fma(sum_a, 0.5, fma(sum_b, 2.0, u5));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes<const N: usize>(seed: f64) -> [Lanes<f64>; N] {
        std::array::from_fn(|i| std::array::from_fn(|lane| ((i * LANES + lane) as f64 * 0.37 + seed).sin()))
    }

    /// `A^T ((G g) (B^T d))` is the correlation of d with g.
    #[test]
    fn four_outputs_are_a_correlation() {
        let (d, g) = (lanes::<6>(0.1), lanes::<3>(0.7));
        let (v, u) = (input(d.each_ref()), weight(g.each_ref()));
        let m: [Lanes<f64>; 6] = std::array::from_fn(|k| std::array::from_fn(|lane| v[k][lane] * u[k][lane]));
        let y = output(m.each_ref());
        for (i, y) in y.iter().enumerate() {
            for (lane, &y) in y.iter().enumerate() {
                let expected: f64 = (0..3).map(|tap| d[i + tap][lane] * g[tap][lane]).sum();
                assert!((y - expected).abs() < 1e-14, "{i} {lane}: {y} {expected}");
            }
        }
    }

    /// `<A^T m, y> = <m, A y>`, and the same of G.
    #[test]
    fn transposed_maps_are_transposed() {
        let dot = |a: &[Lanes<f64>], b: &[Lanes<f64>]| -> f64 {
            a.as_flattened().iter().zip(b.as_flattened()).map(|(a, b)| a * b).sum()
        };
        let (m, y) = (lanes::<6>(0.2), lanes::<4>(0.9));
        let (forward, back) = (output(m.each_ref()), output_transposed(y.each_ref()));
        assert!((dot(&forward, &y) - dot(&m, &back)).abs() < 1e-13);
        let (u, g) = (lanes::<6>(0.3), lanes::<3>(0.5));
        let (forward, back) = (weight(g.each_ref()), weight_transposed(u.each_ref()));
        assert!((dot(&forward, &u) - dot(&g, &back)).abs() < 1e-13);
    }
}
