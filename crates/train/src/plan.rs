//! What a run is: its recipe with every default, the hashes of its inputs, and the version that made it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use diptych_data::DataFiles;
use diptych_tensor::optim::LrSchedule;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use crate::modality::Modality;
use crate::recipe::{Recipe, ReferenceConfig};
use crate::{Error, Result};

/// How long a run is. May change when it is resumed, where the learning rate does not depend on it.
const LENGTH_KEYS: [&str; 2] = ["train.steps", "train.num_epochs"];

/// Keys that may change when a run is resumed: they do not change what the steps already taken would have been.
const FREE_KEYS: [&str; 8] = [
    "run.output",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.sample_every",
    "samples",
    "eval",
    // A round does not know how many there are.
    "rounds.num_rounds",
];

/// A resolved run, as `plan.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Of this workspace, and the platform.
    pub versions: BTreeMap<String, String>,
    /// The files the run reads.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// The recipe with every default.
    pub recipe: Table,
}

/// A file that a run reads, or its data as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The recipe key that leads to it, and its path below that. For `data.path` the hash is that of all records.
    pub name: String,
    /// Of its content, in hexadecimal.
    pub sha256: String,
    /// Its size.
    pub num_bytes: u64,
}

impl Plan {
    /// Resolves a recipe: hashes the model, the data and what else the modality reads.
    ///
    /// # Errors
    /// [`Error::Recipe`] for a path that leads nowhere, [`Error::Io`] for a file that cannot be read.
    pub fn resolve<M: Modality>(recipe: &Recipe<M>) -> Result<Self> {
        let mut paths = vec![("model.path".to_owned(), recipe.model_path()?)];
        if let ReferenceConfig::Checkpoint { path } = &recipe.reference {
            let key = "reference.checkpoint.path";
            paths.push((key.to_owned(), recipe.resolve_path(key, path)?));
        }
        paths.extend(M::inputs(recipe)?);
        let mut inputs = Vec::new();
        if !recipe.data.path.as_slice().is_empty() {
            inputs.push(hash_data(recipe)?);
        }
        for (key, path) in paths {
            hash_inputs(&key, &path, &mut inputs)?;
        }
        Ok(Self {
            versions: versions(),
            inputs,
            recipe: recipe.to_table()?,
        })
    }

    /// A plan for settings that come from no recipe and no files.
    pub(crate) fn of_settings(settings: Table) -> Self {
        Self {
            versions: versions(),
            inputs: Vec::new(),
            recipe: settings,
        }
    }

    /// The plan as a TOML file.
    pub fn to_toml(&self) -> Result<String> {
        let header = "# Every value of this run, defaults included, and the hash of every file it reads.\n\n";
        match toml::to_string_pretty(self) {
            Ok(text) => Ok(format!("{header}{text}")),
            Err(error) => Err(Error::damaged("plan.toml", &error)),
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        toml::from_str(&text).map_err(|error| Error::damaged(path, &error.message()))
    }

    /// A hash of everything that must not change in a resumed run.
    pub(crate) fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for (key, value) in self.fixed_values() {
            hasher.update(format!("{key} = {value}\n"));
        }
        hex(&hasher.finalize())
    }

    /// What differs from the plan a run was started with, apart from what may change under this schedule.
    pub(crate) fn changes_since(&self, started: &Self, schedule: &LrSchedule) -> Vec<String> {
        let mut changes = changes_between(&started.fixed_values(), &self.fixed_values());
        if let Some(name) = schedule_over_all_steps(schedule) {
            let lengths = changes_between(&started.length_values(), &self.length_values());
            changes.extend(lengths.into_iter().map(|change| {
                format!(
                    "{change} (`schedule.{name}` spreads the learning rate over all steps, so those already taken would \
                     have had other rates; only `schedule.constant` lets a run change its length)"
                )
            }));
        }
        changes
    }

    /// All values, under dotted keys.
    pub(crate) fn values(&self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        flatten("", &Value::Table(self.recipe.clone()), &mut values);
        values
    }

    fn length_values(&self) -> BTreeMap<String, String> {
        let mut values = self.values();
        values.retain(|key, _| LENGTH_KEYS.contains(&key.as_str()));
        values
    }

