//! The last steps of a walk with a graph: the gradient of a reward with respect to the network, through the sampler.

use std::sync::Arc;

use diptych_core::Divergence;
use diptych_tensor::{Tensor, checkpoint};

use super::{State, Walk};
use crate::Result;
use crate::pipeline::{Checkpointing, Denoiser, Guided};
use crate::sampler::{History, Transition};
use crate::tensors::cast;

/// What the last steps lead to, with a graph.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Latents after them, (B, C, Y, X).
    pub latents: Tensor,
    /// Clean latents that the last of them predicts, (B, C, Y, X): what `ReFL` decodes in the middle of a walk.
    pub clean: Tensor,
    /// The sum over steps of how far their distributions are from another network's, a component, (B,); none where nothing is compared.
    pub divergences: Option<Tensor>,
}

/// Whether a network is asked with its adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adapters {
    /// As they are switched.
    On,
    /// Without them.
    Off,
}

/// Another network, whose distributions of each step the walk's are compared with.
#[derive(Debug, Clone)]
pub struct Against {
    /// The network, with what it is told about each image.
    pub network: Guided<Arc<Denoiser>>,
    /// Whether it has its adapters.
    pub adapters: Adapters,
    /// How far apart two distributions are.
    pub divergence: Divergence,
}

impl Walk<'_, Arc<Denoiser>> {
    /// Steps from `state` up to but not including `end` with a graph through every prediction and its latents; what was before
    /// is a constant. `None` when there is no such step.
    ///
    /// With checkpointing each call of the denoiser is computed again in the backward pass, so that memory grows by the latents
    /// of a step only. Conditioning is a constant here: a text encoder gets no gradient.
    ///
    /// # Errors
    /// The network refuses.
    pub fn tail(&self, state: State, end: usize, checkpointing: Checkpointing) -> Result<Option<Tail>> {
        self.tail_against(state, end, checkpointing, None)
    }

    /// The same, each step that adds noise compared with another network's step from the same latents. What that one says has a gradient by the
    /// latents, as what the walk's own network says has.
    ///
    /// # Errors
    /// A network refuses.
    pub fn tail_against(
        &self,
        state: State,
        end: usize,
        checkpointing: Checkpointing,
        against: Option<&Against>,
    ) -> Result<Option<Tail>> {
        let mut latents = cast(&state.latents.detach(), self.network.dtype())?;
        let mut history = state.history;
        let (mut clean, mut divergences) = (None, None);
        for step_idx in state.step_idx..end.min(self.sampler.num_steps()) {
            let at = (step_idx, &latents);
            let transition = self.step_of((self.network, Adapters::On), at, checkpointing, &mut history)?;
            if let Some(against) = against.filter(|_| self.sampler.std(step_idx) > 0.0) {
                let divergence = self.divergences(&transition, against, at, checkpointing)?;
                divergences = Some(match divergences {
                    None => divergence,
                    Some(before) => sum(&before, &divergence)?,
                });
            }
            latents = transition.sample(self.fresh_noise(step_idx, 0)?.as_ref())?;
            clean = Some(transition.clean);
        }
        Ok(clean.map(|clean| Tail {
            latents,
            clean,
            divergences,
        }))
    }

    /// The distribution of what follows latents under a network.
    pub(crate) fn step_of(
        &self,
        (network, adapters): (&Guided<Arc<Denoiser>>, Adapters),
        (step_idx, latents): (usize, &Tensor),
        checkpointing: Checkpointing,
        history: &mut History,
    ) -> Result<Transition> {
        let input = self.sampler.scale_input(latents, step_idx)?;
        let at = vec![self.sampler.timesteps()[step_idx]; self.images.len()];
        let switch = network.denoiser().adapter_switch();
        let _off = (adapters == Adapters::Off).then(|| switch.disable());
        let prediction = match checkpointing {
            Checkpointing::On => recomputed(network, &input, at)?,
            Checkpointing::Off => network.predict(&input, &at)?,
        };
        self.sampler.transition(&prediction, step_idx, latents, history)
    }

    /// How far a step's distributions are from another network's, the mean over components, (B,).
    pub(crate) fn divergences(
        &self,
        transition: &Transition,
        against: &Against,
        at: (usize, &Tensor),
        checkpointing: Checkpointing,
    ) -> Result<Tensor> {
        let other = (&against.network, against.adapters);
        // Samplers that remember earlier steps add no noise.
        let other = self.step_of(other, at, checkpointing, &mut History::default())?;
        let std = self.sampler.std(at.0);
        let shifts = || -> diptych_tensor::Result<Tensor> { Ok(((&transition.mean - &other.mean)? * (1.0 / std))?) };
        let divergences = against.divergence.of_normals(&shifts()?)?;
        let mean = || -> diptych_tensor::Result<Tensor> { Ok(divergences.flatten_from(1)?.mean(1)?) };
        Ok(mean()?)
    }
}

fn sum(a: &Tensor, b: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((a + b)?)
}

/// The prediction, whose activations are computed again in the backward pass, with adapters switched as they are now.
fn recomputed(network: &Guided<Arc<Denoiser>>, input: &Tensor, timesteps: Vec<f32>) -> diptych_tensor::Result<Tensor> {
    let network = network.clone();
    let is_enabled = network.denoiser().adapter_switch().is_enabled();
    checkpoint(&[input], move |inputs| {
        let switch = network.denoiser().adapter_switch();
        let _as_in_the_forward_pass = (!is_enabled).then(|| switch.disable());
        network.predict(&inputs[0], &timesteps).map_err(of_tensors)
    })
}

/// An error of this crate as one of the tensor crate's, which runs the segment.
fn of_tensors(error: crate::Error) -> diptych_tensor::Error {
    match error {
        crate::Error::Tensor(error) => error,
        other => diptych_tensor::OperationError::Msg(other.to_string()).into(),
    }
}
