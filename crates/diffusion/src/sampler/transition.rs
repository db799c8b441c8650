//! One step of a sampler as a distribution.
//!
//! Every sampler here draws the next latents from a normal distribution with one standard deviation for all components, 0 for
//! the deterministic ones. Its log-density is what policy-gradient and step-wise preference methods train:
//!
//! ```text
//! log p(x' | x) = mean over C, Y, X of [ -(x' - mean)^2 / (2 std^2) - ln std - ln(2 pi) / 2 ]
//! ```
//!
//! Convention: the mean over components, not their sum, as in the published code of DDPO (Black et al., arXiv:2305.13301),
//! D3PO (Yang et al., arXiv:2311.13231) and SPO (Liang et al., arXiv:2406.04314); it sets the scale of their beta.
//!
//! Shape letters: B batch, C channels, Y x X spatial.

use diptych_tensor::Tensor;

use crate::schedule::per_example;
use crate::{Error, Result};

/// What a multistep sampler remembers of the trajectory it is on.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Clean latents predicted in the step before.
    pub(super) previous_clean: Option<Tensor>,
}

/// The distribution of the latents after a step, one normal distribution an example.
#[derive(Debug, Clone)]
pub struct Transition {
    /// Means, (B, C, Y, X).
    pub mean: Tensor,
    /// Standard deviations, B of them, at least 0.
    pub stds: Vec<f64>,
    /// Clean latents as the prediction has them, (B, C, Y, X), clipped where the schedule says so.
    pub clean: Tensor,
}

/// Means of a step, and the clean latents they stand on.
pub(super) struct Moments {
    pub(super) mean: Tensor,
    pub(super) clean: Tensor,
}

impl Transition {
    /// Latents after the step; the noise of an example with standard deviation 0 is not used.
    ///
    /// # Shape
    /// `noise`, standard normal, is (B, C, Y, X).
    ///
    /// # Errors
    /// [`Error::MissingNoise`] when there is none but a standard deviation is above 0; tensor operations.
    pub fn sample(&self, noise: Option<&Tensor>) -> Result<Tensor> {
        if self.stds.iter().all(|&std| std == 0.0) {
            return Ok(self.mean.clone());
        }
        let noise = noise.ok_or(Error::MissingNoise)?;
        let stds = per_example(self.stds.clone(), &self.mean)?;
        Ok(shifted_by(&self.mean, noise, &stds)?)
    }

    /// Log-densities of `next`, the mean over components, differentiable with respect to the mean alone.
    ///
    /// # Shape
    /// `next` is (B, C, Y, X), the result (B,).
    ///
    /// # Errors
    /// [`Error::NoDensity`] when a standard deviation is 0; [`Error::Shape`] when `next` has another shape.
    pub fn log_probs(&self, next: &Tensor) -> Result<Tensor> {
        if self.stds.contains(&0.0) {
            return Err(Error::NoDensity { sampler: "this one" });
        }
        if next.dims() != self.mean.dims() {
            return Err(Error::Shape {
                name: "next".into(),
                found: next.dims().to_vec(),
                expected: self.mean.dims().to_vec(),
            });
        }
        Ok(self.log_densities(next)?)
    }

    fn log_densities(&self, next: &Tensor) -> diptych_tensor::Result<Tensor> {
        let squares = (next.detach().to_dtype(self.mean.dtype())? - &self.mean)?
            .sqr()?
            .flatten_from(1)?
            .mean(1)?;
        let batch = self.stds.len();
        let tensor = |values: Vec<f64>| -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::from_vec(values, batch, squares.device())?.to_dtype(squares.dtype())?)
        };
        let half_log_two_pi = 0.5 * (2.0 * std::f64::consts::PI).ln();
        let weights = tensor(self.stds.iter().map(|std| -0.5 / (std * std)).collect())?;
        let constants = tensor(self.stds.iter().map(|std| -std.ln() - half_log_two_pi).collect())?;
        Ok(((squares * weights)? + constants)?)
    }

    /// The same without a graph.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            mean: self.mean.detach(),
            stds: self.stds.clone(),
            clean: self.clean.detach(),
        }
    }

    pub(super) fn stack(rows: &[Self]) -> diptych_tensor::Result<Self> {
        let cat = |part: fn(&Self) -> &Tensor| -> diptych_tensor::Result<Tensor> {
            joined(&rows.iter().map(part).cloned().collect::<Vec<_>>())
        };
        Ok(Self {
            mean: cat(|row| &row.mean)?,
            stds: rows.iter().flat_map(|row| row.stds.iter().copied()).collect(),
            clean: cat(|row| &row.clean)?,
        })
    }
}

/// One example of a batch, (1, ..).
pub(crate) fn row(tensor: &Tensor, row: usize) -> diptych_tensor::Result<Tensor> {
    Ok(tensor.narrow(0, row, 1)?)
}

/// Batches one behind the other.
pub(crate) fn joined(batches: &[Tensor]) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::cat(batches, 0)?)
}

fn shifted_by(mean: &Tensor, noise: &Tensor, stds: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((mean + noise.to_dtype(mean.dtype())?.broadcast_mul(stds)?)?)
}
