//! The two element types of the kernels.

use std::cell::Cell;

use candle_core::WithDType;
use half::slice::HalfFloatSliceExt;

use super::lanes::{Lanes, Steps};

/// f32 or f64.
///
/// The functions of f32 are polynomials without branches, so that loops over them become vector code; those of f64 are
/// the exact ones of the standard library.
pub(in crate::ops) trait Float: WithDType + num_traits::Float {
    /// Nearest value of this type.
    fn of(value: f64) -> Self;
    /// The same value in f64.
    fn double(self) -> f64;
    /// `e^self`; zero below about -87 in f32.
    fn fast_exp(self) -> Self;
    /// The same for an exponent of at most zero, where it is cheaper.
    fn fast_exp_negative(self) -> Self;
    /// The error function.
    fn fast_erf(self) -> Self;
    /// The hyperbolic tangent.
    fn fast_tanh(self) -> Self;
    /// Writes numbers of half precision in this type; both slices have one length.
    fn widen(from: &(impl HalfFloatSliceExt + ?Sized), to: &mut [Self]);
    /// Runs `f` on a buffer of this thread, whose content is undefined but initialized.
    ///
    /// The buffer is taken out of its place while it is used: a task that is stolen while this one waits gets its own.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
    /// Runs `f` on `len` numbers that `fill` writes in f32, in a buffer of this thread.
    fn with_singles<R>(len: usize, fill: impl FnOnce(&mut [f32]), f: impl FnOnce(&[Self]) -> R) -> R;
    /// The products of [`lane_products`](super::lane_products) with instructions of this processor, if there are any for this
    /// type; otherwise nothing is done and the answer is `false`.
    fn lane_products<const R: usize>(a: &[Self], at: Steps, b: &[Lanes<Self>], out: &mut [Lanes<Self>; R]) -> bool;

    /// `1 / (1 + e^-self)`.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let one = Self::one();
        one / (one + (-self).fast_exp())
    }

    /// The larger one; a comparison and a choice, which vectorize.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

/// `e^x 2^(bias - 127)` for `x <= 89`: `e^x = 2^n e^r`. Where n + bias is zero, about `x < -87`, the result is zero.
#[inline(always)]
fn exp_parts(x: f32, bias: u32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let lowest = -(bias as f32) * std::f32::consts::LN_2;
    let x = if x < lowest { lowest } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut p = 1.987_569_1e-4_f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    e * f32::from_bits(shifted.to_bits().wrapping_add(bias) << 23)
}

macro_rules! scratch {
    ($t:ty) => {
        fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
            thread_local! {
                static SCRATCH: Cell<Vec<$t>> = const { Cell::new(Vec::new()) };
            }
            let mut buffer = SCRATCH.take();
            if buffer.len() < len {
                buffer.clear();
                buffer.resize(len, 0.0);
            }
            let result = f(&mut buffer[..len]);
            SCRATCH.set(buffer);
            result
        }
    };
}

impl Float for f32 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn double(self) -> f64 {
        f64::from(self)
    }

    /// Cephes `expf`: `e^x = 2^n e^r` with `|r| <= ln 2 / 2`. Relative error below 2e-7.
    #[inline(always)]
    fn fast_exp(self) -> Self {
        let x = if self > 89.0 { 89.0 } else { self };
        // Half of it, twice: n may be 128, and a factor of 2^128 does not exist.
        exp_parts(x, 126) * 2.0
    }

    #[inline(always)]
    fn fast_exp_negative(self) -> Self {
        exp_parts(self, 127)
    }

    /// Rational minimax approximation (Eigen, XLA), clamped where f32 rounds to one. Error below 3 units in the last place.
    #[inline(always)]
    #[expect(clippy::excessive_precision, reason = "coefficients as published")]
    fn fast_erf(self) -> Self {
        const LIMIT: f32 = 3.832_506_856_900_711;
        let x = if self > LIMIT { LIMIT } else { self };
        let x = if x < -LIMIT { -LIMIT } else { x };
        let s = x * x;
        let mut p = 0.000_229_050_658_613_506_46_f32;
        p = p.mul_add(s, 0.003_408_291_010_710_950_6);
        p = p.mul_add(s, 0.050_955_695_062_380_861);
        p = p.mul_add(s, 0.185_208_322_399_761_45);
        p = p.mul_add(s, 1.128_379_143_519_084);
        let mut q = -1.179_160_295_436_169_7e-7_f32;
        q = q.mul_add(s, 0.000_023_547_966_471_313_185);
        q = q.mul_add(s, 0.001_017_962_527_891_488_5);
        q = q.mul_add(s, 0.014_070_470_171_167_667);
        q = q.mul_add(s, 0.110_985_051_782_853_62);
        q = q.mul_add(s, 0.497_469_251_100_675_38);
        q = q.mul_add(s, 1.0);
        // One unit beyond one would be a visible error of x (1 + erf) at a large negative x.
        let y = x * p / q;
        let y = if y > 1.0 { 1.0 } else { y };
        if y < -1.0 { -1.0 } else { y }
    }

    /// Rational minimax approximation (Eigen), clamped where f32 rounds to one. Error below 4 units in the last place.
    #[inline(always)]
    #[expect(clippy::excessive_precision, reason = "coefficients as published")]
    fn fast_tanh(self) -> Self {
        const LIMIT: f32 = 7.998_811_7;
        let x = if self > LIMIT { LIMIT } else { self };
        let x = if x < -LIMIT { -LIMIT } else { x };
        let s = x * x;
        let mut p = -2.760_768_477_423_55e-16_f32;
        p = p.mul_add(s, 2.000_187_904_824_77e-13);
        p = p.mul_add(s, -8.604_671_522_137_35e-11);
        p = p.mul_add(s, 5.122_297_090_371_14e-8);
        p = p.mul_add(s, 1.485_722_357_179_79e-5);
        p = p.mul_add(s, 6.372_619_288_754_36e-4);
        p = p.mul_add(s, 4.893_524_558_917_86e-3);
        let mut q = 1.198_258_394_667_02e-6_f32;
        q = q.mul_add(s, 1.185_347_056_866_54e-4);
        q = q.mul_add(s, 2.268_434_632_439e-3);
        q = q.mul_add(s, 4.893_525_185_543_85e-3);
        // A slope 1 - y^2 must not be negative.
        let y = x * p / q;
        let y = if y > 1.0 { 1.0 } else { y };
        if y < -1.0 { -1.0 } else { y }
    }

    fn widen(from: &(impl HalfFloatSliceExt + ?Sized), to: &mut [Self]) {
        from.convert_to_f32_slice(to);
    }

    fn with_singles<R>(len: usize, fill: impl FnOnce(&mut [f32]), f: impl FnOnce(&[Self]) -> R) -> R {
        Self::with_scratch(len, |buffer| {
            fill(buffer);
            f(buffer)
        })
    }

    #[cfg(target_arch = "x86_64")]
    fn lane_products<const R: usize>(a: &[Self], at: Steps, b: &[Lanes<Self>], out: &mut [Lanes<Self>; R]) -> bool {
        super::lanes::avx2_products(a, at, b, out)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn lane_products<const R: usize>(_: &[Self], _: Steps, _: &[Lanes<Self>], _: &mut [Lanes<Self>; R]) -> bool {
        false
    }

    scratch!(f32);
}

