//! Rules that look at the numbers of a run and say, or stop, when it goes wrong in a known way.
//!
//! Chosen answers may become less likely while the margin grows ("likelihood displacement": Razin et al., arXiv:2410.08847), and
//! pairs whose margin is saturated teach nothing more.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use diptych_tensor::{DType, Device, Tensor, Weights};
use diptych_train::{MicroBatch, StepOutput};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `[method.offline_pairs.watch]`: what is looked at, and what then happens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// How far the mean log-ratio of chosen answers may fall below 0, in nats a token.
    pub max_displacement: f64,
    /// The share of pairs whose reward margin is above 10, at most.
    pub max_saturation: f64,
    /// Optimizer steps over which both are averaged; a resumed run goes on with its averages.
    pub window: u64,
    /// What happens beyond a limit.
    pub action: WatchAction,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            max_displacement: 1.0,
            max_saturation: 0.95,
            window: 20,
            action: WatchAction::Warn,
        }
    }
}

/// What happens beyond a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchAction {
    /// A warning, once a run.
    #[default]
    Warn,
    /// The run ends with an error; its last checkpoint stays.
    Stop,
    /// Nothing: nothing is looked at, so that there must be no limits beside it.
    Ignore,
}

impl WatchConfig {
    /// The first value out of its range, or without a use: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        if self.action == WatchAction::Ignore {
            let default = Self::default();
            let differs = |value: f64, default: f64| value.to_bits() != default.to_bits();
            let unused = [
                (
                    "max_displacement",
                    differs(self.max_displacement, default.max_displacement),
                ),
                ("max_saturation", differs(self.max_saturation, default.max_saturation)),
                ("window", self.window != default.window),
            ];
            let (key, _) = unused.into_iter().find(|(_, is_unused)| *is_unused)?;
            let found = "a limit that is unused: `action` is \"ignore\"".to_owned();
            return Some((key, found, "no such key, or `action` \"warn\" or \"stop\""));
        }
        if !(self.max_displacement.is_finite() && self.max_displacement > 0.0) {
            return Some((
                "max_displacement",
                self.max_displacement.to_string(),
                "a finite number > 0",
            ));
        }
        if !(self.max_saturation > 0.0 && self.max_saturation <= 1.0) {
            return Some((
                "max_saturation",
                self.max_saturation.to_string(),
                "a number above 0, at most 1",
            ));
        }
        (self.window == 0).then(|| ("window", "0".to_owned(), "at least 1"))
    }
}

/// What was seen, in a checkpoint.
const SEEN: &str = "watch.seen";

/// A reward margin beyond which the sigmoid's slope is below 5e-5.
const SATURATED: f64 = 10.0;

/// The rules and what they have seen, after the last step and as the micro batches of the step under way have moved it. A step
/// that is computed again, or that fails, begins from what was seen after the last one.
#[derive(Debug)]
pub(crate) struct Watch {
    config: WatchConfig,
    committed: Seen,
    pending: Seen,
}

/// Exponential means over about `window` steps, and what was said already.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    num: u64,
    displacement: f64,
    saturation: f64,
    has_warned_of_displacement: bool,
    has_warned_of_saturation: bool,
}

impl Watch {
    /// Nothing was seen yet.
    fn new(config: WatchConfig) -> Self {
        Self {
            config,
            committed: Seen::default(),
            pending: Seen::default(),
        }
    }

    /// Looks at the numbers of a micro batch.
    pub(crate) fn look(&mut self, batch: &MicroBatch, output: &StepOutput) -> Result<()> {
        if self.config.action == WatchAction::Ignore {
            return Ok(());
        }
        if batch.items.first().is_none_or(|first| first.position == 0) {
            self.pending = self.committed;
        }
        let per_step = (batch.step_items.len() / batch.items.len().max(1)).max(1) as u64;
        let window = self.config.window.saturating_mul(per_step);
        let mut seen = self.pending;
        seen.take(output, window);
        let found = self.broken_rules(&mut seen, window);
        self.pending = seen;
        found.into_iter().try_for_each(|found| self.act(batch.step, found))
    }

