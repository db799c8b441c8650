//! A dataset of text in memory.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::row::Row;
use crate::rows::Rows;
use crate::text_layout::{Form, TextRecord, check_form, is_ignored, left_out, video_frames};
use crate::{
    DataFiles, Layout, OnError, RankedText, ReadReport, RecordKind, TextKind, TextPair, TextPrompt, TextSample,
    UnpairedText,
};

/// Rows that TRL unpairs at a time: the default batch of `datasets.Dataset.map`.
const UNPAIR_BATCH: usize = 1000;

/// All records of a dataset of text, which are of one kind.
///
/// ```
/// use diptych_data::{Layout, TextDataset};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("pairs.jsonl");
/// std::fs::write(&file, r#"{"chosen": "The sky is blue.", "rejected": "The sky is green."}"#)?;
///
/// let TextDataset::Pairs(pairs) = TextDataset::load(&[file], Layout::Auto)? else { unreachable!("the row is a pair") };
/// assert_eq!(pairs[0].prompt, "The sky is".into());
/// assert_eq!(pairs[0].chosen, " blue.".into());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum TextDataset {
    /// Pairs.
    Pairs(Vec<TextPair>),
    /// Completions with a verdict.
    Unpaired(Vec<UnpairedText>),
    /// Completions with scores, two or more a prompt.
    Ranked(Vec<RankedText>),
    /// Texts to imitate.
    Samples(Vec<TextSample>),
    /// Prompts.
    Prompts(Vec<TextPrompt>),
}

impl TextDataset {
    /// Reads the records behind `paths`, as [`DataFiles::find`] understands them.
    ///
    /// # Errors
    /// The first thing that is wrong, with its file and row; [`Error::OtherRecords`] for images or latents;
    /// [`Error::EmptyDataset`] when there is no record. [`crate::inspect()`] lists everything that is wrong.
    pub fn load(paths: &[PathBuf], layout: Layout) -> Result<Self> {
        Self::read(&DataFiles::find(paths, layout)?)
    }

    /// Reads files that were found before.
    ///
    /// # Errors
    /// As [`TextDataset::load`].
    pub fn read(files: &DataFiles) -> Result<Self> {
        Ok(Self::read_with(files, OnError::Fail)?.0)
    }

    /// Reads files that were found before, and tells what became of every row.
    ///
    /// With [`OnError::Skip`] every image is decoded once, so that a record whose image cannot be read is left out here and not missed in
    /// the middle of the work; images are not kept. Otherwise such a record is an error where its image is decoded.
    ///
    /// # Errors
    /// As [`TextDataset::load`], but for rows that are passed over; [`Error::NothingLeft`] when there are rows and none gave a record.
    pub fn read_with(files: &DataFiles, on_error: OnError) -> Result<(Self, ReadReport)> {
        let decoding = match on_error {
            OnError::Skip => Decoding::Once,
            OnError::Fail => Decoding::Later,
        };
        Self::read_policed(files, on_error, decoding)
    }

    fn read_policed(files: &DataFiles, on_error: OnError, decoding: Decoding) -> Result<(Self, ReadReport)> {
        Ok(match files.records() {
            RecordKind::TextPair => {
                let (records, report) = rows(files, on_error, decoding)?;
                (Self::Pairs(records), report)
            }
            RecordKind::UnpairedText => {
                let (records, report) = rows(files, on_error, decoding)?;
                (Self::Unpaired(records), report)
            }
            RecordKind::RankedText => {
                let (records, report) = rows(files, on_error, decoding)?;
                (Self::Ranked(records), report)
            }
            RecordKind::TextSample => {
                let (records, report) = rows(files, on_error, decoding)?;
                (Self::Samples(records), report)
            }
            RecordKind::TextPrompt => {
                let (records, report) = rows(files, on_error, decoding)?;
                (Self::Prompts(records), report)
            }
            RecordKind::ImagePair
            | RecordKind::ImageCaption
            | RecordKind::LatentPair
            | RecordKind::RankedImages
            | RecordKind::ImageLabel
            | RecordKind::ImagePrompt => return Err(files.not("records of text")),
        })
    }

    /// Reads what can be read of files that were found before, without a look at their images, and tells what was passed over: for those
    /// who look at the images themselves, as [`crate::lint()`] does.
    ///
    /// # Errors
    /// As [`TextDataset::read_with`], passing over rows.
    pub fn read_rows(files: &DataFiles) -> Result<(Self, ReadReport)> {
        Self::read_policed(files, OnError::Skip, Decoding::Later)
    }

