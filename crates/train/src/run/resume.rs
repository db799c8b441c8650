//! How a run starts: in an empty directory, or from its newest complete checkpoint.

use diptych_tensor::optim::{Ema, LrSchedule, Optimizer};

use super::{LoopConfig, Order, ResumeMode, Run, Window};
use crate::checkpoint::{self, Checkpoint};
use crate::clock::Stopwatch;
use crate::directory::{MetricsLog, RunDirectory, RunLock, ScalarLog};
use crate::method::Method;
use crate::observer::Observer;
use crate::plan::Plan;
use crate::{Error, Result};

impl<'a, M: Method> Run<'a, M> {
    pub(super) fn start(
        method: &'a M,
        config: &'a LoopConfig,
        observer: &'a mut dyn Observer,
        resume: ResumeMode,
    ) -> Result<Self> {
        config.validate()?;
        if method.num_records() == 0 {
            return Err(Error::NoRecords);
        }
        let plan = config.plan()?;
        let directory = RunDirectory::new(&config.output);
        // Nothing is made where there is nothing to resume, or a run that a new one would refuse.
        check_directory(config, resume)?;
        let lock = directory.lock()?;
        let checkpoint = begin(&directory, &plan, &config.schedule, resume)?;
        let step = checkpoint.as_ref().map_or(0, Checkpoint::step);
        let order = order(method, config);
        let num_steps = config
            .train
            .num_steps(order.num_places() as usize, method.updates_per_batch());
        if num_steps < step {
            let found = format!("{num_steps} optimizer steps");
            return Err(config.invalid(
                "train",
                found,
                format!("at least {step}, the step of the newest checkpoint"),
            ));
        }
        directory.create(config.recipe_text.as_deref(), &plan)?;
        directory.remove_after(step)?;
        let mut run = Self {
            method,
            config,
            observer,
            plan,
            metrics: MetricsLog::open(&directory.metrics(), step)?,
            scalars: ScalarLog::open(&directory, step)?,
            directory,
            _lock: lock,
            optimizer: Optimizer::new(method.params(), &config.optimizer)?.seeded(config.seed),
            average: config
                .train
                .ema_decay
                .map(|decay| Ema::new(method.params(), decay))
                .transpose()?,
            order,
            window: Window::default(),
            last_row: None,
            step,
            num_steps,
            records_seen: 0,
            checkpoint: None,
            updates_here: 0,
            records_here: 0,
            earlier_secs: 0.0,
            stopwatch: Stopwatch::start(),
            resumed_from: (resume == ResumeMode::Resume).then_some(step),
        };
        if let Some(checkpoint) = checkpoint {
            run.restore(checkpoint)?;
        }
        run.last_row = run.metrics.last_row().cloned();
        Ok(run)
    }

    fn restore(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let doing = format!("loading {}", checkpoint.path().display());
        self.method
            .load(checkpoint.path())
            .map_err(Error::method(doing.clone()))?;
        if let Some(path) = checkpoint.method_state() {
            self.method.load_state(&path).map_err(Error::method(doing))?;
        }
        let params = self.method.params();
        let state = checkpoint.state();
        let optimizer = &self.config.optimizer;
        let kept = checkpoint.optimizer_state(params, optimizer)?;
        self.optimizer = Optimizer::restore(params, optimizer, &kept, state.optimizer_steps)?.seeded(self.config.seed);
        if let Some(decay) = self.config.train.ema_decay {
            self.average = Some(Ema::restore(params, decay, checkpoint.averages(params)?)?);
        }
        self.window = state.window.clone();
        self.records_seen = state.records_seen;
        self.earlier_secs = state.wall_time_secs;
        self.checkpoint = Some(checkpoint);
        Ok(())
    }
}

fn order<M: Method>(method: &M, config: &LoopConfig) -> Order {
    match method.buckets() {
        Some(buckets) => Order::bucketed(config.seed, buckets, config.train.micro_batch, config.shuffle),
        None => Order::new(config.seed, method.num_records(), config.shuffle),
    }
}

/// The checkpoint to go on from, in a directory that is as a run may find it.
fn begin(
    directory: &RunDirectory,
    plan: &Plan,
    schedule: &LrSchedule,
    resume: ResumeMode,
) -> Result<Option<Checkpoint>> {
    match resume {
        ResumeMode::Fresh => directory.ensure_new().map(|()| None),
        ResumeMode::Resume => {
            ensure_unchanged(directory, plan, schedule)?;
            directory.recover()?;
            find_checkpoint(directory, plan)
        }
    }
}

/// What [`train`](super::train) refuses about the run directory, without a method and without writing anything: for
/// programs that load for minutes before they can train.
///
/// # Errors
/// [`Error::Locked`], [`Error::RunExists`], [`Error::NothingToResume`], [`Error::Changed`], [`Error::Damaged`], [`Error::Recipe`].
pub fn check_start(config: &LoopConfig, resume: ResumeMode) -> Result<()> {
    config.validate()?;
    RunLock::check(&config.output)?;
    check_directory(config, resume)
}

/// Refuses a run directory that is not as the run may find it.
fn check_directory(config: &LoopConfig, resume: ResumeMode) -> Result<()> {
    let directory = RunDirectory::new(&config.output);
    match resume {
        ResumeMode::Fresh => directory.ensure_new(),
        ResumeMode::Resume => {
            let plan = config.plan()?;
            ensure_unchanged(&directory, &plan, &config.schedule)?;
            find_checkpoint(&directory, &plan).map(|_| ())
        }
    }
}

/// Refuses a directory without a run, or with one that `plan` may not continue.
fn ensure_unchanged(directory: &RunDirectory, plan: &Plan, schedule: &LrSchedule) -> Result<()> {
    if !directory.plan().is_file() {
        return Err(Error::NothingToResume {
            path: directory.path().to_owned(),
        });
    }
    let started = Plan::read(&directory.plan())?;
    let changes = plan.changes_since(&started, schedule);
    if !changes.is_empty() {
        return Err(Error::Changed {
            path: directory.path().to_owned(),
            changes,
        });
    }
    Ok(())
}

/// The newest complete checkpoint of the run.
fn find_checkpoint(directory: &RunDirectory, plan: &Plan) -> Result<Option<Checkpoint>> {
    let newest = checkpoint::newest(directory)?;
    if let Some(newest) = &newest
        && newest.state().version != env!("CARGO_PKG_VERSION")
    {
        tracing::warn!(
            "{} was written by version {}; this is {}, whose numbers may differ in the last digits",
            newest.path().display(),
            newest.state().version,
            env!("CARGO_PKG_VERSION")
        );
    }
    if let Some(newest) = &newest
        && newest.state().fingerprint != plan.fingerprint()
    {
        return Err(Error::damaged(
            newest.path(),
            &"it belongs to a run with another recipe or other inputs",
        ));
    }
    Ok(newest)
}
