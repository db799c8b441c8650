//! Rows of a table by index.

use candle_core::{DType, Tensor};

use super::kernel::shape_error;
use crate::{Error, Result};

/// Rows of `table` chosen by `ids`.
///
/// A gather in candle's primitives on every device: there is nothing to fuse, and an untracked table gets no gradient
/// because then the result is not tracked either.
///
/// # Shape
/// `ids` u32 `(...)`, `table` `(V, D)`, result `(..., D)`.
///
/// # Errors
/// [`Error::Operand`] for another dtype or rank; candle's index error for an id outside the table.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    if ids.dtype() != DType::U32 {
        return Err(Error::Operand {
            op: "embedding",
            what: "dtype of ids",
            found: format!("{:?}", ids.dtype()),
            expected: "U32".into(),
        });
    }
    let &[_, width] = table.dims() else {
        return Err(shape_error("embedding", "shape of table", table.dims(), "(V, D)"));
    };
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    Ok(table
        .contiguous()?
        .index_select(&ids.flatten_all()?, 0)?
        .reshape(dims)?)
}