    /// What the records are.
    pub fn records(&self) -> RecordKind {
        match self {
            Self::Pairs(_) => RecordKind::TextPair,
            Self::Unpaired(_) => RecordKind::UnpairedText,
            Self::Ranked(_) => RecordKind::RankedText,
            Self::Samples(_) => RecordKind::TextSample,
            Self::Prompts(_) => RecordKind::TextPrompt,
        }
    }

    /// What the texts are: the same in every record that was read from files. None without records.
    pub fn kind(&self) -> Option<TextKind> {
        match self {
            Self::Pairs(records) => records.first().map(TextPair::kind),
            Self::Unpaired(records) => records.first().map(UnpairedText::kind),
            Self::Ranked(records) => records.first().map(RankedText::kind),
            Self::Samples(records) => records.first().map(TextSample::kind),
            Self::Prompts(records) => records.first().map(TextPrompt::kind),
        }
    }

    /// Number of records; a loaded dataset has at least one.
    pub fn len(&self) -> usize {
        match self {
            Self::Pairs(records) => records.len(),
            Self::Unpaired(records) => records.len(),
            Self::Ranked(records) => records.len(),
            Self::Samples(records) => records.len(),
            Self::Prompts(records) => records.len(),
        }
    }

    /// Whether there is no record, which only a dataset put together in memory can be.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first record that shows an image; none where all of it is text.
    pub fn first_with_images(&self) -> Option<usize> {
        fn first<T: TextRecord>(records: &[T]) -> Option<usize> {
            records.iter().position(|record| !record.images().is_empty())
        }
        match self {
            Self::Pairs(records) => first(records),
            Self::Unpaired(records) => first(records),
            Self::Ranked(records) => first(records),
            Self::Samples(records) => first(records),
            Self::Prompts(records) => first(records),
        }
    }

    /// Names record `index` in messages.
    ///
    /// # Panics
    /// When `index` is not below [`TextDataset::len`].
    pub fn record_id(&self, index: usize) -> &str {
        match self {
            Self::Pairs(records) => records[index].id(),
            Self::Unpaired(records) => records[index].id(),
            Self::Ranked(records) => records[index].id(),
            Self::Samples(records) => records[index].id(),
            Self::Prompts(records) => records[index].id(),
        }
    }
}

/// Pairs as labelled completions, for KTO, in the order of TRL's `unpair_preference_dataset`: of every 1000 pairs first
/// all chosen, then all rejected completions.
pub fn unpair(pairs: Vec<TextPair>) -> Vec<UnpairedText> {
    let mut records = Vec::with_capacity(2 * pairs.len());
    let mut pairs = pairs.into_iter().peekable();
    while pairs.peek().is_some() {
        let batch = pairs.by_ref().take(UNPAIR_BATCH).map(TextPair::unpair);
        let (chosen, rejected): (Vec<_>, Vec<_>) = batch.map(|[chosen, rejected]| (chosen, rejected)).unzip();
        records.extend(chosen);
        records.extend(rejected);
    }
    records
}

/// Whether images are decoded while rows are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decoding {
    Once,
    Later,
}

fn rows<T: TextRecord>(files: &DataFiles, on_error: OnError, decoding: Decoding) -> Result<(Vec<T>, ReadReport)> {
    let mut records = Vec::new();
    let mut report = ReadReport::default();
    let mut first = None;
    for path in files.files() {
        for row in Rows::open(path)? {
            report.num_rows += 1;
            match read_row(row, files, &mut first, &mut report, decoding) {
                Ok(record) => records.extend(record),
                Err(error) => report.skip(on_error, error)?,
            }
        }
    }
    report.num_records = records.len();
    report.check(files.describe())?;
    Ok((records, report))
}

/// The record of a row; none where it is left out.
fn read_row<T: TextRecord>(
    row: Result<Row>,
    files: &DataFiles,
    first: &mut Option<Form>,
    report: &mut ReadReport,
    decoding: Decoding,
) -> Result<Option<T>> {
    let mut row = row?;
    for (key, _) in row.fields.iter().filter(|(key, _)| is_ignored(files.layout(), key)) {
        *report.ignored_keys.entry(key.clone()).or_default() += 1;
    }
    if let Some(reason) = left_out(&row, files.layout()) {
        report.leave_out(reason, 1);
        return Ok(None);
    }
    let (path, number) = (row.path.clone(), row.number);
    video_frames::unfold(&mut row, files.layout(), files.max_frames())?;
    let (record, form) = T::from_row(row, files.layout())?;
    if decoding == Decoding::Once {
        for (key, image) in record
            .images()
            .into_iter()
            .flat_map(|(key, list)| list.iter().map(move |image| (key, image)))
        {
            image.decode().map_err(|source| Error::Record {
                id: record.id().to_owned(),
                key,
                source: source.into(),
            })?;
        }
    }
    check_form(first, form, &path, number)?;
    Ok(Some(record))
}
