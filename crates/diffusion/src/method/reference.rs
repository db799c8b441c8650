//! What the policy is compared with.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use diptych_tensor::{DType, Device, Params, Tensor, Weights, save_tensors};

use super::scoring::{DenoisingInput, ImagePlace};
use super::trained::TrainedDenoiser;
use crate::pipeline::Denoiser;
use crate::trajectory::Adapters;
use crate::{Error, Result};

/// What the policy is compared with.
#[derive(Debug)]
pub(crate) enum Reference {
    /// Nothing.
    None,
    /// The policy with its adapter switched off.
    AdapterOff,
    /// A network that does not change: a copy of the start, or another checkpoint.
    Frozen(Arc<Denoiser>),
    /// Errors at the start, of records that bring their noise and timesteps along.
    Cached(CachedErrors),
    /// Parameters that follow the policy.
    Moving(MovingReference),
}

impl Reference {
    /// Errors of N images under the reference, (N,), without a graph; `None` without a reference.
    pub(super) fn errors(
        &self,
        policy: &TrainedDenoiser,
        input: &DenoisingInput,
        places: &[ImagePlace],
    ) -> Result<Option<Tensor>> {
        let errors = match self {
            Self::None => return Ok(None),
            Self::AdapterOff => {
                let _off = policy.denoiser.adapter_switch().disable();
                input.errors(&policy.denoiser)?
            }
            Self::Frozen(denoiser) => input.errors(denoiser)?,
            Self::Cached(cached) => cached.gather(places, policy.denoiser.device())?,
            Self::Moving(moving) => moving.lend(&policy.params, || input.errors(&policy.denoiser))?,
        };
        Ok(Some(errors.detach()))
    }

    /// What `answer` gives for the network that the policy is compared with, without a graph; `None` where there is no network to ask:
    /// without a reference, or with one of cached errors.
    pub(super) fn ask(
        &self,
        policy: &TrainedDenoiser,
        answer: impl FnOnce(&Denoiser) -> Result<Tensor>,
    ) -> Result<Option<Tensor>> {
        let answered = match self {
            Self::None | Self::Cached(_) => return Ok(None),
            Self::AdapterOff => {
                let _off = policy.denoiser.adapter_switch().disable();
                answer(&policy.denoiser)?
            }
            Self::Frozen(denoiser) => answer(denoiser)?,
            Self::Moving(moving) => moving.lend(&policy.params, || answer(&policy.denoiser))?,
        };
        Ok(Some(answered.detach()))
    }

    /// The network that the policy is compared with, where it stays as it is, so that a gradient may go through what it is asked about.
    pub(super) fn constant(&self, policy: &TrainedDenoiser) -> Option<(Arc<Denoiser>, Adapters)> {
        match self {
            Self::AdapterOff => Some((policy.denoiser.clone(), Adapters::Off)),
            Self::Frozen(denoiser) => Some((denoiser.clone(), Adapters::On)),
            Self::None | Self::Cached(_) | Self::Moving(_) => None,
        }
    }

    /// Lets a moving reference follow the policy after optimizer step `step`.
    pub(super) fn after_step(&self, policy: &Params, step: u64) -> Result<()> {
        match self {
            Self::Moving(moving) if step.is_multiple_of(moving.sync_steps) => moving.follow(policy),
            Self::None | Self::AdapterOff | Self::Frozen(_) | Self::Cached(_) | Self::Moving(_) => Ok(()),
        }
    }

