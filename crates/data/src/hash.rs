//! What a dataset's contents are, in 64 hexadecimal digits.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::images::image_layout::ImageRow;
use crate::row::Row;
use crate::rows::Rows;
use crate::text_layout::TextRecord;
use crate::{DataFiles, ImageSource, Layout, RankedText, RecordKind, TextPair, TextPrompt, TextSample, UnpairedText};

/// SHA-256 of a dataset's files and of every image they name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentHash {
    /// One hash of everything, in reading order. It does not depend on where the dataset lies, nor on file names.
    pub sha256: String,
    /// The record files, in reading order.
    pub files: Vec<FileHash>,
    /// Different image files that the rows name.
    pub num_image_files: usize,
}

/// SHA-256 of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Where it lies.
    pub path: PathBuf,
    /// Its length.
    pub num_bytes: u64,
    /// Of its contents, in hexadecimal.
    pub sha256: String,
}

impl DataFiles {
    /// Hashes the record files and the image files they name, in constant memory.
    ///
    /// # Errors
    /// A file that cannot be read. A row that is wrong is covered by the hash of its file alone.
    pub fn content_hash(&self) -> Result<ContentHash> {
        let mut whole = Sha256::new();
        let mut files = Vec::new();
        let mut images: BTreeMap<PathBuf, String> = BTreeMap::new();
        for path in self.files() {
            let file = hash_file(path)?;
            whole.update(format!("file {}\n", file.sha256));
            files.push(file);
            if self.records() == RecordKind::LatentPair {
                continue;
            }
            for row in Rows::open(path)? {
                let named = match row.and_then(|row| self.images_of(row)) {
                    // A row that gives no record names no image; the record file's own hash covers it.
                    Err(error) if error.is_of_one_record() => continue,
                    named => named?,
                };
                // Embedded images are part of the record file's own hash.
                for source in named {
                    let ImageSource::Path(path) = source else { continue };
                    if !images.contains_key(&path) {
                        images.insert(path.clone(), hash_file(&path)?.sha256);
                    }
                    whole.update(format!("image {}\n", images[&path]));
                }
            }
        }
        Ok(ContentHash {
            sha256: hex(&whole.finalize()),
            files,
            num_image_files: images.len(),
        })
    }

    /// The images that a row names.
    fn images_of(&self, row: Row) -> Result<Vec<ImageSource>> {
        fn of<T: TextRecord>(row: Row, layout: Layout) -> Result<Vec<ImageSource>> {
            let lists = T::from_row(row, layout)?.0;
            Ok(lists.images().into_iter().flat_map(|(_, list)| list.to_vec()).collect())
        }
        match self.records() {
            RecordKind::TextPair => of::<TextPair>(row, self.layout()),
            RecordKind::UnpairedText => of::<UnpairedText>(row, self.layout()),
            RecordKind::RankedText => of::<RankedText>(row, self.layout()),
            RecordKind::TextSample => of::<TextSample>(row, self.layout()),
            RecordKind::TextPrompt => of::<TextPrompt>(row, self.layout()),
            kind => {
                let row = ImageRow::read(row, self.layout(), kind)?;
                Ok(row.images().into_iter().cloned().collect())
            }
        }
    }
}

fn hash_file(path: &Path) -> Result<FileHash> {
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut num_bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(Error::io(path))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        num_bytes += read as u64;
    }
    Ok(FileHash {
        path: path.to_path_buf(),
        num_bytes,
        sha256: hex(&hasher.finalize()),
    })
}

/// Two hexadecimal digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
