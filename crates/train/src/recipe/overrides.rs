//! `section.key=value`: one value of a recipe, given over the file.

use toml::{Table, Value};

use super::validate::type_of;
use crate::{Error, RecipeError, Result};

/// The override that sets `key` to exactly this text, even where it reads like a number.
///
/// ```
/// assert_eq!(diptych_train::string_override("run.output", "1"), "run.output=\"1\"");
/// ```
pub fn string_override(key: &str, value: &str) -> String {
    format!("{key}={}", Value::String(value.to_owned()))
}

/// One override.
#[derive(Debug)]
pub(super) struct Override<'a> {
    text: &'a str,
    path: Vec<&'a str>,
    value: Value,
}

impl<'a> Override<'a> {
    /// Splits `section.key=value`; a value that is not TOML is a string.
    pub(super) fn parse(text: &'a str) -> Result<Self> {
        let Some((key, value)) = text.split_once('=') else {
            return Err(refuse(text, "", "no `=`", "section.key=value"));
        };
        let path: Vec<_> = key.trim().split('.').map(str::trim).collect();
        if path.iter().any(|part| part.is_empty()) {
            return Err(refuse(text, key.trim(), "an empty name", "section.key=value"));
        }
        let value = value
            .trim()
            .parse()
            .unwrap_or_else(|_| Value::String(value.trim().to_owned()));
        Ok(Self { text, path, value })
    }

    /// The dotted key.
    pub(super) fn key(&self) -> String {
        self.path.join(".")
    }

    /// Sets the value, making tables on the way.
    pub(super) fn apply(self, table: &mut Table) -> Result<()> {
        let Some((last, sections)) = self.path.split_last() else {
            return Ok(());
        };
        let mut table = table;
        for (depth, name) in sections.iter().enumerate() {
            let entry = table.entry(*name).or_insert_with(|| Value::Table(Table::new()));
            let found = type_of(entry);
            let Value::Table(inner) = entry else {
                let key = sections[..=depth].join(".");
                return Err(refuse(self.text, &key, &format!("{found} in the recipe"), "a table"));
            };
            table = inner;
        }
        table.insert((*last).to_owned(), self.value);
        Ok(())
    }
}

fn refuse(text: &str, key: &str, found: &str, expected: &str) -> Error {
    let error = RecipeError {
        origin: format!("--set {text}"),
        line: None,
        key: key.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
        nearest: None,
    };
    Box::new(error).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(recipe: &str, text: &str) -> Table {
        let mut table: Table = recipe.parse().unwrap();
        Override::parse(text).unwrap().apply(&mut table).unwrap();
        table
    }

    #[test]
    fn values_are_toml_or_else_strings() {
        assert_eq!(set("", "a.b=1")["a"]["b"], Value::Integer(1));
        assert_eq!(set("", "a.b = 1e-4")["a"]["b"], Value::Float(1e-4));
        assert_eq!(set("", "a.b=true")["a"]["b"], Value::Boolean(true));
        assert_eq!(set("", "a.b=runs/x=1")["a"]["b"], Value::String("runs/x=1".into()));
        assert_eq!(set("", "a.b=\"7\"")["a"]["b"], Value::String("7".into()));
        assert_eq!(set("", "a=[1, 2]")["a"].as_array().unwrap().len(), 2);
        assert_eq!(set("[a]\nc = 2", "a={b=3}")["a"].as_table().unwrap().len(), 1);
        assert_eq!(set("", "a.b=")["a"]["b"], Value::String(String::new()));
        assert_eq!(set("", "a.b=1\nc=2")["a"]["b"], Value::String("1\nc=2".into()));
    }

    #[test]
    fn a_string_stays_a_string() {
        for text in ["1", "true", "a\"b'c", "two\nlines", "", "C:\\x", "é = 1"] {
            assert_eq!(
                set("", &string_override("a.b", text))["a"]["b"],
                Value::String(text.into())
            );
        }
    }

    #[test]
    fn other_keys_stay() {
        let table = set("[a]\nb = 1\nc = 2", "a.b=5");
        assert_eq!(
            (table["a"]["b"].as_integer(), table["a"]["c"].as_integer()),
            (Some(5), Some(2))
        );
    }

    #[test]
    fn malformed_overrides_are_refused() {
        for wrong in ["a.b", "=1", "a..b=1", ".a=1"] {
            let message = Override::parse(wrong).unwrap_err().to_string();
            assert!(message.starts_with(&format!("--set {wrong}:")), "{message}");
        }
        let mut table: Table = "modality = \"x\"".parse().unwrap();
        let message = Override::parse("modality.b=1")
            .unwrap()
            .apply(&mut table)
            .unwrap_err()
            .to_string();
        assert_eq!(
            message,
            "--set modality.b=1: `modality`: found a string in the recipe, expected a table"
        );
    }
}
