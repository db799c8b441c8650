//! Rotary position embedding (Su et al., arXiv:2104.09864) in the half-split order of transformers' `rotate_half`.
//!
//! ```text
//! y[j]       = x[j] cos[j] - x[j + K/2] sin[j]          j < K/2
//! y[j + K/2] = x[j + K/2] cos[j] + x[j] sin[j]
//! ```

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result as CandleResult, Shape, Tensor};

use super::kernel::{
    Float, Operand, Path, filled_rows, from_parts, gradient, on_float, output, path, shape_error, wide,
};
use crate::{Error, Result};

const OP: &str = "rope";

/// Rotates every head by the angles of its token.
///
/// The tables are constants: they may have any float type, and no gradient flows to them.
///
/// # Shape
/// `x` `(B, T, H K)` with `num_heads` heads H side by side, `cos` and `sin` `(B, T, K/2)`, `(1, T, K/2)` or `(T, K/2)`; the
/// result has the shape of `x`.
///
/// # Errors
/// [`Error::Operand`] for shapes or dtypes that do not fit, or an odd K.
pub fn rope(x: &Tensor, num_heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = check(x, num_heads, cos, sin)?;
    match path(OP, &[x])? {
        Path::Fused if x.elem_count() > 0 => {
            let table = |table: &Tensor| table.detach().to_dtype(x.dtype())?.contiguous();
            let op = Rope {
                half,
                cos: table(cos)?,
                sin: table(sin)?,
            };
            Ok(x.contiguous()?.apply_op1(op)?)
        }
        Path::Widened(dtype) => Ok(rope(&x.to_dtype(DType::F32)?, num_heads, cos, sin)?.to_dtype(dtype)?),
        Path::Fused | Path::Composed => rope_composed(x, num_heads, cos, sin),
    }
}

/// [`rope`] in candle's primitives.
///
/// # Errors
/// As [`rope`].
pub fn rope_composed(x: &Tensor, num_heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = check(x, num_heads, cos, sin)?;
    let (b, t, width) = x.dims3()?;
    let table = |table: &Tensor| -> Result<Tensor> {
        let rows = table.elem_count() / (t * half).max(1);
        Ok(table.detach().reshape((rows, t, 1, half))?.to_dtype(x.dtype())?)
    };
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    let (cos, sin) = (table(cos)?, table(sin)?);
    let heads = x.reshape((b, t, num_heads, 2 * half))?;
    let (first, second) = (heads.narrow(D::Minus1, 0, half)?, heads.narrow(D::Minus1, half, half)?);
    let rotated = [
        (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
        (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
    ];
    Ok(Tensor::cat(&rotated, D::Minus1)?.reshape((b, t, width))?)
}

/// Half of the width of a head.
fn check(x: &Tensor, num_heads: usize, cos: &Tensor, sin: &Tensor) -> Result<usize> {
    let &[b, t, width] = x.dims() else {
        return Err(shape_error(OP, "shape of x", x.dims(), "(B, T, H K)"));
    };
    if num_heads == 0 || width % (2 * num_heads) != 0 {
        return Err(Error::Operand {
            op: OP,
            what: "number of heads",
            found: num_heads.to_string(),
            expected: format!("a number that divides the width {width} into heads of even width"),
        });
    }
    let half = width / num_heads / 2;
    for (what, table) in [("shape of cos", cos), ("shape of sin", sin)] {
        let dims = table.dims();
        if dims != [b, t, half] && dims != [1, t, half] && dims != [t, half] {
            let expected = format!("[{b}, {t}, {half}], [1, {t}, {half}] or [{t}, {half}]");
            return Err(shape_error(OP, what, dims, expected));
        }
    }
    for (what, table) in [("dtype of cos", cos), ("dtype of sin", sin)] {
        if !matches!(table.dtype(), DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            return Err(Error::Operand {
                op: OP,
                what,
                found: format!("{:?}", table.dtype()),
                expected: "a float type".into(),
            });
        }
    }
    Ok(half)
}

/// The tables are contiguous, have the type of x, and hold one row for each token of all rows of the batch or of one.
struct Rope {
    half: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `direction` is one, or minus one for the inverse rotation.
    fn rotated<T: Float>(&self, x: &[T], width: usize, direction: T) -> CandleResult<Vec<T>> {
        let (cos, sin) = (Operand::of(&self.cos), Operand::of(&self.sin));
        let (cos, sin) = (cos.slice::<T>()?, sin.slice::<T>()?);
        let (half, table_rows) = (self.half, cos.len() / self.half);
        Ok(filled_rows(x.len(), width, |first, rows| {
            for (i, y) in rows.chunks_exact_mut(width).enumerate() {
                let (row, angle) = (first + i, (first + i) % table_rows * half);
                let (cos, sin) = (&cos[angle..angle + half], &sin[angle..angle + half]);
                rotate(&x[row * width..(row + 1) * width], cos, sin, direction, y);
            }
        }))
    }
}

wide! {
    /// Rotates the heads of one token.
    fn rotate<T: Float>(x: &[T], cos: &[T], sin: &[T], direction: T, y: &mut [T]) {
        let half = cos.len();
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
            let ((x1, x2), (y1, y2)) = (x.split_at(half), y.split_at_mut(half));
            let angles = cos.iter().zip(sin);
            for (((&x1, &x2), (&c, &s)), (y1, y2)) in x1.iter().zip(x2).zip(angles).zip(y1.iter_mut().zip(y2)) {
                let s = s * direction;
                *y1 = x1 * c - x2 * s;
                *y2 = x2 * c + x1 * s;
            }
        }
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let width = layout.shape().dims3()?.2;
        on_float!(x.dtype(), OP, T => {
            Ok(output(self.rotated::<T>(from_parts(x, layout)?, width, 1.0)?, layout.shape()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let (operand, width) = (Operand::of(&grad), x.dim(D::Minus1)?);
        on_float!(x.dtype(), OP, T => {
            let dx = self.rotated::<T>(operand.slice()?, width, -1.0)?;
            gradient(Some(dx), x)
        })
    }
}
