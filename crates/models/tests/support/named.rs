//! Networks whose weights are made from names, and their golden gradients.

use diptych_models::Builder;
use diptych_tensor::{Gradients, Params, Weights};

use crate::support::{read, values};

#[path = "../../../../tests/golden/named_values.rs"]
mod named_values;

pub(crate) use named_values::{named, named_tensors, uniform};

/// A weight file of a network whose parameters `load` asks for.
pub(crate) fn named_weights<T>(load: impl Fn(&Builder<'_>) -> diptych_models::Result<T>) -> Weights {
    Weights::from_tensors("named", named_tensors(load))
}

/// Compares norm and direction of every gradient with the file's, (P, 2) in the order of names.
pub(crate) fn check_named_gradients(what: &str, gradients: &Gradients, params: &Params, vectors: &Weights, key: &str) {
    const TOLERANCE: f64 = 1e-3;
    gradients.ensure_complete(params).unwrap();
    let expected = values(&read(vectors, key));
    let expected: Vec<&[f64]> = expected.chunks(2).collect();
    assert_eq!(params.names().count(), expected.len(), "{what}: number of parameters");
    let largest = expected.iter().fold(0.0, |max: f64, row| max.max(row[0]));
    for (name, row) in params.names().zip(expected) {
        let gradient = values(gradients.get(name).unwrap());
        let direction = uniform(&format!("direction.{name}"), gradient.len());
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let product: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        // Gradients that are zero but for rounding (a key's bias) have no relative error.
        let scale = row[0].max(1e-3 * largest);
        for (found, expected) in [norm(&gradient), product / norm(&direction)].into_iter().zip(row) {
            let error = (found - expected).abs() / scale;
            assert!(
                error < TOLERANCE,
                "{what}: gradient of {name}: {found}, expected {expected}"
            );
        }
    }
}
