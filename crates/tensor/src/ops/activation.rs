//! Elementwise activations: SiLU, three forms of GELU, and the gated GELU of transformer feed-forward layers.
//!
//! ```text
//! silu(x)       = x s(x)                                            Elfwing et al., arXiv:1702.03118
//! gelu(x)       = x Phi(x) = x (1 + erf(x / sqrt 2)) / 2            Hendrycks & Gimpel, arXiv:1606.08415
//! gelu_tanh(x)  = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
//! quick_gelu(x) = x s(1.702 x)                                      the CLIP networks
//! geglu(h, g)   = h gelu(g)                                         Shazeer, arXiv:2002.05202
//! ```
//!
//! `s` is the logistic sigmoid.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result as CandleResult, Shape, Tensor};

use super::kernel::{
    Float, Operand, Path, filled, filled_rows, from_parts, gradient, on_float, output, path, shape_error, wide,
};
use crate::Result;

/// An activation: its value and its derivative at a point.
pub(super) trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    fn value<T: Float>(x: T) -> T;
    fn slope<T: Float>(x: T) -> T;
}

pub(super) struct Silu;
struct Gelu;
pub(super) struct GeluTanh;
struct QuickGelu;

const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;
const QUICK: f64 = 1.702;

impl Activation for Silu {
    const NAME: &'static str = "silu";

    #[inline(always)]
    fn value<T: Float>(x: T) -> T {
        x * x.sigmoid()
    }

    #[inline(always)]
    fn slope<T: Float>(x: T) -> T {
        let s = x.sigmoid();
        s * (T::one() + x * (T::one() - s))
    }
}

impl Activation for Gelu {
    const NAME: &'static str = "gelu";

    #[inline(always)]
    fn value<T: Float>(x: T) -> T {
        T::of(0.5) * x * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).fast_erf())
    }

    #[inline(always)]
    fn slope<T: Float>(x: T) -> T {
        let cdf = T::of(0.5) * (T::one() + (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).fast_erf());
        let density = (T::of(-0.5) * x * x).fast_exp_negative() * T::of(SQRT_2_OVER_PI * 0.5);
        cdf + x * density
    }
}

impl Activation for GeluTanh {
    const NAME: &'static str = "gelu_tanh";

    // (1 + tanh u) / 2 = s(2u).
    #[inline(always)]
    fn value<T: Float>(x: T) -> T {
        let u2 = T::of(2.0 * SQRT_2_OVER_PI) * x * (T::one() + T::of(CUBIC) * x * x);
        x * u2.sigmoid()
    }

    #[inline(always)]
    fn slope<T: Float>(x: T) -> T {
        let u2 = T::of(2.0 * SQRT_2_OVER_PI) * x * (T::one() + T::of(CUBIC) * x * x);
        let slope_u2 = T::of(2.0 * SQRT_2_OVER_PI) * (T::one() + T::of(3.0 * CUBIC) * x * x);
        let s = u2.sigmoid();
        s + x * s * (T::one() - s) * slope_u2
    }
}

impl Activation for QuickGelu {
    const NAME: &'static str = "quick_gelu";

    #[inline(always)]
    fn value<T: Float>(x: T) -> T {
        x * (T::of(QUICK) * x).sigmoid()
    }

    #[inline(always)]
    fn slope<T: Float>(x: T) -> T {
        let s = (T::of(QUICK) * x).sigmoid();
        s + T::of(QUICK) * x * s * (T::one() - s)
    }
}

/// SiLU, also called swish. Any shape.
///
/// # Errors
/// Those of candle.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    elementwise::<Silu>(x, silu_composed)
}

/// [`silu`] in candle's primitives.
///
/// # Errors
/// Those of candle.
pub fn silu_composed(x: &Tensor) -> Result<Tensor> {
    times_sigmoid(x, x)
}

/// GELU with the error function: the default of PyTorch. Any shape.
///
/// # Errors
/// Those of candle.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    elementwise::<Gelu>(x, gelu_composed)
}

/// [`gelu`] in candle's primitives (the derivative of candle's own `gelu_erf` is exact to seven digits only).
///
/// # Errors
/// Those of candle.
pub fn gelu_composed(x: &Tensor) -> Result<Tensor> {
    let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
    Ok((x * 0.5)?.mul(&(erf + 1.0)?)?)
}

/// GELU with the tanh approximation (`gelu_pytorch_tanh`). Any shape.
///
/// # Errors
/// Those of candle.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    elementwise::<GeluTanh>(x, gelu_tanh_composed)
}

/// [`gelu_tanh`] in candle's primitives (candle's own `gelu` has truncated constants in its derivative).
///
/// # Errors
/// Those of candle.
pub fn gelu_tanh_composed(x: &Tensor) -> Result<Tensor> {
    let inner = ((x.sqr()? * CUBIC)? + 1.0)?.mul(x)?;
    let tanh = (inner * SQRT_2_OVER_PI)?.tanh()?;
    Ok((x * 0.5)?.mul(&(tanh + 1.0)?)?)
}

/// GELU with a sigmoid, as in the CLIP networks. Any shape.
///
/// # Errors
/// Those of candle.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    elementwise::<QuickGelu>(x, quick_gelu_composed)
}

/// [`quick_gelu`] in candle's primitives.
///
/// # Errors
/// Those of candle.
pub fn quick_gelu_composed(x: &Tensor) -> Result<Tensor> {
    times_sigmoid(x, &(x * QUICK)?)
}

