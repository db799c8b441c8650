//! Exponential moving average of parameters.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Params, Result};

/// `shadow ← decay · shadow + (1 − decay) · parameter`, one shadow for each parameter.
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f64,
    shadow: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Starts at the current parameters. `decay` is in `[0, 1)`.
    ///
    /// # Errors
    /// When the device cannot copy.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        Ok(Self {
            decay,
            shadow: params.snapshot()?,
        })
    }

    /// Moves the shadow towards the current parameters.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(&mut self, params: &Params) -> Result<()> {
        for (name, var) in params.iter() {
            if let Some(shadow) = self.shadow.get_mut(name) {
                *shadow = ((&*shadow * self.decay)? + (var.as_detached_tensor() * (1.0 - self.decay))?)?;
            }
        }
        Ok(())
    }

    /// The averages, by parameter name.
    pub fn shadow(&self) -> &BTreeMap<String, Tensor> {
        &self.shadow
    }

    /// Takes saved averages up again.
    ///
    /// # Errors
    /// [`Error::ParameterNames`](crate::Error::ParameterNames) when they are not those of `params`.
    pub fn restore(params: &Params, decay: f64, shadow: BTreeMap<String, Tensor>) -> Result<Self> {
        params.ensure_same_names("restoring moving averages", &shadow)?;
        Ok(Self { decay, shadow })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_shadow_follows_the_parameter() {
        let mut params = Params::new();
        params
            .insert("w", &Tensor::new(&[0f32], &Device::Cpu).unwrap())
            .unwrap();
        let mut ema = Ema::new(&params, 0.9).unwrap();
        params
            .get("w")
            .unwrap()
            .set(&Tensor::new(&[1f32], &Device::Cpu).unwrap())
            .unwrap();
        ema.update(&params).unwrap();
        ema.update(&params).unwrap();
        let value = ema.shadow()["w"].to_vec1::<f32>().unwrap()[0];
        assert!((value - 0.19).abs() < 1e-6, "{value}");
        assert!(Ema::restore(&params, 0.9, BTreeMap::new()).is_err());
    }
}
