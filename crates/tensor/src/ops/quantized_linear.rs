//! Affine maps of the last dimension whose weight is kept in few bits: of frozen layers under an adapter.
//!
//! The weight never exists as a whole in another form. A task of the forward pass dequantizes some of its rows, a task of the backward
//! pass some of its columns, into a buffer of its thread, and multiplies there in the precision of the input (f32 for halves).
//! N rows of the input, I its width, O that of the result.

mod format;
mod int8;
mod nf4;
mod scales;

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

pub use self::format::{Nf4Config, Quantization, QuantizedMatrix};
use super::kernel::{
    Accumulate, Float, Matrix, MatrixMut, Operand, Path, Shared, Threads, from_parts, matmul, on_float, output, path,
    shape_error, sum_rows,
};
use super::linear::linear_composed;
use crate::{Error, Result};

const OP: &str = "quantized_linear";

/// Tasks that a product is cut into, where its weight is large enough. The number of threads has no part in it.
const TASKS: usize = 8;

/// Numbers of a dequantized tile: 512 KiB of f32, so that it stays in the cache of a core.
const TILE: usize = 128 * 1024;

/// `x weight^T + bias`.
///
/// The weight is frozen; gradients are those of `x`, and of the bias where it is tracked. The graph keeps no more of the weight than a
/// reference.
///
/// # Shape
/// `x` `(..., I)`, `weight` `(O, I)`, `bias` `(O)`, result `(..., O)`.
///
/// # Errors
/// [`Error::Operand`] for shapes or dtypes that do not fit, and for tensors that are not on the CPU.
pub fn quantized_linear(x: &Tensor, weight: &Arc<QuantizedMatrix>, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    let mut operands = vec![x];
    operands.extend(bias);
    match path(OP, &operands)? {
        Path::Fused => {}
        Path::Widened(dtype) => {
            let widen = |tensor: &Tensor| tensor.to_dtype(DType::F32);
            let bias = bias.map(widen).transpose()?;
            return Ok(quantized_linear(&widen(x)?, weight, bias.as_ref())?.to_dtype(dtype)?);
        }
        Path::Composed => {
            return Err(Error::Operand {
                op: OP,
                what: "operands",
                found: format!("{:?} on {:?}", x.dtype(), x.device().location()),
                expected: "F64, F32, F16 or BF16 on the CPU".into(),
            });
        }
    }
    let mut dims = x.dims().to_vec();
    let rows = x.elem_count() / weight.cols().max(1);
    if let Some(last) = dims.last_mut() {
        *last = weight.rows();
    }
    let flat = x.contiguous()?.reshape((rows, weight.cols()))?;
    let op = QuantizedLinear(weight.clone());
    let flat = match bias {
        None => flat.apply_op1(op)?,
        Some(bias) => flat.apply_op2(&bias.contiguous()?, op)?,
    };
    Ok(flat.reshape(dims)?)
}

/// [`quantized_linear`] with the whole weight dequantized, in candle's primitives.
///
/// # Errors
/// As [`quantized_linear`].
pub fn quantized_linear_composed(x: &Tensor, weight: &Arc<QuantizedMatrix>, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    linear_composed(x, &weight.dequantize()?.to_dtype(x.dtype())?, bias)
}

fn check(x: &Tensor, weight: &QuantizedMatrix, bias: Option<&Tensor>) -> Result<()> {
    if x.dims().last() != Some(&weight.cols()) {
        let expected = format!("last dimension {}, the width of weight", weight.cols());
        return Err(shape_error(OP, "shape of x", x.dims(), expected));
    }
    match bias {
        Some(bias) if bias.dims() != [weight.rows()] => {
            let expected = format!("[{}]", weight.rows());
            Err(shape_error(OP, "shape of bias", bias.dims(), expected))
        }
        _ => Ok(()),
    }
}

/// Operands: x (N, I) and perhaps bias (O), contiguous.
struct QuantizedLinear(Arc<QuantizedMatrix>);

impl QuantizedLinear {
    fn cpu(
        &self,
        x: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (n, _) = x.1.shape().dims2()?;
        on_float!(x.0.dtype(), OP, T => {
            let y = match bias {
                None => vec![0.0; n * self.0.rows()],
                Some((storage, layout)) => from_parts::<T>(storage, layout)?.repeat(n),
            };
            Ok(output(self.forward::<T>(from_parts::<T>(x.0, x.1)?, n, y), (n, self.0.rows())))
        })
    }

