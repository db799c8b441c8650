//! The run directory: everything a run leaves behind, under names that do not change.

mod event_file;
mod metrics_log;
mod scalar_log;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use diptych_tensor::files::{partial_path, write_directory, write_file};

pub use self::event_file::{ScalarEvent, read_scalars};
pub(crate) use self::metrics_log::MetricsLog;
pub use self::metrics_log::{MetricsRow, read_metrics};
pub(crate) use self::scalar_log::{ScalarLog, event_files};
pub use self::summary::Summary;
use crate::plan::Plan;
use crate::{Error, Result};

/// Entries that show that a directory holds a run.
const MARKS: [&str; 5] = ["plan.toml", "recipe.toml", "metrics.jsonl", "checkpoints", "final"];

/// The files of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// A run directory that exists or will.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The recipe as written.
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.toml")
    }

    /// The recipe resolved, with hashes of the inputs.
    pub fn plan(&self) -> PathBuf {
        self.path.join("plan.toml")
    }

    /// One object a logged step.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The checkpoints, `step-000100` and so on.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The samples, `step-000100.png` and so on.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// The adapter or weights to use.
    pub fn final_weights(&self) -> PathBuf {
        self.path.join("final")
    }

    /// Final metrics, time and memory.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// The result of an evaluation, shown in the report.
    pub fn evaluation(&self) -> PathBuf {
        self.path.join("eval.json")
    }

    /// The page with everything.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// Refuses a directory that holds a run.
    pub(crate) fn ensure_new(&self) -> Result<()> {
        if MARKS.iter().any(|mark| self.path.join(mark).exists()) {
            return Err(Error::RunExists {
                path: self.path.clone(),
            });
        }
        Ok(())
    }

    /// Makes the directory and writes what is known before the first step.
    pub(crate) fn create(&self, recipe_text: Option<&str>, plan: &Plan) -> Result<()> {
        for directory in [&self.path, &self.checkpoints()] {
            fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
        }
        if let Some(text) = recipe_text {
            write_file(&self.recipe(), text.as_bytes())?;
        }
        write_file(&self.plan(), plan.to_toml()?.as_bytes())?;
        self.remove_leftovers()
    }

    /// Removes what an interrupted write left behind.
    fn remove_leftovers(&self) -> Result<()> {
        for parent in [self.path.clone(), self.checkpoints()] {
            for path in entries(&parent)? {
                let name = file_name(&path);
                if name.starts_with('.') && name.ends_with(PARTIAL) && path.is_dir() {
                    fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Removes samples of later steps.
    pub(crate) fn remove_after(&self, step: u64) -> Result<()> {
        if !self.samples().is_dir() {
            return Ok(());
        }
        for path in entries(&self.samples())? {
            if step_of(&path).is_some_and(|sampled| sampled > step) {
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Where the sample of a step goes, without the extension.
    pub(crate) fn sample_stem(&self, step: u64) -> Result<PathBuf> {
        fs::create_dir_all(self.samples()).map_err(Error::io("create", self.samples()))?;
        Ok(self.samples().join(step_name(step)))
    }

    /// Writes `final/`, in the place of an older one.
    pub(crate) fn replace_final(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.final_weights();
        remove_directory(&path)?;
        write_directory(&path, fill)
    }

    pub(crate) fn write_summary(&self, summary: &Summary) -> Result<()> {
        let text = serde_json::to_string_pretty(summary).map_err(|error| Error::damaged(self.summary(), &error))?;
        Ok(write_file(&self.summary(), format!("{text}\n").as_bytes())?)
    }
}

/// Ends the name of a directory that is being written or removed.
const PARTIAL: &str = ".partial";

/// Removes a directory so that it is never seen half removed.
pub(crate) fn remove_directory(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let aside = partial_path(path);
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))?;
    }
    fs::rename(path, &aside).map_err(Error::io("remove", path))?;
    fs::remove_dir_all(&aside).map_err(Error::io("remove", &aside))
}

/// `step-000100`.
pub(crate) fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

/// The step in a name made by [`step_name`], with or without an extension.
pub(crate) fn step_of(path: &Path) -> Option<u64> {
    let name = file_name(path);
    let digits = name.strip_prefix("step-")?.split('.').next()?;
    digits.parse().ok().filter(|_| digits.len() >= 6)
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The entries of a directory, in the order of their names.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<std::io::Result<Vec<_>>>()
        })
        .map_err(Error::io("read", directory))?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_names() {
        assert_eq!(step_name(100), "step-000100");
        assert_eq!(step_of(Path::new("a/step-000100.png")), Some(100));
        assert_eq!(step_of(Path::new("step-12345678")), Some(12_345_678));
        for other in ["step-1", "step-00000x", ".step-000100.partial", "notes"] {
            assert_eq!(step_of(Path::new(other)), None, "{other}");
        }
    }
}
