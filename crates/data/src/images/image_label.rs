//! One image with a verdict.

use image::RgbImage;

use crate::ImageSource;
use crate::error::{Error, Result};
use crate::row::Row;

pub(crate) const KEYS: [&str; 5] = ["prompt", "image", "label", "score", "id"];

/// An image of a prompt, and whether it is desirable, for objectives such as KTO's.
///
/// In a JSON lines file: `{"prompt": .., "image": .., "label": true}` and optionally `score`, `id`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageLabel {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What the image was made for.
    pub prompt: String,
    /// The image.
    pub image: ImageSource,
    /// Whether it is desirable.
    pub label: bool,
    /// The score the label comes from, if the data has one.
    pub score: Option<f64>,
}

impl ImageLabel {
    /// A labelled image without a score.
    pub fn new(id: impl Into<String>, prompt: impl Into<String>, image: ImageSource, label: bool) -> Self {
        Self {
            id: id.into(),
            prompt: prompt.into(),
            image,
            label,
            score: None,
        }
    }

    /// The image.
    ///
    /// # Errors
    /// [`Error::Record`] with the id, the key and what is wrong with the image.
    pub fn decode(&self) -> Result<RgbImage> {
        self.image.decode().map_err(|source| Error::Record {
            id: self.id.clone(),
            key: "image",
            source: source.into(),
        })
    }

    pub(crate) fn from_row(mut row: Row) -> Result<Self> {
        row.check_keys(&KEYS)?;
        Ok(Self {
            prompt: row.take_string("prompt")?,
            image: row.take_image("image")?,
            label: row.take_bool("label")?,
            score: row.take_number("score")?,
            id: row.take_id()?,
        })
    }
}
