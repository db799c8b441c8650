//! Pictures in a report, with what was said about them before and after.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use diptych_tensor::files::write_file;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The file in a run directory.
pub(super) const EXAMPLES: &str = "eval-examples.json";

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerPiece {
    /// Its words.
    pub text: String,
    /// Whether it is shown as wrong.
    pub is_wrong: bool,
}

/// A request about a picture, and its answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerExchange {
    /// What was asked.
    pub request: String,
    /// The base model's answer.
    pub before: Vec<AnswerPiece>,
    /// The aligned model's answer.
    pub after: Vec<AnswerPiece>,
}

/// A picture and what was said about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerExample {
    /// The picture, a PNG file in base64.
    picture: String,
    /// What is in it, in words.
    pub truth: String,
    /// Requests and answers.
    pub exchanges: Vec<AnswerExchange>,
}

impl AnswerExample {
    /// An example with the picture of a PNG file's contents.
    pub fn new(png: &[u8], truth: String, exchanges: Vec<AnswerExchange>) -> Self {
        Self {
            picture: STANDARD.encode(png),
            truth,
            exchanges,
        }
    }
}

/// Puts answers before and after into the run directory; [`write_report`](crate::write_report) then shows them.
///
/// # Errors
/// [`Error::Tensor`] when the file cannot be written.
pub fn write_examples(run_directory: &Path, examples: &[AnswerExample]) -> Result<()> {
    let path = run_directory.join(EXAMPLES);
    let text = serde_json::to_string(examples).map_err(|error| Error::damaged(&path, &error))?;
    Ok(write_file(&path, format!("{text}\n").as_bytes())?)
}
