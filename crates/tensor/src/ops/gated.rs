//! Gated units of transformer feed-forward layers whose two operands are separate tensors.
//!
//! ```text
//! swiglu(g, u)     = silu(g) u            Shazeer, arXiv:2002.05202
//! geglu_tanh(g, u) = gelu_tanh(g) u       the Gemma networks
//! ```
//!
//! [`geglu`](super::geglu) is the form of diffusers: one tensor, the exact GELU, and the gate second.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result as CandleResult, Shape, Tensor};

use super::activation::{Activation, GeluTanh, Silu, gelu_tanh_composed, silu_composed};
use super::kernel::{
    Float, Operand, Path, filled, filled_pieces, from_parts, gradient, on_float, output, path, piece_rows, shape_error,
    wide,
};
use crate::Result;

/// `silu(gate) * up`. Any shape, the same for both.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for shapes or dtypes that do not fit.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<Silu>("swiglu", gate, up, swiglu_composed)
}

/// [`swiglu`] in candle's primitives.
///
/// # Errors
/// As [`swiglu`].
pub fn swiglu_composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check("swiglu", gate, up)?;
    Ok(silu_composed(gate)?.mul(up)?)
}

/// `gelu_tanh(gate) * up`. Any shape, the same for both.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for shapes or dtypes that do not fit.
pub fn geglu_tanh(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<GeluTanh>("geglu_tanh", gate, up, geglu_tanh_composed)
}

/// [`geglu_tanh`] in candle's primitives.
///
/// # Errors
/// As [`geglu_tanh`].
pub fn geglu_tanh_composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check("geglu_tanh", gate, up)?;
    Ok(gelu_tanh_composed(gate)?.mul(up)?)
}

fn gated<A: Activation>(
    op: &'static str,
    gate: &Tensor,
    up: &Tensor,
    composed: fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    check(op, gate, up)?;
    match path(op, &[gate, up])? {
        Path::Fused => Ok(gate.contiguous()?.apply_op2(
            &up.contiguous()?,
            Gated::<A> {
                op,
                activation: PhantomData,
            },
        )?),
        Path::Widened(dtype) => {
            let (gate, up) = (gate.to_dtype(DType::F32)?, up.to_dtype(DType::F32)?);
            Ok(gated::<A>(op, &gate, &up, composed)?.to_dtype(dtype)?)
        }
        Path::Composed => composed(gate, up),
    }
}

fn check(op: &'static str, gate: &Tensor, up: &Tensor) -> Result<()> {
    if up.dims() != gate.dims() {
        let expected = format!("that of gate, {:?}", gate.dims());
        return Err(shape_error(op, "shape of up", up.dims(), expected));
    }
    Ok(())
}

struct Gated<A> {
    op: &'static str,
    activation: PhantomData<A>,
}

impl<A: Activation> CustomOp2 for Gated<A> {
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(gate.dtype(), self.op, T => {
            let (gate, up) = (from_parts::<T>(gate, gate_layout)?, from_parts::<T>(up, up_layout)?);
            let y = filled(gate.len(), |start, y| {
                let piece = start..start + y.len();
                products::<T, A>(&gate[piece.clone()], &up[piece], y);
            });
            Ok(output::<T>(y, gate_layout.shape()))
        })
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [gate_operand, up_operand, grad_operand] = [gate, up, &grad].map(Operand::of);
        on_float!(gate.dtype(), self.op, T => {
            let tracked = [gate.track_op(), up.track_op()];
            let operands = (gate_operand.slice::<T>()?, up_operand.slice::<T>()?, grad_operand.slice::<T>()?);
            let [d_gate, d_up] = slopes::<T, A>(operands, tracked);
            Ok((gradient(d_gate, gate)?, gradient(d_up, up)?))
        })
    }
}

/// Gradients of gate and up, each only where `tracked`.
fn slopes<T: Float, A: Activation>((gate, up, dy): (&[T], &[T], &[T]), tracked: [bool; 2]) -> [Option<Vec<T>>; 2] {
    let len = piece_rows(1);
    let ([d_gate, d_up], _) = filled_pieces(tracked, dy.len(), len, |piece, [d_gate, d_up]| {
        let piece = piece * len..dy.len().min((piece + 1) * len);
        let (gate, up, dy) = (&gate[piece.clone()], &up[piece.clone()], &dy[piece]);
        match tracked {
            [true, true] => both_slopes::<T, A>(gate, up, dy, d_gate, d_up),
            [true, false] => gate_slopes::<T, A>(gate, up, dy, d_gate),
            [false, true] => products::<T, A>(gate, dy, d_up),
            [false, false] => {}
        }
    });
    [d_gate, d_up]
}

wide! {
    /// `activation(gate) factor`: the result with up, its gradient of up with the gradient of the result.
    fn products<T: Float, A: Activation>(gate: &[T], factor: &[T], product: &mut [T]) {
        for ((&g, &factor), product) in gate.iter().zip(factor).zip(product) {
            *product = A::value(g) * factor;
        }
    }
}

wide! {
    fn gate_slopes<T: Float, A: Activation>(gate: &[T], up: &[T], dy: &[T], d_gate: &mut [T]) {
        for (((&g, &u), &dy), d_gate) in gate.iter().zip(up).zip(dy).zip(d_gate) {
            *d_gate = dy * u * A::slope(g);
        }
    }
}

wide! {
    fn both_slopes<T: Float, A: Activation>(gate: &[T], up: &[T], dy: &[T], d_gate: &mut [T], d_up: &mut [T]) {
        let operands = gate.iter().zip(up).zip(dy);
        for (((&g, &u), &dy), (d_gate, d_up)) in operands.zip(d_gate.iter_mut().zip(d_up)) {
            *d_gate = dy * u * A::slope(g);
            *d_up = A::value(g) * dy;
        }
    }
}
