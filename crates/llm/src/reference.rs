//! What the policy is compared with.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_tensor::{DType, Params, Tensor, Weights, save_tensors};

use crate::arrangement::Arranged;
use crate::cached_logps::CachedLogps;
use crate::network::{Network, NetworkRef};
use crate::policy::Trained;
use crate::scoring::{Scored, score_detached};
use crate::{Error, Result};

/// What the policy is compared with.
#[derive(Debug)]
pub enum Reference {
    /// Nothing.
    None,
    /// The policy with its adapter switched off.
    AdapterOff,
    /// A network that does not change: a copy of the start, or another checkpoint.
    Frozen(Box<Network>),
    /// Scores that were computed before.
    Cached(CachedLogps),
    /// A copy that follows the policy.
    Moving(Box<MovingReference>),
}

/// A copy of the policy that follows it: TR-DPO (Gorbatovski et al., arXiv:2404.09656).
///
/// Parameters are mixed one by one. With every parameter trained that is the paper's mix of weights. Of a LoRA adapter it mixes `A`
/// and `B` each by itself, whose product is not the mix of the two products: with `m = mixup_alpha`, the reference's update
/// differs from `m B_p A_p + (1 - m) B_r A_r` by `-m (1 - m) (B_p - B_r) (A_p - A_r)`. TRL does the same. The two agree where
/// `mixup_alpha` is 1, and nearly where the policy has moved little since the last update.
#[derive(Debug)]
pub struct MovingReference {
    copy: Trained<Network>,
    mixup_alpha: f64,
    sync_steps: u64,
}

/// Which response of which record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponsePlace {
    /// Index of the record in the data set.
    pub record: usize,
    /// Which of its responses, from 0.
    pub response: usize,
}

impl Reference {
    /// Scores of the responses under the reference, without a graph; `None` without a reference. `places` says where the
    /// responses come from.
    ///
    /// # Errors
    /// As [`score`](crate::scoring::score).
    pub fn score<'a>(
        &self,
        policy: impl Into<NetworkRef<'a>>,
        arranged: &Arranged,
        places: &[ResponsePlace],
    ) -> Result<Option<Scored>> {
        let policy = policy.into();
        match self {
            Self::Cached(cached) => cached.scored(places, policy.device()).map(Some),
            Self::None | Self::AdapterOff | Self::Frozen(_) | Self::Moving(_) => self.score_live(policy, arranged),
        }
    }

    /// Scores of texts that need not be of the data, under a network that is there, without a graph; `None` without one.
    pub(crate) fn score_live(&self, policy: NetworkRef<'_>, arranged: &Arranged) -> Result<Option<Scored>> {
        self.with_network(policy, |network| score_detached(network, arranged))
    }

    /// Does something with the network that it scores with, as it scores; `None` without one that is there.
    pub(crate) fn with_network<R>(
        &self,
        policy: NetworkRef<'_>,
        work: impl FnOnce(NetworkRef<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        match self {
            Self::None | Self::Cached(_) => return Ok(None),
            Self::AdapterOff => {
                let _off = policy.adapter_switch().disable();
                work(policy)
            }
            Self::Frozen(model) => work(NetworkRef::from(&**model)),
            Self::Moving(moving) => work(NetworkRef::from(&moving.copy.model)),
        }
        .map(Some)
    }

    /// Whether its scores are those of single tokens, rather than sums alone.
    pub(crate) fn has_token_scores(&self) -> bool {
        match self {
            Self::Cached(cached) => cached.has_token_scores(),
            Self::None | Self::AdapterOff | Self::Frozen(_) | Self::Moving(_) => true,
        }
    }

    /// A copy of the policy that begins as it begins, and every `sync_steps` optimizer steps becomes
    /// `mixup_alpha · policy + (1 − mixup_alpha) · reference`.
    pub fn moving(copy: Trained<Network>, mixup_alpha: f64, sync_steps: u64) -> Self {
        Self::Moving(Box::new(MovingReference {
            copy,
            mixup_alpha,
            sync_steps,
        }))
    }

    /// Lets a moving reference follow the policy after optimizer step `step`.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn after_step(&self, policy: &Params, step: u64) -> Result<()> {
        match self {
            Self::Moving(moving) if step.is_multiple_of(moving.sync_steps) => moving.follow(policy),
            Self::None | Self::AdapterOff | Self::Frozen(_) | Self::Cached(_) | Self::Moving(_) => Ok(()),
        }
    }

    /// What changes in training, under names of its own.
    pub(crate) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Self::Moving(moving) => Ok(moving
                .copy
                .params
                .snapshot()?
                .into_iter()
                .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor))
                .collect()),
            Self::None | Self::AdapterOff | Self::Frozen(_) | Self::Cached(_) => Ok(BTreeMap::new()),
        }
    }

    /// Sets what [`Reference::state`] gave.
    pub(crate) fn restore(&self, weights: &Weights) -> Result<()> {
        let Self::Moving(moving) = self else { return Ok(()) };
        let read = |(name, var): (&str, &diptych_tensor::Var)| -> Result<(String, Tensor)> {
            let tensor = weights.get(&format!("{PREFIX}{name}"), var.dims(), var.dtype(), var.device())?;
            Ok((name.to_owned(), tensor))
        };
        let tensors: Result<BTreeMap<_, _>> = moving.copy.params.iter().map(read).collect();
        Ok(moving.copy.params.load(&tensors?)?)
    }
}

/// Before the names of a moving reference's parameters in a checkpoint.
const PREFIX: &str = "reference.";

impl MovingReference {
    /// `mixup_alpha · policy + (1 − mixup_alpha) · reference`, parameter by parameter.
    fn follow(&self, policy: &Params) -> Result<()> {
        let policy = policy.snapshot()?;
        let mut mixed = self.copy.params.snapshot()?;
        for (name, reference) in &mut mixed {
            let policy = policy
                .get(name)
                .ok_or_else(|| Error::ForeignParameter { name: name.clone() })?;
            let mix = || -> diptych_tensor::Result<Tensor> {
                Ok(((policy * self.mixup_alpha)? + (&*reference * (1.0 - self.mixup_alpha))?)?)
            };
            *reference = mix()?;
        }
        Ok(self.copy.params.load(&mixed)?)
    }
}

/// Writes the state of a method: tensors by name. Says whether there was any.
pub(crate) fn save_state(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<bool> {
    if tensors.is_empty() {
        return Ok(false);
    }
    save_tensors(path, tensors, &BTreeMap::new())?;
    Ok(true)
}

/// The number that a state keeps under a name.
pub(crate) fn number(weights: &Weights, name: &str) -> Result<f64> {
    let tensor = weights.get(name, &[1], DType::F64, &diptych_tensor::Device::Cpu)?;
    let read = || -> diptych_tensor::Result<Vec<f64>> { Ok(tensor.to_vec1()?) };
    Ok(read()?[0])
}
