//! Sums of losses and metrics since the last logged step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Sums over the examples since the last logged step. Part of a checkpoint, so that a resumed log is the same log.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Window {
    loss: Mean,
    metrics: BTreeMap<String, Mean>,
}

/// A mean under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub(crate) fn add(&mut self, values: &[f64]) {
        for value in values {
            self.sum += value;
        }
        self.count += values.len() as u64;
    }

    /// 0 when nothing was added.
    pub(crate) fn value(self) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            self.sum / self.count as f64
        }
    }
}

impl Window {
    pub(crate) fn add(&mut self, losses: &[f64], metrics: &BTreeMap<&'static str, Vec<f64>>) {
        self.loss.add(losses);
        for (name, values) in metrics {
            self.metrics.entry((*name).to_owned()).or_default().add(values);
        }
    }

    /// Mean loss and means of the metrics; the window is empty afterwards.
    pub(crate) fn take(&mut self) -> (f64, BTreeMap<String, f64>) {
        let Self { loss, metrics } = std::mem::take(self);
        let metrics = metrics.into_iter().filter(|(_, mean)| mean.count > 0);
        (loss.value(), metrics.map(|(name, mean)| (name, mean.value())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_examples_not_over_batches() {
        let mut window = Window::default();
        window.add(&[1.0, 2.0, 3.0], &BTreeMap::from([("a", vec![1.0]), ("never", vec![])]));
        window.add(&[10.0], &BTreeMap::from([("a", vec![4.0, 4.0])]));
        let (loss, metrics) = window.take();
        assert_eq!(loss, 4.0);
        assert_eq!(metrics, BTreeMap::from([("a".to_owned(), 3.0)]));
        assert_eq!(window, Window::default());
    }

    #[test]
    fn a_saved_window_is_the_same_window() {
        let mut window = Window::default();
        window.add(
            &[0.1, 0.2, 1.0 / 3.0],
            &BTreeMap::from([("a", vec![0.1 + 0.2, 1e-310])]),
        );
        let saved = serde_json::to_string(&window).unwrap();
        assert_eq!(serde_json::from_str::<Window>(&saved).unwrap(), window);
    }
}