    /// The rules that are broken and of which nothing was said yet.
    fn broken_rules(&self, seen: &mut Seen, window: u64) -> Vec<String> {
        let mut found = Vec::new();
        // The first batches say little about a mean.
        if seen.num < window {
            return found;
        }
        if seen.displacement > self.config.max_displacement && !seen.has_warned_of_displacement {
            seen.has_warned_of_displacement = true;
            found.push(format!(
                "chosen answers have become {:.2} nats a token less likely than under the reference (limit {}): the margin \
                 grows by making both sides unlikely; a smaller learning rate, a larger beta or an `sft` term helps",
                seen.displacement, self.config.max_displacement
            ));
        }
        if seen.saturation > self.config.max_saturation && !seen.has_warned_of_saturation {
            seen.has_warned_of_saturation = true;
            found.push(format!(
                "{:.0} % of the pairs have a reward margin above {SATURATED} (limit {:.0} %): a loss that levels off there, as \
                 that of `dpo` does, learns next to nothing more from them",
                100.0 * seen.saturation,
                100.0 * self.config.max_saturation
            ));
        }
        found
    }

    /// The step was taken.
    pub(crate) fn commit(&mut self) {
        self.committed = self.pending;
    }

    /// For a checkpoint; empty where nothing is looked at.
    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let seen = self.committed;
        if seen == Seen::default() {
            return Ok(BTreeMap::new());
        }
        let values = seen.values();
        let tensor = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::new(&values, &Device::Cpu)?) };
        Ok(BTreeMap::from([(SEEN.to_owned(), tensor()?)]))
    }

    /// Sets what [`Watch::tensors`] gave.
    pub(crate) fn restore(&mut self, weights: &Weights) -> Result<()> {
        self.committed = if weights.contains(SEEN) {
            let tensor = weights.get(SEEN, &[5], DType::F64, &Device::Cpu)?;
            let read = || -> diptych_tensor::Result<Vec<f64>> { Ok(tensor.to_vec1()?) };
            Seen::of_values(&read()?)
        } else {
            Seen::default()
        };
        self.pending = self.committed;
        Ok(())
    }

    fn act(&self, step: u64, found: String) -> Result<()> {
        match self.config.action {
            WatchAction::Stop => Err(Error::Watched { step, found }),
            WatchAction::Warn => {
                tracing::warn!("step {step}: {found}");
                Ok(())
            }
            WatchAction::Ignore => Ok(()),
        }
    }
}

impl Seen {
    /// Takes the numbers of a micro batch into the means.
    fn take(&mut self, output: &StepOutput, window: u64) {
        self.num += 1;
        let share = 1.0 / self.num.min(window) as f64;
        if let (Some(ratios), Some(lengths)) = (
            output.metrics.get("logratios/chosen"),
            output.metrics.get("lengths/chosen"),
        ) {
            let per_token = ratios.iter().zip(lengths).map(|(ratio, len)| ratio / len);
            let displacement = -per_token.sum::<f64>() / ratios.len().max(1) as f64;
            self.displacement += share * (displacement - self.displacement);
        }
        if let Some(margins) = output.metrics.get("rewards/margins") {
            let saturated = margins.iter().filter(|&&margin| margin > SATURATED).count();
            let saturation = saturated as f64 / margins.len().max(1) as f64;
            self.saturation += share * (saturation - self.saturation);
        }
    }

    fn values(self) -> [f64; 5] {
        let flag = |is_set: bool| f64::from(u8::from(is_set));
        [
            self.num as f64,
            self.displacement,
            self.saturation,
            flag(self.has_warned_of_displacement),
            flag(self.has_warned_of_saturation),
        ]
    }

    fn of_values(values: &[f64]) -> Self {
        let value = |at: usize| values.get(at).copied().unwrap_or_default();
        Self {
            num: value(0) as u64,
            displacement: value(1),
            saturation: value(2),
            has_warned_of_displacement: value(3) != 0.0,
            has_warned_of_saturation: value(4) != 0.0,
        }
    }
}

