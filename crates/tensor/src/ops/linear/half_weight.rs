//! Products with a weight of half precision, which is widened some rows at a time: it never exists in f32 as a whole.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use super::{OP, sizes};
use crate::autograd::deliver;
use crate::ops::kernel::{
    Accumulate, Float, Matrix, MatrixMut, Operand, Shared, Threads, filled, from_parts, gradient, matmul, output,
    product, zeros,
};

/// Numbers of a weight that one task widens, about: they stay in the cache until they are multiplied.
const PANEL: usize = 1 << 17;
/// Numbers that all threads widen together.
const SHARED_PANEL: usize = 1 << 20;

/// Operands: x (..., I) in f32 and weight (O, I) in half precision, both contiguous; the result is f32.
pub(super) struct HalfWeight;

/// Rows of a weight that are widened together.
fn panel_rows(inputs: usize, numbers: usize) -> usize {
    (numbers / inputs.max(1)).max(16)
}

/// Writes elements of a contiguous weight from `start` on in f32.
fn widen(weight: &CpuStorage, start: usize, wide: &mut [f32]) -> CandleResult<()> {
    let part = start..start + wide.len();
    match weight {
        CpuStorage::BF16(weight) => f32::widen(&weight[part], wide),
        CpuStorage::F16(weight) => f32::widen(&weight[part], wide),
        other => return Err(candle_core::Error::UnsupportedDTypeForOp(other.dtype(), OP)),
    }
    Ok(())
}

impl HalfWeight {
    fn forward(
        (m, inputs, outputs): (usize, usize, usize),
        x: &[f32],
        weight: (&CpuStorage, usize),
    ) -> CandleResult<Vec<f32>> {
        let rows = panel_rows(inputs, PANEL);
        let mut y: Vec<f32> = zeros(m * outputs);
        if y.is_empty() {
            return Ok(y);
        }
        let place = Shared::new(&mut y);
        (0..outputs.div_ceil(rows))
            .into_par_iter()
            .try_for_each(|panel| -> CandleResult<()> {
                let panel = panel * rows..outputs.min((panel + 1) * rows);
                f32::with_scratch(panel.len() * inputs, |wide| {
                    widen(weight.0, weight.1 + panel.start * inputs, wide)?;
                    #[expect(unsafe_code, reason = "each task writes its own columns")]
                    // SAFETY: panels are disjoint columns of the result, whose rows are `outputs` apart.
                    let block = unsafe { MatrixMut::block(place, panel.start, outputs) };
                    let (lhs, rhs) = (Matrix::rows(x, inputs), Matrix::rows(wide, inputs).t());
                    matmul(
                        (m, panel.len(), inputs),
                        block,
                        Accumulate::Replace,
                        lhs,
                        rhs,
                        Threads::One,
                    );
                    Ok(())
                })
            })?;
        Ok(y)
    }

    /// The gradient of x, over panels of the weight one after the other.
    fn input_gradient(
        (m, inputs, outputs): (usize, usize, usize),
        dy: &[f32],
        weight: (&CpuStorage, usize),
    ) -> Vec<f32> {
        let rows = panel_rows(inputs, SHARED_PANEL);
        let mut dx: Vec<f32> = zeros(m * inputs);
        if dx.is_empty() {
            return dx;
        }
        for first in (0..outputs).step_by(rows) {
            let len = rows.min(outputs - first);
            // The type of the weight was looked at by the forward pass.
            let wide = filled(len * inputs, |start, wide| {
                let _ = widen(weight.0, weight.1 + first * inputs + start, wide);
            });
            let (lhs, rhs) = (Matrix::rows(&dy[first..], outputs), Matrix::rows(&wide, inputs));
            matmul(
                (m, inputs, len),
                MatrixMut::rows(&mut dx, inputs),
                Accumulate::Add,
                lhs,
                rhs,
                Threads::All,
            );
        }
        dx
    }
}

impl CustomOp2 for HalfWeight {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let (sizes, shape) = sizes(x_layout.shape(), layout.shape())?;
        let y = Self::forward(sizes, from_parts::<f32>(x, x_layout)?, (weight, layout.start_offset()))?;
        Ok(output(y, shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let (sizes, _) = sizes(x.shape(), weight.shape())?;
        let (m, inputs, outputs) = sizes;
        let grad = grad.contiguous()?;
        let [x_operand, weight_operand, grad_operand] = [x, weight, &grad].map(Operand::of);
        let dy = grad_operand.slice::<f32>()?;
        let (mut dx, mut dw) = (None, None);
        if x.track_op() {
            let weight = (weight_operand.cpu()?, weight_operand.layout().start_offset());
            dx = gradient(Some(Self::input_gradient(sizes, dy, weight)), x)?;
        }
        if weight.track_op() {
            let (lhs, rhs) = (
                Matrix::rows(dy, outputs).t(),
                Matrix::rows(x_operand.slice::<f32>()?, inputs),
            );
            let data = product((outputs, inputs, m), lhs, rhs, Threads::All);
            let data = Tensor::from_vec(data, weight.shape(), weight.device())?;
            dw = deliver(weight, data.to_dtype(weight.dtype())?)?;
        }
        Ok((dx, dw))
    }
}

/// `x weight^T` in f32, for x of f32 and a weight of half precision on the CPU.
pub(super) fn product_with(x: &Tensor, weight: &Tensor) -> CandleResult<Tensor> {
    debug_assert_eq!(x.dtype(), DType::F32);
    x.contiguous()?.apply_op2(&weight.contiguous()?, HalfWeight)
}
