//! Affine maps of the last dimension.

mod half_weight;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result as CandleResult, Shape, Tensor,
};

use super::kernel::{
    Accumulate, Matrix, MatrixMut, Operand, Path, Threads, filled_rows, from_parts, gradient, matmul, on_float, output,
    path, product, shape_error, sum_rows,
};
use crate::Result;

const OP: &str = "linear";

/// `x weight^T + bias`.
///
/// A frozen weight or bias costs no gradient, on any device: the operation is one node that computes the gradients of its
/// tracked operands only.
///
/// # Shape
/// `x` `(..., I)`, `weight` `(O, I)`, `bias` `(O)`, result `(..., O)`.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for shapes or dtypes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    let mut operands = vec![x, weight];
    operands.extend(bias);
    if let Path::Widened(dtype) = path(OP, &operands)? {
        let y = half_weight::product_with(&x.to_dtype(DType::F32)?, weight)?;
        let y = match bias {
            None => y,
            Some(bias) => y.broadcast_add(&bias.to_dtype(DType::F32)?)?,
        };
        return Ok(y.to_dtype(dtype)?);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    Ok(match bias {
        None => x.apply_op2(&weight, Linear)?,
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Linear)?,
    })
}

/// `x weight^T` of a wide `x` and a weight of the same type or, for f32, of half precision.
pub(super) fn wide_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let is_half = matches!(weight.dtype(), DType::F16 | DType::BF16);
    if !is_half {
        return linear(x, weight, None);
    }
    check(x, weight, None)?;
    if x.dtype() == DType::F32 && x.device().is_cpu() && weight.device().is_cpu() {
        return Ok(half_weight::product_with(x, weight)?);
    }
    linear(x, &weight.to_dtype(x.dtype())?, None)
}

/// [`linear`] in candle's primitives.
///
/// # Errors
/// As [`linear`].
pub fn linear_composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (outputs, inputs) = check(x, weight, bias)?;
    let mut dims = x.dims().to_vec();
    let rows = x.elem_count() / inputs.max(1);
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let y = x
        .contiguous()?
        .reshape((rows, inputs))?
        .matmul(&weight.t()?)?
        .reshape(dims)?;
    Ok(match bias {
        None => y,
        Some(bias) => y.broadcast_add(bias)?,
    })
}

/// Widths out and in.
fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<(usize, usize)> {
    let &[outputs, inputs] = weight.dims() else {
        return Err(shape_error(OP, "shape of weight", weight.dims(), "(O, I)"));
    };
    if x.dims().last() != Some(&inputs) {
        return Err(shape_error(
            OP,
            "shape of x",
            x.dims(),
            format!("last dimension {inputs}, the width of weight"),
        ));
    }
    match bias {
        Some(bias) if bias.dims() != [outputs] => {
            Err(shape_error(OP, "shape of bias", bias.dims(), format!("[{outputs}]")))
        }
        _ => Ok((outputs, inputs)),
    }
}

/// Operands: x (..., I) of M rows, weight (O, I), and perhaps bias (O), all contiguous.
struct Linear;

/// Sizes (M, I, O), with the shape of the result.
fn sizes(x: &Shape, weight: &Shape) -> CandleResult<((usize, usize, usize), Shape)> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    dims.pop();
    let m = dims.iter().product();
    dims.push(outputs);
    Ok(((m, inputs, outputs), dims.into()))
}

impl Linear {
    fn cpu(
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let ((m, inputs, outputs), shape) = sizes(x.1.shape(), weight.1.shape())?;
        on_float!(x.0.dtype(), OP, T => {
            let (x, weight) = (from_parts::<T>(x.0, x.1)?, from_parts::<T>(weight.0, weight.1)?);
            let (lhs, rhs) = (Matrix::rows(x, inputs), Matrix::rows(weight, inputs).t());
            let Some((storage, layout)) = bias else {
                return Ok(output(product((m, outputs, inputs), lhs, rhs, Threads::All), shape));
            };
            let bias = from_parts::<T>(storage, layout)?;
            let mut y = filled_rows(m * outputs, outputs, |_, rows| {
                rows.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
            });
            let place = MatrixMut::rows(&mut y, outputs);
            matmul((m, outputs, inputs), place, Accumulate::Add, lhs, rhs, Threads::All);
            Ok(output(y, shape))
        })
    }

