//! What an optimizer keeps between updates, as named tensors.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// At most this many names are written into an error.
const NAMED: usize = 8;

/// One tensor of an optimizer's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateTensor {
    /// The parameter's name and what the tensor is, such as `layer.weight.exp_avg`.
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// Type of the elements.
    pub dtype: DType,
}

impl StateTensor {
    pub(super) fn new(name: impl Into<String>, dims: &[usize], dtype: DType) -> Self {
        Self {
            name: name.into(),
            dims: dims.to_vec(),
            dtype,
        }
    }

    /// The part of this name of a parameter.
    pub(super) fn of_parameter(self, parameter: &str) -> Self {
        Self {
            name: format!("{parameter}.{}", self.name),
            ..self
        }
    }

    /// Size of its elements.
    pub fn bytes(&self) -> u64 {
        (self.dims.iter().product::<usize>() * self.dtype.size_in_bytes()) as u64
    }
}

/// Checks names, shapes and, where they are not those of parameters, types of a saved state.
pub(super) fn check_state(layout: &[StateTensor], state: &BTreeMap<String, Tensor>) -> Result<()> {
    let expected: BTreeMap<&str, &StateTensor> = layout.iter().map(|part| (part.name.as_str(), part)).collect();
    let missing = expected.keys().filter(|name| !state.contains_key(**name));
    let missing: Vec<String> = missing.take(NAMED).map(|&name| name.to_owned()).collect();
    let unknown = state.keys().filter(|name| !expected.contains_key(name.as_str()));
    let unknown: Vec<String> = unknown.take(NAMED).cloned().collect();
    if !missing.is_empty() || !unknown.is_empty() {
        return Err(Error::ParameterNames {
            what: "restoring the optimizer",
            missing,
            unknown,
        });
    }
    for (name, part) in expected {
        let found = &state[name];
        if found.dims() != part.dims {
            return Err(Error::TensorShape {
                path: "the optimizer's state".into(),
                name: name.into(),
                found: found.dims().to_vec(),
                expected: part.dims.clone(),
            });
        }
        if part.dtype == DType::U8 && found.dtype() != DType::U8 {
            return Err(Error::Operand {
                op: "optimizer",
                what: "dtype of codes in the state",
                found: format!("{:?} for {name}", found.dtype()),
                expected: "U8".into(),
            });
        }
    }
    Ok(())
}
