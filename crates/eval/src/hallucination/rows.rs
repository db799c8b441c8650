//! Files of answers and annotations: JSON lines, a JSON list, or an object that holds one of them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One row and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Line of a `.jsonl` file or place in a list, from 1.
    pub(crate) number: usize,
    fields: Map<String, Value>,
}

/// The rows of a file.
#[derive(Debug, Clone)]
pub(crate) struct RowFile {
    path: PathBuf,
    pub(crate) rows: Vec<Row>,
}

/// Keys under which official programs put their rows in one object: captions with their scores, and what CHAIR's programs write.
const CONTAINERS: [&str; 2] = ["imgToEval", "sentences"];

impl RowFile {
    /// Reads every row.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::StoredRow`] for a row that is no JSON object; [`Error::BenchmarkFile`] for a file without rows.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let rows = if text.trim_start().starts_with('[') {
            let list: Vec<Value> =
                serde_json::from_str(&text).map_err(|source| broken(path, format!("no JSON list: {source}")))?;
            objects(path, list)?
        } else {
            match container(&text) {
                Some(list) => objects(path, list)?,
                None => lines(path, &text)?,
            }
        };
        if rows.is_empty() {
            return Err(broken(path, "there are no rows in it".to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            rows,
        })
    }

    /// What is wrong with a row.
    pub(crate) fn error(&self, row: &Row, reason: impl Into<String>) -> Error {
        stored_row(&self.path, row.number, reason.into())
    }

    /// The string at the first of `keys` that the row has.
    pub(crate) fn text<'a>(&self, row: &'a Row, keys: &[&str]) -> Result<&'a str> {
        match self.value(row, keys)? {
            Value::String(text) => Ok(text),
            other => Err(self.error(row, format!("`{}` is {other}, expected a string", keys.join("` or `")))),
        }
    }

    /// A name or number at the first of `keys` that the row has, as text.
    pub(crate) fn id(&self, row: &Row, keys: &[&str]) -> Result<String> {
        let value = self.value(row, keys)?;
        id_text(value).ok_or_else(|| {
            let keys = keys.join("` or `");
            self.error(row, format!("`{keys}` is {value}, expected a string or an integer"))
        })
    }

    /// A list of strings.
    pub(crate) fn texts(&self, row: &Row, keys: &[&str]) -> Result<Vec<String>> {
        let value = self.value(row, keys)?;
        serde_json::from_value(value.clone()).map_err(|_| {
            self.error(
                row,
                format!("`{}` is {value}, expected a list of strings", keys.join("` or `")),
            )
        })
    }

    fn value<'a>(&self, row: &'a Row, keys: &[&str]) -> Result<&'a Value> {
        keys.iter()
            .find_map(|key| row.get(key))
            .ok_or_else(|| self.error(row, format!("there is no `{}`", keys.join("` or `"))))
    }
}

impl Row {
    /// All of the row.
    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The value at a key, unless that is null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }
}

/// A string or integer as text.
pub(crate) fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// The text of a file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })
}

/// A file that as a whole is not what it should be.
pub(crate) fn broken(path: &Path, reason: impl Into<String>) -> Error {
    Error::BenchmarkFile {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

pub(crate) fn stored_row(path: &Path, row: usize, reason: String) -> Error {
    Error::StoredRow {
        path: path.to_owned(),
        row,
        reason,
    }
}

fn container(text: &str) -> Option<Vec<Value>> {
    let Ok(Value::Object(mut whole)) = serde_json::from_str(text) else {
        return None;
    };
    let held = CONTAINERS.iter().find_map(|key| whole.remove(*key))?;
    match held {
        Value::Array(rows) => Some(rows),
        Value::Object(rows) => Some(rows.into_iter().map(|(_, row)| row).collect()),
        _ => None,
    }
}

fn objects(path: &Path, values: Vec<Value>) -> Result<Vec<Row>> {
    let rows = values.into_iter().enumerate().map(|(index, value)| match value {
        Value::Object(fields) => Ok(Row {
            number: index + 1,
            fields,
        }),
        other => Err(stored_row(
            path,
            index + 1,
            format!("found {other}, expected a JSON object"),
        )),
    });
    rows.collect()
}

fn lines(path: &Path, text: &str) -> Result<Vec<Row>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.map(|(index, line)| {
        let fields = serde_json::from_str(line)
            .map_err(|source| stored_row(path, index + 1, format!("no JSON object: {source}")))?;
        Ok(Row {
            number: index + 1,
            fields,
        })
    });
    rows.collect()
}
