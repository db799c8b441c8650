//! Images of any layout as rows of ours, with each different image written once.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use atomic_write_file::AtomicWriteFile;
use image::ImageFormat;
use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::refuse_input;
use crate::error::{Error, Result};
use crate::hash::hex;
use crate::write::image_rows::{ImageRecord, WrittenImage};
#[cfg(feature = "parquet")]
use crate::write::table::TableWriter;
use crate::{DataFiles, Dataset, ImageSource, Layout, ReadPolicy, ReadReport, RecordKind};

/// The folder of the images, beside the file that names them.
const FOLDER: &str = "images";

/// Records whose images are in memory together.
const TOGETHER: usize = 64;

/// What a conversion of images did. Serializes to JSON; `Display` is the text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageConversion {
    /// The layout that was read, found out if it was `auto`.
    pub layout: Layout,
    /// The layout that was written.
    pub written_layout: Layout,
    /// What the records are.
    pub records: RecordKind,
    /// What became of the rows that were read.
    #[serde(flatten)]
    pub read: ReadReport,
    /// Records that were written.
    pub num_written: usize,
    /// Different images among them.
    pub num_images: usize,
    /// Bytes of those.
    pub num_image_bytes: u64,
}

/// Writes the records of `files` to `out` in our own layout of them: `preference`, `ranked`, `unpaired`, `image-caption` or
/// `prompt-only`. [`Dataset::load`] reads them back as the same records.
///
/// A path that ends in `.parquet` becomes a Parquet table with the images in its cells, any other JSON lines, whose images lie
/// in `images/` beside it, as files that are named for what is in them: an image that occurs twice is written once, one that is
/// there already is left alone, and conversions may share the folder. Images are never compressed a second time, and each is decoded
/// once to see that it can be.
///
/// # Errors
/// As [`Dataset::read_with`]; [`Error::OtherRecords`] for text and latents; [`Error::OverwritesInput`]; [`Error::NotATable`] for ranked
/// lists as a table; an image that cannot be decoded; a file that cannot be written. In each case nothing changes at `out`; images that were
/// written before stay, and a second call uses them.
pub fn convert_images(files: &DataFiles, policy: ReadPolicy, out: &Path) -> Result<ImageConversion> {
    refuse_input(files, out)?;
    let (dataset, read) = Dataset::read_with(files, policy)?;
    let job = Job {
        out,
        files,
        records: dataset.records(),
        read,
    };
    match dataset {
        Dataset::Pairs(records) => job.run(&records),
        Dataset::Captions(records) => job.run(&records),
        Dataset::Ranked(records) => job.run(&records),
        Dataset::Labels(records) => job.run(&records),
        Dataset::Prompts(records) => job.run(&records),
        Dataset::LatentPairs(_) => Err(files.not("records of images or prompts")),
    }
}

struct Job<'a> {
    out: &'a Path,
    files: &'a DataFiles,
    records: RecordKind,
    read: ReadReport,
}

impl Job<'_> {
    fn run<T: ImageRecord>(self, records: &[T]) -> Result<ImageConversion> {
        let mut output = Output::open::<T>(self.out, self.records)?;
        let mut seen = BTreeMap::new();
        for part in records.chunks(TOGETHER) {
            // A table is fastest read in its own order; the rest is done side by side.
            let encoded = part.iter().map(encoded).collect::<Result<Vec<_>>>()?;
            let checked = encoded
                .par_iter()
                .zip(part)
                .map(|(images, record)| {
                    let images = images.iter().map(|(key, bytes)| EncodedImage::new(record, key, bytes));
                    images.collect::<Result<Vec<_>>>()
                })
                .collect::<Result<Vec<_>>>()?;
            for image in checked.iter().flatten() {
                seen.insert(image.name.clone(), image.bytes.len() as u64);
            }
            output.add(part, &checked)?;
        }
        output.commit()?;
        Ok(ImageConversion {
            layout: self.files.layout(),
            written_layout: T::LAYOUT,
            records: self.records,
            num_written: records.len(),
            num_images: seen.len(),
            num_image_bytes: seen.values().sum(),
            read: self.read,
        })
    }
}

