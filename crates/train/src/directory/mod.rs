//! The run directory: everything a run leaves behind, under names that do not change.

mod event_file;
mod lock;
mod metrics_log;
mod replace;
mod scalar_log;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;

pub use self::event_file::{ScalarEvent, read_scalars};
pub use self::lock::RunLock;
pub(crate) use self::metrics_log::MetricsLog;
pub use self::metrics_log::{MetricsRow, read_metrics};
use self::replace::{recover, sync_directory};
pub(crate) use self::replace::{remove_directory, replace_directory};
pub(crate) use self::scalar_log::{ScalarLog, event_files};
pub use self::summary::Summary;
use crate::plan::Plan;
use crate::{Error, Result};

/// Entries that show that a directory holds a run.
const MARKS: [&str; 5] = ["plan.toml", "recipe.toml", "metrics.jsonl", "checkpoints", FINAL];

/// Holds the adapter or weights to use.
const FINAL: &str = "final";

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
        self.path.join(FINAL)
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

    /// Keeps other processes out, from before anything is written; the directory is made for it.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it; a directory that cannot be made.
    pub fn lock(&self) -> Result<RunLock> {
        fs::create_dir_all(&self.path).map_err(Error::io("create", &self.path))?;
        RunLock::acquire(&self.path)
    }

    /// Whether the sample of a step is there.
    pub(crate) fn has_sample(&self, step: u64) -> Result<bool> {
        if !self.samples().is_dir() {
            return Ok(false);
        }
        Ok(entries(&self.samples())?.iter().any(|path| step_of(path) == Some(step)))
    }

    /// Makes the directory and writes what is known before the first step.
    ///
    /// The plan comes first: with it alone the directory holds a run that can be resumed, and without it nothing is there
    /// that a new run would refuse. So a start that was interrupted can always be made again.
    pub(crate) fn create(&self, recipe_text: Option<&str>, plan: &Plan) -> Result<()> {
        fs::create_dir_all(&self.path).map_err(Error::io("create", &self.path))?;
        write_file(&self.plan(), plan.to_toml()?.as_bytes())?;
        if let Some(text) = recipe_text {
            write_file(&self.recipe(), text.as_bytes())?;
        }
        let checkpoints = self.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io("create", &checkpoints))?;
        self.sync()
    }

    /// Ends or undoes what an interrupted process of this run was writing.
    pub(crate) fn recover(&self) -> Result<()> {
        [self.path.clone(), self.checkpoints()]
            .iter()
            .filter(|parent| parent.is_dir())
            .try_for_each(|parent| recover(parent))
    }

    /// Makes the names of this directory, and its own, survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        sync_directory(&self.path)?;
        self.path.parent().map_or(Ok(()), sync_directory)
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
        replace_directory(&self.final_weights(), fill)
    }

    pub(crate) fn write_summary(&self, summary: &Summary) -> Result<()> {
        let text = serde_json::to_string_pretty(summary).map_err(|error| Error::damaged(self.summary(), &error))?;
        Ok(write_file(&self.summary(), format!("{text}\n").as_bytes())?)
    }
}

/// Ends the name of a directory that is being written or removed.
const PARTIAL: &str = ".partial";

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
    use crate::recipe::TrainConfig;
    use crate::run::{LoopConfig, ResumeMode, check_start};

    /// A start that failed after `recipe.toml` left a directory that held no run and took no new one.
    #[test]
    fn wherever_a_start_fails_it_can_be_made_again() {
        let settings = TrainConfig {
            steps: Some(1),
            ..TrainConfig::default()
        };
        let mut is_run = Vec::new();
        for obstacle in ["plan.toml", "recipe.toml", "checkpoints"] {
            let dir = tempfile::tempdir().unwrap();
            let config = LoopConfig::new(dir.path().join("run"), settings.clone());
            let directory = RunDirectory::new(&config.output);
            // A directory cannot become a file, nor a file a directory.
            let in_the_way = directory.path().join(obstacle);
            fs::create_dir(directory.path()).unwrap();
            if obstacle == "checkpoints" {
                fs::write(&in_the_way, "").unwrap();
            } else {
                fs::create_dir(&in_the_way).unwrap();
            }
            let failed = directory.create(Some("modality = \"toy\"\n"), &config.plan().unwrap());
            assert!(failed.unwrap_err().to_string().contains(obstacle));
            fs::remove_dir(&in_the_way)
                .or_else(|_| fs::remove_file(&in_the_way))
                .unwrap();
            let modes = [ResumeMode::Fresh, ResumeMode::Resume];
            let [fresh, resumed] = modes.map(|mode| check_start(&config, mode).is_ok());
            assert!(fresh != resumed, "{obstacle}: {fresh} {resumed}");
            is_run.push(resumed);
        }
        assert_eq!(is_run, [false, true, true]);
    }

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
