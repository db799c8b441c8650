//! A set of gradients, by parameter name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use crate::ops::kernel::sum_of_squares;
use crate::{Error, Params, Result};

/// At most this many names are written into an error.
const NAMED: usize = 8;

/// Detached gradients, ordered by the name of their parameter.
#[derive(Debug, Clone, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    pub(crate) fn new(gradients: BTreeMap<String, Tensor>) -> Self {
        Self(gradients)
    }

    /// The gradient of the parameter of this name, if the loss reached it.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Names and gradients, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, gradient)| (name.as_str(), gradient))
    }

    /// Adds one gradient to what is there for `name`.
    pub(crate) fn add(&mut self, name: String, gradient: &Tensor) -> Result<()> {
        let sum = match self.0.get(&name) {
            Some(present) => (present + gradient)?.detach(),
            None => gradient.detach(),
        };
        self.0.insert(name, sum);
        Ok(())
    }

    /// Adds the gradients of another pass: accumulation over micro batches.
    ///
    /// # Errors
    /// When shapes differ, which means that the sets belong to different networks.
    pub fn add_assign(&mut self, other: &Self) -> Result<()> {
        other
            .0
            .iter()
            .try_for_each(|(name, gradient)| self.add(name.clone(), gradient))
    }

    /// Multiplies every gradient.
    ///
    /// # Errors
    /// When the device fails.
    pub fn scale(&mut self, factor: f64) -> Result<()> {
        for gradient in self.0.values_mut() {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// The Euclidean norm of all gradients together, summed in f64.
    ///
    /// # Errors
    /// When the device fails.
    pub fn global_norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        for gradient in self.0.values() {
            sum += sum_of_squares(gradient)?;
        }
        Ok(sum.sqrt())
    }

    /// Names of parameters whose gradient holds NaN or an infinity.
    ///
    /// # Errors
    /// When the device fails.
    pub fn non_finite(&self) -> Result<Vec<&str>> {
        let mut names = Vec::new();
        for (name, gradient) in &self.0 {
            // Zero times anything finite is zero; NaN and infinities survive the sum.
            let poison = (gradient * 0.0)?
                .sum_all()?
                .to_device(&Device::Cpu)?
                .to_dtype(DType::F64)?;
            let poison = poison.to_scalar::<f64>()?;
            if poison != 0.0 {
                names.push(name.as_str());
            }
        }
        Ok(names)
    }

    /// Checks that every parameter has a gradient: one that has none is cut off from the loss and would never train.
    ///
    /// # Errors
    /// [`Error::SilentParameters`] with their names.
    pub fn ensure_complete(&self, params: &Params) -> Result<()> {
        let silent: Vec<&str> = params.names().filter(|name| !self.0.contains_key(*name)).collect();
        if silent.is_empty() {
            return Ok(());
        }
        let mut names = silent.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        if silent.len() > NAMED {
            names.push_str(", …");
        }
        Err(Error::SilentParameters {
            count: silent.len(),
            total: params.len(),
            names,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradients(values: &[(&str, &[f32])]) -> Gradients {
        let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
        Gradients::new(values.iter().map(|(name, v)| ((*name).to_owned(), tensor(v))).collect())
    }

    #[test]
    fn sums_scales_and_norm() {
        let mut sum = gradients(&[("a", &[3., 0.])]);
        sum.add_assign(&gradients(&[("a", &[0., 4.]), ("b", &[12.])])).unwrap();
        assert_eq!(sum.global_norm().unwrap(), 13.0);
        sum.scale(0.5).unwrap();
        assert_eq!(sum.get("a").unwrap().to_vec1::<f32>().unwrap(), [1.5, 2.]);
    }

    #[test]
    fn poison_is_named() {
        let set = gradients(&[
            ("fine", &[1e30, -1e30]),
            ("inf", &[f32::INFINITY]),
            ("nan", &[0., f32::NAN]),
        ]);
        assert_eq!(set.non_finite().unwrap(), ["inf", "nan"]);
    }
}
