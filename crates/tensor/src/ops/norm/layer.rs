//! The fused layer normalization.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};

use crate::ops::kernel::{
    BLOCK, Float, LANES, Operand, add_all, filled_pieces, folded, from_parts, gradient, on_float, output, piece_rows,
    sum_pairs, sum_terms, wide,
};

const OP: &str = "layer_norm";

/// Mean and reciprocal standard deviation of each row.
type Statistics = Vec<(f64, f64)>;

pub(super) struct LayerNorm {
    eps: f64,
    /// Of the forward pass.
    statistics: OnceLock<Statistics>,
}

impl LayerNorm {
    pub(super) fn new(eps: f64) -> Self {
        Self {
            eps,
            statistics: OnceLock::new(),
        }
    }

    /// Values, and the statistics for the backward pass.
    fn values<T: Float>(&self, x: &[T], weight: &[T], bias: &[T]) -> (Vec<T>, Statistics) {
        let width = weight.len();
        let piece_len = piece_rows(width) * width.max(1);
        let ([y], statistics) = filled_pieces([true], x.len(), piece_len, |piece, [y]| {
            let start = piece * piece_len;
            normalize(&x[start..start + y.len()], weight, bias, y, self.eps)
        });
        (y.unwrap_or_default(), statistics.concat())
    }

    /// Gradients of x, weight and bias, each only where `tracked`.
    fn slopes<T: Float>(&self, x: &[T], weight: &[T], dy: &[T], tracked: [bool; 3]) -> [Option<Vec<T>>; 3] {
        let width = weight.len();
        let statistics = self.statistics.get_or_init(|| self.values(x, weight, weight).1);
        let rows = 2 * piece_rows(width);
        let of_parameters = tracked[1] || tracked[2];
        let sums = |piece: usize, [dx]: [&mut [T]; 1]| {
            let first = piece * rows;
            let piece = first * width..x.len().min((first + rows) * width);
            let operands = (&x[piece.clone()], &dy[piece], &statistics[first..]);
            let mut sums = [vec![], vec![]];
            if of_parameters {
                sums = [vec![T::zero(); width], vec![T::zero(); width]];
                let [dw, db] = &mut sums;
                all_slopes(operands, weight, dx, dw, db);
            } else {
                input_slopes(operands, weight, dx);
            }
            sums
        };
        let ([dx], sums) = filled_pieces([tracked[0]], x.len(), rows * width.max(1), sums);
        let (dw, db): (Vec<Vec<T>>, Vec<Vec<T>>) = sums.into_iter().map(|[dw, db]| (dw, db)).unzip();
        [
            dx,
            tracked[1].then(|| add_all(dw, width)),
            tracked[2].then(|| add_all(db, width)),
        ]
    }
}

wide! {
    /// Writes the normalized rows of x and returns their means and reciprocal standard deviations.
    fn normalize<T: Float>(x: &[T], weight: &[T], bias: &[T], y: &mut [T], eps: f64) -> Statistics {
        let (width, len) = (weight.len(), weight.len() as f64);
        let mut statistics = Vec::with_capacity(x.len() / width);
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let mean = sum_terms(x, x, |x, _| x) / len;
            let center = T::of(mean);
            let variance = sum_terms(x, x, |x, _| (x - center) * (x - center)) / len;
            let rstd = 1.0 / (variance + eps).sqrt();
            let scale = T::of(rstd);
            for (((&x, &w), &b), y) in x.iter().zip(weight).zip(bias).zip(y) {
                *y = (x - center) * scale * w + b;
            }
            statistics.push((mean, rstd));
        }
        statistics
    }
}

/// Rows of x and of the gradient of the result, and the statistics of these rows.
type Rows<'a, T> = (&'a [T], &'a [T], &'a [(f64, f64)]);

/// `dx = rstd (w dy - a / D - n b / D)`, where `n = (x - mean) rstd`, a is the sum of `w dy` and b that of `w dy n`.
#[inline(always)]
fn input_row<T: Float>(
    (x, dy): (&[T], &[T]),
    weight: &[T],
    dx: &mut [T],
    (mean, rstd): (f64, f64),
    (a, b): (f64, f64),
) {
    let len = x.len() as f64;
    let (center, of_dy) = (T::of(mean), T::of(rstd));
    let (of_x, constant) = (T::of(-b / len * rstd * rstd), T::of(-a / len * rstd));
    for (((&x, &dy), &w), dx) in x.iter().zip(dy).zip(weight).zip(dx) {
        *dx = w * dy * of_dy + (x - center) * of_x + constant;
    }
}

