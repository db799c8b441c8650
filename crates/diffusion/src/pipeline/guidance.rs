//! Classifier-free guidance.
//!
//! Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), as `diffusers` writes it:
//!
//! ```text
//! prediction = unconditional + scale (conditional - unconditional)
//! ```
//!
//! Shape letters: B batch, C channels, Y x X spatial.

use std::borrow::Borrow;

use diptych_tensor::{DType, Tensor};

use super::{Conditioning, Denoiser};
use crate::Result;
use crate::tensors::{cast, doubled};

/// A denoiser with what it is told about a batch, and the strength of guidance. The denoiser is borrowed, or shared where a
/// backward pass will run it again.
#[derive(Debug, Clone)]
pub struct Guided<D> {
    denoiser: D,
    conditioning: Conditioning,
    scale: Option<f64>,
}

impl<D: Borrow<Denoiser>> Guided<D> {
    /// The prediction with the prompt alone.
    pub fn unguided(denoiser: D, conditioning: Conditioning) -> Self {
        Self {
            denoiser,
            conditioning,
            scale: None,
        }
    }

    /// The guided prediction; `scale` up to 1 means none, the prediction with the prompt alone.
    ///
    /// # Errors
    /// Conditioning of other parts or shapes with the prompt than without.
    pub fn new(denoiser: D, unconditional: &Conditioning, conditional: &Conditioning, scale: f64) -> Result<Self> {
        if scale <= 1.0 {
            return Ok(Self::unguided(denoiser, conditional.clone()));
        }
        let both = Conditioning::cat(&[unconditional, conditional])?;
        Ok(Self::stacked(denoiser, both, scale))
    }

    /// The same from conditioning that has both halves where there is guidance, the one without the prompt first.
    pub(crate) fn stacked(denoiser: D, conditioning: Conditioning, scale: f64) -> Self {
        Self {
            denoiser,
            conditioning,
            scale: (scale > 1.0).then_some(scale),
        }
    }

    /// The denoiser.
    pub fn denoiser(&self) -> &Denoiser {
        self.denoiser.borrow()
    }

    /// Number of examples, B.
    pub fn batch_size(&self) -> usize {
        let rows = self.conditioning.batch_size();
        if self.scale.is_some() { rows / 2 } else { rows }
    }

    /// The same network about some of the examples.
    ///
    /// # Errors
    /// A row that is not there.
    pub fn gather(&self, rows: &[usize]) -> Result<Self>
    where
        D: Clone,
    {
        let mut all = rows.to_vec();
        if self.scale.is_some() {
            let batch = self.batch_size();
            all.extend(rows.iter().map(|row| row + batch));
        }
        Ok(Self {
            denoiser: self.denoiser.clone(),
            conditioning: self.conditioning.gather(&all)?,
            scale: self.scale,
        })
    }

    /// The same about another network, whose weights and adapters differ.
    pub fn with_denoiser<E: Borrow<Denoiser>>(&self, denoiser: E) -> Guided<E> {
        Guided {
            denoiser,
            conditioning: self.conditioning.clone(),
            scale: self.scale,
        }
    }

    /// Type of predictions, and of the latents that a sampler makes of them: f64 where the network is, else f32.
    pub fn dtype(&self) -> DType {
        match self.denoiser.borrow().dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }

    /// The prediction, differentiable where the network is trained.
    ///
    /// # Shape
    /// `input` and the result (B, C, Y, X), `timesteps` B entries. Not in half precision: guidance amplifies a small
    /// difference.
    ///
    /// # Errors
    /// Shapes that do not fit the network.
    pub fn predict(&self, input: &Tensor, timesteps: &[f32]) -> Result<Tensor> {
        let (denoiser, dtype) = (self.denoiser.borrow(), self.dtype());
        let Some(scale) = self.scale else {
            return Ok(cast(&denoiser.predict(input, timesteps, &self.conditioning)?, dtype)?);
        };
        let predictions = denoiser.predict(&doubled(input)?, &timesteps.repeat(2), &self.conditioning)?;
        Ok(combine(&cast(&predictions, dtype)?, timesteps.len(), scale)?)
    }
}

/// The guided prediction; the half of `predictions` without the prompt comes first.
fn combine(predictions: &Tensor, batch: usize, scale: f64) -> diptych_tensor::Result<Tensor> {
    let unconditional = predictions.narrow(0, 0, batch)?;
    let conditional = predictions.narrow(0, batch, batch)?;
    Ok((&unconditional + ((conditional - &unconditional)? * scale)?)?)
}
