//! Clipping by global norm.

use crate::{Gradients, Result};

/// As in PyTorch's `clip_grad_norm_`, so that replays agree to the last digits.
const EPSILON: f64 = 1e-6;

/// Scales all gradients together so that their global norm is at most `max_norm`, and returns the norm before that.
/// `max_norm` 0 only measures.
///
/// # Errors
/// When the device fails.
pub fn clip_by_global_norm(gradients: &mut Gradients, max_norm: f64) -> Result<f64> {
    let norm = gradients.global_norm()?;
    let factor = max_norm / (norm + EPSILON);
    if max_norm > 0.0 && factor < 1.0 {
        gradients.scale(factor)?;
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn long_gradients_shrink_to_the_limit_and_short_ones_stay() {
        let of = |v: &[f64]| Gradients::new(BTreeMap::from([("w".into(), Tensor::new(v, &Device::Cpu).unwrap())]));
        let mut long = of(&[30., 40.]);
        assert_eq!(clip_by_global_norm(&mut long, 5.0).unwrap(), 50.0);
        assert!((long.global_norm().unwrap() - 5.0).abs() < 1e-6);
        let mut short = of(&[0.3, 0.4]);
        assert_eq!(clip_by_global_norm(&mut short, 5.0).unwrap(), 0.5);
        assert_eq!(short.global_norm().unwrap(), 0.5);
        let mut unlimited = of(&[30., 40.]);
        clip_by_global_norm(&mut unlimited, 0.0).unwrap();
        assert_eq!(unlimited.global_norm().unwrap(), 50.0);
    }
}
