//! The custom operation.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result as CandleResult, Shape, Tensor};
use half::slice::HalfFloatSliceExt;

use super::kernel::{Forward, Inputs, Slopes, Sums, Weight, hidden_gradient};
use super::sums::RowSum;
use super::{OP, TokenLogpsConfig};
use crate::autograd::deliver;
use crate::ops::kernel::{Float, Operand, from_parts, on_float, output};

/// Operands: hidden (N, D) of f32 or f64, weight (V, D) of the same type or, for f32, of half precision.
pub(super) struct TokenLogps {
    pub(super) config: TokenLogpsConfig,
    pub(super) sums: Sums,
    pub(super) slopes: Slopes,
    pub(super) targets: Vec<u32>,
    /// What the forward pass leaves for the backward pass and for statistics.
    pub(super) left: Arc<OnceLock<Left>>,
}

/// What a forward pass leaves, of either type.
pub(super) struct Left {
    pub(super) rows: Vec<RowSum>,
    /// Derivatives with respect to hidden (N, D), in the type of hidden.
    slopes: Option<Tensor>,
}

impl TokenLogps {
    /// Runs `f` on the operands in their elements' type.
    fn with_inputs<T: Float, R>(
        &self,
        hidden: &[T],
        weight: (&CpuStorage, &Layout),
        f: impl FnOnce(&Inputs<'_, T>) -> R,
    ) -> CandleResult<R> {
        let (vocabulary, width) = weight.1.shape().dims2()?;
        let inputs = |weight| Inputs {
            config: self.config,
            width,
            vocabulary,
            hidden,
            weight,
            targets: &self.targets,
        };
        let (first, last) = weight.1.contiguous_offsets().unwrap_or((0, 0));
        match weight.0 {
            CpuStorage::BF16(weight) => Ok(f(&inputs(Weight::Half(&widening(&weight[first..last]))))),
            CpuStorage::F16(weight) => Ok(f(&inputs(Weight::Half(&widening(&weight[first..last]))))),
            storage => Ok(f(&inputs(Weight::Wide(from_parts(storage, weight.1)?)))),
        }
    }
}

/// Writes elements from the given one on in the wide type.
fn widening<T: Float, H: Sync>(half: &[H]) -> impl Fn(usize, &mut [T]) + Sync
where
    [H]: HalfFloatSliceExt,
{
    |start, wide| T::widen(&half[start..start + wide.len()], wide)
}

impl CustomOp2 for TokenLogps {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(hidden.dtype(), OP, T => {
            let hidden = from_parts::<T>(hidden, hidden_layout)?;
            let forward = |inputs: &Inputs<'_, T>| inputs.forward(self.sums, self.slopes);
            let Forward { rows, slopes } = self.with_inputs(hidden, (weight, weight_layout), forward)?;
            let logps = rows.iter().map(|row| T::of(row.logp())).collect();
            let slopes = slopes.map(|data| Tensor::from_vec(data, hidden_layout.shape(), &Device::Cpu)).transpose()?;
            if self.left.set(Left { rows, slopes }).is_err() {
                candle_core::bail!("{OP}: the forward pass of a call ran twice");
            }
            Ok(output::<T>(logps, self.targets.len()))
        })
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let Some(left) = self.left.get() else {
            candle_core::bail!("{OP}: a backward pass without a forward pass");
        };
        let grad = grad.contiguous()?;
        let [hidden_operand, weight_operand, grad_operand] = [hidden, weight, &grad].map(Operand::of);
        let weight_parts = (weight_operand.cpu()?, weight_operand.layout());
        on_float!(hidden.dtype(), OP, T => {
            let (mut dh, mut dw) = (None, None);
            let dy = grad_operand.slice::<T>()?;
            if let Some(slopes) = left.slopes.as_ref().filter(|_| hidden.track_op()) {
                let data = hidden_gradient(Operand::of(slopes).slice::<T>()?, dy);
                dh = deliver(hidden, Tensor::from_vec(data, hidden.shape(), &Device::Cpu)?)?;
            }
            if weight.track_op() {
                let gradient = |inputs: &Inputs<'_, T>| inputs.weight_gradient(&left.rows, dy);
                let data = self.with_inputs(hidden_operand.slice::<T>()?, weight_parts, gradient)?;
                let data = Tensor::from_vec(data, weight.shape(), &Device::Cpu)?;
                dw = deliver(weight, data.to_dtype(weight.dtype())?)?;
            }
            Ok((dh, dw))
        })
    }
}
