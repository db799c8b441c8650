//! One training in a process of its own, so that its time and its peak memory are its own.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use cpu_time::ProcessTime;
use diptych::diffusion::{Diffusion, run, run_rounds};
use diptych::train::{Recipe, ResumeMode, peak_memory_bytes};
use serde::{Deserialize, Serialize};

/// What a training took.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Processor time in seconds, on one thread: what the wall shows when nothing else runs.
    pub(crate) cpu_secs: f64,
    pub(crate) peak_bytes: u64,
}

/// Trains what a recipe says, without its evaluation.
pub(crate) fn train(recipe: &Path, overrides: &[String]) -> anyhow::Result<Cost> {
    let start = ProcessTime::now();
    let mut recipe = Recipe::<Diffusion>::read(recipe, overrides)?;
    recipe.evaluation = None;
    let stop = AtomicBool::new(false);
    if recipe.rounds.is_some() {
        run_rounds(&recipe, |_| {}, &stop, ResumeMode::Fresh)?;
    } else {
        run(&recipe, |_| {}, &stop, ResumeMode::Fresh)?;
    }
    Ok(Cost {
        cpu_secs: start.elapsed().as_secs_f64(),
        peak_bytes: peak_memory_bytes().context("this system does not say how much memory a process has used")?,
    })
}

/// [`train`] in a new process with one thread.
pub(crate) fn train_apart(recipe: &Path, overrides: &[String]) -> anyhow::Result<Cost> {
    let mut worker = Command::new(std::env::current_exe()?);
    worker
        .env("RAYON_NUM_THREADS", "1")
        .arg("worker")
        .arg(recipe)
        .arg("--")
        .args(overrides);
    let output = worker.output().with_context(|| format!("cannot start {worker:?}"))?;
    if !output.status.success() {
        bail!("{worker:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("no output")?;
    serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))
}
