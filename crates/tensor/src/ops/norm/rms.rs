//! The fused normalization by the root mean square.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result as CandleResult, Shape, Tensor};

use crate::ops::kernel::{
    BLOCK, Float, LANES, Operand, add_all, filled_pieces, folded, from_parts, gradient, on_float, output, piece_rows,
    sum_pairs, sum_terms, wide,
};

const OP: &str = "rms_norm";

pub(super) struct RmsNorm {
    eps: f64,
    /// Reciprocal root mean square of each row, of the forward pass.
    reciprocals: OnceLock<Vec<f64>>,
}

impl RmsNorm {
    pub(super) fn new(eps: f64) -> Self {
        Self {
            eps,
            reciprocals: OnceLock::new(),
        }
    }

    /// Values, and the reciprocals for the backward pass.
    fn values<T: Float>(&self, x: &[T], weight: &[T]) -> (Vec<T>, Vec<f64>) {
        let width = weight.len();
        let piece_len = piece_rows(width) * width.max(1);
        let ([y], reciprocals) = filled_pieces([true], x.len(), piece_len, |piece, [y]| {
            let start = piece * piece_len;
            rescale(&x[start..start + y.len()], weight, y, self.eps)
        });
        (y.unwrap_or_default(), reciprocals.concat())
    }

    /// Gradients of x and weight, each only where `tracked`.
    fn slopes<T: Float>(&self, x: &[T], weight: &[T], dy: &[T], tracked: [bool; 2]) -> [Option<Vec<T>>; 2] {
        let width = weight.len();
        let reciprocals = self.reciprocals.get_or_init(|| self.values(x, weight).1);
        let rows = 2 * piece_rows(width);
        let sums = |piece: usize, [dx]: [&mut [T]; 1]| {
            let first = piece * rows;
            let piece = first * width..x.len().min((first + rows) * width);
            let operands = (&x[piece.clone()], &dy[piece], &reciprocals[first..]);
            let mut dw = vec![T::zero(); if tracked[1] { width } else { 0 }];
            if tracked[1] {
                all_slopes(operands, weight, dx, &mut dw);
            } else {
                input_slopes(operands, weight, dx);
            }
            dw
        };
        let ([dx], dw) = filled_pieces([tracked[0]], x.len(), rows * width.max(1), sums);
        [dx, tracked[1].then(|| add_all(dw, width))]
    }
}

wide! {
    /// Writes the rescaled rows of x and returns the reciprocals of their root mean squares.
    fn rescale<T: Float>(x: &[T], weight: &[T], y: &mut [T], eps: f64) -> Vec<f64> {
        let width = weight.len();
        let mut reciprocals = Vec::with_capacity(x.len() / width);
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let square = sum_terms(x, x, |x, _| x * x) / width as f64;
            let reciprocal = 1.0 / (square + eps).sqrt();
            let factor = T::of(reciprocal);
            for ((&x, &w), y) in x.iter().zip(weight).zip(y) {
                *y = x * factor * w;
            }
            reciprocals.push(reciprocal);
        }
        reciprocals
    }
}

/// Rows of x and of the gradient of the result, and the reciprocals of these rows.
type Rows<'a, T> = (&'a [T], &'a [T], &'a [f64]);

/// `dx = r (w dy - n dot r / D)` with `n = x r`, where `dot` is the sum of `w dy x`.
#[inline(always)]
fn input_row<T: Float>((x, dy): (&[T], &[T]), weight: &[T], dx: &mut [T], reciprocal: f64, dot: f64) {
    let (of_dy, of_x) = (T::of(reciprocal), T::of(-dot / x.len() as f64 * reciprocal.powi(3)));
    for (((&x, &dy), &w), dx) in x.iter().zip(dy).zip(weight).zip(dx) {
        *dx = w * dy * of_dy + x * of_x;
    }
}

wide! {
    /// Writes the gradients of rows of x.
    fn input_slopes<T: Float>(rows: Rows<'_, T>, weight: &[T], dx: &mut [T]) {
        let width = weight.len();
        let (x, dy, reciprocals) = rows;
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(reciprocals);
        for (((x, dy), &reciprocal), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let (dot, _) = sum_pairs(x, dy, weight, |x, dy, w| (w * dy * x, T::zero()));
            input_row((x, dy), weight, dx, reciprocal, dot);
        }
    }
}

wide! {
    /// Writes the gradients of rows of x, unless their place is empty, and adds the rows to that of the weight.
    fn all_slopes<T: Float>(rows: Rows<'_, T>, weight: &[T], dx: &mut [T], dw: &mut [T]) {
        let width = weight.len();
        let (x, dy, reciprocals) = rows;
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(reciprocals);
        for (row, ((x, dy), &reciprocal)) in rows.enumerate() {
            let factor = T::of(reciprocal);
            let mut dot = 0.0;
            let operands = x.chunks(BLOCK).zip(dy.chunks(BLOCK)).zip(weight.chunks(BLOCK));
            for (((x, dy), w), dw) in operands.zip(dw.chunks_mut(BLOCK)) {
                let mut sums = [T::zero(); LANES];
                let ((x, x_rest), (dy, dy_rest), (w, w_rest)) =
                    (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>(), w.as_chunks::<LANES>());
                let (dw, dw_rest) = dw.as_chunks_mut::<LANES>();
                for (((x, dy), w), dw) in x.iter().zip(dy).zip(w).zip(dw) {
                    for i in 0..LANES {
                        let product = dy[i] * x[i];
                        sums[i] += w[i] * product;
                        dw[i] += product * factor;
                    }
                }
                let mut rest = T::zero();
                for (((&x, &dy), &w), dw) in x_rest.iter().zip(dy_rest).zip(w_rest).zip(dw_rest) {
                    rest += w * (dy * x);
                    *dw += dy * x * factor;
                }
                dot += (folded(sums) + rest).double();
            }
            if let Some(dx) = dx.get_mut(row * width..(row + 1) * width) {
                input_row((x, dy), weight, dx, reciprocal, dot);
            }
        }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(x.dtype(), OP, T => {
            let (x, weight) = (from_parts::<T>(x, x_layout)?, from_parts::<T>(weight, weight_layout)?);
            let (y, reciprocals) = self.values(x, weight);
            // One operation is applied once; were it applied again, the backward pass would compute them itself.
            let _ = self.reciprocals.set(reciprocals);
            Ok(output(y, x_layout.shape()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [x_operand, weight_operand, grad_operand] = [x, weight, &grad].map(Operand::of);
        on_float!(x.dtype(), OP, T => {
            let tracked = [x.track_op(), weight.track_op()];
            let (x_values, w) = (x_operand.slice::<T>()?, weight_operand.slice::<T>()?);
            let [dx, dw] = self.slopes(x_values, w, grad_operand.slice::<T>()?, tracked);
            Ok((gradient(dx, x)?, gradient(dw, weight)?))
        })
    }
}
