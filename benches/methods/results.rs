//! What was measured, kept as it comes, so that a stopped comparison goes on.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::comparison::{Comparison, Entry};
use crate::worker::Cost;

/// One training with what it came to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// What was trained: see [`key`].
    pub(crate) key: String,
    /// See [`world_of`]; results from before it was written count no more.
    #[serde(default)]
    pub(crate) world: String,
    pub(crate) seed: u64,
    /// Of the prompts and noise that `scores` are for.
    pub(crate) evaluation_seed: u64,
    pub(crate) cost: Cost,
    /// One a prompt.
    pub(crate) scores: Vec<f64>,
}

/// All of them, and the file they are in.
#[derive(Debug)]
pub(crate) struct Results {
    path: PathBuf,
    world: String,
    evaluation_seed: u64,
    measured: Vec<Measured>,
}

/// What all start from and are measured by: a hash of the checkpoint's weights, of its pairs, and of what the base comes to.
pub(crate) fn world_of(model: &Path, pairs: &Path, base: &[f64]) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    for path in [&model.join("unet/diffusion_pytorch_model.safetensors"), pairs] {
        hasher.update(std::fs::read(path).with_context(|| path.display().to_string())?);
    }
    for score in base {
        hasher.update(score.to_le_bytes());
    }
    let hash = hasher.finalize();
    Ok(format!("{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3]))
}

/// The recipe with a hash of its text, the changed keys and the data: the same entry of two comparisons is trained once, and after a
/// change of the recipe again.
pub(crate) fn key(comparison: &Comparison, entry: &Entry) -> anyhow::Result<String> {
    let recipe = entry.recipe();
    let name = recipe.file_stem().unwrap_or_default().to_string_lossy();
    let text = std::fs::read(&recipe).with_context(|| recipe.display().to_string())?;
    let hash = Sha256::digest(text);
    Ok(format!(
        "{name} {:02x}{:02x}{:02x}{:02x} {:?} {}",
        hash[0],
        hash[1],
        hash[2],
        hash[3],
        comparison.data,
        entry.set.join(" ")
    ))
}

impl Results {
    pub(crate) fn open(path: PathBuf, world: String, evaluation_seed: u64) -> anyhow::Result<Self> {
        let text = if path.is_file() {
            std::fs::read_to_string(&path)?
        } else {
            String::new()
        };
        let rows = text.lines().map(serde_json::from_str);
        let measured: Vec<Measured> = rows
            .collect::<Result<_, _>>()
            .with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            world,
            evaluation_seed,
            measured,
        })
    }

    pub(crate) fn push(&mut self, measured: Measured) -> anyhow::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(Path::new(&self.path))?;
        writeln!(file, "{}", serde_json::to_string(&measured)?)?;
        self.measured.push(measured);
        Ok(())
    }

    pub(crate) fn has(&self, comparison: &Comparison, entry: &Entry, seed: u64) -> anyhow::Result<bool> {
        Ok(self.of(comparison, entry)?.iter().any(|one| one.seed == seed))
    }

    /// Every seed of an entry, in order.
    pub(crate) fn of(&self, comparison: &Comparison, entry: &Entry) -> anyhow::Result<Vec<&Measured>> {
        let key = key(comparison, entry)?;
        let is_of =
            |one: &&Measured| one.key == key && one.world == self.world && one.evaluation_seed == self.evaluation_seed;
        let mut found: Vec<&Measured> = self.measured.iter().filter(is_of).collect();
        found.sort_by_key(|one| one.seed);
        Ok(found)
    }
}
