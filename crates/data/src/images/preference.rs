//! The `preference` layout: which of two images was preferred for a prompt.

use image::RgbImage;

use crate::ImageSource;
use crate::error::{Error, Result};
use crate::row::Row;

pub(crate) const KEYS: [&str; 7] = [
    "prompt",
    "chosen_image",
    "rejected_image",
    "chosen_score",
    "rejected_score",
    "user_id",
    "id",
];

/// One image preferred over another for the same prompt.
///
/// In a JSON lines file: `{"prompt": .., "chosen_image": .., "rejected_image": ..}` and optionally `chosen_score`,
/// `rejected_score` (numbers), `user_id` and `id` (strings or integers). An image is a path relative to the file, or
/// `{"bytes": "<base64>"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePair {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What the images were made for.
    pub prompt: String,
    /// The preferred image.
    pub chosen: ImageSource,
    /// The other image.
    pub rejected: ImageSource,
    /// The judge's score of the preferred image, if the data has it.
    pub chosen_score: Option<f64>,
    /// The judge's score of the other image, if the data has it.
    pub rejected_score: Option<f64>,
    /// Who preferred it, if the data says so.
    pub user_id: Option<String>,
}

impl ImagePair {
    /// A pair without scores.
    pub fn new(id: impl Into<String>, prompt: impl Into<String>, chosen: ImageSource, rejected: ImageSource) -> Self {
        let (id, prompt) = (id.into(), prompt.into());
        Self {
            id,
            prompt,
            chosen,
            rejected,
            chosen_score: None,
            rejected_score: None,
            user_id: None,
        }
    }

    /// Both images, chosen first.
    ///
    /// # Errors
    /// [`Error::Record`] with the id, the key and what is wrong with the image.
    pub fn decode(&self) -> Result<(RgbImage, RgbImage)> {
        let decode = |key, image: &ImageSource| {
            image.decode().map_err(|source| Error::Record {
                id: self.id.clone(),
                key,
                source: source.into(),
            })
        };
        Ok((
            decode("chosen_image", &self.chosen)?,
            decode("rejected_image", &self.rejected)?,
        ))
    }

    pub(crate) fn from_row(mut row: Row) -> Result<Self> {
        row.check_keys(&KEYS)?;
        Ok(Self {
            prompt: row.take_string("prompt")?,
            chosen: row.take_image("chosen_image")?,
            rejected: row.take_image("rejected_image")?,
            chosen_score: row.take_number("chosen_score")?,
            rejected_score: row.take_number("rejected_score")?,
            user_id: row.take_name("user_id")?,
            id: row.take_id()?,
        })
    }
}
