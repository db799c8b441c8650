//! Images as rows of tokens, one a pixel, and back: a transposition of channels and pixels.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result as CandleResult, Shape, Tensor};

use super::kernel::{
    Float, LANES, Operand, Path, filled_rows, from_parts, gradient, on_float, output, path, shape_error,
};
use crate::Result;

const OP: &str = "image_to_tokens";

/// The pixels of an image as tokens, row after row.
///
/// # Shape
/// `(B, C, Y, X)` to `(B, Y X, C)`.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for another rank.
pub fn image_to_tokens(x: &Tensor) -> Result<Tensor> {
    let &[b, c, height, width] = x.dims() else {
        return Err(shape_error(OP, "shape of x", x.dims(), "(B, C, Y, X)"));
    };
    transposed(x, [b, c, height * width], &[b, height * width, c])
}

/// The inverse of [`image_to_tokens`].
///
/// # Shape
/// `(B, Y X, C)` to `(B, C, Y, X)`.
///
/// # Errors
/// [`Error::Operand`](crate::Error::Operand) for another rank or number of tokens.
pub fn tokens_to_image(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    match x.dims() {
        &[b, tokens, c] if tokens == height * width => transposed(x, [b, tokens, c], &[b, c, height, width]),
        dims => {
            let expected = format!("(B, {}, C) for an image of {height} by {width}", height * width);
            Err(shape_error("tokens_to_image", "shape of x", dims, expected))
        }
    }
}

/// Matrices (B, R, C) of `x` transposed, in the shape `dims`.
fn transposed(x: &Tensor, [b, rows, cols]: [usize; 3], dims: &[usize]) -> Result<Tensor> {
    if path(OP, &[x])? == Path::Fused {
        let dims = dims.to_vec();
        return Ok(x.contiguous()?.apply_op1(Transpose { rows, cols, dims })?);
    }
    Ok(x.reshape((b, rows, cols))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape(dims)?)
}

/// The operand is contiguous and holds matrices (rows, cols).
struct Transpose {
    rows: usize,
    cols: usize,
    dims: Vec<usize>,
}

impl CustomOp1 for Transpose {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        on_float!(x.dtype(), OP, T => {
            let y = matrices::<T>(from_parts(x, layout)?, self.rows, self.cols);
            Ok(output(y, self.dims.as_slice()))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let operand = Operand::of(&grad);
        on_float!(x.dtype(), OP, T => gradient(Some(matrices::<T>(operand.slice()?, self.cols, self.rows)), x))
    }
}

/// Contiguous matrices (rows, cols) transposed.
fn matrices<T: Float>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    // Tiles of as many rows and columns as lie in a line of the cache: lines of results may be a power of two apart.
    filled_rows(x.len(), rows, |first, lines| {
        for (i, lines) in lines.chunks_mut(rows * LANES).enumerate() {
            let line = first + i * LANES;
            let mut written = 0;
            // Lines of one matrix.
            while written < lines.len() / rows {
                let (matrix, col) = ((line + written) / cols, (line + written) % cols);
                let len = (cols - col).min(lines.len() / rows - written);
                let x = &x[matrix * rows * cols..(matrix + 1) * rows * cols];
                for (block, x) in x.chunks(cols * LANES).enumerate() {
                    let (mut tile, row) = ([[T::zero(); LANES]; LANES], block * LANES);
                    for (i, x) in x.chunks_exact(cols).enumerate() {
                        for (tile, &x) in tile.iter_mut().zip(&x[col..col + len]) {
                            tile[i] = x;
                        }
                    }
                    for (j, tile) in tile[..len].iter().enumerate() {
                        let line = &mut lines[(written + j) * rows..(written + j + 1) * rows];
                        let line = &mut line[row..rows.min(row + LANES)];
                        line.copy_from_slice(&tile[..line.len()]);
                    }
                }
                written += len;
            }
        }
    })
}
