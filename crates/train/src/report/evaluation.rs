//! The before-and-after table of a report.

use std::path::Path;

use diptych_tensor::files::write_file;
use serde::{Deserialize, Serialize};

use crate::directory::RunDirectory;
use crate::{Error, Result};

/// `eval.json`: what an evaluation found, as a table of text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationTable {
    /// What was measured.
    pub title: String,
    /// The columns' names.
    pub columns: Vec<String>,
    /// One cell a column, in every row.
    pub rows: Vec<Vec<String>>,
    /// How it was measured, in a sentence; may be empty.
    #[serde(default)]
    pub note: String,
}

/// Puts an evaluation into the run directory; [`write_report`](crate::write_report) then shows it.
///
/// # Errors
/// [`Error::Report`] when a row has not as many cells as there are columns, [`Error::Tensor`] when the file cannot be written.
pub fn write_evaluation(run_directory: &Path, table: &EvaluationTable) -> Result<()> {
    if let Some(row) = table.rows.iter().find(|row| row.len() != table.columns.len()) {
        let reason = format!("a row of {} cells under {} columns", row.len(), table.columns.len());
        return Err(Error::Report { reason });
    }
    let path = RunDirectory::new(run_directory).evaluation();
    let text = serde_json::to_string_pretty(table).map_err(|error| Error::damaged(&path, &error))?;
    Ok(write_file(&path, format!("{text}\n").as_bytes())?)
}
