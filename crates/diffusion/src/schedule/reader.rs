//! Typed reading of `scheduler_config.json`, with errors that name the file and the key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::SCHEDULER_CONFIG_FILE;
use crate::{Error, Result};

/// The file that `path` names, itself or its folder, and its content.
pub(super) fn parse(path: &Path) -> Result<(PathBuf, Value)> {
    let file = if path.is_dir() {
        path.join(SCHEDULER_CONFIG_FILE)
    } else {
        path.to_path_buf()
    };
    let text = std::fs::read_to_string(&file).map_err(|source| Error::Io {
        action: "read",
        path: file.clone(),
        source,
    })?;
    // Python writes the default of this key in a way that is not JSON; a missing key means the same.
    let text = text.replace("\"lambda_min_clipped\": -Infinity", "\"lambda_min_clipped\": null");
    let value = serde_json::from_str(&text).map_err(|source| Error::Json {
        path: file.clone(),
        source,
    })?;
    Ok((file, value))
}

/// Typed access to one JSON object, with errors that name the file and the key.
pub(super) struct Reader<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Reader<'a> {
    /// Reads `value`, which came from `file`.
    pub(super) fn new(file: &'a Path, value: &'a Value) -> Result<Self> {
        match value.as_object() {
            Some(map) => Ok(Self { file, map }),
            None => Err(Error::Config {
                file: file.to_path_buf(),
                key: "(the whole file)".into(),
                found: kind(value),
                expected: "an object".into(),
            }),
        }
    }

    pub(super) fn error(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        Error::Config {
            file: self.file.to_path_buf(),
            key: key.to_owned(),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The value, with `null` the same as a missing key.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key)
            .map(|value| read(value).ok_or_else(|| self.error(key, value.to_string(), expected)))
            .transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| {
            value.as_f64().filter(|number| number.is_finite())
        })
    }

    /// A share of variance: with 0 nothing would be added, with 1 nothing left.
    pub(super) fn beta(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number above 0 and below 1", |value| {
            value.as_f64().filter(|beta| *beta > 0.0 && *beta < 1.0)
        })
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number, at least 0", |value| {
            value.as_u64().and_then(|number| usize::try_from(number).ok())
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<String>> {
        self.typed(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers from 0 to 1", |value| {
            let share = |value: &Value| value.as_f64().filter(|beta| (0.0..=1.0).contains(beta));
            value.as_array()?.iter().map(share).collect()
        })
    }

    /// One of a closed set of words.
    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let Some(word) = self.text(key)? else {
            return Ok(None);
        };
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word) {
            return Ok(Some(*value));
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        Err(self.error(key, format!("{word:?}"), names.join(", ")))
    }
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
    .to_owned()
}
