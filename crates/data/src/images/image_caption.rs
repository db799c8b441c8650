//! The `image-caption` layout: an image and what it shows, for supervised training.

use image::RgbImage;

use crate::ImageSource;
use crate::error::{Error, Result};
use crate::row::Row;

pub(crate) const KEYS: [&str; 3] = ["prompt", "image", "id"];

/// One image and its caption.
///
/// In a JSON lines file: `{"prompt": .., "image": ..}` and optionally `id` (string or integer). The image is a path
/// relative to the file, or `{"bytes": "<base64>"}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageCaption {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What the image shows.
    pub prompt: String,
    /// The image.
    pub image: ImageSource,
}

impl ImageCaption {
    /// A captioned image.
    pub fn new(id: impl Into<String>, prompt: impl Into<String>, image: ImageSource) -> Self {
        Self {
            id: id.into(),
            prompt: prompt.into(),
            image,
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
            id: row.take_id()?,
        })
    }
}