    /// Adds `x weight^T` to `y`. A task has some columns of the result: rows of the weight.
    fn forward<T: Float>(&self, x: &[T], n: usize, mut y: Vec<T>) -> Vec<T> {
        const WIDTH: usize = TILE / ROWS;
        const ROWS: usize = 128;
        let (outputs, inputs) = (self.0.rows(), self.0.cols());
        let rows = outputs.div_ceil(TASKS).next_multiple_of(16).min(ROWS);
        let place = Shared::new(&mut y);
        (0..outputs.div_ceil(rows)).into_par_iter().for_each(|task| {
            let rows = task * rows..outputs.min((task + 1) * rows);
            for start in (0..inputs).step_by(WIDTH) {
                let cols = start..inputs.min(start + WIDTH);
                let fill = |tile: &mut [f32]| self.0.read(rows.clone(), cols.clone(), tile);
                T::with_singles(rows.len() * cols.len(), fill, |tile| {
                    #[expect(unsafe_code, reason = "disjoint blocks of one matrix on several threads")]
                    // SAFETY: columns `rows` of the result are those of this task alone.
                    let dst = unsafe { MatrixMut::block(place, rows.start, outputs) };
                    let (lhs, rhs) = (Matrix::rows(&x[start..], inputs), Matrix::rows(tile, cols.len()).t());
                    let size = (n, rows.len(), cols.len());
                    matmul(size, dst, Accumulate::Add, lhs, rhs, Threads::One);
                });
            }
        });
        y
    }

    /// `dy weight`. A task has some columns of the result, which are those of the weight, and goes through all of its rows.
    fn input_gradient<T: Float>(&self, dy: &[T], n: usize) -> Vec<T> {
        const WIDTH: usize = 256;
        const ROWS: usize = TILE / WIDTH;
        let (outputs, inputs) = (self.0.rows(), self.0.cols());
        let width = inputs.div_ceil(TASKS).next_multiple_of(nf4::BLOCK).min(WIDTH);
        let mut dx = vec![T::zero(); n * inputs];
        let place = Shared::new(&mut dx);
        (0..inputs.div_ceil(width.max(1))).into_par_iter().for_each(|task| {
            let cols = task * width..inputs.min((task + 1) * width);
            for start in (0..outputs).step_by(ROWS) {
                let rows = start..outputs.min(start + ROWS);
                let fill = |tile: &mut [f32]| self.0.read(rows.clone(), cols.clone(), tile);
                T::with_singles(rows.len() * cols.len(), fill, |tile| {
                    #[expect(unsafe_code, reason = "disjoint blocks of one matrix on several threads")]
                    // SAFETY: columns `cols` of the gradient are those of this task alone.
                    let dst = unsafe { MatrixMut::block(place, cols.start, inputs) };
                    let (lhs, rhs) = (Matrix::rows(&dy[start..], outputs), Matrix::rows(tile, cols.len()));
                    let size = (n, cols.len(), rows.len());
                    matmul(size, dst, Accumulate::Add, lhs, rhs, Threads::One);
                });
            }
        });
        dx
    }

    /// Gradients of x and bias.
    fn gradients(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (n, inputs) = x.dims2()?;
        let grad = grad.contiguous()?;
        let operand = Operand::of(&grad);
        on_float!(grad.dtype(), OP, T => {
            let dy = operand.slice::<T>()?;
            let dx = x.track_op().then(|| Tensor::from_vec(self.input_gradient(dy, n), (n, inputs), x.device()));
            let db = bias
                .filter(|bias| bias.track_op())
                .map(|bias| Tensor::from_vec(sum_rows(dy, self.0.rows()), self.0.rows(), bias.device()));
            Ok((dx.transpose()?, db.transpose()?))
        })
    }
}

impl CustomOp1 for QuantizedLinear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu((storage, layout), None)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        Ok(self.gradients(x, None, grad)?.0)
    }
}

impl CustomOp2 for QuantizedLinear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        self.cpu((s1, l1), Some((s2, l2)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, Some(bias), grad)
    }
}
