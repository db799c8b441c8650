//! What a dataset holds, and everything that is wrong with it, in one pass.

mod latents;
mod report;
mod rows;
mod texts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::Result;
use crate::{DataFiles, Layout, LeftOut, RecordKind};

/// At most this many problems are kept; all are counted.
pub const MAX_PROBLEMS: usize = 100;

/// At most this many records are shown.
const MAX_PREVIEWS: usize = 3;

/// Summary of a dataset. Serializes to JSON; `Display` is the text for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The layout, found out if it was `auto`.
    pub layout: Layout,
    /// What the records are.
    pub records: RecordKind,
    /// What the texts are and where their prompt is; absent for images, latents and without a good row.
    pub form: Option<String>,
    /// The record files, in reading order.
    pub files: Vec<PathBuf>,
    /// Rows or latent records, broken ones included where they can be counted.
    pub num_records: usize,
    /// Records that training would read without an error.
    pub num_good_records: usize,
    /// Well-formed rows that training leaves out unless the recipe says otherwise, by reason. They are not decoded.
    pub left_out: BTreeMap<LeftOut, usize>,
    /// [`crate::ContentHash::sha256`]; absent when a file could not be read for it.
    pub sha256: Option<String>,
    /// Keys of the rows, in order of first appearance. Empty for latents.
    pub fields: Vec<FieldSummary>,
    /// Keys of the rows that the layout is known to carry and that nothing reads.
    pub ignored_keys: Vec<String>,
    /// Tensors of the shards. Empty for rows.
    pub tensors: Vec<TensorSummary>,
    /// Sizes of the images that could be decoded, most frequent first.
    pub image_sizes: Vec<SizeCount>,
    /// Lengths of the completions, by key. Empty for images and latents.
    pub completion_lengths: Vec<LengthSummary>,
    /// The prompts; absent for latents or without a good row.
    pub prompts: Option<PromptSummary>,
    /// Chosen minus rejected score; absent where no record has both.
    pub score_margins: Option<ScoreSummary>,
    /// Records with an id that an earlier one has.
    pub num_duplicate_ids: usize,
    /// Pairs whose chosen and rejected side are the same, pixel for pixel, value for value or word for word; of ranked
    /// records those whose responses are all the same.
    pub num_identical_pairs: usize,
    /// Records with a completion that says nothing.
    pub num_blank_completions: usize,
    /// Records of text that an earlier one equals but for its id.
    pub num_duplicate_records: usize,
    /// Labelled completions that are desirable.
    pub num_desirable: usize,
    /// Labelled completions that are undesirable.
    pub num_undesirable: usize,
    /// The first good records.
    pub previews: Vec<RecordPreview>,
    /// What is wrong, in reading order, up to [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// Everything that is wrong, shown or not: errors.
    pub num_errors: usize,
    /// Everything that is doubtful, shown or not: warnings.
    pub num_warnings: usize,
}

/// A key of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldSummary {
    /// The key.
    pub name: String,
    /// Rows that have it.
    pub num_present: usize,
    /// Rows by the JSON type of the value.
    pub kinds: BTreeMap<&'static str, usize>,
}

/// A tensor over all shards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: &'static str,
    /// Its shape, all records together.
    pub shape: Vec<usize>,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Mean of the values.
    pub mean: f64,
    /// Standard deviation of the values.
    pub std: f64,
}

/// How many images have a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SizeCount {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Images of this size.
    pub num_images: usize,
}

/// Lengths of the texts at one key.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LengthSummary {
    /// What the text is: `chosen`, `rejected`, `completion`, `response` or `text`.
    pub key: &'static str,
    /// How many there are.
    pub num_texts: usize,
    /// Shortest, in characters; in tokens where the data is tokens.
    pub min: usize,
    /// Mean length.
    pub mean: f64,
    /// Longest.
    pub max: usize,
}

/// Lengths and repetitions of the prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PromptSummary {
    /// Prompts that are different from all before.
    pub num_distinct: usize,
    /// Prompts that an earlier record has, too.
    pub num_duplicates: usize,
    /// Shortest, in characters.
    pub min_chars: usize,
    /// Mean length, in characters.
    pub mean_chars: f64,
    /// Longest, in characters.
    pub max_chars: usize,
    /// Most words, split at white space. CLIP text encoders read about 75 tokens, and a word is at least one.
    pub max_words: usize,
}

/// Distribution of the chosen minus the rejected score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScoreSummary {
    /// Records that have both scores.
    pub num_scored: usize,
    /// Smallest margin.
    pub min: f64,
    /// Mean margin.
    pub mean: f64,
    /// Largest margin.
    pub max: f64,
}

/// The beginning of a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordPreview {
    /// Its id.
    pub id: String,
    /// Its prompt.
    pub prompt: String,
    /// Its images, in words: key, where from, size; or the beginnings of its completions.
    pub images: Vec<String>,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Training would stop with this message.
    Error,
    /// Training would run, but probably not as meant.
    Warning,
}

/// One thing that is wrong or doubtful.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// File, row and what is wrong there.
    pub message: String,
}

/// Reads every record of images, latents or text, and decodes every image behind `paths`, and goes on after what is wrong.
///
/// # Errors
/// Only where there is nothing to inspect: a path that names nothing, a layout that cannot be told, a file that the
/// operating system does not let us read. Everything else is a [`Problem`] of the result.
pub fn inspect(paths: &[PathBuf], layout: Layout) -> Result<Inspection> {
    let files = DataFiles::find(paths, layout)?;
    let mut inspection = Inspection::new(&files);
    match files.records() {
        RecordKind::LatentPair => latents::inspect(&files, &mut inspection)?,
        RecordKind::ImagePair
        | RecordKind::ImageCaption
        | RecordKind::RankedImages
        | RecordKind::ImageLabel
        | RecordKind::ImagePrompt => rows::inspect(&files, &mut inspection)?,
        _ => texts::inspect(&files, &mut inspection)?,
    }
    if inspection.num_records == 0 && inspection.num_errors == 0 {
        inspection.error(
            crate::Error::EmptyDataset {
                paths: files.describe(),
            }
            .to_string(),
        );
    }
    inspection.sha256 = files.content_hash().ok().map(|hash| hash.sha256);
    Ok(inspection)
}

impl Inspection {
    fn new(files: &DataFiles) -> Self {
        Self {
            layout: files.layout(),
            records: files.records(),
            form: None,
            files: files.files().to_vec(),
            num_records: 0,
            num_good_records: 0,
            left_out: BTreeMap::new(),
            sha256: None,
            fields: Vec::new(),
            ignored_keys: Vec::new(),
            completion_lengths: Vec::new(),
            tensors: Vec::new(),
            image_sizes: Vec::new(),
            prompts: None,
            score_margins: None,
            num_duplicate_ids: 0,
            num_identical_pairs: 0,
            num_blank_completions: 0,
            num_duplicate_records: 0,
            num_desirable: 0,
            num_undesirable: 0,
            previews: Vec::new(),
            problems: Vec::new(),
            num_errors: 0,
            num_warnings: 0,
        }
    }

    fn error(&mut self, message: String) {
        self.num_errors += 1;
        self.keep(Severity::Error, message);
    }

    fn warning(&mut self, message: String) {
        self.num_warnings += 1;
        self.keep(Severity::Warning, message);
    }

    fn keep(&mut self, severity: Severity, message: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { severity, message });
        }
    }
}
