//! The fused group normalization. P is the number of positions of a channel, a group is C / G channels.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};

use crate::ops::activation::{Activation, Silu};
use crate::ops::kernel::{
    BLOCK, Float, LANES, Operand, add_all, filled_pieces, folded, from_parts, gradient, on_float, output, piece_rows,
    sum_pairs, sum_terms, wide,
};

/// Mean and reciprocal standard deviation of each (image, group).
type Statistics = Vec<(f64, f64)>;

pub(super) struct GroupNorm {
    op: &'static str,
    num_groups: usize,
    eps: f64,
    silu: bool,
    statistics: OnceLock<Statistics>,
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Sizes {
    channels: usize,
    positions: usize,
    group_channels: usize,
}

impl GroupNorm {
    pub(super) fn new(op: &'static str, num_groups: usize, eps: f64, silu: bool) -> Self {
        Self {
            op,
            num_groups,
            eps,
            silu,
            statistics: OnceLock::new(),
        }
    }

    pub(super) fn op(&self) -> &'static str {
        self.op
    }

    pub(super) fn num_groups(&self) -> usize {
        self.num_groups
    }

    fn sizes(&self, shape: &Shape) -> Sizes {
        let dims = shape.dims();
        let positions = dims[2..].iter().product();
        Sizes {
            channels: dims[1],
            positions,
            group_channels: dims[1] / self.num_groups,
        }
    }

    /// Some groups, beginning with a group of channels of an image.
    fn groups<'a, T>(&self, sizes: Sizes, first: usize, [x, dy, weight, bias]: [&'a [T]; 4]) -> Groups<'a, T> {
        Groups {
            x,
            dy,
            weight,
            bias,
            positions: sizes.positions,
            group_channels: sizes.group_channels,
            first_channel: first % self.num_groups * sizes.group_channels,
            silu: self.silu,
        }
    }

    /// Values, and the statistics for the backward pass.
    fn values<T: Float>(&self, sizes: Sizes, x: &[T], weight: &[T], bias: &[T]) -> (Vec<T>, Statistics) {
        let len = sizes.group_channels * sizes.positions;
        if len == 0 {
            return (Vec::new(), Vec::new());
        }
        let num_groups = piece_rows(len);
        let ([y], statistics) = filled_pieces([true], x.len(), num_groups * len, |piece, [y]| {
            let first = piece * num_groups;
            let x = &x[first * len..first * len + y.len()];
            normalize(self.groups(sizes, first, [x, &[], weight, bias]), y, self.eps)
        });
        (y.unwrap_or_default(), statistics.concat())
    }

    /// Gradients of x, weight and bias, each only where `tracked`.
    fn slopes<T: Float>(
        &self,
        sizes: Sizes,
        (x, weight, bias, dy): (&[T], &[T], &[T], &[T]),
        tracked: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let len = sizes.group_channels * sizes.positions;
        if len == 0 {
            let zeros = |len: usize| vec![T::zero(); len];
            return [
                tracked[0].then(|| zeros(0)),
                tracked[1].then(|| zeros(sizes.channels)),
                tracked[2].then(|| zeros(sizes.channels)),
            ];
        }
        let statistics = self.statistics.get_or_init(|| self.values(sizes, x, weight, bias).1);
        let num_groups = piece_rows(len);
        let ([dx], sums) = filled_pieces([tracked[0]], x.len(), num_groups * len, |piece, [dx]| {
            let first = piece * num_groups;
            let part = first * len..x.len().min((first + num_groups) * len);
            let groups = self.groups(sizes, first, [&x[part.clone()], &dy[part.clone()], weight, bias]);
            let statistics = &statistics[first..];
            if tracked[0] {
                group_slopes(groups, statistics, dx)
            } else {
                T::with_scratch(part.len(), |dx| group_slopes(groups, statistics, dx))
            }
        });
        let (scales, shifts): (Vec<_>, Vec<_>) = sums.into_iter().map(|sums| (sums.scale, sums.shift)).unzip();
        let over_images = |sums: Vec<Vec<T>>| {
            let sums = sums.concat();
            let images = sums.chunks_exact(sizes.channels).map(<[T]>::to_vec);
            add_all(images.collect(), sizes.channels)
        };
        [
            dx,
            tracked[1].then(|| over_images(scales)),
            tracked[2].then(|| over_images(shifts)),
        ]
    }
}

/// Sums over the positions of each channel of some groups, where z is what SiLU is applied to.
struct ChannelSums<T> {
    /// Of dz: the gradient of the bias.
    shift: Vec<T>,
    /// Of dz times the normalized value: the gradient of the weight.
    scale: Vec<T>,
}

/// Some adjacent groups, of one image or several; `dy` is empty in a forward pass.
#[derive(Clone, Copy)]
struct Groups<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    /// Of all channels, as the bias.
    weight: &'a [T],
    bias: &'a [T],
    positions: usize,
    group_channels: usize,
    first_channel: usize,
    silu: bool,
}

wide! {
    /// Writes the normalized groups and returns their statistics.
    fn normalize<T: Float>(groups: Groups<'_, T>, y: &mut [T], eps: f64) -> Statistics {
        let Groups { x, weight, bias, positions, group_channels, first_channel, .. } = groups;
        let len = group_channels * positions;
        let mut first = first_channel;
        let mut statistics = Vec::with_capacity(x.len() / len);
        for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
            let mean = sum_terms(x, x, |x, _| x) / len as f64;
            let center = T::of(mean);
            let variance = sum_terms(x, x, |x, _| (x - center) * (x - center)) / len as f64;
            let rstd = 1.0 / (variance + eps).sqrt();
            for (c, (x, y)) in x.chunks_exact(positions).zip(y.chunks_exact_mut(positions)).enumerate() {
                let (scale, shift) = (T::of(weight[first + c].double() * rstd), bias[first + c]);
                if groups.silu {
                    for (&x, y) in x.iter().zip(y) {
                        *y = Silu::value((x - center) * scale + shift);
                    }
                } else {
                    for (&x, y) in x.iter().zip(y) {
                        *y = (x - center) * scale + shift;
                    }
                }
            }
            first = (first + group_channels) % weight.len();
            statistics.push((mean, rstd));
        }
        statistics
    }
}

