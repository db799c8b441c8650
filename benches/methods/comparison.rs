//! What is compared: `methods.toml`, or a file like it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Processor time that training one entry should take, with all it samples and encodes.
    pub(crate) budget_secs: f64,
    #[serde(rename = "comparison")]
    pub(crate) comparisons: Vec<Comparison>,
}

/// Entries that answer one question.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Comparison {
    pub(crate) title: String,
    pub(crate) question: String,
    pub(crate) data: Data,
    pub(crate) entries: Vec<Entry>,
}

/// Which pairs stand in for those of the recipe.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Data {
    /// Those that the checkpoint made itself.
    Own,
    /// The same as a judge sees them whose scores are wrong by chance.
    Noisy,
    /// Pictures of the renderer: the right one over one with a wrong object.
    Rendered,
}

/// A recipe with some keys changed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    pub(crate) name: String,
    recipe: String,
    #[serde(default)]
    pub(crate) set: Vec<String>,
}

impl Plan {
    /// The plan in a file, or the committed one.
    pub(crate) fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let path = path.map_or_else(|| root().join("benches/methods/methods.toml"), Path::to_path_buf);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

impl Entry {
    pub(crate) fn recipe(&self) -> PathBuf {
        root().join(format!("examples/recipes/shapes_diffusion_{}.toml", self.recipe))
    }

    /// Whether the recipe reads data; the rest makes its own in rounds.
    pub(crate) fn reads_data(&self) -> anyhow::Result<bool> {
        let path = self.recipe();
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let recipe: toml::Value = toml::from_str(&text).with_context(|| path.display().to_string())?;
        let paths = recipe.get("data").and_then(|data| data.get("path"));
        Ok(paths
            .and_then(toml::Value::as_array)
            .is_none_or(|paths| !paths.is_empty()))
    }

    /// The value of a key that the entry sets.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.set.iter().find_map(|set| set.strip_prefix(key)?.strip_prefix('='))
    }
}

/// The repository, whose `models` and `datasets` recipes name.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
