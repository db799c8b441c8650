//! The one training loop.

mod buckets;
mod config;
mod order;
mod resume;
mod step;
mod window;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use diptych_tensor::optim::{Ema, Optimizer};
use diptych_tensor::thread::on_large_stack;

pub use self::config::LoopConfig;
pub use self::order::Order;
pub use self::resume::check_start;
use self::step::{Completeness, optimizer_step};
pub(crate) use self::window::Window;
use crate::checkpoint::{self, Checkpoint, State};
use crate::clock::Stopwatch;
use crate::directory::{MetricsLog, MetricsRow, RunDirectory, RunLock, ScalarLog, Summary};
use crate::memory::peak_memory_bytes;
use crate::method::{Method, MicroBatch};
use crate::observer::{Event, Observer};
use crate::plan::Plan;
use crate::report::write_report;
use crate::{Error, Result};

/// Whether a run begins or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeMode {
    /// The run directory must not hold a run yet.
    Fresh,
    /// The run directory holds a run: it goes on from its newest complete checkpoint, or from the start when it was
    /// ended before the first one. Rows, events and samples written after that checkpoint are removed, so that the files
    /// are those of a run that was never interrupted.
    Resume,
}

/// Trains a method and fills the run directory.
///
/// Every optimizer step takes `micro_batch × accumulation` records from the endless stream of epochs, averages their
/// losses once, and updates the parameters once; a method may ask for several steps on the same records
/// ([`Method::updates_per_batch`]). How the batch is cut into micro batches changes nothing but rounding.
/// When `stop` is set the step under way is finished, a checkpoint is written, and the summary says `stopped`.
/// The work is done on a thread with a large stack, since deep graphs are walked by recursion.
///
/// ```
/// use std::{collections::BTreeMap, path::Path, sync::atomic::AtomicBool};
/// use diptych_tensor::optim::{AdamWConfig, OptimizerConfig};
/// use diptych_tensor::{Device, Error, Params, Tensor, Weights, save_tensors};
/// use diptych_train::{LoopConfig, Method, MicroBatch, ResumeMode, Silent, StepOutput, TrainConfig, train};
///
/// /// Finds the mean of some numbers.
/// struct Mean { params: Params, mean: Tensor, numbers: Vec<f32> }
///
/// impl Method for Mean {
///     type Error = Error;
///     fn params(&self) -> &Params { &self.params }
///     fn num_records(&self) -> usize { self.numbers.len() }
///     fn record_id(&self, index: usize) -> String { format!("number {index}") }
///     fn step(&self, batch: &MicroBatch) -> Result<StepOutput, Error> {
///         let numbers: Vec<f32> = batch.items.iter().map(|item| self.numbers[item.index]).collect();
///         let numbers = Tensor::from_vec(numbers, batch.items.len(), &Device::Cpu)?;
///         Ok(StepOutput::new(numbers.broadcast_sub(&self.mean)?.sqr()?, BTreeMap::new()))
///     }
///     fn save(&self, directory: &Path) -> Result<(), Error> {
///         save_tensors(&directory.join("mean.safetensors"), &self.params.snapshot()?, &BTreeMap::new())
///     }
///     fn load(&self, directory: &Path) -> Result<(), Error> {
///         let weights = Weights::open(&directory.join("mean.safetensors"))?;
///         let mean = weights.get("mean", &[1], self.mean.dtype(), self.mean.device())?;
///         self.params.load(&BTreeMap::from([("mean".into(), mean)]))
///     }
/// }
///
/// let mut params = Params::new();
/// let mean = params.insert("mean", &Tensor::new(&[0f32], &Device::Cpu)?)?;
/// let method = Mean { params, mean, numbers: vec![1.0, 2.0, 6.0] };
/// let directory = tempfile::tempdir()?;
/// let settings = TrainConfig { steps: Some(400), micro_batch: 3, ..TrainConfig::default() };
/// let mut config = LoopConfig::new(directory.path().join("run"), settings);
/// config.optimizer = OptimizerConfig::Adamw(AdamWConfig { lr: 0.05, weight_decay: 0.0, ..AdamWConfig::default() });
/// let summary = train(&method, &config, &mut Silent, &AtomicBool::new(false), ResumeMode::Fresh)?;
/// assert_eq!(summary.step, 400);
/// assert!((method.mean.to_vec1::<f32>()?[0] - 3.0).abs() < 0.01);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::RunExists`], [`Error::NothingToResume`], [`Error::Changed`] and [`Error::Recipe`] before anything is written;
/// [`Error::NonFinite`] when a loss, metric or gradient is not finite: the step is not taken and the last checkpoint stays;
/// [`Error::Method`], [`Error::StepOutput`], [`Error::Tensor`], [`Error::Io`] as they happen.
pub fn train<M: Method + Sync>(
    method: &M,
    config: &LoopConfig,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
    resume: ResumeMode,
) -> Result<Summary> {
    on_large_stack(|| {
        let mut run = Run::start(method, config, observer, resume)?;
        run.go(stop).map_err(|error| run.with_hint(error))
    })?
}

