//! Operands: which path they take, and their elements.

use candle_core::{CpuStorage, DType, Layout, Result as CandleResult, Shape, Storage, StorageRef, Tensor};

use super::Float;
use crate::autograd::deliver;
use crate::{Error, Result};

/// How an operation is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::ops) enum Path {
    /// The fused kernel.
    Fused,
    /// Widen to f32, the fused kernel, narrow to this type.
    Widened(DType),
    /// candle's primitives.
    Composed,
}

/// The path of operands, which must share one type.
///
/// # Errors
/// [`Error::Operand`] for operands of different types.
pub(in crate::ops) fn path(op: &'static str, operands: &[&Tensor]) -> Result<Path> {
    let dtype = operands[0].dtype();
    for (index, operand) in operands.iter().enumerate() {
        if operand.dtype() != dtype {
            return Err(Error::Operand {
                op,
                what: "dtype",
                found: format!("{:?} (operand {index})", operand.dtype()),
                expected: format!("{dtype:?}, as the first operand"),
            });
        }
    }
    let on_cpu = operands.iter().all(|operand| operand.device().is_cpu());
    Ok(match dtype {
        DType::F32 | DType::F64 if on_cpu => Path::Fused,
        DType::F16 | DType::BF16 if on_cpu => Path::Widened(dtype),
        _ => Path::Composed,
    })
}

/// An error about a shape.
pub(in crate::ops) fn shape_error(
    op: &'static str,
    what: &'static str,
    found: &[usize],
    expected: impl Into<String>,
) -> Error {
    Error::Operand {
        op,
        what,
        found: format!("{found:?}"),
        expected: expected.into(),
    }
}

/// The elements of a CPU tensor, borrowed for a backward pass.
pub(in crate::ops) struct Operand<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Operand<'a> {
    pub(in crate::ops) fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    /// The elements of a contiguous tensor.
    pub(in crate::ops) fn slice<T: Float>(&self) -> CandleResult<&[T]> {
        from_parts(self.cpu()?, self.layout)
    }

    /// All elements of the storage, to be read by strides.
    pub(in crate::ops) fn storage<T: Float>(&self) -> CandleResult<&[T]> {
        T::cpu_storage_as_slice(self.cpu()?)
    }

    /// The storage of a CPU tensor.
    pub(in crate::ops) fn cpu(&self) -> CandleResult<&CpuStorage> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(storage),
            _ => Err(candle_core::Error::Msg(
                "a fused kernel was given a tensor of another device".into(),
            )),
        }
    }

    pub(in crate::ops) fn layout(&self) -> &Layout {
        self.layout
    }
}

/// The elements of a contiguous operand of a custom operation.
pub(in crate::ops) fn from_parts<'a, T: Float>(storage: &'a CpuStorage, layout: &Layout) -> CandleResult<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(candle_core::Error::RequiresContiguous { op: "fused kernel" });
    };
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// What a custom operation returns on the CPU.
pub(in crate::ops) fn output<T: Float>(data: Vec<T>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (T::to_cpu_storage_owned(data), shape.into())
}

/// What a backward pass returns for an operand: its gradient, unless it is a parameter whose gradient is taken here.
pub(in crate::ops) fn gradient<T: Float>(data: Option<Vec<T>>, of: &Tensor) -> CandleResult<Option<Tensor>> {
    match data {
        None => Ok(None),
        Some(data) => deliver(of, Tensor::from_vec(data, of.shape(), of.device())?),
    }
}
