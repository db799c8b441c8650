//! What the loop tells whoever started it.

use std::path::Path;

use crate::directory::{MetricsRow, Summary};

/// Something that happened in a run. The library prints nothing: a program draws its bar from these.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run directory is ready and the first step begins.
    Started {
        /// Optimizer steps that were done before; more than 0 in a resumed run.
        done: u64,
        /// Optimizer steps of the whole run.
        num_steps: u64,
        /// Records of an epoch.
        num_records: usize,
        /// Records an optimizer step.
        effective_batch: u64,
        /// Trainable scalars.
        num_elements: usize,
        /// The checkpoint the run continues from.
        checkpoint: Option<&'a Path>,
    },
    /// An optimizer step is done.
    Step {
        /// Its number, from 1.
        step: u64,
        /// Optimizer steps of the whole run.
        num_steps: u64,
        /// Mean loss of the step.
        loss: f64,
        /// Global norm of the gradients before clipping.
        grad_norm: f64,
        /// The learning rate it used.
        learning_rate: f64,
        /// Records a second since this process began.
        examples_per_second: f64,
    },
    /// A row was added to `metrics.jsonl`.
    Logged(&'a MetricsRow),
    /// A sample was written.
    Sampled {
        /// The step it shows.
        step: u64,
        /// The file.
        path: &'a Path,
    },
    /// A checkpoint is complete.
    Checkpoint {
        /// The step it holds.
        step: u64,
        /// Its directory.
        path: &'a Path,
    },
    /// The run is over, or stopped.
    Finished(&'a Summary),
}

/// Hears of [`Event`]s. Every closure over `&Event` is one; [`Silent`] ignores them.
pub trait Observer: Send {
    /// Something happened.
    fn event(&mut self, event: &Event<'_>);
}

impl<F: FnMut(&Event<'_>) + Send> Observer for F {
    fn event(&mut self, event: &Event<'_>) {
        self(event);
    }
}

/// Nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}
