//! From the layouts people have to our own records.

mod images;
mod pair_rows;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use serde::Serialize;

pub(crate) use self::images::EncodedImage;
use self::images::ImageFolder;
pub use self::images::{ImageConversion, convert_images};
pub use self::pair_rows::PairRows;
use crate::error::{Error, Result, RowProblem};
use crate::inspect::MAX_PROBLEMS;
use crate::row::Row;
use crate::rows::Rows;
use crate::text_layout::{Form, TextRecord, check_form, is_ignored, left_out};
use crate::write::checked_row;
use crate::{DataFiles, Layout, RankedText, RecordKind, TextPair, TextPrompt, TextSample, UnpairedText};

/// What a conversion did. Serializes to JSON; `Display` is the text for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conversion {
    /// The layout that was read, found out if it was `auto`.
    pub layout: Layout,
    /// The layout that was written.
    pub written_layout: Layout,
    /// What the records are.
    pub records: RecordKind,
    /// Rows that were read.
    pub num_rows: usize,
    /// Records that were written.
    pub num_written: usize,
    /// Different images of them, which lie in `images/` beside the rows.
    pub num_images: usize,
    /// Bytes of those.
    pub num_image_bytes: u64,
    /// Rows that were not written, by reason.
    pub num_dropped: BTreeMap<DropReason, usize>,
    /// The first of them, up to [`MAX_PROBLEMS`].
    pub dropped: Vec<DroppedRow>,
    /// Keys that the layout is known to carry and that records do not have, with the number of rows.
    pub ignored_keys: BTreeMap<String, usize>,
}

/// A row that was not written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DroppedRow {
    /// The file.
    pub path: PathBuf,
    /// Line number, or number of the element in an array, from 1.
    pub row: usize,
    /// Why.
    pub reason: DropReason,
    /// Why, in words.
    pub message: String,
}

/// Why a row that can be read is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropReason {
    /// No prompt and completion can be taken from its messages: the sides do not take turns, or there is no answer.
    Turns,
    /// Chosen and rejected are the same.
    SameSides,
    /// A completion that says nothing.
    BlankCompletion,
    /// The data says that it is not to be learned: [`crate::LeftOut`].
    LeftOut,
}

impl DropReason {
    /// Why, in words.
    pub fn description(self) -> &'static str {
        match self {
            Self::Turns => "no prompt and completion can be taken from the messages",
            Self::SameSides => "all completions are the same",
            Self::BlankCompletion => "a completion says nothing",
            Self::LeftOut => "the data says that there is nothing to learn",
        }
    }
}

/// Reads the text data behind `paths` in `layout` and writes it to `out` as JSON lines in TRL's names, which
/// [`crate::TextDataset::load`] reads back as the same records. Ids are kept; a row without one is named for its file
/// and row.
///
/// Images of the rows lie in `images/` beside it, as [`convert_images`] writes them.
///
/// Rows that are well-formed but of no use are dropped and counted: see [`DropReason`].
///
/// # Errors
/// As [`crate::TextDataset::load`]: a row that cannot be read stops the conversion, since others may be like it;
/// [`Error::OtherRecords`] for images; [`Error::OverwritesInput`]; [`Error::NothingToWrite`] when every row was dropped; a
/// file that cannot be written. In each case nothing changes at `out`.
pub fn convert(paths: &[PathBuf], layout: Layout, out: &Path) -> Result<Conversion> {
    let files = DataFiles::find(paths, layout)?;
    refuse_input(&files, out)?;
    match files.records() {
        RecordKind::TextPair => run::<TextPair>(&files, out),
        RecordKind::UnpairedText => run::<UnpairedText>(&files, out),
        RecordKind::RankedText => run::<RankedText>(&files, out),
        RecordKind::TextSample => run::<TextSample>(&files, out),
        RecordKind::TextPrompt => run::<TextPrompt>(&files, out),
        RecordKind::ImagePair
        | RecordKind::ImageCaption
        | RecordKind::LatentPair
        | RecordKind::RankedImages
        | RecordKind::ImageLabel
        | RecordKind::ImagePrompt => Err(files.not("records of text")),
    }
}

/// Refuses an output that is one of the inputs.
fn refuse_input(files: &DataFiles, out: &Path) -> Result<()> {
    let is_input = |target: &PathBuf| {
        files
            .files()
            .iter()
            .any(|file| file.canonicalize().is_ok_and(|file| file == *target))
    };
    if out.canonicalize().as_ref().is_ok_and(is_input) {
        return Err(Error::OverwritesInput {
            path: out.to_path_buf(),
        });
    }
    Ok(())
}

