//! Softmax and its logarithm over the last dimension, and the logarithm of the logistic sigmoid.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result as CandleResult, Shape, Tensor};

use super::kernel::{
    Float, Operand, Path, filled, filled_rows, from_parts, gradient, on_float, output, path, shape_error, sum, wide,
};
use crate::Result;

/// Softmax over the last dimension. Entries of minus infinity get probability zero.
///
/// # Shape
/// `(..., D)` to the same.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for a scalar.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 0 {
        return Err(shape_error("softmax", "shape of x", x.dims(), "at least one dimension"));
    }
    match path("softmax", &[x])? {
        Path::Fused => Ok(x.contiguous()?.apply_op1(Softmax)?),
        Path::Widened(dtype) => Ok(softmax(&x.to_dtype(DType::F32)?)?.to_dtype(dtype)?),
        Path::Composed => softmax_composed(x),
    }
}

/// [`softmax`] in candle's primitives.
///
/// # Errors
/// Those of candle.
pub fn softmax_composed(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let max = x.detach().max_keepdim(D::Minus1)?;
    let exp = x.broadcast_sub(&max)?.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

/// Logarithm of [`softmax`], finite where a probability rounds to zero.
///
/// # Shape
/// `(..., D)` to the same.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for a scalar.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    if x.rank() == 0 {
        return Err(shape_error(
            "log_softmax",
            "shape of x",
            x.dims(),
            "at least one dimension",
        ));
    }
    match path("log_softmax", &[x])? {
        Path::Fused => Ok(x.contiguous()?.apply_op1(LogSoftmax)?),
        Path::Widened(dtype) => Ok(log_softmax(&x.to_dtype(DType::F32)?)?.to_dtype(dtype)?),
        Path::Composed => log_softmax_composed(x),
    }
}