wide! {
    /// Writes the gradients of x and returns the sums for those of weight and bias.
    fn group_slopes<T: Float>(groups: Groups<'_, T>, statistics: &[(f64, f64)], dx: &mut [T]) -> ChannelSums<T> {
        let Groups { x, dy, weight, bias, positions, group_channels, first_channel, silu } = groups;
        let len = group_channels * positions;
        let capacity = x.len() / positions;
        let mut sums = ChannelSums { shift: Vec::with_capacity(capacity), scale: Vec::with_capacity(capacity) };
        let mut first = first_channel;
        let operands = x.chunks_exact(len).zip(dy.chunks_exact(len)).zip(dx.chunks_exact_mut(len));
        for (((x, dy), dx), &(mean, rstd)) in operands.zip(statistics) {
            let center = T::of(mean);
            let weight = &weight[first..first + group_channels];
            let (mut a, mut b) = (0.0, 0.0);
            for (c, &w) in weight.iter().enumerate() {
                let row = c * positions..(c + 1) * positions;
                let (x, dy, w) = (&x[row.clone()], &dy[row.clone()], w.double());
                let (dz_sum, dz_x_sum) = if silu {
                    silu_slopes((x, dy), &mut dx[row], (center, T::of(w * rstd), bias[first + c]))
                } else {
                    sum_pairs(x, dy, dy, |x, dy, _| (dy, dy * (x - center)))
                };
                let dz_x_sum = dz_x_sum * rstd;
                a += w * dz_sum;
                b += w * dz_x_sum;
                sums.shift.push(T::of(dz_sum));
                sums.scale.push(T::of(dz_x_sum));
            }
            // dx = rstd (w dz - mean(w dz) - n mean(w dz n)) with n = (x - mean) rstd.
            let (of_x, constant) = (T::of(-b / len as f64 * rstd * rstd), T::of(-a / len as f64 * rstd));
            for (c, &w) in weight.iter().enumerate() {
                let row = c * positions..(c + 1) * positions;
                let of_dz = T::of(w.double() * rstd);
                let (x, dy, dx) = (&x[row.clone()], &dy[row.clone()], &mut dx[row]);
                if silu {
                    for (&x, dx) in x.iter().zip(dx) {
                        *dx = *dx * of_dz + (x - center) * of_x + constant;
                    }
                } else {
                    for ((&x, &dy), dx) in x.iter().zip(dy).zip(dx) {
                        *dx = dy * of_dz + (x - center) * of_x + constant;
                    }
                }
            }
            first = (first + group_channels) % groups.weight.len();
        }
        sums
    }
}

/// Writes dz of one channel and returns its sum and that of `dz (x - center)`, where z is `(x - center) scale + shift`.
#[inline(always)]
fn silu_slopes<T: Float>((x, dy): (&[T], &[T]), dz: &mut [T], (center, scale, shift): (T, T, T)) -> (f64, f64) {
    let mut totals = (0.0, 0.0);
    for ((x, dy), dz) in x.chunks(BLOCK).zip(dy.chunks(BLOCK)).zip(dz.chunks_mut(BLOCK)) {
        let (mut sums, mut others) = ([T::zero(); LANES], [T::zero(); LANES]);
        let ((x, x_rest), (dy, dy_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        let (dz, dz_rest) = dz.as_chunks_mut::<LANES>();
        for ((x, dy), dz) in x.iter().zip(dy).zip(dz) {
            for i in 0..LANES {
                let centered = x[i] - center;
                dz[i] = dy[i] * Silu::slope(centered * scale + shift);
                sums[i] += dz[i];
                others[i] += dz[i] * centered;
            }
        }
        let (mut rest, mut other_rest) = (T::zero(), T::zero());
        for ((&x, &dy), dz) in x_rest.iter().zip(dy_rest).zip(dz_rest) {
            let centered = x - center;
            *dz = dy * Silu::slope(centered * scale + shift);
            rest += *dz;
            other_rest += *dz * centered;
        }
        totals.0 += (folded(sums) + rest).double();
        totals.1 += (folded(others) + other_rest).double();
    }
    totals
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        self.op
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
        let sizes = self.sizes(x_layout.shape());
        on_float!(x.dtype(), self.op, T => {
            let x = from_parts::<T>(x, x_layout)?;
            let (weight, bias) = (from_parts::<T>(weight, weight_layout)?, from_parts::<T>(bias, bias_layout)?);
            let (y, statistics) = self.values(sizes, x, weight, bias);
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
        let [x_operand, weight_operand, bias_operand, grad_operand] = [x, weight, bias, &grad].map(Operand::of);
        on_float!(x.dtype(), self.op, T => {
            let operands = (
                x_operand.slice::<T>()?,
                weight_operand.slice::<T>()?,
                bias_operand.slice::<T>()?,
                grad_operand.slice::<T>()?,
            );
            let tracked = [x.track_op(), weight.track_op(), bias.track_op()];
            let [dx, dw, db] = self.slopes(self.sizes(x.shape()), operands, tracked);
            Ok((gradient(dx, x)?, gradient(dw, weight)?, gradient(db, bias)?))
        })
    }
}