fn run<T: TextRecord + Clone + PartialEq>(files: &DataFiles, out: &Path) -> Result<Conversion> {
    let mut conversion = Conversion {
        layout: files.layout(),
        written_layout: T::own_layout(),
        records: files.records(),
        num_rows: 0,
        num_written: 0,
        num_images: 0,
        num_image_bytes: 0,
        num_dropped: BTreeMap::new(),
        dropped: Vec::new(),
        ignored_keys: BTreeMap::new(),
    };
    let file = AtomicWriteFile::open(out).map_err(Error::io(out))?;
    let mut writer = BufWriter::new(file);
    let folder = ImageFolder::beside(out);
    let mut first = None;
    for path in files.files() {
        for row in Rows::open(path)? {
            let Some(record) = conversion.record::<T>(row?, &mut first)? else {
                continue;
            };
            let row = checked_row(&record, |_, image| folder.keep(&EncodedImage::of(image)?))?;
            serde_json::to_writer(&mut writer, &row).map_err(|error| Error::io(out)(error.into()))?;
            writer.write_all(b"\n").map_err(Error::io(out))?;
            conversion.num_written += 1;
        }
    }
    if conversion.num_rows == 0 {
        return Err(Error::EmptyDataset {
            paths: files.describe(),
        });
    }
    if conversion.num_written == 0 {
        return Err(Error::NothingToWrite {
            path: out.to_path_buf(),
        });
    }
    (conversion.num_images, conversion.num_image_bytes) = folder.counts();
    let file = writer
        .into_inner()
        .map_err(|error| Error::io(out)(error.into_error()))?;
    file.commit().map_err(Error::io(out))?;
    Ok(conversion)
}

/// Why a record teaches nothing, if it does not. The same answer under other images does.
pub(crate) fn uselessness<T: TextRecord>(record: &T) -> Option<DropReason> {
    let (_, completions) = record.texts();
    let (_, first) = completions.first()?;
    let sees_the_same = record.images().iter().all(|(key, _)| *key == "images");
    if sees_the_same && completions.len() > 1 && completions.iter().all(|(_, other)| other == first) {
        return Some(DropReason::SameSides);
    }
    completions
        .iter()
        .any(|(_, completion)| completion.is_blank())
        .then_some(DropReason::BlankCompletion)
}

impl Conversion {
    /// Rows that were not written, for all reasons.
    pub fn num_dropped(&self) -> usize {
        self.num_dropped.values().sum()
    }

    /// The record of a row, unless it is dropped.
    fn record<T: TextRecord>(&mut self, row: Row, first: &mut Option<Form>) -> Result<Option<T>> {
        self.num_rows += 1;
        self.count_ignored(&row);
        let (path, number) = (row.path.clone(), row.number);
        if let Some(reason) = left_out(&row, self.layout) {
            let message = format!("one of the rows {}", reason.description());
            self.drop_row(&path, number, DropReason::LeftOut, message);
            return Ok(None);
        }
        let (record, form) = match T::from_row(row, self.layout) {
            Err(Error::Row {
                problem: problem @ RowProblem::Turns { .. },
                ..
            }) => {
                self.drop_row(&path, number, DropReason::Turns, problem.to_string());
                return Ok(None);
            }
            read => read?,
        };
        check_form(first, form, &path, number)?;
        if let Some(reason) = uselessness(&record) {
            self.drop_row(&path, number, reason, reason.description().to_owned());
            return Ok(None);
        }
        Ok(Some(record))
    }

    fn count_ignored(&mut self, row: &Row) {
        for (key, _) in &row.fields {
            if is_ignored(self.layout, key) {
                *self.ignored_keys.entry(key.clone()).or_default() += 1;
            }
        }
    }

    fn drop_row(&mut self, path: &Path, row: usize, reason: DropReason, message: String) {
        *self.num_dropped.entry(reason).or_default() += 1;
        if self.dropped.len() < MAX_PROBLEMS {
            self.dropped.push(DroppedRow {
                path: path.to_path_buf(),
                row,
                reason,
                message,
            });
        }
    }
}

impl fmt::Display for Conversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows of the {} layout: wrote {} {} in the {} layout, dropped {}",
            self.num_rows,
            self.layout,
            self.num_written,
            self.records,
            self.written_layout,
            self.num_dropped()
        )?;
        if self.num_images > 0 {
            write!(
                f,
                "\n{} different images of {} bytes",
                self.num_images, self.num_image_bytes
            )?;
        }
        for (reason, count) in &self.num_dropped {
            write!(f, "\n  {count}: {}", reason.description())?;
        }
        for row in &self.dropped {
            write!(f, "\ndropped: {}, row {}: {}", row.path.display(), row.row, row.message)?;
        }
        let hidden = self.num_dropped() - self.dropped.len();
        if hidden > 0 {
            write!(f, "\n… and {hidden} more")?;
        }
        for (key, count) in &self.ignored_keys {
            write!(f, "\nnot kept: `{key}` of {count} rows")?;
        }
        Ok(())
    }
}
