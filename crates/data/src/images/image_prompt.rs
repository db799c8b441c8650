//! A prompt that images are to be made for.

use crate::error::Result;
use crate::row::Row;

pub(crate) const KEYS: [&str; 2] = ["prompt", "id"];

/// A prompt alone, for methods that sample images themselves.
///
/// In a JSON lines file: `{"prompt": ".."}` and optionally `id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePrompt {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What images are to show.
    pub prompt: String,
}

impl ImagePrompt {
    pub(crate) fn from_row(mut row: Row) -> Result<Self> {
        row.check_keys(&KEYS)?;
        Ok(Self {
            prompt: row.take_string("prompt")?,
            id: row.take_id()?,
        })
    }
}
