//! Denoising errors: the score of image diffusion.
//!
//! The score of an image is `-½ · mse`, with `mse` the squared error of the denoiser's answer averaged over channels and
//! pixels. Averaging, not summing, sets the scale of beta (the published Diffusion-DPO scripts do the same).
//!
//! Shape letters: B batch, C channels, Y x X spatial.

use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{DType, Device, Tensor};

use crate::{Error, Result};

/// Per-image mean squared errors between what the denoiser answered and what it should have answered, in f32 or f64.
///
/// # Shape
/// Both inputs (B, C, Y, X); the result is (B,).
///
/// # Errors
/// [`Error::Shape`] when the shapes differ.
pub fn denoising_errors(prediction_bcyx: &Tensor, target_bcyx: &Tensor) -> Result<Tensor> {
    if prediction_bcyx.dims() != target_bcyx.dims() {
        return Err(Error::Shape {
            name: "prediction".into(),
            found: prediction_bcyx.dims().to_vec(),
            expected: target_bcyx.dims().to_vec(),
        });
    }
    Ok(mean_squared(prediction_bcyx, target_bcyx)?)
}

fn mean_squared(prediction_bcyx: &Tensor, target_bcyx: &Tensor) -> diptych_tensor::Result<Tensor> {
    let dtype = match prediction_bcyx.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    // Half precision would lose the small differences between policy and reference that the objective amplifies.
    let error = (prediction_bcyx.to_dtype(dtype)? - target_bcyx.to_dtype(dtype)?)?;
    Ok(error.sqr()?.flatten_from(1)?.mean(1)?)
}

/// Scores of denoising errors: minus one half of each, differentiable.
///
/// # Errors
/// Tensor operations.
pub fn scores(denoising_errors: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((denoising_errors * -0.5)?)
}

/// One noise per example, a function of (seed, step, position in the step's batch) alone.
///
/// # Shape
/// `shape` is that of one example, (C, Y, X); the result is (B, C, Y, X) in f32.
///
/// # Errors
/// Tensor operations.
pub fn noise(
    seed: u64,
    stream: Stream,
    step: u64,
    examples: &[u64],
    shape: &[usize],
    device: &Device,
) -> diptych_tensor::Result<Tensor> {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = examples
        .iter()
        .flat_map(|&example| normal_vec(&mut generator(seed, stream, step, example), len))
        .collect();
    let mut dims = vec![examples.len()];
    dims.extend_from_slice(shape);
    Ok(Tensor::from_vec(values, dims, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_means_per_image() {
        let prediction = Tensor::new(&[[[[1.0_f32, 2.0]]], [[[0.0, 0.0]]]], &Device::Cpu).unwrap();
        let target = Tensor::new(&[[[[0.0_f32, 0.0]]], [[[3.0, -1.0]]]], &Device::Cpu).unwrap();
        let errors = denoising_errors(&prediction, &target).unwrap();
        assert_eq!(errors.to_vec1::<f32>().unwrap(), [2.5, 5.0]);
        assert_eq!(scores(&errors).unwrap().to_vec1::<f32>().unwrap(), [-1.25, -2.5]);
        assert!(matches!(
            denoising_errors(&prediction, &errors),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn noise_does_not_depend_on_the_batch() {
        let one = |examples: &[u64]| {
            noise(3, Stream::Noise, 5, examples, &[1, 2, 2], &Device::Cpu)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap()
        };
        let together = one(&[0, 1]);
        assert_eq!(together, [one(&[0]), one(&[1])].concat());
    }
}
