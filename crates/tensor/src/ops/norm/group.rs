//! The fused group normalization. P is the number of positions of a channel, a group is C / G channels.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use crate::ops::activation::{Activation, Silu};
use crate::ops::kernel::{
    Float, Operand, Shared, add_all, dot_centered, from_parts, on_float, output, sum, sum_squares, wide,
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

    /// Values, and the statistics for the backward pass.
    fn values<T: Float>(&self, sizes: Sizes, x: &[T], weight: &[T], bias: &[T]) -> (Vec<T>, Statistics) {
        let Sizes {
            positions,
            group_channels,
            ..
        } = sizes;
        let len = group_channels * positions;
        let mut y = vec![T::zero(); x.len()];
        if len == 0 {
            return (y, Vec::new());
        }
        let one = |(unit, (x, y)): (usize, (&[T], &mut [T]))| {
            let mean = sum(x) / len as f64;
            let variance = sum_squares(x, T::of(mean)) / len as f64;
            let rstd = 1.0 / (variance + self.eps).sqrt();
            let first = unit % self.num_groups * group_channels;
            for (c, (x, y)) in x.chunks_exact(positions).zip(y.chunks_exact_mut(positions)).enumerate() {
                let (scale, shift) = (T::of(weight[first + c].double() * rstd), bias[first + c]);
                if self.silu {
                    affine_silu(x, y, T::of(mean), scale, shift);
                } else {
                    affine(x, y, T::of(mean), scale, shift);
                }
            }
            (mean, rstd)
        };
        let statistics = x
            .par_chunks(len)
            .zip(y.par_chunks_mut(len))
            .enumerate()
            .map(one)
            .collect();
        (y, statistics)
    }

    /// Gradients of x, weight and bias, each only where `tracked`.
    fn slopes<T: Float>(
        &self,
        sizes: Sizes,
        (x, weight, bias, dy): (&[T], &[T], &[T], &[T]),
        tracked: [bool; 3],
    ) -> [Option<Vec<T>>; 3] {
        let Sizes {
            channels,
            positions,
            group_channels,
        } = sizes;
        let len = group_channels * positions;
        if len == 0 {
            let zeros = |len: usize| vec![T::zero(); len];
            return [
                tracked[0].then(|| zeros(0)),
                tracked[1].then(|| zeros(channels)),
                tracked[2].then(|| zeros(channels)),
            ];
        }
        let statistics = self.statistics.get_or_init(|| self.values(sizes, x, weight, bias).1);
        let mut dx = tracked[0].then(|| vec![T::zero(); x.len()]);
        let place = dx.as_mut().map(|dx| Shared::new(dx));
        // One for each (image, group).
        let units: Vec<ChannelSums<T>> = (0..x.len() / len)
            .into_par_iter()
            .map(|unit| {
                let first = unit % self.num_groups * group_channels;
                let part = unit * len..(unit + 1) * len;
                let channels = first..first + group_channels;
                let group = Group {
                    x: &x[part.clone()],
                    dy: &dy[part.clone()],
                    weight: &weight[channels.clone()],
                    bias: &bias[channels],
                    positions,
                    mean: statistics[unit].0,
                    rstd: statistics[unit].1,
                    silu: self.silu,
                };
                match place {
                    #[expect(unsafe_code, reason = "each task writes its own group")]
                    // SAFETY: the parts of different units do not overlap.
                    Some(place) => group.slopes(unsafe { place.part(part.start, len) }),
                    None => T::with_scratch(len, |dx| group.slopes(dx)),
                }
            })
            .collect();
        let per_image = |select: fn(&ChannelSums<T>) -> &Vec<T>| {
            let images = units.chunks(self.num_groups);
            add_all(
                images
                    .map(|groups| groups.iter().flat_map(select).copied().collect())
                    .collect(),
                channels,
            )
        };
        let dw = tracked[1].then(|| per_image(|unit| &unit.scale));
        let db = tracked[2].then(|| per_image(|unit| &unit.shift));
        [dx, dw, db]
    }
}

/// Sums over the positions of each channel of a group, where z is what SiLU is applied to.
struct ChannelSums<T> {
    /// Of dz: the gradient of the bias.
    shift: Vec<T>,
    /// Of dz times the normalized value: the gradient of the weight.
    scale: Vec<T>,
}

/// One group of one image.
struct Group<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    weight: &'a [T],
    bias: &'a [T],
    positions: usize,
    mean: f64,
    rstd: f64,
    silu: bool,
}

impl<T: Float> Group<'_, T> {
    /// Writes the gradient of x.
    fn slopes(&self, dx: &mut [T]) -> ChannelSums<T> {
        let Self {
            x,
            dy,
            weight,
            bias,
            positions,
            mean,
            rstd,
            ..
        } = *self;
        let capacity = || Vec::with_capacity(weight.len());
        let mut sums = ChannelSums {
            shift: capacity(),
            scale: capacity(),
        };
        let (mut a, mut b) = (0.0, 0.0);
        for c in 0..weight.len() {
            let row = c * positions..(c + 1) * positions;
            let (x, dy, dz) = (&x[row.clone()], &dy[row.clone()], &mut dx[row]);
            let w = weight[c].double();
            if self.silu {
                silu_slopes(x, dy, dz, T::of(mean), T::of(w * rstd), bias[c]);
            } else {
                dz.copy_from_slice(dy);
            }
            let dz_sum = sum(dz);
            let dz_x_sum = dot_centered(dz, x, T::of(mean)) * rstd;
            a += w * dz_sum;
            b += w * dz_x_sum;
            sums.shift.push(T::of(dz_sum));
            sums.scale.push(T::of(dz_x_sum));
        }
        // dx = rstd (w dz - mean(w dz) - n mean(w dz n)) with n = (x - mean) rstd.
        let len = x.len() as f64;
        let (of_x, constant) = (T::of(-b / len * rstd * rstd), T::of(-a / len * rstd));
        for (c, &w) in weight.iter().enumerate() {
            let row = c * positions..(c + 1) * positions;
            let of_dz = T::of(w.double() * rstd);
            combine(&x[row.clone()], T::of(mean), &mut dx[row], of_dz, of_x, constant);
        }
        sums
    }
}

wide! {
    fn affine<T: Float>(x: &[T], y: &mut [T], mean: T, scale: T, shift: T) {
        for (&x, y) in x.iter().zip(y) {
            *y = (x - mean) * scale + shift;
        }
    }
}

wide! {
    fn affine_silu<T: Float>(x: &[T], y: &mut [T], mean: T, scale: T, shift: T) {
        for (&x, y) in x.iter().zip(y) {
            *y = Silu::value((x - mean) * scale + shift);
        }
    }
}

wide! {
    fn silu_slopes<T: Float>(x: &[T], dy: &[T], dz: &mut [T], mean: T, scale: T, shift: T) {
        for ((&x, &dy), dz) in x.iter().zip(dy).zip(dz) {
            *dz = dy * Silu::slope((x - mean) * scale + shift);
        }
    }
}

wide! {
    /// `dx = dx * of_dz + (x - mean) * of_x + constant`.
    fn combine<T: Float>(x: &[T], mean: T, dx: &mut [T], of_dz: T, of_x: T, constant: T) {
        for (&x, dx) in x.iter().zip(dx) {
            *dx = *dx * of_dz + (x - mean) * of_x + constant;
        }
    }
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
            let tensor = |data: Option<Vec<T>>, like: &Tensor| {
                data.map(|data| Tensor::from_vec(data, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dw, weight)?, tensor(db, bias)?))
        })
    }
}
