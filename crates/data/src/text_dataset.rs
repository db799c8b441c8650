//! A dataset of text in memory.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::rows::Rows;
use crate::text_layout::{TextRecord, check_form};
use crate::{DataFiles, Layout, RankedText, RecordKind, TextKind, TextPair, TextPrompt, TextSample, UnpairedText};

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
        match files.records() {
            RecordKind::TextPair => Ok(Self::Pairs(rows(files)?)),
            RecordKind::UnpairedText => Ok(Self::Unpaired(rows(files)?)),
            RecordKind::RankedText => Ok(Self::Ranked(rows(files)?)),
            RecordKind::TextSample => Ok(Self::Samples(rows(files)?)),
            RecordKind::TextPrompt => Ok(Self::Prompts(rows(files)?)),
            RecordKind::ImagePair
            | RecordKind::ImageCaption
            | RecordKind::LatentPair
            | RecordKind::RankedImages
            | RecordKind::ImageLabel
            | RecordKind::ImagePrompt => Err(files.not("records of text")),
        }
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

fn rows<T: TextRecord>(files: &DataFiles) -> Result<Vec<T>> {
    let mut records = Vec::new();
    let mut first = None;
    for path in files.files() {
        for row in Rows::open(path)? {
            let row = row?;
            let number = row.number;
            let (record, form) = T::from_row(row, files.layout())?;
            check_form(&mut first, form, path, number)?;
            records.push(record);
        }
    }
    if records.is_empty() {
        return Err(Error::EmptyDataset {
            paths: files.describe(),
        });
    }
    Ok(records)
}
