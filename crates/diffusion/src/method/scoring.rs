//! Errors of the images of a micro batch under the policy and under its reference.
//!
//! Shape letters: N images, C channels, Y x X spatial.

use diptych_core::Responses;
use diptych_tensor::Tensor;

use super::consistency::Earlier;
use super::reference::Reference;
use super::trained::TrainedDenoiser;
use crate::pipeline::{Conditioning, Denoiser};
use crate::tensors::host_f64;
use crate::{Result, denoising};

/// What a denoiser sees of N images, and what it should answer.
pub(super) struct DenoisingInput {
    noisy_latents: Tensor,
    wanted: Wanted,
    timesteps: Vec<f32>,
    conditioning: Conditioning,
}

/// What the denoiser's answer is compared with.
#[derive(Clone)]
enum Wanted {
    /// The answer that is right.
    Answer(Tensor),
    /// A clean image at another noise level, for consistency models.
    Clean(Earlier),
}

impl DenoisingInput {
    /// Latents and noise (N, C, Y, X) at N timesteps of the denoiser's schedule.
    pub(super) fn new(
        denoiser: &Denoiser,
        latents: &Tensor,
        noise: &Tensor,
        timesteps: &[f32],
        conditioning: Conditioning,
    ) -> Result<Self> {
        let schedule = denoiser.schedule();
        Ok(Self {
            noisy_latents: schedule.add_noise(latents, noise, timesteps)?,
            wanted: Wanted::Answer(schedule.target(latents, noise, timesteps)?),
            timesteps: timesteps.to_vec(),
            conditioning,
        })
    }

    /// Noisy latents whose clean images are to agree with those of an earlier step.
    pub(super) fn of_consistency(
        noisy_latents: Tensor,
        earlier: Earlier,
        timesteps: Vec<f32>,
        conditioning: Conditioning,
    ) -> Self {
        Self {
            noisy_latents,
            wanted: Wanted::Clean(earlier),
            timesteps,
            conditioning,
        }
    }

    /// The same images with other prompts.
    pub(super) fn with_conditioning(&self, conditioning: Conditioning) -> Self {
        Self {
            noisy_latents: self.noisy_latents.clone(),
            wanted: self.wanted.clone(),
            timesteps: self.timesteps.clone(),
            conditioning,
        }
    }

    pub(super) fn conditioning(&self) -> &Conditioning {
        &self.conditioning
    }

    /// Timesteps as they are logged.
    pub(super) fn timesteps(&self) -> Vec<f64> {
        self.timesteps.iter().map(|&timestep| f64::from(timestep)).collect()
    }

    /// Mean squared errors of the denoiser's answers, or consistency distances, (N,), differentiable.
    pub(super) fn errors(&self, denoiser: &Denoiser) -> Result<Tensor> {
        let target = match &self.wanted {
            Wanted::Answer(target) => target,
            Wanted::Clean(earlier) => {
                return earlier.errors(denoiser, &self.noisy_latents, &self.timesteps, &self.conditioning);
            }
        };
        let prediction = denoiser.predict(&self.noisy_latents, &self.timesteps, &self.conditioning)?;
        denoising::denoising_errors(&prediction, target)
    }
}

/// Which record an image belongs to, and which of its images it is: 0 is the chosen side of a pair, 1 the rejected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ImagePlace {
    pub(super) record: usize,
    pub(super) image: usize,
}

/// Errors of N images, (N,) each: the policy's differentiable, the reference's without a graph.
pub(super) struct Scored {
    pub(super) errors: Tensor,
    pub(super) reference_errors: Option<Tensor>,
}

impl Scored {
    /// The reference first, so that its activations are gone before the policy's graph grows.
    pub(super) fn new(
        policy: &TrainedDenoiser,
        reference: &Reference,
        input: &DenoisingInput,
        places: &[ImagePlace],
    ) -> Result<Self> {
        let reference_errors = reference.errors(policy, input, places)?;
        Ok(Self {
            errors: input.errors(&policy.denoiser)?,
            reference_errors,
        })
    }

    /// The same without a graph.
    pub(super) fn detached(self) -> Self {
        Self {
            errors: self.errors.detach(),
            ..self
        }
    }

    /// A stretch of the images.
    pub(super) fn narrow(&self, start: usize, len: usize) -> diptych_tensor::Result<Self> {
        let part = |errors: &Tensor| -> diptych_tensor::Result<Tensor> { Ok(errors.narrow(0, start, len)?) };
        Ok(Self {
            errors: part(&self.errors)?,
            reference_errors: self.reference_errors.as_ref().map(part).transpose()?,
        })
    }

    /// Scores as objectives take them: minus one half of the errors.
    pub(super) fn responses(&self) -> Result<Responses> {
        let mut responses = Responses::new(denoising::scores(&self.errors)?);
        responses.reference = self.reference_errors.as_ref().map(denoising::scores).transpose()?;
        Ok(responses)
    }

    /// The errors on the host: the policy's, and the reference's where there is one.
    pub(super) fn host(&self) -> Result<(Vec<f64>, Option<Vec<f64>>)> {
        let reference = self.reference_errors.as_ref().map(host_f64).transpose()?;
        Ok((host_f64(&self.errors)?, reference))
    }
}

/// A judge's scores of responses, on the device of their other scores.
pub(super) fn with_judge_scores(responses: Responses, scores: Option<Vec<f64>>) -> Result<Responses> {
    let Some(scores) = scores else { return Ok(responses) };
    let tensor = || -> diptych_tensor::Result<Tensor> {
        let scores: Vec<f32> = scores.into_iter().map(|score| score as f32).collect();
        Ok(Tensor::from_vec(
            scores,
            responses.policy.elem_count(),
            responses.policy.device(),
        )?)
    };
    Ok(Responses {
        judge_scores: Some(tensor()?),
        ..responses
    })
}
