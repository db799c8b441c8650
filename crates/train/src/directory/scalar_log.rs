//! The numbers of `metrics.jsonl` once more, for TensorBoard.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;

use super::event_file::{file_version, records, scalars};
use super::{MetricsRow, RunDirectory, entries, file_name};
use crate::clock::unix_secs;
use crate::{Error, Result};

/// TensorBoard takes every file with this in its name for an event file.
const PREFIX: &str = "events.out.tfevents.";

/// An open event file.
#[derive(Debug)]
pub(crate) struct ScalarLog {
    path: PathBuf,
    file: File,
}

impl ScalarLog {
    /// Opens the run's event file to go on after `step`; later events are removed.
    pub(crate) fn open(directory: &RunDirectory, step: u64) -> Result<Self> {
        let path = if let Some(path) = event_files(directory)?.pop() {
            truncate(&path, step)?;
            path
        } else {
            let path = directory
                .path()
                .join(format!("{PREFIX}{:010}.diptych", unix_secs() as u64));
            write_file(&path, &file_version(unix_secs()))?;
            path
        };
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(Error::io("write", &path))?;
        Ok(Self { path, file })
    }

    pub(crate) fn append(&mut self, row: &MetricsRow) -> Result<()> {
        let record = scalars(unix_secs(), row.step, row.numbers());
        self.file.write_all(&record).map_err(Error::io("write", &self.path))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }
}

/// The event files of a run, in the order of their names: one, unless someone added more.
pub(crate) fn event_files(directory: &RunDirectory) -> Result<Vec<PathBuf>> {
    let mut files = entries(directory.path())?;
    files.retain(|path| file_name(path).starts_with(PREFIX) && path.is_file());
    Ok(files)
}

fn truncate(path: &Path, step: u64) -> Result<()> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let mut kept: Vec<u8> = records(&bytes)
        .iter()
        .filter(|record| record.step() <= step)
        .flat_map(|record| record.framed)
        .copied()
        .collect();
    if kept.is_empty() {
        kept = file_version(unix_secs());
    }
    Ok(write_file(path, &kept)?)
}
