//! The running mean of rewards that some objectives subtract, as it goes through the micro batches of a step.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use diptych_core::{Objective, Responses, RunningShift};
use diptych_tensor::{Device, Tensor, Weights};
use diptych_train::MicroBatch;

use super::reference::number;
use crate::Result;
use crate::tensors::host_f64;

const MEAN: &str = "reward_shift.mean";
const COUNT: &str = "reward_shift.count";

/// The mean after the last step, and as the micro batches of the step under way have moved it. A step that is computed again, or
/// that fails, begins from the mean after the last one.
#[derive(Debug, Default)]
pub(crate) struct RewardShift(Mutex<Means>);

#[derive(Debug, Default)]
struct Means {
    committed: RunningShift,
    pending: RunningShift,
}

impl RewardShift {
    /// The mean with the rewards of this micro batch, for an objective that has one: `beta` times the log-ratios.
    pub(super) fn of(&self, objective: &Objective, batch: &MicroBatch, sides: &[&Responses]) -> Result<Option<f64>> {
        let Some(beta) = objective.running_shift_beta() else {
            return Ok(None);
        };
        let mut rewards = Vec::new();
        for responses in sides {
            let policy = host_f64(&responses.policy)?;
            let reference = responses.reference.as_ref().map(host_f64).transpose()?;
            let reference = reference.unwrap_or_else(|| vec![0.0; policy.len()]);
            rewards.extend(
                policy
                    .iter()
                    .zip(reference)
                    .map(|(policy, reference)| beta * (policy - reference)),
            );
        }
        let mut means = self.means();
        if batch.items.first().is_none_or(|first| first.position == 0) {
            means.pending = means.committed;
        }
        means.pending.update(&rewards);
        Ok(Some(means.pending.mean()))
    }

    /// The step was taken.
    pub(super) fn commit(&self) {
        let mut means = self.means();
        means.committed = means.pending;
    }

    /// For a checkpoint; empty where nothing was ever added.
    pub(super) fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let committed = self.means().committed;
        if committed.count() == 0 {
            return Ok(BTreeMap::new());
        }
        let one = |value: f64| -> diptych_tensor::Result<Tensor> { Ok(Tensor::new(&[value], &Device::Cpu)?) };
        Ok(BTreeMap::from([
            (MEAN.to_owned(), one(committed.mean())?),
            (COUNT.to_owned(), one(committed.count() as f64)?),
        ]))
    }

    /// Sets what [`RewardShift::state`] gave.
    pub(super) fn restore(&self, weights: &Weights) -> Result<()> {
        let committed = if weights.contains(MEAN) {
            RunningShift::of(number(weights, MEAN)?, number(weights, COUNT)? as u64)
        } else {
            RunningShift::default()
        };
        *self.means() = Means {
            committed,
            pending: committed,
        };
        Ok(())
    }

    fn means(&self) -> MutexGuard<'_, Means> {
        // Two numbers that are always whole: a thread that panicked has left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
