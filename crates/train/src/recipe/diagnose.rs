//! From serde's message to an error with key, line, what was found, what was expected and the nearest name.

use serde_path_to_error::Error as PathError;

use super::source::RecipeSource;
use crate::{Error, RecipeError};

/// Names more than this many edits away, or less alike than this, are not suggested.
const MAX_EDITS: usize = 3;
const MIN_SIMILARITY: f64 = 0.5;

/// Rewrites a deserialization error for the user.
pub(super) fn diagnose(error: &PathError<toml::de::Error>, source: &RecipeSource) -> Error {
    let path = match error.path().to_string() {
        path if path == "." => String::new(),
        path => path,
    };
    Box::new(describe(error.inner().message().trim(), &path, source)).into()
}

fn describe(message: &str, path: &str, source: &RecipeSource) -> RecipeError {
    let known = between(message, "unknown field `", "`").map(|name| (name, "the unknown key"));
    let known = known.or_else(|| between(message, "unknown variant `", "`").map(|name| (name, "the unknown name")));
    if let Some((name, what)) = known {
        let names = quoted(message.split_once(", expected ").map_or("", |(_, names)| names));
        // The path of an unknown key ends in the key itself, that of an unknown variant need not.
        let key = if last_part(path) == name {
            path.to_owned()
        } else {
            join(path, name)
        };
        let expected = if names.is_empty() {
            "no keys here".into()
        } else {
            one_of(&names)
        };
        return source.error(&key, format!("{what} `{name}`"), expected, nearest(name, &names));
    }
    if let Some(name) = between(message, "missing field `", "`") {
        let key = join(path, name);
        return source.error(&key, "nothing".into(), "a value: it has no default".into(), None);
    }
    for prefix in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some((found, expected)) = message
            .strip_prefix(prefix)
            .and_then(|rest| rest.split_once(", expected "))
        {
            return source.error(path, found.to_owned(), in_words(expected).to_owned(), None);
        }
    }
    source.error(path, message.to_owned(), "a value that fits".into(), None)
}

/// What serde calls by the name of a Rust type, as someone who writes TOML would.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        other => other,
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = text.split_once(start)?.1;
    Some(rest.split_once(end)?.0)
}

/// Every `quoted` name.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// `a, b or c`.
pub(super) fn one_of<S: AsRef<str>>(names: &[S]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match names.split_last() {
        None => "nothing".into(),
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    }
}

/// The name a misspelt one was most likely meant to be.
pub(super) fn nearest<S: AsRef<str>>(name: &str, names: &[S]) -> Option<String> {
    names
        .iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(name, candidate.as_ref()),
                candidate.as_ref(),
            )
        })
        .min()
        .filter(|&(edits, candidate)| {
            edits <= MAX_EDITS && strsim::normalized_damerau_levenshtein(name, candidate) >= MIN_SIMILARITY
        })
        .map(|(_, candidate)| candidate.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["micro_batch", "accumulation", "steps"];
        assert_eq!(nearest("mirco_batch", &names).as_deref(), Some("micro_batch"));
        assert_eq!(nearest("step", &names).as_deref(), Some("steps"));
        assert_eq!(nearest("zzzz", &names), None);
        assert_eq!(nearest("x", &["y"]), None);
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(one_of::<&str>(&[]), "nothing");
        assert_eq!(one_of(&["a"]), "`a`");
        assert_eq!(one_of(&["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
