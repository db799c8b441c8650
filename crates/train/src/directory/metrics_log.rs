//! `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;
use serde::{Deserialize, Serialize};

use super::sync_directory;
use crate::{Error, Result};

/// One logged step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Passes over the records, with fractions.
    pub epoch: f64,
    /// Mean loss over the examples since the row before.
    pub loss: f64,
    /// Global norm of this step's gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// The method's metrics, means over the examples since the row before.
    #[serde(flatten)]
    pub metrics: BTreeMap<String, f64>,
}

impl MetricsRow {
    /// Every number but the step, by its name.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, f64)> {
        [
            ("epoch", self.epoch),
            ("loss", self.loss),
            ("grad_norm", self.grad_norm),
            ("learning_rate", self.learning_rate),
        ]
        .into_iter()
        .chain(self.metrics.iter().map(|(name, value)| (name.as_str(), *value)))
    }
}

/// The rows of a `metrics.jsonl`. A last line without its end, as a killed process leaves, is not a row.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Damaged`] naming the line that is not a row.
pub fn read_metrics(path: &Path) -> Result<Vec<MetricsRow>> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let lines = text[..whole]
        .split(|&byte| byte == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty());
    lines
        .map(|(at, line)| {
            serde_json::from_slice(line).map_err(|error| Error::damaged(path, &format!("line {}: {error}", at + 1)))
        })
        .collect()
}

/// An open `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct MetricsLog {
    path: PathBuf,
    file: File,
    last_row: Option<MetricsRow>,
}

impl MetricsLog {
    /// Opens the log to go on after `step`; later rows are removed.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self> {
        let mut last_row = None;
        if path.is_file() {
            let mut rows = read_metrics(path)?;
            rows.retain(|row| row.step <= step);
            let lines: String = rows.iter().map(|row| line(path, row)).collect::<Result<_>>()?;
            write_file(path, lines.as_bytes())?;
            last_row = rows.pop();
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(Error::io("write", path))?;
        path.parent().map_or(Ok(()), sync_directory)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            last_row,
        })
    }

    pub(crate) fn last_row(&self) -> Option<&MetricsRow> {
        self.last_row.as_ref()
    }

    pub(crate) fn append(&mut self, row: &MetricsRow) -> Result<()> {
        let line = line(&self.path, row)?;
        self.file
            .write_all(line.as_bytes())
            .map_err(Error::io("write", &self.path))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }
}

fn line(path: &Path, row: &MetricsRow) -> Result<String> {
    match serde_json::to_string(row) {
        Ok(line) => Ok(format!("{line}\n")),
        Err(error) => Err(Error::damaged(path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> MetricsRow {
        let metrics = BTreeMap::from([("a/b".into(), 1.0 / 3.0), ("z".into(), 1e-300)]);
        MetricsRow {
            step,
            epoch: step as f64 / 7.0,
            loss: 0.1 + 0.2,
            grad_norm: 1e20,
            learning_rate: 1e-4,
            metrics,
        }
    }

    #[test]
    fn rows_read_back_bit_for_bit_and_keys_keep_their_order() {
        let text = line(Path::new("m"), &row(3)).unwrap();
        assert!(text.starts_with(r#"{"step":3,"epoch":0.42857142857142855,"loss":0.30000000000000004,"grad_norm":1e+20,"learning_rate":0.0001,"a/b":"#), "{text}");
        assert_eq!(serde_json::from_str::<MetricsRow>(&text).unwrap(), row(3));
    }

    #[test]
    fn opening_removes_later_rows_and_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=4 {
            log.append(&row(step)).unwrap();
        }
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{whole}{{\"step\":5,\"epo")).unwrap();
        let mut log = MetricsLog::open(&path, 2).unwrap();
        assert_eq!(log.last_row().unwrap().step, 2);
        for step in 3..=4 {
            log.append(&row(step)).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }

    #[test]
    fn a_full_disk_and_a_damaged_line_are_named() {
        if Path::new("/dev/full").exists() {
            let full = Path::new("/dev/full");
            let mut log = MetricsLog {
                path: full.to_owned(),
                file: OpenOptions::new().append(true).open(full).unwrap(),
                last_row: None,
            };
            let message = log.append(&row(1)).unwrap_err().to_string();
            assert!(
                message.starts_with("cannot write /dev/full: No space left on device"),
                "{message}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\": 1}\n").unwrap();
        let message = read_metrics(&path).unwrap_err().to_string();
        assert!(
            message.contains("line 1") && message.contains("missing field"),
            "{message}"
        );
    }
}