    /// Without the length, so that a constant schedule's run stays the same run when it is made longer.
    fn fixed_values(&self) -> BTreeMap<String, String> {
        let is_free = |key: &str| {
            let covers = |free: &&str| key == *free || key.starts_with(&format!("{free}."));
            FREE_KEYS.iter().chain(&LENGTH_KEYS).any(covers)
        };
        let mut values = self.values();
        values.retain(|key, _| !is_free(key));
        for input in &self.inputs {
            // Where files lie does not matter, what is in them does.
            let key = input.name.split('/').next().unwrap_or_default();
            if is_free(key) {
                continue;
            }
            values.remove(key);
            values.insert(format!("content of {}", input.name), input.sha256.clone());
        }
        values
    }
}

/// `key: was OLD, is NEW`, one for each difference.
fn changes_between(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "absent".into());
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| format!("{key}: was {}, is {}", show(old.get(key)), show(new.get(key))))
        .collect()
}

/// The word of a schedule whose factor at a step depends on how many steps there are.
fn schedule_over_all_steps(schedule: &LrSchedule) -> Option<&'static str> {
    match schedule {
        LrSchedule::Constant { .. } => None,
        LrSchedule::Linear { .. } => Some("linear"),
        LrSchedule::Cosine { .. } => Some("cosine"),
    }
}

fn flatten(prefix: &str, value: &Value, values: &mut BTreeMap<String, String>) {
    match value {
        // An empty table is a choice too: `[reference.frozen]`.
        Value::Table(table) if !table.is_empty() => {
            for (name, value) in table {
                let key = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&key, value, values);
            }
        }
        other => {
            values.insert(prefix.to_owned(), other.to_string());
        }
    }
}

fn versions() -> BTreeMap<String, String> {
    let platform = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    BTreeMap::from([
        ("diptych".into(), env!("CARGO_PKG_VERSION").into()),
        ("platform".into(), platform),
    ])
}

/// One hash over the record files and the pictures they name.
fn hash_data<M: Modality>(recipe: &Recipe<M>) -> Result<Input> {
    let files = DataFiles::find(&recipe.data_paths()?, recipe.data.layout)?;
    let content = files.content_hash()?;
    let num_bytes = content.files.iter().map(|file| file.num_bytes).sum();
    Ok(Input {
        name: "data.path".into(),
        sha256: content.sha256,
        num_bytes,
    })
}

/// Hashes a file, or every file below a directory in the order of their names. Hidden files are not inputs.
fn hash_inputs(name: &str, path: &Path, inputs: &mut Vec<Input>) -> Result<()> {
    if path.to_string_lossy().starts_with("hf://") {
        return Ok(());
    }
    if !path.is_dir() {
        inputs.push(hash_file(name, path)?);
        return Ok(());
    }
    let mut entries = std::fs::read_dir(path)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(Error::io("read", path))?;
    entries.sort();
    for entry in entries {
        let file = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !file.starts_with('.') {
            hash_inputs(&format!("{name}/{file}"), &entry, inputs)?;
        }
    }
    Ok(())
}

fn hash_file(name: &str, path: &Path) -> Result<Input> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut num_bytes = 0;
    loop {
        let len = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if len == 0 {
            break;
        }
        num_bytes += len as u64;
        hasher.update(&buffer[..len]);
    }
    Ok(Input {
        name: name.to_owned(),
        sha256: hex(&hasher.finalize()),
        num_bytes,
    })
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(inputs: &[(&str, &str)]) -> Plan {
        let input = |&(name, sha256): &(&str, &str)| Input {
            name: name.into(),
            sha256: sha256.into(),
            num_bytes: 1,
        };
        Plan {
            inputs: inputs.iter().map(input).collect(),
            ..Plan::of_settings(Table::new())
        }
    }

    #[test]
    fn what_evaluation_reads_may_change_and_what_training_reads_may_not() {
        let started = plan(&[("data.path", "a"), ("eval.win_rate.prompts", "b")]);
        let other_prompts = plan(&[("data.path", "a"), ("eval.win_rate.prompts", "c")]);
        let other_data = plan(&[("data.path", "c"), ("eval.win_rate.prompts", "b")]);
        let schedule = LrSchedule::default();
        assert!(other_prompts.changes_since(&started, &schedule).is_empty());
        assert_eq!(
            other_data.changes_since(&started, &schedule),
            ["content of data.path: was a, is c"]
        );
    }
}
