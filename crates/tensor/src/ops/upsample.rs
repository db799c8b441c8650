//! Nearest-neighbor upsampling by a whole factor.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result as CandleResult, Shape, Tensor};

use super::kernel::{Float, Operand, Path, filled_rows, from_parts, gradient, on_float, output, path, shape_error};
use crate::{Error, Result};

const OP: &str = "upsample_nearest2d";

/// Repeats every pixel `factor` times in both directions. The derivative of a pixel is the sum over its copies.
///
/// # Shape
/// `(B, C, Y, X)` to `(B, C, factor Y, factor X)`.
///
/// # Errors
/// [`Error::Operand`] for another rank or a factor of zero.
pub fn upsample_nearest2d(x: &Tensor, factor: usize) -> Result<Tensor> {
    dims(x, factor)?;
    match path(OP, &[x])? {
        Path::Fused => Ok(x.contiguous()?.apply_op1(Upsample { factor })?),
        Path::Widened(dtype) => Ok(upsample_nearest2d(&x.to_dtype(DType::F32)?, factor)?.to_dtype(dtype)?),
        Path::Composed => upsample_nearest2d_composed(x, factor),
    }
}

/// [`upsample_nearest2d`] by broadcasting (candle's own operation overwrites a gradient that is already there).
///
/// # Errors
/// As [`upsample_nearest2d`].
pub fn upsample_nearest2d_composed(x: &Tensor, factor: usize) -> Result<Tensor> {
    let [b, c, y, x_len] = dims(x, factor)?;
    Ok(x.reshape((b, c, y, 1, x_len, 1))?
        .broadcast_as((b, c, y, factor, x_len, factor))?
        .reshape((b, c, y * factor, x_len * factor))?)
}

fn dims(x: &Tensor, factor: usize) -> Result<[usize; 4]> {
    if factor == 0 {
        return Err(Error::Operand {
            op: OP,
            what: "factor",
            found: "0".into(),
            expected: "at least 1".into(),
        });
    }
    match *x.dims() {
        [b, c, y, x] => Ok([b, c, y, x]),
        _ => Err(shape_error(OP, "shape of x", x.dims(), "(B, C, Y, X)")),
    }
}

struct Upsample {
    factor: usize,
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (b, c, y, x) = layout.shape().dims4()?;
        on_float!(storage.dtype(), OP, T => {
            let small = from_parts::<T>(storage, layout)?;
            let area = self.factor * self.factor;
            let large = filled_rows(small.len() * area, x * area, |first, rows| {
                let small = small[first * x..].chunks_exact(x);
                rows.chunks_exact_mut(x * area).zip(small).for_each(|(large, small)| repeat(small, large, self.factor));
            });
            Ok(output::<T>(large, (b, c, y * self.factor, x * self.factor)))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let width = x.dim(3)?;
        let grad = grad.contiguous()?;
        let grad_operand = Operand::of(&grad);
        on_float!(x.dtype(), OP, T => {
            let large = grad_operand.slice::<T>()?;
            let area = self.factor * self.factor;
            let small = filled_rows(x.elem_count(), width, |first, rows| {
                let large = large[first * width * area..].chunks_exact(width * area);
                rows.chunks_exact_mut(width).zip(large).for_each(|(small, large)| gather(large, small, self.factor));
            });
            gradient(Some(small), x)
        })
    }
}

/// Writes the `factor` rows of one input row.
fn repeat<T: Float>(small: &[T], large: &mut [T], factor: usize) {
    let (first, others) = large.split_at_mut(small.len() * factor);
    for (copies, &x) in first.chunks_exact_mut(factor).zip(small) {
        copies.fill(x);
    }
    for row in others.chunks_exact_mut(first.len()) {
        row.copy_from_slice(first);
    }
}

/// Sums the `factor` rows of one input row.
fn gather<T: Float>(large: &[T], small: &mut [T], factor: usize) {
    for row in large.chunks_exact(small.len() * factor) {
        for (x, copies) in small.iter_mut().zip(row.chunks_exact(factor)) {
            *x = copies.iter().fold(*x, |sum, &copy| sum + copy);
        }
    }
}
