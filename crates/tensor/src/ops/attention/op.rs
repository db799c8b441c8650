//! The custom operation.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor, WithDType};

use super::OP;
use super::columns::Mask;
use super::kernel::{Gradients, Inputs, Outputs};
use super::operands::{Heads, Rows, Sizes, Strides};
use crate::ops::kernel::{Operand, gradient, on_float, output};

/// How scores are made of products of queries and keys.
#[derive(Debug, Clone)]
pub(super) struct Scores {
    pub(super) scale: f64,
    pub(super) softcap: Option<f64>,
    pub(super) mask: Mask,
}

pub(super) struct Attention {
    pub(super) scores: Scores,
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
            Heads::Packed { .. } => q_layout.shape().clone(),
        };
        on_float!(q.dtype(), OP, T => {
            let strides = |layout: &Layout, heads| Strides::of(layout, heads, sizes.head_dim);
            let operands = [
                Rows { data: T::cpu_storage_as_slice(q)?, strides: strides(q_layout, sizes.heads) },
                Rows { data: T::cpu_storage_as_slice(k)?, strides: strides(k_layout, sizes.key_heads) },
                Rows { data: T::cpu_storage_as_slice(v)?, strides: strides(v_layout, sizes.key_heads) },
            ];
            let inputs = Inputs::new(sizes, &self.scores, operands, 1);
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
            let strides = |operand: &Operand<'_>, heads| Strides::of(operand.layout(), heads, sizes.head_dim);
            let operands = [
                Rows { data: q_operand.storage::<T>()?, strides: strides(&q_operand, sizes.heads) },
                Rows { data: k_operand.storage()?, strides: strides(&k_operand, sizes.key_heads) },
                Rows { data: v_operand.storage()?, strides: strides(&v_operand, sizes.key_heads) },
            ];
            let inputs = Inputs::new(sizes, &self.scores, operands, 2);
            let of_result = Strides::packed(sizes.heads, sizes.queries, sizes.head_dim);
            let outputs = Outputs {
                out: Rows { data: out_operand.slice()?, strides: of_result },
                grad: Rows { data: grad_operand.slice()?, strides: of_result },
            };
            let of_gradient = match self.heads {
                Heads::Split => Strides::split,
                Heads::Packed { .. } => Strides::packed,
            };
            let tracked = [q.track_op(), k.track_op(), v.track_op()];
            let Gradients { q: dq, k: dk, v: dv } = inputs.backward(outputs, tracked, of_gradient);
            Ok((gradient(dq, q)?, gradient(dk, k)?, gradient(dv, v)?))
        })
    }
}
