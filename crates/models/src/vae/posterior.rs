//! The distribution over an image's latents: normal, independent in every component.

use diptych_tensor::{D, Result as TensorResult, Tensor};

use crate::Result;

/// Bounds of the log variance, as diffusers' `DiagonalGaussianDistribution`.
const LOGVAR_RANGE: (f64, f64) = (-30.0, 20.0);

/// A diagonal normal distribution; both tensors are (B, C, Y, X).
#[derive(Debug, Clone)]
pub struct Posterior {
    /// Means.
    pub mean: Tensor,
    /// Logarithms of the variances, clamped to `[-30, 20]`.
    pub logvar: Tensor,
}

impl Posterior {
    /// From the encoder's output (B, 2C, Y, X).
    pub(super) fn from_moments(moments: &Tensor) -> TensorResult<Self> {
        let halves = moments.chunk(2, 1)?;
        Ok(Self {
            mean: halves[0].contiguous()?,
            logvar: halves[1].clamp(LOGVAR_RANGE.0, LOGVAR_RANGE.1)?,
        })
    }

    /// The latents that standard normal `noise` of the same shape stands for: `mean + exp(logvar / 2) * noise`.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok(self.reparameterize(noise)?)
    }

    fn reparameterize(&self, noise: &Tensor) -> TensorResult<Tensor> {
        let std = (&self.logvar * 0.5)?.exp()?;
        Ok((&self.mean + (std * noise)?)?)
    }

    /// Kullback-Leibler divergence from the standard normal distribution, summed over components: (B,), in nats.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn kl(&self) -> Result<Tensor> {
        Ok(self.divergence()?)
    }

    fn divergence(&self) -> TensorResult<Tensor> {
        let terms = ((self.mean.sqr()? + self.logvar.exp()?)? - &self.logvar)?.affine(0.5, -0.5)?;
        Ok(terms.flatten_from(1)?.sum(D::Minus1)?)
    }
}
