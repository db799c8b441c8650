//! The custom operation.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor, WithDType};

use super::kernel::{Gradients, Inputs, Outputs};
use super::operands::{Heads, Rows, Sizes, Strides};
use super::{AttentionConfig, OP};
use crate::ops::kernel::{Operand, on_float, output};

pub(super) struct Attention {
    pub(super) config: AttentionConfig,
    pub(super) heads: Heads,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        OP
    }

    /// The result is `(B, T, H, K)` for split heads, `(B, T, H K)` for packed ones.
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        let sizes = Sizes::of(q_layout.shape(), k_layout.shape(), self.heads);
        let shape = match self.heads {
            Heads::Split => Shape::from((sizes.batch, sizes.queries, sizes.heads, sizes.head_dim)),
            Heads::Packed(_) => q_layout.shape().clone(),
        };
        on_float!(q.dtype(), OP, T => {
            let strides = |layout: &Layout| Strides::of(layout, self.heads, &sizes);
            let inputs = Inputs {
                sizes,
                config: self.config,
                q: Rows { data: T::cpu_storage_as_slice(q)?, strides: strides(q_layout) },
                k: Rows { data: T::cpu_storage_as_slice(k)?, strides: strides(k_layout) },
                v: Rows { data: T::cpu_storage_as_slice(v)?, strides: strides(v_layout) },
            };
            Ok(output::<T>(inputs.forward(), shape))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::of(q.shape(), k.shape(), self.heads);
        let grad = grad.contiguous()?;
        let [q_operand, k_operand, v_operand, out_operand, grad_operand] = [q, k, v, out, &grad].map(Operand::of);
        on_float!(q.dtype(), OP, T => {
            let strides = |operand: &Operand<'_>| Strides::of(operand.layout(), self.heads, &sizes);
            let inputs = Inputs::<T> {
                sizes,
                config: self.config,
                q: Rows { data: q_operand.storage()?, strides: strides(&q_operand) },
                k: Rows { data: k_operand.storage()?, strides: strides(&k_operand) },
                v: Rows { data: v_operand.storage()?, strides: strides(&v_operand) },
            };
            let of_result = Strides::packed(&sizes, sizes.queries);
            let outputs = Outputs {
                out: Rows { data: out_operand.slice()?, strides: of_result },
                grad: Rows { data: grad_operand.slice()?, strides: of_result },
            };
            let of_gradient = match self.heads {
                Heads::Split => Strides::split,
                Heads::Packed(_) => Strides::packed,
            };
            let tracked = [q.track_op(), k.track_op(), v.track_op()];
            let Gradients { q: dq, k: dk, v: dv } = inputs.backward(outputs, tracked, of_gradient);
            let tensor = |data: Option<Vec<T>>, like: &Tensor| {
                data.map(|data| Tensor::from_vec(data, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
        })
    }
}