/// A run under way.
struct Run<'a, M: Method> {
    method: &'a M,
    config: &'a LoopConfig,
    observer: &'a mut dyn Observer,
    plan: Plan,
    directory: RunDirectory,
    metrics: MetricsLog,
    scalars: ScalarLog,
    optimizer: Optimizer,
    average: Option<Ema>,
    /// Keeps other processes out as long as the run lasts.
    _lock: RunLock,
    order: Order,
    window: Window,
    last_row: Option<MetricsRow>,
    /// Optimizer steps done.
    step: u64,
    /// Optimizer steps of the whole run.
    num_steps: u64,
    /// Records taken from the stream.
    records_seen: u64,
    /// The newest complete checkpoint.
    checkpoint: Option<Checkpoint>,
    /// Updates made by this process.
    updates_here: u64,
    /// Records taken by this process.
    records_here: u64,
    /// Time of earlier processes of this run.
    earlier_secs: f64,
    stopwatch: Stopwatch,
    resumed_from: Option<u64>,
}

impl<M: Method> Run<'_, M> {
    fn go(&mut self, stop: &AtomicBool) -> Result<Summary> {
        self.observer.event(&Event::Started {
            done: self.step,
            num_steps: self.num_steps,
            num_records: self.method.num_records(),
            effective_batch: self.config.train.effective_batch(),
            num_elements: self.method.params().num_elements(),
            checkpoint: self.checkpoint.as_ref().map(Checkpoint::path),
        });
        // The process before may have ended between a checkpoint and the sample of its step.
        if self.is_sample_due() && !self.directory.has_sample(self.step)? {
            self.sample()?;
        }
        while self.step < self.num_steps {
            if stop.load(Ordering::Relaxed) {
                return self.stopped();
            }
            self.advance()?;
        }
        self.finished()
    }

    /// One optimizer step and what is due after it.
    fn advance(&mut self) -> Result<()> {
        let train = &self.config.train;
        let step = self.step + 1;
        let batches = self.batches(step);
        let learning_rate = self.config.optimizer.lr() * self.config.schedule.factor(self.step, self.num_steps);
        let check = if self.updates_here == 0 {
            Completeness::Check
        } else {
            Completeness::Assume
        };
        let numbers = optimizer_step(
            self.method,
            self.config,
            &batches,
            &mut self.optimizer,
            learning_rate,
            &mut self.window,
            check,
        )?;
        let after = || format!("after the update of step {step}");
        self.method
            .after_step(step)
            .map_err(|error| Error::method(after())(error))?;
        if numbers.is_update {
            self.updates_here += 1;
            if let Some(average) = &mut self.average {
                average.update(self.method.params())?;
            }
        }
        self.step = step;
        self.observer.event(&Event::Step {
            step,
            num_steps: self.num_steps,
            loss: numbers.loss,
            grad_norm: numbers.grad_norm,
            learning_rate,
            examples_per_second: self.examples_per_second(),
        });
        let is_last = step == self.num_steps;
        if is_last || step.is_multiple_of(train.log_every) {
            self.log(numbers.grad_norm, learning_rate)?;
        }
        if train.checkpoint_every > 0 && (is_last || step.is_multiple_of(train.checkpoint_every)) {
            self.save_checkpoint()?;
        }
        // Behind the checkpoint: a sample that fails, of images that are not finite, loses no step.
        if self.is_sample_due() {
            self.sample()?;
        }
        Ok(())
    }

    /// Whether the step that was just made is one whose sample is kept.
    fn is_sample_due(&self) -> bool {
        let every = self.config.train.sample_every;
        every > 0 && self.step > 0 && (self.step == self.num_steps || self.step.is_multiple_of(every))
    }

    /// The micro batches of a step: new records, or those of the step before once more.
    fn batches(&mut self, step: u64) -> Vec<MicroBatch> {
        let train = &self.config.train;
        let update = (step - 1) % self.method.updates_per_batch().max(1);
        if update == 0 {
            self.records_seen += train.effective_batch();
        }
        let start = self.records_seen - train.effective_batch();
        let choose = |item| self.method.choose(self.config.seed, step - update, item);
        let (size, num) = (train.micro_batch, train.accumulation);
        let batches = self.order.micro_batches(step, start, size, num);
        if update == 0 {
            self.records_here += batches.iter().map(|batch| batch.items.len() as u64).sum::<u64>();
        }
        batches
            .into_iter()
            .map(|batch| MicroBatch { update, ..batch }.with_records(choose))
            .collect()
    }

    fn log(&mut self, grad_norm: f64, learning_rate: f64) -> Result<()> {
        let (loss, metrics) = self.window.take();
        let row = MetricsRow {
            step: self.step,
            epoch: self.epoch(),
            loss,
            grad_norm,
            learning_rate,
            metrics,
        };
        self.metrics.append(&row)?;
        self.scalars.append(&row)?;
        self.observer.event(&Event::Logged(&row));
        self.last_row = Some(row);
        Ok(())
    }

    fn sample(&mut self) -> Result<()> {
        let stem = self.directory.sample_stem(self.step)?;
        let doing = format!("sampling at step {}", self.step);
        let sampled = self.with_averages(|method| method.sample(&stem).map_err(Error::method(doing)))?;
        if let Some(path) = sampled {
            self.observer.event(&Event::Sampled {
                step: self.step,
                path: &path,
            });
        }
        Ok(())
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        // Rows up to this step must survive a crash that the checkpoint survives.
        self.metrics.sync()?;
        self.scalars.sync()?;
        let state = self.state();
        let written = checkpoint::write(
            &self.directory,
            self.method,
            &self.optimizer,
            self.average.as_ref(),
            &state,
        )?;
        self.observer.event(&Event::Checkpoint {
            step: self.step,
            path: written.path(),
        });
        self.checkpoint = Some(written);
        checkpoint::prune(&self.directory, self.config.train.keep_checkpoints)
    }

    fn state(&self) -> State {
        State {
            format: checkpoint::FORMAT,
            step: self.step,
            optimizer_steps: self.optimizer.num_steps(),
            records_seen: self.records_seen,
            epoch: self.epoch(),
            seed: self.config.seed,
            fingerprint: self.plan.fingerprint(),
            window: self.window.clone(),
            wall_time_secs: self.wall_time_secs(),
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    fn stopped(&mut self) -> Result<Summary> {
        if self.step > 0 && self.checkpoint.as_ref().is_none_or(|newest| newest.step() != self.step) {
            self.save_checkpoint()?;
        }
        self.conclude(true)
    }

    fn finished(&mut self) -> Result<Summary> {
        let directory = self.directory.clone();
        self.with_averages(|method| {
            directory.replace_final(|path| method.save_final(path).map_err(Error::method("saving the result")))
        })?;
        self.conclude(false)
    }

    fn conclude(&mut self, stopped: bool) -> Result<Summary> {
        let summary = Summary {
            step: self.step,
            num_steps: self.num_steps,
            epoch: self.epoch(),
            stopped,
            resumed_from: self.resumed_from,
            num_trainable: self.method.params().num_elements() as u64,
            wall_time_secs: self.wall_time_secs(),
            examples_per_second: self.examples_per_second(),
            peak_memory_bytes: peak_memory_bytes(),
            metrics: self.last_row.clone(),
        };
        self.directory.write_summary(&summary)?;
        write_report(self.directory.path())?;
        self.observer.event(&Event::Finished(&summary));
        Ok(summary)
    }

    /// Runs `work` with the moving averages, where there are any, in the place of the parameters.
    fn with_averages<T>(&self, work: impl FnOnce(&M) -> Result<T>) -> Result<T> {
        let Some(average) = &self.average else {
            return work(self.method);
        };
        let params = self.method.params();
        let current = params.snapshot()?;
        params.load(average.shadow())?;
        let result = work(self.method);
        params.load(&current)?;
        result
    }

    fn epoch(&self) -> f64 {
        self.records_seen as f64 / self.order.num_places() as f64
    }

    fn wall_time_secs(&self) -> f64 {
        self.earlier_secs + self.stopwatch.secs()
    }

    fn examples_per_second(&self) -> f64 {
        let secs = self.stopwatch.secs();
        let examples = self.records_here as f64;
        if secs > 0.0 { examples / secs } else { 0.0 }
    }

    /// Says where the last good state is, in the error of a run that went wrong.
    fn with_hint(&self, error: Error) -> Error {
        match error {
            Error::NonFinite {
                step,
                names,
                record_ids,
                ..
            } => {
                let hint = match self.checkpoint.as_ref().map(Checkpoint::path) {
                    Some(path) => format!("; the last good state is {}", Path::display(path)),
                    None => "; there is no checkpoint yet".into(),
                };
                Error::NonFinite {
                    step,
                    names,
                    record_ids,
                    hint,
                }
            }
            other => other,
        }
    }
}
