//! Where rounds lie: the files of a run of several rounds, and what a round was begun with.

use std::fs;
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The directory of a run of several rounds.
#[derive(Debug, Clone)]
pub(super) struct RoundsDirectory(PathBuf);

impl RoundsDirectory {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Scores that judges gave, one a line.
    pub(super) fn judgements(&self) -> PathBuf {
        self.0.join("judgements.jsonl")
    }

    /// How the policy before the first round does.
    pub(super) fn initial_scores(&self) -> PathBuf {
        self.0.join("initial-scores.json")
    }

    /// All rounds on one page.
    pub(super) fn comparison(&self) -> PathBuf {
        self.0.join("comparison.html")
    }

    pub(super) fn round(&self, round: usize) -> RoundDirectory {
        RoundDirectory(self.0.join("rounds").join(round_name(round)))
    }
}

/// `round-001`.
pub(super) fn round_name(round: usize) -> String {
    format!("round-{round:03}")
}

/// The directory of one round: an ordinary run directory, and what its records were made of.
#[derive(Debug, Clone)]
pub(super) struct RoundDirectory(PathBuf);

impl RoundDirectory {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// What the round was begun with.
    pub(super) fn beginning(&self) -> PathBuf {
        self.0.join("round.json")
    }

    /// Images under way: they go when the records are there.
    pub(super) fn samples(&self) -> PathBuf {
        self.0.join("candidates")
    }

    /// What is trained on: complete, or not there.
    pub(super) fn records(&self) -> PathBuf {
        self.0.join("records")
    }

    /// The parameters beyond the last policy.
    pub(super) fn extrapolated(&self) -> PathBuf {
        self.0.join("extrapolated")
    }

    /// How the round's policy does on held-out prompts.
    pub(super) fn scores(&self) -> PathBuf {
        self.0.join("scores.json")
    }
}

/// `round.json`: what a round was begun with. One that goes on must be begun with the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundBeginning {
    /// Its number, from 1.
    pub round: usize,
    /// Of its training.
    pub seed: u64,
    /// What training begins with.
    pub start: PolicyRecord,
    /// What the policy is compared with, where the objective compares.
    pub reference: Option<PolicyRecord>,
    /// Who samples.
    pub samplers: Vec<PolicyRecord>,
    /// Who gives scores: name and hash.
    pub judge: Option<[String; 2]>,
}

/// A policy by name and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRecord {
    /// `initial`, `round-001`, `extrapolated`.
    pub name: String,
    /// SHA-256 of its files; `None` for the model as it was given, whose hashes `plan.toml` has.
    pub sha256: Option<String>,
}

/// SHA-256 of the files below a directory, with their names. Hidden files do not count.
pub(super) fn content_hash(directory: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    hash_into(&mut hasher, directory, "")?;
    Ok(hex(&hasher.finalize()))
}

fn hash_into(hasher: &mut Sha256, path: &Path, name: &str) -> Result<()> {
    if !path.is_dir() {
        let mut file = fs::File::open(path).map_err(io("read", path))?;
        hasher.update(name.as_bytes());
        hasher.update([0]);
        std::io::copy(&mut file, hasher).map_err(io("read", path))?;
        return Ok(());
    }
    let mut entries = fs::read_dir(path)
        .and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(io("read", path))?;
    entries.sort();
    entries.retain(|entry| !entry.starts_with('.'));
    entries
        .iter()
        .try_for_each(|entry| hash_into(hasher, &path.join(entry), &format!("{name}/{entry}")))
}

/// In hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a JSON file holds; `None` without the file.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io("read", path)(source)),
    };
    match serde_json::from_str(&text) {
        Ok(value) => Ok(Some(value)),
        Err(source) => Err(Error::Json {
            path: path.to_owned(),
            source,
        }),
    }
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    Ok(write_file(path, format!("{text}\n").as_bytes())?)
}

pub(super) fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(io("create", directory))
}

/// Removes a directory, if there is one.
pub(super) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io("remove", directory)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
