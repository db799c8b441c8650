//! From what the denoiser predicts to clean latents and noise, in the variance-preserving parameterization.

use diptych_tensor::Tensor;

use crate::schedule::{DiscreteSchedule, PredictionType};
use crate::{Error, Result};

/// How a prediction at some signal share is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) prediction_type: PredictionType,
    /// Bound of the predicted clean latents.
    pub(crate) clip: Option<f64>,
}

impl Reading {
    /// As the schedule says; `clip_by_default` where it says nothing about clipping.
    pub(crate) fn new(schedule: &DiscreteSchedule, clip_by_default: Clipping) -> Self {
        let config = schedule.config();
        let is_clipped = config.clip_sample.unwrap_or(clip_by_default == Clipping::On);
        Self {
            prediction_type: config.prediction_type,
            clip: is_clipped.then(|| config.clip_sample_range.unwrap_or(1.0)),
        }
    }

    /// Clean latents (clipped) and noise (not clipped) at the signal share `alpha`.
    pub(crate) fn split(
        self,
        prediction: &Tensor,
        latents: &Tensor,
        alpha: f64,
    ) -> diptych_tensor::Result<(Tensor, Tensor)> {
        let (signal, noise_scale) = (alpha.sqrt(), (1.0 - alpha).sqrt());
        let (clean, noise) = match self.prediction_type {
            PredictionType::Epsilon => {
                let clean = ((latents - (prediction * noise_scale)?)? / signal)?;
                (clean, prediction.clone())
            }
            PredictionType::Sample => {
                let noise = ((latents - (prediction * signal)?)? / noise_scale)?;
                (prediction.clone(), noise)
            }
            PredictionType::VPrediction => {
                let clean = ((latents * signal)? - (prediction * noise_scale)?)?;
                let noise = ((prediction * signal)? + (latents * noise_scale)?)?;
                (clean, noise)
            }
        };
        let clean = match self.clip {
            Some(range) => clean.clamp(-range, range)?,
            None => clean,
        };
        Ok((clean, noise))
    }
}

/// Whether a sampler clips where the schedule does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clipping {
    On,
    Off,
}

/// Refuses a predicted noise where nothing of the image is left: it says nothing about it, and x0 would be divided by 0.
pub(crate) fn refuse_blind(
    sampler: &'static str,
    schedule: &DiscreteSchedule,
    alphas: impl IntoIterator<Item = f64>,
) -> Result<()> {
    let config = schedule.config();
    if config.prediction_type == PredictionType::Epsilon && alphas.into_iter().any(|alpha| alpha <= 0.0) {
        return Err(Error::Sampler {
            sampler,
            file: config.file.clone(),
            key: "rescale_betas_zero_snr".into(),
            found: "true, with `prediction_type` epsilon".into(),
            expected: "false, or `v_prediction` or `sample`; sampler `euler` takes it as it is".into(),
        });
    }
    Ok(())
}
