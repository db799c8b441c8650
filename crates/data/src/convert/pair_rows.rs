//! Rows of pairs that are made one by one, with their images in files.

use std::path::Path;

use serde_json::{Map, Value};

use super::EncodedImage;
use super::images::ImageFolder;
use crate::TextPair;
use crate::error::Result;
use crate::write::checked_row;

/// Turns pairs into rows of the `preference` layout, each different image written once into `images/` beside the file that the rows are for, as
/// [`convert`](crate::convert()) does.
///
/// For those who make pairs over hours and cannot hold them until the end: the rows can be kept in any file and gathered later.
pub struct PairRows {
    folder: ImageFolder,
}

impl PairRows {
    /// Rows for the file `out`, which need not be there yet.
    pub fn beside(out: &Path) -> Self {
        Self {
            folder: ImageFolder::beside(out),
        }
    }

    /// The row of a pair; its images are on disk when this returns.
    ///
    /// # Errors
    /// [`Error::InvalidRecord`](crate::Error::InvalidRecord) for a pair that would not read back as it is; an image that cannot be decoded; a file that
    /// cannot be written.
    pub fn row(&self, pair: &TextPair) -> Result<Map<String, Value>> {
        checked_row(pair, |_, image| self.folder.keep(&EncodedImage::of(image)?))
    }
}
