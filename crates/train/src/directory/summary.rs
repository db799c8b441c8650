//! What a run came to.

use serde::{Deserialize, Serialize};

use super::MetricsRow;

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Optimizer steps done.
    pub step: u64,
    /// Optimizer steps of the whole run.
    pub num_steps: u64,
    /// Passes over the records.
    pub epoch: f64,
    /// Whether the run was stopped before its last step.
    pub stopped: bool,
    /// The step this process continued from, in a resumed run.
    pub resumed_from: Option<u64>,
    /// Trainable scalars.
    pub num_trainable: u64,
    /// Seconds of all processes of this run, up to their last checkpoints, and of this one.
    pub wall_time_secs: f64,
    /// Records a second of this process.
    pub examples_per_second: f64,
    /// The most memory this process had resident, where the operating system says so.
    pub peak_memory_bytes: Option<u64>,
    /// The last logged row.
    pub metrics: Option<MetricsRow>,
}