    /// What changes in training, under names of its own.
    pub(super) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Self::Moving(moving) => Ok(moving
                .params
                .snapshot()?
                .into_iter()
                .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor))
                .collect()),
            Self::None | Self::AdapterOff | Self::Frozen(_) | Self::Cached(_) => Ok(BTreeMap::new()),
        }
    }

    /// Sets what [`Reference::state`] gave.
    pub(super) fn restore(&self, weights: &Weights) -> Result<()> {
        let Self::Moving(moving) = self else { return Ok(()) };
        let read = |(name, var): (&str, &diptych_tensor::Var)| -> Result<(String, Tensor)> {
            let tensor = weights.get(&format!("{PREFIX}{name}"), var.dims(), var.dtype(), var.device())?;
            Ok((name.to_owned(), tensor))
        };
        let tensors: Result<BTreeMap<_, _>> = moving.params.iter().map(read).collect();
        Ok(moving.params.load(&tensors?)?)
    }
}

/// Before the names of a moving reference's parameters in a checkpoint.
const PREFIX: &str = "reference.";

/// Parameters that follow the policy's: TR-DPO (Gorbatovski et al., arXiv:2404.09656).
///
/// They are put into the policy's network for as long as the reference is asked, so that what is frozen is there once: with an
/// adapter, the reference costs an adapter.
#[derive(Debug)]
pub(crate) struct MovingReference {
    params: Params,
    mixup_alpha: f64,
    sync_steps: u64,
}

impl MovingReference {
    /// Begins as the policy is now.
    pub(crate) fn new(policy: &Params, mixup_alpha: f64, sync_steps: u64) -> Result<Self> {
        let mut params = Params::new();
        for (name, tensor) in policy.snapshot()? {
            params.insert(name, &tensor)?;
        }
        Ok(Self {
            params,
            mixup_alpha,
            sync_steps,
        })
    }

    /// What `answer` gives while the policy's network has the reference's parameters. The policy's are put back in any case.
    fn lend(&self, policy: &Params, answer: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        let own = policy.snapshot()?;
        policy.load(&self.params.snapshot()?)?;
        // Detached before the parameters change again: no graph may look at what they were.
        let answer = answer().map(|errors| errors.detach());
        policy.load(&own)?;
        answer
    }

    /// `mixup_alpha · policy + (1 − mixup_alpha) · reference`, parameter by parameter: of an adapter its factors, whose product is not
    /// the mean of the products.
    fn follow(&self, policy: &Params) -> Result<()> {
        let policy = policy.snapshot()?;
        let mut mixed = self.params.snapshot()?;
        for (name, reference) in &mut mixed {
            let mix = || -> diptych_tensor::Result<Tensor> {
                Ok(((&policy[name] * self.mixup_alpha)? + (&*reference * (1.0 - self.mixup_alpha))?)?)
            };
            *reference = mix()?;
        }
        Ok(self.params.load(&mixed)?)
    }
}

/// Errors of every image of every record, computed before training.
#[derive(Debug)]
pub(crate) struct CachedErrors {
    /// One row a record, one value an image of it.
    errors: Vec<Vec<f32>>,
}

impl CachedErrors {
    pub(super) fn new(errors: Vec<Vec<f32>>) -> Self {
        Self { errors }
    }

    fn gather(&self, places: &[ImagePlace], device: &Device) -> Result<Tensor> {
        let errors: Vec<f32> = places
            .iter()
            .map(|place| self.errors[place.record][place.image])
            .collect();
        let tensor = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::from_slice(&errors, errors.len(), device)?) };
        Ok(tensor()?)
    }
}

/// Writes the state of a method: tensors by name. Says whether there was any.
pub(super) fn save_state(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<bool> {
    if tensors.is_empty() {
        return Ok(false);
    }
    save_tensors(path, tensors, &BTreeMap::new())?;
    Ok(true)
}

/// The number that a state keeps under a name.
pub(super) fn number(weights: &Weights, name: &str) -> Result<f64> {
    let tensor = weights.get(name, &[1], DType::F64, &Device::Cpu)?;
    let read = || -> diptych_tensor::Result<Vec<f64>> { Ok(tensor.to_vec1()?) };
    read()?.first().copied().ok_or_else(|| Error::Shape {
        name: name.to_owned(),
        found: vec![0],
        expected: vec![1],
    })
}
