//! Tensors before they reach a device.

use crate::error::{Error, Result, ShardProblem};

/// Values of a row-major tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    data: Vec<f32>,
}

impl HostTensor {
    /// A tensor of the given shape; `data` in row-major order.
    ///
    /// # Errors
    /// [`Error::Tensors`] when the shape has no dimension, one of them is 0, or `data` has another length than their
    /// product.
    pub fn new(shape: Vec<usize>, data: Vec<f32>) -> Result<Self> {
        let expected = shape
            .iter()
            .try_fold(1_usize, |product, size| product.checked_mul(*size))
            .unwrap_or(usize::MAX);
        let name = "tensor".to_owned();
        if shape.is_empty() || expected == 0 {
            let expected = "at least one dimension and none of size 0".to_owned();
            return Err(Error::Tensors(ShardProblem::Shape {
                name,
                found: shape,
                expected,
            }));
        }
        if data.len() != expected {
            return Err(Error::Tensors(ShardProblem::Length {
                name,
                shape,
                found: data.len(),
                expected,
            }));
        }
        Ok(Self { shape, data })
    }

    /// For a shape that was already checked against the data.
    pub(crate) fn from_checked(shape: Vec<usize>, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { shape, data }
    }

    /// Sizes of the dimensions; the first counts records.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// All values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Shape and values.
    pub fn into_parts(self) -> (Vec<usize>, Vec<f32>) {
        (self.shape, self.data)
    }

    /// Number of records: the first dimension.
    pub fn num_records(&self) -> usize {
        self.shape[0]
    }

    /// Values of one record.
    ///
    /// # Panics
    /// When `index` is not below [`HostTensor::num_records`], as slices do.
    pub fn record(&self, index: usize) -> &[f32] {
        let len = self.data.len() / self.shape[0];
        &self.data[index * len..(index + 1) * len]
    }

    /// The records at `indices`, in that order: `(indices.len(), ..)`.
    ///
    /// # Panics
    /// When `indices` is empty or holds an index that is not below [`HostTensor::num_records`].
    pub fn gather(&self, indices: &[usize]) -> Self {
        assert!(!indices.is_empty(), "a tensor has at least one record");
        let mut shape = self.shape.clone();
        shape[0] = indices.len();
        Self {
            shape,
            data: indices.iter().flat_map(|index| self.record(*index)).copied().collect(),
        }
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.shape[0] += other.shape[0];
        self.data.extend(other.data);
    }

    pub(crate) fn slice(&self, records: std::ops::Range<usize>) -> Self {
        self.gather(&records.collect::<Vec<_>>())
    }
}