/// [`log_softmax`] in candle's primitives.
///
/// # Errors
/// Those of candle.
pub fn log_softmax_composed(x: &Tensor) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let centered = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    Ok(centered.broadcast_sub(&centered.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        on_float!(storage.dtype(), "softmax", T => {
            let x = from_parts::<T>(storage, layout)?;
            let y = filled_rows(x.len(), width, |first, rows| {
                rows.copy_from_slice(&x[first * width..first * width + rows.len()]);
                for row in rows.chunks_exact_mut(width) {
                    let sum = exponentials(row, 1.0);
                    scale(row, 1.0 / sum);
                }
            });
            Ok(output::<T>(y, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let width = x.dim(D::Minus1)?;
        let grad = grad.contiguous()?;
        let (y_operand, grad_operand) = (Operand::of(y), Operand::of(&grad));
        on_float!(x.dtype(), "softmax", T => {
            let (y, dy) = (y_operand.slice::<T>()?, grad_operand.slice::<T>()?);
            let dx = filled_rows(dy.len(), width, |first, rows| {
                for (i, dx) in rows.chunks_exact_mut(width).enumerate() {
                    let row = (first + i) * width..(first + i + 1) * width;
                    softmax_slopes(&y[row.clone()], &dy[row], dx);
                }
            });
            gradient::<T>(Some(dx), x)
        })
    }
}

struct LogSoftmax;

impl CustomOp1 for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let width = layout.dims().last().copied().unwrap_or(1);
        on_float!(storage.dtype(), "log_softmax", T => {
            let x = from_parts::<T>(storage, layout)?;
            let y = filled_rows(x.len(), width, |first, rows| {
                let x = x[first * width..].chunks_exact(width);
                for (x, y) in x.zip(rows.chunks_exact_mut(width)) {
                    let max = largest(x);
                    let log_sum = sum_exponentials(x, max).ln();
                    for (&x, y) in x.iter().zip(y) {
                        *y = x - max - log_sum;
                    }
                }
            });
            Ok(output::<T>(y, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let width = x.dim(D::Minus1)?;
        let grad = grad.contiguous()?;
        let (y_operand, grad_operand) = (Operand::of(y), Operand::of(&grad));
        on_float!(x.dtype(), "log_softmax", T => {
            let (y, dy) = (y_operand.slice::<T>()?, grad_operand.slice::<T>()?);
            let dx = filled_rows(dy.len(), width, |first, rows| {
                for (i, dx) in rows.chunks_exact_mut(width).enumerate() {
                    let row = (first + i) * width..(first + i + 1) * width;
                    let dy = &dy[row.clone()];
                    log_softmax_slopes(&y[row], dy, dx, sum(dy) as T);
                }
            });
            gradient::<T>(Some(dx), x)
        })
    }
}

wide! {
    fn log_softmax_slopes<T: Float>(y: &[T], dy: &[T], dx: &mut [T], total: T) {
        for ((&y, &dy), dx) in y.iter().zip(dy).zip(dx) {
            *dx = dy - y.fast_exp_negative() * total;
        }
    }
}

/// Partial sums or maxima of a row, so that loops over it become vector code with one fixed order.
const LANES: usize = 16;

wide! {
    /// The largest element, minus infinity without one.
    pub(super) fn largest<T: Float>(row: &[T]) -> T {
        let mut max = [T::neg_infinity(); LANES];
        let (whole, rest) = row.as_chunks::<LANES>();
        for x in whole {
            for (max, &x) in max.iter_mut().zip(x) {
                *max = x.larger(*max);
            }
        }
        rest.iter().chain(&max).fold(T::neg_infinity(), |max, &x| x.larger(max))
    }
}

wide! {
    /// Sum of `e^(x - max)`.
    fn sum_exponentials<T: Float>(row: &[T], max: T) -> T {
        let mut sums = [T::zero(); LANES];
        let (whole, rest) = row.as_chunks::<LANES>();
        for x in whole {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum += (x - max).fast_exp_negative();
            }
        }
        let sum = rest.iter().fold(T::zero(), |sum, &x| sum + (x - max).fast_exp_negative());
        sums.iter().fold(sum, |sum, &x| sum + x)
    }
}

wide! {
    /// Replaces `row` by `e^(scale (x - max))` and returns the sum.
    pub(super) fn exponentials<T: Float>(row: &mut [T], scale: T) -> T {
        let mut max = [T::neg_infinity(); LANES];
        let (whole, rest) = row.as_chunks::<LANES>();
        for x in whole {
            for (max, &x) in max.iter_mut().zip(x) {
                *max = x.larger(*max);
            }
        }
        let max = rest.iter().chain(&max).fold(T::neg_infinity(), |max, &x| x.larger(max));
        let mut sums = [T::zero(); LANES];
        let (whole, rest) = row.as_chunks_mut::<LANES>();
        for x in whole {
            for (sum, x) in sums.iter_mut().zip(x) {
                *x = (scale * (*x - max)).fast_exp_negative();
                *sum += *x;
            }
        }
        let mut sum = T::zero();
        for x in rest {
            *x = (scale * (*x - max)).fast_exp_negative();
            sum += *x;
        }
        sums.iter().fold(sum, |sum, &x| sum + x)
    }
}

wide! {
    pub(super) fn scale<T: Float>(row: &mut [T], factor: T) {
        for x in row {
            *x *= factor;
        }
    }
}

wide! {
    fn softmax_slopes<T: Float>(y: &[T], dy: &[T], dx: &mut [T]) {
        let mut dots = [T::zero(); LANES];
        let ((y_whole, y_rest), (dy_whole, dy_rest)) = (y.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        for (y, dy) in y_whole.iter().zip(dy_whole) {
            for ((dot, &y), &dy) in dots.iter_mut().zip(y).zip(dy) {
                *dot += y * dy;
            }
        }
        let dot = y_rest.iter().zip(dy_rest).fold(T::zero(), |dot, (&y, &dy)| dot + y * dy);
        let dot = dots.iter().fold(dot, |dot, &x| dot + x);
        for ((&y, &dy), dx) in y.iter().zip(dy).zip(dx) {
            *dx = y * (dy - dot);
        }
    }
}

/// `log(1 / (1 + e^-x))`, finite for every finite `x`; the derivative is `s(-x)`, one half at zero.
///
/// Any shape.
///
/// # Errors
/// Those of candle.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    match path("log_sigmoid", &[x])? {
        Path::Fused => Ok(x.contiguous()?.apply_op1(LogSigmoid)?),
        Path::Widened(dtype) => Ok(log_sigmoid(&x.to_dtype(DType::F32)?)?.to_dtype(dtype)?),
        Path::Composed => log_sigmoid_composed(x),
    }
}

/// [`log_sigmoid`] in candle's primitives: `-(m + log(e^-m + e^(-x - m)))` with `m = max(-x, 0)` detached, so that no
/// corner of an absolute value is differentiated.
///
/// # Errors
/// Those of candle.
pub fn log_sigmoid_composed(x: &Tensor) -> Result<Tensor> {
    let m = x.detach().neg()?.relu()?;
    let terms = (m.neg()?.exp()? + (x.neg()? - &m)?.exp()?)?;
    Ok((m + terms.log()?)?.neg()?)
}

struct LogSigmoid;

impl CustomOp1 for LogSigmoid {
    fn name(&self) -> &'static str {
        "log_sigmoid"
    }

    // The standard library's functions, not the fast ones: losses are few numbers, and the tail matters.
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(storage.dtype(), "log_sigmoid", T => {
            let x = from_parts::<T>(storage, layout)?;
            let y = filled(x.len(), |start, y| {
                for (&x, y) in x[start..].iter().zip(y) {
                    *y = x.min(0.0) - (-x.abs()).exp().ln_1p();
                }
            });
            Ok(output::<T>(y, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let (x_operand, grad_operand) = (Operand::of(x), Operand::of(&grad));
        on_float!(x.dtype(), "log_sigmoid", T => {
            let (x_values, dy) = (x_operand.slice::<T>()?, grad_operand.slice::<T>()?);
            let dx = filled(dy.len(), |start, dx| {
                for ((&x, &dy), dx) in x_values[start..].iter().zip(&dy[start..]).zip(dx) {
                    *dx = dy / (1.0 + x.exp());
                }
            });
            gradient::<T>(Some(dx), x)
        })
    }
}
