//! Affine maps of the last dimension.

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result as CandleResult, Shape, Tensor,
};

use super::kernel::{
    Accumulate, Matrix, MatrixMut, Operand, Path, Threads, from_parts, matmul, on_float, output, path, shape_error,
    sum_rows,
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
    let (outputs, inputs) = check(x, weight, bias)?;
    let mut operands = vec![x, weight];
    operands.extend(bias);
    if let Path::Widened(dtype) = path(OP, &operands)? {
        let widen = |tensor: &Tensor| tensor.to_dtype(DType::F32);
        let bias = bias.map(widen).transpose()?;
        return Ok(linear(&widen(x)?, &widen(weight)?, bias.as_ref())?.to_dtype(dtype)?);
    }
    let mut dims = x.dims().to_vec();
    let rows = x.elem_count() / inputs.max(1);
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    let (flat, weight) = (x.contiguous()?.reshape((rows, inputs))?, weight.contiguous()?);
    let flat = match bias {
        None => flat.apply_op2(&weight, Linear)?,
        Some(bias) => flat.apply_op3(&weight, &bias.contiguous()?, Linear)?,
    };
    Ok(flat.reshape(dims)?)
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

/// Operands: x (M, I), weight (O, I), and perhaps bias (O), all contiguous.
struct Linear;

impl Linear {
    fn cpu(
        x: (&CpuStorage, &Layout),
        weight: (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (m, inputs) = x.1.shape().dims2()?;
        let (outputs, _) = weight.1.shape().dims2()?;
        on_float!(x.0.dtype(), OP, T => {
            let (x, weight) = (from_parts::<T>(x.0, x.1)?, from_parts::<T>(weight.0, weight.1)?);
            let (mut y, accumulate) = match bias {
                None => (vec![0.0; m * outputs], Accumulate::Replace),
                Some((storage, layout)) => (from_parts::<T>(storage, layout)?.repeat(m), Accumulate::Add),
            };
            let (lhs, rhs) = (Matrix::rows(x, inputs), Matrix::rows(weight, inputs).t());
            matmul((m, outputs, inputs), MatrixMut::rows(&mut y, outputs), accumulate, lhs, rhs, Threads::All);
            Ok(output(y, (m, outputs)))
        })
    }

    fn device<S: BackendStorage>(
        x: (&S, &Layout),
        weight: (&S, &Layout),
        bias: Option<(&S, &Layout)>,
    ) -> CandleResult<(S, Shape)> {
        let (m, inputs) = x.1.shape().dims2()?;
        let (outputs, _) = weight.1.shape().dims2()?;
        let y =
            x.0.matmul(weight.0, (1, m, outputs, inputs), x.1, &weight.1.transpose(0, 1)?)?;
        let shape = Shape::from((m, outputs));
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
        let bias_tracked = bias.is_some_and(Tensor::track_op);
        if !x.device().is_cpu() {
            let (x, weight, tracked) = (x.detach(), weight.detach(), (x.track_op(), weight.track_op()));
            let dx = tracked.0.then(|| grad.matmul(&weight)).transpose()?;
            let dw = tracked.1.then(|| grad.t()?.matmul(&x)).transpose()?;
            return Ok((dx, dw, bias_tracked.then(|| grad.sum(0)).transpose()?));
        }
        let (m, inputs) = x.dims2()?;
        let outputs = weight.dim(0)?;
        let grad = grad.contiguous()?;
        let (x_operand, weight_operand, grad_operand) = (Operand::of(x), Operand::of(weight), Operand::of(&grad));
        on_float!(x.dtype(), OP, T => {
            let dy = grad_operand.slice::<T>()?;
            let (mut dx, mut dw, mut db) = (None, None, None);
            if x.track_op() {
                let mut data: Vec<T> = vec![0.0; m * inputs];
                let (lhs, rhs) = (Matrix::rows(dy, outputs), Matrix::rows(weight_operand.slice::<T>()?, inputs));
                let place = MatrixMut::rows(&mut data, inputs);
                matmul((m, inputs, outputs), place, Accumulate::Replace, lhs, rhs, Threads::All);
                dx = Some(Tensor::from_vec(data, (m, inputs), x.device())?);
            }
            if weight.track_op() {
                let mut data: Vec<T> = vec![0.0; outputs * inputs];
                let (lhs, rhs) = (Matrix::rows(dy, outputs).t(), Matrix::rows(x_operand.slice::<T>()?, inputs));
                let place = MatrixMut::rows(&mut data, inputs);
                matmul((outputs, inputs, m), place, Accumulate::Replace, lhs, rhs, Threads::All);
                dw = Some(Tensor::from_vec(data, (outputs, inputs), x.device())?);
            }
            if bias_tracked {
                db = Some(Tensor::from_vec(sum_rows(dy, outputs), outputs, x.device())?);
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
