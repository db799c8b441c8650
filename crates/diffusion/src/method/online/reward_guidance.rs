//! Pushing latents along the gradient of a reward.
//!
//! Ren et al., "Refining Alignment Framework for Diffusion Models with Intermediate-Step Preference Ranking" (TailorPO-G), ICLR 2025,
//! arXiv:2502.01667. The better candidate of a step is moved before it is learned from, so that the two are further apart in reward:
//!
//! ```text
//! x_w' = x_w - eta grad (r_high - r(c, x0(x_w)))^2 = x_w + strength grad r(c, x0(x_w))
//! ```
//!
//! with `x0` the clean image that the policy promises from there. Our reading: `r_high` is a constant above the candidate's own reward, so that
//! `strength` is twice `eta` times that constant. `normalized` has no counterpart there; it makes the move independent of the scale of rewards.
//!
//! Shape letters: N latents, C channels, Y x X spatial.

use diptych_tensor::{Params, Tensor, backward};

use super::config::GradientGuidance;
use super::studio::Studio;
use crate::schedule::per_example;
use crate::tensors::host_f64;
use crate::{Error, Result, trajectory};

/// Latents that were pushed, and how far.
#[derive(Debug)]
pub(super) struct Pushed {
    /// (N, C, Y, X), without a graph.
    pub(super) latents: Tensor,
    /// Root mean squares of the moves, in standard deviations of the step, N.
    pub(super) moves: Vec<f64>,
}

/// Pushes latents, (N, C, Y, X), that a step of the sampler has led to.
///
/// # Errors
/// The network or the judge refuses; [`Error::NoGradient`] for a reward that says nothing of its latents.
pub(super) fn push(
    studio: &Studio,
    guidance: GradientGuidance,
    records: &[usize],
    latents: &Tensor,
    step: usize,
) -> Result<Pushed> {
    let gradient = gradient(studio, records, latents, step + 1)?;
    let std = studio.sampler.std(step);
    let lengths = host_f64(&root_mean_squares(&gradient)?)?;
    let factors: Vec<f64> = lengths
        .iter()
        .map(|length| match guidance {
            GradientGuidance::Gradient { strength } => strength,
            // Where the judge sees no difference there is no direction.
            GradientGuidance::Normalized { .. } if *length == 0.0 => 0.0,
            GradientGuidance::Normalized { strength } => strength * std / length,
        })
        .collect();
    let moves = factors
        .iter()
        .zip(&lengths)
        .map(|(factor, length)| factor * length / std)
        .collect();
    let factors = per_example(factors, &gradient)?;
    let moved = || -> diptych_tensor::Result<Tensor> { Ok((latents + gradient.broadcast_mul(&factors)?)?.detach()) };
    Ok(Pushed {
        latents: moved()?,
        moves,
    })
}

/// The gradient by latents that stand before a step of the reward of what they promise, (N, C, Y, X).
fn gradient(studio: &Studio, records: &[usize], latents: &Tensor, step: usize) -> Result<Tensor> {
    let mut inputs = Params::new();
    let latents = inputs.insert("latents", &latents.detach())?;
    let clean = if step < studio.sampler.num_steps() {
        let network = studio.policy_for(records)?;
        let steps = vec![step; records.len()];
        trajectory::transitions(&studio.sampler, &network, &steps, &latents)?.clean
    } else {
        latents
    };
    let rewards = studio.rewards(records, &clean, studio.timestep(step))?;
    let total = || -> diptych_tensor::Result<Tensor> { Ok(rewards.sum_all()?) };
    let gradients = backward(&total()?, &inputs)?;
    let of_latents = gradients.iter().next().map(|(_, gradient)| gradient.clone());
    of_latents.ok_or_else(|| Error::NoGradient {
        reward: studio.reward.name().to_owned(),
    })
}

/// Of each row, (N,).
fn root_mean_squares(tensor: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok(tensor.sqr()?.flatten_from(1)?.mean(1)?.sqrt()?)
}