impl Float for f64 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn double(self) -> f64 {
        self
    }

    #[inline(always)]
    fn fast_exp(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn fast_exp_negative(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn fast_erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }

    #[inline(always)]
    fn fast_tanh(self) -> Self {
        self.tanh()
    }

    fn widen(from: &(impl HalfFloatSliceExt + ?Sized), to: &mut [Self]) {
        from.convert_to_f64_slice(to);
    }

    fn with_singles<R>(len: usize, fill: impl FnOnce(&mut [f32]), f: impl FnOnce(&[Self]) -> R) -> R {
        f32::with_singles(len, fill, |singles| {
            Self::with_scratch(len, |buffer| {
                for (wide, &single) in buffer.iter_mut().zip(singles) {
                    *wide = f64::from(single);
                }
                f(buffer)
            })
        })
    }

    fn lane_products<const R: usize>(_: &[Self], _: Steps, _: &[Lanes<Self>], _: &mut [Lanes<Self>; R]) -> bool {
        false
    }

    scratch!(f64);
}

/// Evaluates the expression with `$t` standing for the element type; other types are an error of candle.
macro_rules! on_float {
    ($dtype:expr, $op:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err(candle_core::Error::UnsupportedDTypeForOp(other, $op)),
        }
    };
}

pub(in crate::ops) use on_float;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_of_f32_is_exact_to_two_units() {
        let mut checked = 0;
        for i in -860_000..885_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let found = f64::from(x.fast_exp());
            assert!((found - exact).abs() <= 2e-7 * exact, "exp({x}) = {found}, not {exact}");
            checked += 1;
        }
        assert_eq!(checked, 1_745_000);
        assert_eq!(0f32.fast_exp(), 1.0);
        assert_eq!((-100f32).fast_exp(), 0.0);
        assert_eq!(f32::NEG_INFINITY.fast_exp(), 0.0);
        assert_eq!(100f32.fast_exp(), f32::INFINITY);
        assert!(f32::NAN.fast_exp().is_nan());
        for i in -860_000..1 {
            let x = i as f32 * 1e-4;
            assert_eq!(x.fast_exp_negative(), x.fast_exp());
        }
        for x in [-88f32, -100.0, -1e9, f32::NEG_INFINITY] {
            assert_eq!((x.fast_exp(), x.fast_exp_negative()), (0.0, 0.0));
        }
        assert!(f32::NAN.fast_exp_negative().is_nan());
    }

    #[test]
    fn error_function_of_f32_is_exact_to_a_few_units() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).fast_erf();
            let found = f64::from(x.fast_erf());
            assert!(
                (found - exact).abs() <= 4e-7 * exact.abs(),
                "erf({x}) = {found}, not {exact}"
            );
        }
        assert_eq!(100f32.fast_erf(), 1.0);
        assert!(f32::NAN.fast_erf().is_nan());
    }

    #[test]
    fn hyperbolic_tangent_of_f32_is_exact_to_a_few_units() {
        for i in -100_000..100_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).tanh();
            let found = f64::from(x.fast_tanh());
            assert!(
                (found - exact).abs() <= 4e-7 * exact.abs(),
                "tanh({x}) = {found}, not {exact}"
            );
        }
        assert_eq!((100f32.fast_tanh(), f32::NEG_INFINITY.fast_tanh()), (1.0, -1.0));
        assert!(f32::NAN.fast_tanh().is_nan());
    }

    #[test]
    fn scratch_can_be_used_inside_scratch() {
        let total = f32::with_scratch(4, |outer| {
            outer.fill(1.0);
            f32::with_scratch(8, |inner| inner.fill(2.0));
            outer.iter().sum::<f32>()
        });
        assert_eq!(total, 4.0);
    }
}
