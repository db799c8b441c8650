//! Divergences of normal distributions with the same variance, of which a sampler's steps are made.
//!
//! Shekhar and Zhang, "ROCM: RLHF on consistency models", arXiv:2503.06171, regularizes every step of a sampler by a divergence of this kind. With means
//! `s` standard deviations apart, in one dimension and in closed form but for Jensen-Shannon's:
//!
//! ```text
//! reverse and forward KL   s^2 / 2
//! alpha                    (1 - e^(-alpha (1 - alpha) s^2 / 2)) / (alpha (1 - alpha)); alpha = 1/2 is 4 times the squared Hellinger distance
//! js                       ln 2 - E log(1 + e^u) for u = s z - s^2 / 2 and a standard normal z
//! ```
//!
//! The last one is symmetric in the two, so that one of its two expectations stands for both: it is summed over an even grid, whose error for such a
//! function shrinks exponentially with its width.

use diptych_tensor::{DType, Tensor, ops};

use crate::arithmetic::expm1;
use crate::{Divergence, Result};

/// Nodes of the grid on either side of 0, and their distance in standard deviations.
const NODES: i32 = 32;
const SPACING: f64 = 0.25;

impl Divergence {
    /// The divergence of two normal distributions with one standard deviation, whose means are `shifts` of them apart.
    ///
    /// # Shape
    /// Any; the result has that of `shifts`. Differentiable.
    ///
    /// # Errors
    /// Tensor operations.
    pub fn of_normals(self, shifts: &Tensor) -> Result<Tensor> {
        match self {
            Self::ReverseKl | Self::ForwardKl => Ok((shifts.sqr()? * 0.5)?),
            Self::Alpha(alpha) => {
                let product = alpha * (1.0 - alpha);
                let exponents = (shifts.sqr()? * (-0.5 * product))?;
                Ok((expm1(&exponents)? * (-1.0 / product))?)
            }
            Self::Js => jensen_shannon(shifts),
        }
    }
}

fn jensen_shannon(shifts: &Tensor) -> Result<Tensor> {
    // In f64, because ln 2 is taken from what is almost ln 2 where policy and reference are almost the same.
    let s = shifts.to_dtype(DType::F64)?.flatten_all()?.unsqueeze(1)?;
    let nodes: Vec<f64> = (-NODES..=NODES).map(|node| f64::from(node) * SPACING).collect();
    let densities: Vec<f64> = nodes.iter().map(|node| (-0.5 * node * node).exp()).collect();
    let total: f64 = densities.iter().sum();
    let weights: Vec<f64> = densities.into_iter().map(|density| density / total).collect();
    let len = nodes.len();
    let nodes = Tensor::from_vec(nodes, (1, len), shifts.device())?;
    let weights = Tensor::from_vec(weights, (len, 1), shifts.device())?;
    // -u of each shift and node, (M, nodes): log sigmoid(-u) is -log(1 + e^u).
    let negative = (s.sqr()? * 0.5)?.broadcast_sub(&s.broadcast_mul(&nodes)?)?;
    let expected = ops::log_sigmoid(&negative)?.matmul(&weights)?;
    let divergences = (expected + std::f64::consts::LN_2)?;
    Ok(divergences.reshape(shifts.dims())?.to_dtype(shifts.dtype())?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use diptych_tensor::{Device, Params, backward};
    use serde_json::Value;

    use super::*;

    /// Values and slopes of a program that integrates densities (`tests/golden/generate_reward_steps.py`).
    #[test]
    fn divergences_and_their_slopes_are_integrals_of_densities() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/reward_steps.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let cases = golden["divergences"].as_array().unwrap();
        assert_eq!(cases.len(), 6);
        let numbers = |value: &Value| -> Vec<f64> {
            value
                .as_array()
                .unwrap()
                .iter()
                .map(|number| number.as_f64().unwrap())
                .collect()
        };
        for case in cases {
            let kind: Divergence = serde_json::from_value(case["kind"].clone()).unwrap();
            let shifts = numbers(&case["shifts"]);
            assert!(shifts.len() >= 8);
            let mut params = Params::new();
            let shape = (2, shifts.len() / 2);
            let start = Tensor::from_vec(shifts.clone(), shape, &Device::Cpu).unwrap();
            let var = params.insert("shifts".to_owned(), &start).unwrap();
            let found = kind.of_normals(&var).unwrap();
            assert_eq!(found.dims(), [shape.0, shape.1]);
            let slopes = backward(&found.sum_all().unwrap(), &params).unwrap();
            let host = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let (_, slopes) = slopes.iter().next().unwrap();
            let found = host(&found).into_iter().zip(host(slopes));
            let expected = numbers(&case["values"]).into_iter().zip(numbers(&case["slopes"]));
            for ((shift, found), expected) in shifts.iter().zip(found).zip(expected) {
                for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                    // What the grid leaves out at 9 deviations is 2e-8 of a divergence of 0.69.
                    let error = (found - expected).abs();
                    assert!(
                        error < 1e-6 * expected.abs() + 5e-8,
                        "{kind:?} at {shift}: {found}, expected {expected}"
                    );
                }
            }
        }
    }

    #[test]
    fn single_precision_keeps_small_divergences() {
        let shift = Tensor::new(&[1e-3_f32], &Device::Cpu).unwrap();
        for (kind, expected) in [
            (Divergence::Js, 1.25e-7),
            (Divergence::Alpha(0.5), 5e-7),
            (Divergence::ReverseKl, 5e-7),
        ] {
            let found = kind.of_normals(&shift).unwrap().to_vec1::<f32>().unwrap()[0];
            assert!((f64::from(found) / expected - 1.0).abs() < 1e-3, "{kind:?}: {found}");
        }
    }
}
