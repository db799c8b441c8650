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
    /// Who answers without the prompt, where that is another network.
    negative: Option<D>,
    conditioning: Conditioning,
    scale: Option<f64>,
}

impl<D: Borrow<Denoiser>> Guided<D> {
    /// The prediction with the prompt alone.
    pub fn unguided(denoiser: D, conditioning: Conditioning) -> Self {
        Self {
            denoiser,
            negative: None,
            conditioning,
            scale: None,
        }
    }

    /// The guided prediction; `scale` up to 1 means none, the prediction with the prompt alone. A network that takes the strength of guidance
    /// as an input is told it, whatever it is.
    ///
    /// # Errors
    /// Conditioning of other parts or shapes with the prompt than without.
    pub fn new(denoiser: D, unconditional: &Conditioning, conditional: &Conditioning, scale: f64) -> Result<Self> {
        if denoiser.borrow().network().takes_guidance() {
            let conditional = conditional.clone().with_guidance(scale as f32);
            return Ok(Self::unguided(denoiser, conditional));
        }
        if scale <= 1.0 {
            return Ok(Self::unguided(denoiser, conditional.clone()));
        }
        let both = Conditioning::cat(&[unconditional, conditional])?;
        Ok(Self::stacked(denoiser, both, scale))
    }

    /// The same from conditioning that has both halves where [`Denoiser::is_doubled`] says so, the one without the prompt first.
    pub(crate) fn stacked(denoiser: D, conditioning: Conditioning, scale: f64) -> Self {
        let is_told = denoiser.borrow().network().takes_guidance();
        Self {
            scale: denoiser.borrow().is_doubled(scale).then_some(scale),
            denoiser,
            conditioning: if is_told {
                conditioning.with_guidance(scale as f32)
            } else {
                conditioning
            },
            negative: None,
        }
    }

    /// The same with another network in the place of the one without the prompt: one that was trained on what to steer away from
    /// (Diffusion-NPO: Wang et al., "Diffusion-NPO: Negative Preference Optimization for Better Preference Aligned Generation of Diffusion Models",
    /// ICLR 2025). Without guidance it is not asked.
    #[must_use]
    pub fn with_negative(self, negative: Option<D>) -> Self {
        Self { negative, ..self }
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
            negative: self.negative.clone(),
            conditioning: self.conditioning.gather(&all)?,
            scale: self.scale,
        })
    }

    /// The same about another network, whose weights and adapters differ; it answers without the prompt, too.
    pub fn with_denoiser<E: Borrow<Denoiser>>(&self, denoiser: E) -> Guided<E> {
        Guided {
            denoiser,
            negative: None,
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
        if let Some(negative) = &self.negative {
            let batch = timesteps.len();
            let half = |first: usize| self.conditioning.gather(&(first..first + batch).collect::<Vec<_>>());
            // It leads away from what it learned for nobody in particular.
            let for_nobody = Conditioning {
                users: None,
                ..half(0)?
            };
            let unconditional = negative.borrow().predict(input, timesteps, &for_nobody)?;
            let conditional = denoiser.predict(input, timesteps, &half(batch)?)?;
            return Ok(extrapolated(
                &cast(&unconditional, dtype)?,
                &cast(&conditional, dtype)?,
                scale,
            )?);
        }
        let predictions = denoiser.predict(&doubled(input)?, &timesteps.repeat(2), &self.conditioning)?;
        Ok(combine(&cast(&predictions, dtype)?, timesteps.len(), scale)?)
    }
}

/// The guided prediction; the half of `predictions` without the prompt comes first.
fn combine(predictions: &Tensor, batch: usize, scale: f64) -> diptych_tensor::Result<Tensor> {
    let unconditional = predictions.narrow(0, 0, batch)?;
    let conditional = predictions.narrow(0, batch, batch)?;
    extrapolated(&unconditional, &conditional, scale)
}

fn extrapolated(unconditional: &Tensor, conditional: &Tensor, scale: f64) -> diptych_tensor::Result<Tensor> {
    Ok((unconditional + ((conditional - unconditional)? * scale)?)?)
}