    fn device<S: BackendStorage>(
        x: (&S, &Layout),
        weight: (&S, &Layout),
        bias: Option<(&S, &Layout)>,
    ) -> CandleResult<(S, Shape)> {
        let ((m, inputs, outputs), shape) = sizes(x.1.shape(), weight.1.shape())?;
        let flat = Layout::contiguous_with_offset((m, inputs), x.1.start_offset());
        let y =
            x.0.matmul(weight.0, (1, m, outputs, inputs), &flat, &weight.1.transpose(0, 1)?)?;
        let y = match bias {
            None => y,
            Some((bias, layout)) => y.binary_impl::<candle_core::op::Add>(
                bias,
                &Layout::contiguous(shape.clone()),
                &layout.broadcast_as(shape.clone())?,
            )?,
        };
        Ok((y, shape))
    }

    /// Gradients of x, weight and bias.
    fn gradients(
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let bias = bias.filter(|bias| bias.track_op());
        let ((m, inputs, outputs), _) = sizes(x.shape(), weight.shape())?;
        let grad = grad.contiguous()?;
        if !x.device().is_cpu() {
            let (flat, grad) = (x.detach().reshape((m, inputs))?, grad.reshape((m, outputs))?);
            let dx = || grad.matmul(&weight.detach())?.reshape(x.shape());
            let dx = x.track_op().then(dx).transpose()?;
            let dw = weight.track_op().then(|| grad.t()?.matmul(&flat)).transpose()?;
            return Ok((dx, dw, bias.map(|_| grad.sum(0)).transpose()?));
        }
        let (x_operand, weight_operand, grad_operand) = (Operand::of(x), Operand::of(weight), Operand::of(&grad));
        on_float!(x.dtype(), OP, T => {
            let dy = grad_operand.slice::<T>()?;
            let (mut dx, mut dw, mut db) = (None, None, None);
            if x.track_op() {
                let (lhs, rhs) = (Matrix::rows(dy, outputs), Matrix::rows(weight_operand.slice::<T>()?, inputs));
                let data = product((m, inputs, outputs), lhs, rhs, Threads::All);
                dx = gradient(Some(data), x)?;
            }
            if weight.track_op() {
                let (lhs, rhs) = (Matrix::rows(dy, outputs).t(), Matrix::rows(x_operand.slice::<T>()?, inputs));
                let data = product((outputs, inputs, m), lhs, rhs, Threads::All);
                dw = gradient(Some(data), weight)?;
            }
            if let Some(bias) = bias {
                db = gradient(Some(sum_rows(dy, outputs)), bias)?;
            }
            Ok((dx, dw, db))
        })
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        Self::cpu((s1, l1), (s2, l2), None)
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        Self::device((s1, l1), (s2, l2), None)
    }

    fn metal_fwd(
        &self,
        s1: &MetalStorage,
        l1: &Layout,
        s2: &MetalStorage,
        l2: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        Self::device((s1, l1), (s2, l2), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = Self::gradients(x, weight, None, grad)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        Self::cpu((s1, l1), (s2, l2), Some((s3, l3)))
    }

    fn cuda_fwd(
        &self,
        s1: &CudaStorage,
        l1: &Layout,
        s2: &CudaStorage,
        l2: &Layout,
        s3: &CudaStorage,
        l3: &Layout,
    ) -> CandleResult<(CudaStorage, Shape)> {
        Self::device((s1, l1), (s2, l2), Some((s3, l3)))
    }

    fn metal_fwd(
        &self,
        s1: &MetalStorage,
        l1: &Layout,
        s2: &MetalStorage,
        l2: &Layout,
        s3: &MetalStorage,
        l3: &Layout,
    ) -> CandleResult<(MetalStorage, Shape)> {
        Self::device((s1, l1), (s2, l2), Some((s3, l3)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Self::gradients(x, weight, Some(bias), grad)
    }
}
