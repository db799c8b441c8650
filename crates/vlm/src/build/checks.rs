//! What settings of several recipes are checked for.

use std::fmt::Display;

use crate::{Error, Result};

/// A setting that is out of its range.
pub(super) fn setting(key: &str, found: impl Display, expected: &str) -> Error {
    Error::Setting {
        key: key.to_owned(),
        found: found.to_string(),
        expected: expected.to_owned(),
    }
}

/// A setting that is given and would change nothing.
pub(super) fn unused(key: &str, why: &str) -> Error {
    setting(key, "given", &format!("nothing: {why}"))
}

/// Refuses a number below `least`.
pub(super) fn check_count(key: &str, value: usize, least: usize) -> Result<()> {
    if value >= least {
        return Ok(());
    }
    Err(setting(key, value, &format!("a number, at least {least}")))
}

/// Refuses words without a place for what they are about.
pub(super) fn check_places(key: &str, words: &str, places: &[&str]) -> Result<()> {
    match places.iter().find(|place| !words.contains(**place)) {
        None => Ok(()),
        Some(place) => Err(setting(
            key,
            format!("{words:?}"),
            &format!("words with {place} in them"),
        )),
    }
}

/// Refuses what is no word, or one with letters of which it is not known which are capital ones.
pub(super) fn check_word(key: &str, word: &str) -> Result<()> {
    if !word.trim().is_empty() && word.is_ascii() {
        return Ok(());
    }
    Err(setting(key, format!("{word:?}"), "a word of ASCII letters"))
}

/// Refuses what is not from 0 to 1.
pub(super) fn check_share(key: &str, share: f64) -> Result<()> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(setting(key, share, "a share, 0 to 1"))
}
