//! Rows of a table by index.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result as CandleResult, Shape, Tensor};
use rayon::prelude::*;

use super::kernel::{
    Float, Operand, Path, Shared, add, filled_rows, from_parts, gradient, on_float, output, path, shape_error, zeros,
};
use crate::{Error, Result};

const OP: &str = "embedding";
/// Different rows of the gradient that one task sums at least.
const MIN_ROWS: usize = 16;

/// Rows of `table` chosen by `ids`.
///
/// On other devices and in half precision a gather in candle's primitives. An untracked table gets no gradient.
///
/// # Shape
/// `ids` u32 `(...)`, `table` `(V, D)`, result `(..., D)`.
///
/// # Errors
/// [`Error::Operand`] for another dtype or rank; candle's index error for an id outside the table.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    if ids.dtype() != DType::U32 {
        return Err(Error::Operand {
            op: OP,
            what: "dtype of ids",
            found: format!("{:?}", ids.dtype()),
            expected: "U32".into(),
        });
    }
    let &[_, width] = table.dims() else {
        return Err(shape_error(OP, "shape of table", table.dims(), "(V, D)"));
    };
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    let (ids, table) = (ids.flatten_all()?, table.contiguous()?);
    Ok(match path(OP, &[&table])? {
        Path::Fused => {
            let ids = ids.to_vec1()?;
            table.apply_op1(Embedding { ids, dims })?
        }
        Path::Widened(_) | Path::Composed => table.index_select(&ids, 0)?.reshape(dims)?,
    })
}

/// The operand is a contiguous table (V, D).
struct Embedding {
    ids: Vec<u32>,
    /// Shape of the result.
    dims: Vec<usize>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> CandleResult<(CpuStorage, Shape)> {
        let (size, width) = layout.shape().dims2()?;
        if let Some(&index) = self.ids.iter().find(|&&id| id as usize >= size) {
            let index = index as usize;
            return Err(candle_core::Error::InvalidIndex { op: OP, index, size }.bt());
        }
        on_float!(table.dtype(), OP, T => {
            let table = from_parts::<T>(table, layout)?;
            let rows = filled_rows(self.ids.len() * width, width, |first, rows| {
                for (row, &id) in rows.chunks_exact_mut(width).zip(&self.ids[first..]) {
                    row.copy_from_slice(&table[id as usize * width..][..width]);
                }
            });
            Ok(output::<T>(rows, self.dims.as_slice()))
        })
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> CandleResult<Option<Tensor>> {
        if !table.track_op() {
            return Ok(None);
        }
        let grad = grad.contiguous()?;
        let grad_operand = Operand::of(&grad);
        on_float!(table.dtype(), OP, T => {
            gradient(Some(self.slopes::<T>(grad_operand.slice()?, table.dim(0)?, table.dim(1)?)), table)
        })
    }
}

impl Embedding {
    /// The gradient of a table of so many rows: each is the sum of its uses in their order.
    fn slopes<T: Float>(&self, dy: &[T], rows: usize, width: usize) -> Vec<T> {
        let mut slopes = zeros(rows * width);
        let mut uses: Vec<usize> = (0..self.ids.len()).collect();
        uses.sort_by_key(|&at| self.ids[at]);
        let uses: Vec<&[usize]> = uses.chunk_by(|&a, &b| self.ids[a] == self.ids[b]).collect();
        let place = Shared::new(&mut slopes);
        uses.into_par_iter().with_min_len(MIN_ROWS).for_each(|uses| {
            let row = self.ids[uses[0]] as usize;
            #[expect(unsafe_code, reason = "each task sums its own rows")]
            // SAFETY: all uses of a row are in one task.
            let sum = unsafe { place.part(row * width, width) };
            for &at in uses {
                add(&dy[at * width..(at + 1) * width], sum);
            }
        });
        slopes
    }
}