/// An image as it lies on disk, and what its row calls it.
type Encoded = (&'static str, Arc<[u8]>);

/// The images of a record.
fn encoded<T: ImageRecord>(record: &T) -> Result<Vec<Encoded>> {
    record.check()?;
    let images = record.images().into_iter();
    images
        .map(|(key, image)| Ok((key, image.encoded().map_err(|source| of_record(record, key, source))?)))
        .collect()
}

fn of_record<T: ImageRecord>(record: &T, key: &'static str, source: Error) -> Error {
    Error::Record {
        id: record.id().to_owned(),
        key,
        source: source.into(),
    }
}

/// An image that can be decoded.
pub(crate) struct EncodedImage {
    pub(crate) bytes: Arc<[u8]>,
    /// Of its contents: a path below the folder of images.
    name: String,
}

impl EncodedImage {
    fn new<T: ImageRecord>(record: &T, key: &'static str, bytes: &Arc<[u8]>) -> Result<Self> {
        Self::of(&ImageSource::Bytes(Arc::clone(bytes))).map_err(|source| of_record(record, key, source))
    }

    /// # Errors
    /// An image that cannot be decoded.
    pub(crate) fn of(image: &ImageSource) -> Result<Self> {
        let bytes = image.encoded()?;
        ImageSource::Bytes(Arc::clone(&bytes))
            .decode()
            .map_err(|error| match error {
                // Says where the image lies, which bytes do not.
                Error::Image { reason, .. } => Error::Image {
                    image: image.to_string(),
                    reason,
                },
                error => error,
            })?;
        // What decodes is one of these three.
        let extension = match image::guess_format(&bytes) {
            Ok(ImageFormat::Png) => "png",
            Ok(ImageFormat::WebP) => "webp",
            _ => "jpg",
        };
        let hash = hex(&Sha256::digest(&bytes));
        // Folders of a million files are slow to list: 256 of them hold a part each.
        let name = format!("{}/{}.{extension}", &hash[..2], &hash[..32]);
        Ok(Self { bytes, name })
    }
}

/// Where records go.
enum Output {
    Lines {
        writer: BufWriter<AtomicWriteFile>,
        out: PathBuf,
        images: ImageFolder,
    },
    #[cfg(feature = "parquet")]
    Table(Box<TableWriter>),
}

impl Output {
    fn open<T: ImageRecord>(out: &Path, records: RecordKind) -> Result<Self> {
        let is_table = out
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
        if is_table {
            #[cfg(feature = "parquet")]
            return Ok(Self::Table(Box::new(TableWriter::open(out, T::LAYOUT, records)?)));
            #[cfg(not(feature = "parquet"))]
            return Err(Error::NotATable {
                path: out.to_path_buf(),
                records,
                reason: "this build lacks the feature `parquet`",
            });
        }
        let file = AtomicWriteFile::open(out).map_err(Error::io(out))?;
        Ok(Self::Lines {
            writer: BufWriter::new(file),
            out: out.to_path_buf(),
            images: ImageFolder::beside(out),
        })
    }

    fn add<T: ImageRecord>(&mut self, records: &[T], checked: &[Vec<EncodedImage>]) -> Result<()> {
        match self {
            Self::Lines { writer, out, images } => {
                let rows = records
                    .par_iter()
                    .zip(checked)
                    .map(|(record, checked)| {
                        let written = checked.iter().map(|image| images.keep(image)).collect::<Result<_>>()?;
                        serde_json::to_vec(&record.row(written)).map_err(|error| Error::io(&*out)(error.into()))
                    })
                    .collect::<Result<Vec<_>>>()?;
                for row in rows {
                    writer
                        .write_all(&row)
                        .and_then(|()| writer.write_all(b"\n"))
                        .map_err(Error::io(&*out))?;
                }
                Ok(())
            }
            #[cfg(feature = "parquet")]
            Self::Table(table) => table.add(records, checked),
        }
    }

    fn commit(self) -> Result<()> {
        match self {
            Self::Lines { writer, out, .. } => {
                let file = writer
                    .into_inner()
                    .map_err(|error| Error::io(&out)(error.into_error()))?;
                file.commit().map_err(Error::io(&out))
            }
            #[cfg(feature = "parquet")]
            Self::Table(table) => table.commit(),
        }
    }
}

/// Images by what is in them.
pub(super) struct ImageFolder {
    folder: PathBuf,
    /// Names, and bytes of each.
    written: Mutex<BTreeMap<String, u64>>,
}

impl ImageFolder {
    /// The folder of the images of a file of rows.
    pub(super) fn beside(out: &Path) -> Self {
        Self {
            folder: out.with_file_name(FOLDER),
            written: Mutex::new(BTreeMap::new()),
        }
    }

    /// Different images so far, and their bytes.
    pub(super) fn counts(&self) -> (usize, u64) {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        (written.len(), written.values().sum())
    }

    /// Writes the image where it is not there yet; gives its path from the folder of the rows.
    pub(super) fn keep(&self, image: &EncodedImage) -> Result<WrittenImage> {
        let named = WrittenImage::File(format!("{FOLDER}/{}", image.name));
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.insert(image.name.clone(), image.bytes.len() as u64).is_some() {
            return Ok(named);
        }
        drop(written);
        let path = self.folder.join(&image.name);
        if std::fs::read(&path).is_ok_and(|found| found[..] == image.bytes[..]) {
            return Ok(named);
        }
        let folder = path.parent().unwrap_or(&self.folder);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut file = AtomicWriteFile::open(&path).map_err(Error::io(&path))?;
        file.write_all(&image.bytes).map_err(Error::io(&path))?;
        file.commit().map_err(Error::io(&path))?;
        Ok(named)
    }
}

impl fmt::Display for ImageConversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} layout, {}\nwrote {} {} in the {} layout, with {} different images of {} bytes",
            self.layout,
            self.read.of(self.records),
            self.num_written,
            self.records,
            self.written_layout,
            self.num_images,
            self.num_image_bytes
        )?;
        for problem in self.read.unreadable.iter().skip(1) {
            write!(f, "\nskipped: {problem}")?;
        }
        for (key, count) in &self.read.ignored_keys {
            write!(f, "\nnot kept: `{key}` of {count} rows")?;
        }
        Ok(())
    }
}
