//! The last steps of a walk with a graph: the gradient of a reward with respect to the network, through the sampler.

use std::sync::Arc;

use diptych_tensor::{Tensor, checkpoint};

use super::{State, Walk};
use crate::Result;
use crate::pipeline::{Checkpointing, Denoiser, Guided};
use crate::tensors::cast;

/// What the last steps lead to, with a graph.
#[derive(Debug, Clone)]
pub struct Tail {
    /// Latents after them, (B, C, Y, X).
    pub latents: Tensor,
    /// Clean latents that the last of them predicts, (B, C, Y, X): what `ReFL` decodes in the middle of a walk.
    pub clean: Tensor,
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
        let timesteps = self.sampler.timesteps();
        let mut latents = cast(&state.latents.detach(), self.network.dtype())?;
        let mut history = state.history;
        let mut clean = None;
        for (step_idx, &timestep) in timesteps.iter().enumerate().take(end).skip(state.step_idx) {
            let input = self.sampler.scale_input(&latents, step_idx)?;
            let at = vec![timestep; self.images.len()];
            let prediction = match checkpointing {
                Checkpointing::On => recomputed(self.network, &input, at)?,
                Checkpointing::Off => self.network.predict(&input, &at)?,
            };
            let transition = self.sampler.transition(&prediction, step_idx, &latents, &mut history)?;
            latents = transition.sample(self.fresh_noise(step_idx, 0)?.as_ref())?;
            clean = Some(transition.clean);
        }
        Ok(clean.map(|clean| Tail { latents, clean }))
    }
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
