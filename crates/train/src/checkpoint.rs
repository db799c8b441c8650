//! Checkpoints: a directory that is complete or absent, with everything a run needs to go on bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;
use diptych_tensor::optim::{Ema, Optimizer, OptimizerConfig, StateTensor};
use diptych_tensor::{Device, Params, Tensor, Weights, save_tensors};
use serde::{Deserialize, Serialize};

use crate::directory::{RunDirectory, entries, remove_directory, replace_directory, step_name, step_of};
use crate::method::Method;
use crate::run::Window;
use crate::{Error, Result};

/// Changes when the files of a checkpoint change their meaning.
pub(crate) const FORMAT: u32 = 1;

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const AVERAGES: &str = "ema.safetensors";
const METHOD: &str = "method_state.safetensors";

/// `state.json`: everything of a run that is neither weights nor moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) format: u32,
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Updates the optimizer has made; its bias correction depends on them.
    pub(crate) optimizer_steps: u64,
    /// Place in the endless stream of records: with the seed, this is the order to come.
    pub(crate) records_seen: u64,
    /// For people: passes over the records.
    pub(crate) epoch: f64,
    /// The only source of randomness; every draw is a function of it, the step and the position in the batch.
    pub(crate) seed: u64,
    /// Of the recipe and the inputs.
    pub(crate) fingerprint: String,
    /// Sums since the last logged step.
    pub(crate) window: Window,
    /// Seconds of training up to here.
    pub(crate) wall_time_secs: f64,
    /// The version that wrote this.
    pub(crate) version: String,
}

/// A complete checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    path: PathBuf,
    state: State,
}

impl Checkpoint {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    pub(crate) fn optimizer_path(&self) -> PathBuf {
        self.path.join(OPTIMIZER)
    }

    pub(crate) fn averages_path(&self) -> PathBuf {
        self.path.join(AVERAGES)
    }

    /// What the method keeps beside its parameters, where it keeps anything.
    pub(crate) fn method_state(&self) -> Option<PathBuf> {
        Some(self.path.join(METHOD)).filter(|path| path.is_file())
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = path.join(STATE);
        let text = std::fs::read(&file).map_err(Error::io("read", &file))?;
        let state: State = serde_json::from_slice(&text).map_err(|error| Error::damaged(&file, &error))?;
        if state.format != FORMAT {
            let reason = format!(
                "format {} of version {}, expected {FORMAT}",
                state.format, state.version
            );
            return Err(Error::damaged(&file, &reason));
        }
        Ok(Self {
            path: path.to_owned(),
            state,
        })
    }

    /// What the optimizer keeps of every parameter.
    pub(crate) fn optimizer_state(
        &self,
        params: &Params,
        config: &OptimizerConfig,
    ) -> Result<BTreeMap<String, Tensor>> {
        let weights = Weights::open(&self.optimizer_path())?;
        let read = |part: StateTensor| {
            let tensor = weights.get(&part.name, &part.dims, part.dtype, &Device::Cpu)?;
            Ok((part.name, tensor))
        };
        config.state_layout(params).into_iter().map(read).collect()
    }

    /// The moving averages of every parameter.
    pub(crate) fn averages(&self, params: &Params) -> Result<BTreeMap<String, Tensor>> {
        let names = params
            .iter()
            .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        read_tensors(&self.averages_path(), names)
    }
}

/// Reads tensors that look like the given ones.
fn read_tensors(path: &Path, like: impl Iterator<Item = (String, Tensor)>) -> Result<BTreeMap<String, Tensor>> {
    let weights = Weights::open(path)?;
    like.map(|(name, like)| {
        let tensor = weights.get(&name, like.dims(), like.dtype(), like.device())?;
        Ok((name, tensor))
    })
    .collect()
}

/// Writes the checkpoint of `state.step`, in the place of an older one of that step.
pub(crate) fn write<M: Method>(
    directory: &RunDirectory,
    method: &M,
    optimizer: &Optimizer,
    average: Option<&Ema>,
    state: &State,
) -> Result<Checkpoint> {
    let path = directory.checkpoints().join(step_name(state.step));
    replace_directory(&path, |partial| -> Result<()> {
        let doing = format!("saving the checkpoint of step {}", state.step);
        method.save(partial).map_err(Error::method(doing.clone()))?;
        method.save_state(&partial.join(METHOD)).map_err(Error::method(doing))?;
        save_tensors(
            &partial.join(OPTIMIZER),
            &optimizer.state(method.params())?,
            &BTreeMap::new(),
        )?;
        if let Some(average) = average {
            save_tensors(&partial.join(AVERAGES), average.shadow(), &BTreeMap::new())?;
        }
        let file = partial.join(STATE);
        let text = serde_json::to_string_pretty(state).map_err(|error| Error::damaged(&file, &error))?;
        Ok(write_file(&file, format!("{text}\n").as_bytes())?)
    })?;
    Ok(Checkpoint {
        path,
        state: state.clone(),
    })
}

/// The complete checkpoints, oldest first.
pub(crate) fn complete(directory: &RunDirectory) -> Result<Vec<PathBuf>> {
    if !directory.checkpoints().is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = entries(&directory.checkpoints())?;
    paths.retain(|path| path.is_dir() && step_of(path).is_some());
    paths.sort_by_key(|path| step_of(path));
    Ok(paths)
}

/// The newest complete checkpoint.
pub(crate) fn newest(directory: &RunDirectory) -> Result<Option<Checkpoint>> {
    complete(directory)?
        .last()
        .map(|path| Checkpoint::read(path))
        .transpose()
}

/// Removes all but the newest `keep` checkpoints; 0 keeps all.
pub(crate) fn prune(directory: &RunDirectory, keep: usize) -> Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let paths = complete(directory)?;
    let surplus = paths.len().saturating_sub(keep);
    paths[..surplus].iter().try_for_each(|path| remove_directory(path))
}