/// Gated GELU in the order of diffusers: `hidden, gate = x.chunk(2, -1)`, result `hidden * gelu(gate)`.
///
/// # Shape
/// `(..., 2D)` to `(..., D)`.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) when the last dimension is odd or missing.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    halved(x)?;
    match path("geglu", &[x])? {
        Path::Fused => Ok(x.contiguous()?.apply_op1(Geglu)?),
        Path::Widened(dtype) => Ok(geglu(&x.to_dtype(DType::F32)?)?.to_dtype(dtype)?),
        Path::Composed => geglu_composed(x),
    }
}

/// [`geglu`] in candle's primitives.
///
/// # Errors
/// As [`geglu`].
pub fn geglu_composed(x: &Tensor) -> Result<Tensor> {
    let width = halved(x)?;
    let hidden = x.narrow(D::Minus1, 0, width)?;
    let gate = x.narrow(D::Minus1, width, width)?.contiguous()?;
    Ok(hidden.mul(&gelu_composed(&gate)?)?)
}

fn halved(x: &Tensor) -> Result<usize> {
    match x.dims().last() {
        Some(&last) if last % 2 == 0 => Ok(last / 2),
        _ => Err(shape_error("geglu", "shape of x", x.dims(), "an even last dimension")),
    }
}

/// `x * sigmoid(z)`; where `e^-z` overflows the sigmoid is zero with a zero derivative, not NaN.
fn times_sigmoid(x: &Tensor, z: &Tensor) -> Result<Tensor> {
    // s(z) = (1 + tanh(z / 2)) / 2: finite everywhere, in both directions.
    let sigmoid = (((z * 0.5)?.tanh()? + 1.0)? * 0.5)?;
    Ok(x.mul(&sigmoid)?)
}

fn elementwise<A: Activation>(x: &Tensor, composed: fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match path(A::NAME, &[x])? {
        Path::Fused => Ok(x.contiguous()?.apply_op1(Elementwise::<A>(PhantomData))?),
        Path::Widened(dtype) => Ok(elementwise::<A>(&x.to_dtype(DType::F32)?, composed)?.to_dtype(dtype)?),
        Path::Composed => composed(x),
    }
}

struct Elementwise<A>(PhantomData<A>);

impl<A: Activation> CustomOp1 for Elementwise<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(storage.dtype(), A::NAME, T => {
            let x = from_parts::<T>(storage, layout)?;
            let y = filled(x.len(), |start, y| values::<T, A>(&x[start..start + y.len()], y));
            Ok(output::<T>(y, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let (x_operand, grad_operand) = (Operand::of(x), Operand::of(&grad));
        on_float!(x.dtype(), A::NAME, T => {
            let (x_values, dy) = (x_operand.slice::<T>()?, grad_operand.slice::<T>()?);
            let dx = filled(dy.len(), |start, dx| {
                let piece = start..start + dx.len();
                slopes::<T, A>(&x_values[piece.clone()], &dy[piece], dx);
            });
            gradient::<T>(Some(dx), x)
        })
    }
}

wide! {
    fn values<T: Float, A: Activation>(x: &[T], y: &mut [T]) {
        for (&x, y) in x.iter().zip(y) {
            *y = A::value(x);
        }
    }
}

wide! {
    fn slopes<T: Float, A: Activation>(x: &[T], dy: &[T], dx: &mut [T]) {
        for ((&x, &dy), dx) in x.iter().zip(dy).zip(dx) {
            *dx = dy * A::slope(x);
        }
    }
}

struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let mut dims = layout.dims().to_vec();
        let width = dims.pop().unwrap_or(0) / 2;
        dims.push(width);
        on_float!(storage.dtype(), "geglu", T => {
            let x = from_parts::<T>(storage, layout)?;
            let y = filled_rows(x.len() / 2, width, |first, rows| {
                for (i, y) in rows.chunks_exact_mut(width).enumerate() {
                    gated(&x[(first + i) * 2 * width..][..2 * width], y);
                }
            });
            Ok(output::<T>(y, dims))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let width = grad.dim(D::Minus1)?;
        let grad = grad.contiguous()?;
        let (x_operand, grad_operand) = (Operand::of(x), Operand::of(&grad));
        on_float!(x.dtype(), "geglu", T => {
            let (x_values, dy) = (x_operand.slice::<T>()?, grad_operand.slice::<T>()?);
            let dx = filled_rows(x_values.len(), 2 * width, |first, rows| {
                for (i, dx) in rows.chunks_exact_mut(2 * width).enumerate() {
                    let row = first + i;
                    gated_slopes(&x_values[row * 2 * width..][..2 * width], &dy[row * width..][..width], dx);
                }
            });
            gradient::<T>(Some(dx), x)
        })
    }
}

wide! {
    fn gated<T: Float>(x: &[T], y: &mut [T]) {
        let (hidden, gate) = x.split_at(y.len());
        for ((&h, &g), y) in hidden.iter().zip(gate).zip(y) {
            *y = h * Gelu::value(g);
        }
    }
}

wide! {
    fn gated_slopes<T: Float>(x: &[T], dy: &[T], dx: &mut [T]) {
        let (hidden, gate) = x.split_at(dy.len());
        let (d_hidden, d_gate) = dx.split_at_mut(dy.len());
        let operands = hidden.iter().zip(gate).zip(dy);
        for (((&h, &g), &dy), (d_hidden, d_gate)) in operands.zip(d_hidden.iter_mut().zip(d_gate)) {
            *d_hidden = dy * Gelu::value(g);
            *d_gate = dy * h * Gelu::slope(g);
        }
    }
}