wide! {
    /// Writes the gradients of rows of x.
    fn input_slopes<T: Float>(rows: Rows<'_, T>, weight: &[T], dx: &mut [T]) {
        let width = weight.len();
        let (x, dy, statistics) = rows;
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(statistics);
        for (((x, dy), &(mean, rstd)), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            let center = T::of(mean);
            let (a, b) = sum_pairs(x, dy, weight, |x, dy, w| (w * dy, w * dy * (x - center)));
            input_row((x, dy), weight, dx, (mean, rstd), (a, b * rstd));
        }
    }
}

wide! {
    /// Writes the gradients of rows of x, unless their place is empty, and adds the rows to those of weight and bias.
    fn all_slopes<T: Float>(rows: Rows<'_, T>, weight: &[T], dx: &mut [T], dw: &mut [T], db: &mut [T]) {
        let width = weight.len();
        let (x, dy, statistics) = rows;
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(statistics);
        for (row, ((x, dy), &(mean, rstd))) in rows.enumerate() {
            let (center, scale) = (T::of(mean), T::of(rstd));
            let (mut a, mut b) = (0.0, 0.0);
            let operands = x.chunks(BLOCK).zip(dy.chunks(BLOCK)).zip(weight.chunks(BLOCK));
            let sums = dw.chunks_mut(BLOCK).zip(db.chunks_mut(BLOCK));
            for (((x, dy), w), (dw, db)) in operands.zip(sums) {
                let (mut sums_a, mut sums_b) = ([T::zero(); LANES], [T::zero(); LANES]);
                let ((x, x_rest), (dy, dy_rest), (w, w_rest)) =
                    (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>(), w.as_chunks::<LANES>());
                let ((dw, dw_rest), (db, db_rest)) = (dw.as_chunks_mut::<LANES>(), db.as_chunks_mut::<LANES>());
                for (((x, dy), w), (dw, db)) in x.iter().zip(dy).zip(w).zip(dw.iter_mut().zip(db)) {
                    for i in 0..LANES {
                        let normalized = (x[i] - center) * scale;
                        let weighted = w[i] * dy[i];
                        sums_a[i] += weighted;
                        sums_b[i] += weighted * normalized;
                        dw[i] += dy[i] * normalized;
                        db[i] += dy[i];
                    }
                }
                let (mut rest_a, mut rest_b) = (T::zero(), T::zero());
                let operands = x_rest.iter().zip(dy_rest).zip(w_rest);
                for (((&x, &dy), &w), (dw, db)) in operands.zip(dw_rest.iter_mut().zip(db_rest)) {
                    let normalized = (x - center) * scale;
                    rest_a += w * dy;
                    rest_b += w * dy * normalized;
                    *dw += dy * normalized;
                    *db += dy;
                }
                a += (folded(sums_a) + rest_a).double();
                b += (folded(sums_b) + rest_b).double();
            }
            if let Some(dx) = dx.get_mut(row * width..(row + 1) * width) {
                input_row((x, dy), weight, dx, (mean, rstd), (a, b));
            }
        }
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(x.dtype(), OP, T => {
            let x = from_parts::<T>(x, x_layout)?;
            let (weight, bias) = (from_parts::<T>(weight, weight_layout)?, from_parts::<T>(bias, bias_layout)?);
            let (y, statistics) = self.values(x, weight, bias);
            // One operation is applied once; were it applied again, the backward pass would compute them itself.
            let _ = self.statistics.set(statistics);
            Ok(output(y, x_layout.shape()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> CandleResult<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [x_operand, weight_operand, grad_operand] = [x, weight, &grad].map(Operand::of);
        on_float!(x.dtype(), OP, T => {
            let tracked = [x.track_op(), weight.track_op(), bias.track_op()];
            let (x_values, w) = (x_operand.slice::<T>()?, weight_operand.slice::<T>()?);
            let [dx, dw, db] = self.slopes(x_values, w, grad_operand.slice::<T>()?, tracked);
            Ok((gradient(dx, x)?, gradient(dw, weight)?, gradient(db, bias)?))
        })
    }
}