/// A [`Watch`] that a method can move while it is shared.
#[derive(Debug)]
pub(crate) struct SharedWatch(Mutex<Watch>);

impl SharedWatch {
    pub(super) fn new(config: WatchConfig) -> Self {
        Self(Mutex::new(Watch::new(config)))
    }

    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Watch>> {
        self.0.lock().map_err(|_| Error::Poisoned)
    }
}

#[cfg(test)]
mod tests {
    use diptych_train::Item;

    use super::*;

    fn output(ratio: f64, margin: f64) -> StepOutput {
        let metrics = BTreeMap::from([
            ("logratios/chosen", vec![ratio]),
            ("lengths/chosen", vec![10.0]),
            ("rewards/margins", vec![margin]),
        ]);
        StepOutput::new(Tensor::new(&[0.0], &Device::Cpu).unwrap(), metrics)
    }

    /// The step at which a run of two micro batches a step is stopped.
    fn stops_at(output: &StepOutput, action: WatchAction) -> Option<u64> {
        let items: Vec<Item> = (0..2)
            .map(|index| Item {
                index,
                position: index as u64,
            })
            .collect();
        let mut watch = Watch::new(WatchConfig {
            window: 4,
            action,
            ..WatchConfig::default()
        });
        (1..=10).find(|&step| {
            let is_stopped = (0..2).any(|at| {
                let batch = MicroBatch {
                    items: vec![items[at]],
                    ..MicroBatch::whole(0, step, items.clone())
                };
                watch.look(&batch, output).is_err()
            });
            watch.commit();
            is_stopped
        })
    }

    #[test]
    fn a_run_is_stopped_where_a_mean_over_the_window_passes_its_limit() {
        for (ratio, margin, expected) in [
            (-5.0, 1.0, None),
            (-15.0, 1.0, Some(4)),
            (15.0, 1.0, None),
            (0.0, 11.0, Some(4)),
            (0.0, 9.0, None),
        ] {
            assert_eq!(
                stops_at(&output(ratio, margin), WatchAction::Stop),
                expected,
                "{ratio} {margin}"
            );
            assert_eq!(stops_at(&output(ratio, margin), WatchAction::Warn), None);
        }
    }

    fn whole(step: u64) -> MicroBatch {
        let item = Item { index: 0, position: 0 };
        MicroBatch::whole(0, step, vec![item])
    }

    #[test]
    fn a_step_that_is_computed_again_is_seen_once() {
        let config = WatchConfig::default();
        let (mut once, mut twice) = (Watch::new(config), Watch::new(config));
        for step in 1..=30 {
            let output = output(-0.1 * step as f64, step as f64);
            once.look(&whole(step), &output).unwrap();
            twice.look(&whole(step), &output).unwrap();
            twice.look(&whole(step), &output).unwrap();
            once.commit();
            twice.commit();
        }
        assert_eq!(once.committed, twice.committed);
        assert_eq!(once.committed.num, 30);
    }

    #[test]
    fn what_was_seen_goes_through_a_checkpoint_bit_for_bit() {
        let mut watch = Watch::new(WatchConfig::default());
        for step in 1..=25 {
            watch.look(&whole(step), &output(-13.0, 11.0)).unwrap();
            watch.commit();
        }
        assert!(watch.committed.has_warned_of_displacement && watch.committed.has_warned_of_saturation);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.safetensors");
        assert!(crate::reference::save_state(&path, &watch.tensors().unwrap()).unwrap());
        let mut loaded = Watch::new(WatchConfig::default());
        loaded.restore(&Weights::open(&path).unwrap()).unwrap();
        assert_eq!(loaded.committed, watch.committed);
        assert_eq!(loaded.pending, watch.committed);
        assert!(Watch::new(WatchConfig::default()).tensors().unwrap().is_empty());
    }
}
