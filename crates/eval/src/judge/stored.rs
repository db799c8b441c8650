//! Scores that another judge gave.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use super::StoredConfig;
use super::loaded::ImageRole;
use crate::error::{Error, Result};

/// Scores of images by record and role.
#[derive(Debug)]
pub(super) struct StoredScores {
    path: PathBuf,
    column: String,
    scores: BTreeMap<(String, ImageRole), f64>,
}

impl StoredScores {
    pub(super) fn read(config: &StoredConfig) -> Result<Self> {
        let path = &config.path;
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        let mut scores = BTreeMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let error = |reason: String| Error::StoredRow {
                path: path.clone(),
                row: index + 1,
                reason,
            };
            let row: Value = serde_json::from_str(line).map_err(|source| error(source.to_string()))?;
            let id = match row.get("id") {
                Some(Value::String(id)) => id.clone(),
                Some(Value::Number(id)) if id.is_u64() || id.is_i64() => id.to_string(),
                other => {
                    return Err(error(format!(
                        "`id` is {}, expected a string or an integer",
                        shown(other)
                    )));
                }
            };
            for role in ImageRole::ALL {
                let column = role.column(&config.column);
                let Some(value) = row.get(&column) else { continue };
                let Some(score) = value.as_f64().filter(|score| score.is_finite()) else {
                    return Err(error(format!("`{column}` is {value}, expected a finite number")));
                };
                if scores.insert((id.clone(), role), score).is_some() {
                    return Err(error(format!(
                        "`{column}` of id {id:?} stands in an earlier row already"
                    )));
                }
            }
        }
        Ok(Self {
            path: path.clone(),
            column: config.column.clone(),
            scores,
        })
    }

    pub(super) fn score(&self, id: &str, role: ImageRole) -> Result<f64> {
        self.scores
            .get(&(id.to_owned(), role))
            .copied()
            .ok_or_else(|| Error::NotStored {
                path: self.path.clone(),
                id: id.to_owned(),
                column: role.column(&self.column),
            })
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "missing".to_owned(), Value::to_string)
}
