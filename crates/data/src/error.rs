//! Everything that can be wrong with a dataset, said so that it can be found and mended.

mod shard_problem;

use std::path::PathBuf;

use crate::text::EncodingProblem;
use crate::{Layout, RecordKind};
pub use shard_problem::ShardProblem;

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong while finding, reading, decoding or writing records.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a read or write.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// No dataset path was given.
    #[error("no dataset path is given; expected at least one file, folder or pattern")]
    NoPaths,
    /// A path names nothing.
    #[error("{}: no such file or folder", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// A pattern with `*` matches nothing.
    #[error("{pattern}: no file matches this pattern")]
    NoMatch {
        /// The pattern as given.
        pattern: String,
    },
    /// A pattern cannot be understood.
    #[error("{pattern}: not a valid pattern: {reason}")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// Where it breaks.
        reason: String,
    },
    /// The same file is reached by two of the paths.
    #[error("{}: this file is named twice by the dataset's paths; name it once", path.display())]
    DuplicateFile {
        /// The file.
        path: PathBuf,
    },
    /// A folder holds no file of the layout.
    #[error("{}: found {found}; the {layout} layout expects {expected} in this folder", path.display())]
    NoRecordFiles {
        /// The folder.
        path: PathBuf,
        /// The layout asked for.
        layout: Layout,
        /// What lies there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// A file has another layout than the one asked for.
    #[error(
        "{}: `layout` is {layout}, but this file has the {found} layout; set `layout` to {found}, or leave it out",
        path.display()
    )]
    OtherLayout {
        /// The file.
        path: PathBuf,
        /// The layout asked for.
        layout: Layout,
        /// The layout that the file has.
        found: Layout,
    },
    /// `layout = "auto"` cannot tell what this is.
    #[error(
        "{}: cannot tell the layout: found {found}; set `layout` to one of {}",
        path.display(),
        Layout::EXPLICIT_NAMES.join(", ")
    )]
    UnknownLayout {
        /// The file or folder.
        path: PathBuf,
        /// What was seen there.
        found: String,
    },
    /// Two files of one dataset have different layouts.
    #[error(
        "{} has the {second_layout} layout, but {} has the {first_layout} layout; one dataset has one layout",
        second.display(),
        first.display()
    )]
    MixedLayouts {
        /// The first file.
        first: PathBuf,
        /// Its layout.
        first_layout: Layout,
        /// The file that differs.
        second: PathBuf,
        /// Its layout.
        second_layout: Layout,
    },
    /// There is not a single record.
    #[error("{paths}: the dataset is empty; expected at least one record")]
    EmptyDataset {
        /// The files that were read.
        paths: String,
    },
    /// There are rows, and none of them gave a record.
    #[error("{paths}: no record is left: {report}")]
    NothingLeft {
        /// The files that were read.
        paths: String,
        /// What became of the rows.
        report: String,
    },
    /// A row of a record file.
    #[error("{}, row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line number in it, from 1.
        row: usize,
        /// What is wrong there.
        problem: RowProblem,
    },
    /// A shard of latents.
    #[error("{}: {problem}", path.display())]
    Shard {
        /// The file.
        path: PathBuf,
        /// What is wrong there.
        problem: ShardProblem,
    },
    /// Tensors given to [`crate::LatentPairs::new`] do not fit together.
    #[error("latent pairs: {0}")]
    Tensors(ShardProblem),
    /// An image cannot be decoded.
    #[error("{image}: cannot decode the image: {reason}")]
    Image {
        /// Path of the image, or that it is embedded.
        image: String,
        /// What the decoder said.
        reason: String,
    },
    /// An image of a record cannot be used.
    #[error("record `{id}`, `{key}`: {source}")]
    Record {
        /// The record's id.
        id: String,
        /// The key of the image.
        key: &'static str,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A size that no image can have.
    #[error("an image of {width}x{height} pixels is asked for; both sides must be between 1 and {max}")]
    ImageSize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The largest side.
        max: u32,
    },
    /// A record cannot be written.
    #[error("record `{id}` cannot be written: {reason}")]
    InvalidRecord {
        /// The record's id.
        id: String,
        /// Why it could not be read back.
        reason: String,
    },
    /// The output already exists and would be mixed with the new files.
    #[error("{}: already exists and is not an empty folder; remove it or choose another output", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// A tokenizer cannot be loaded or used.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A chat template is not Jinja, or cannot render a conversation.
    #[error("{template}{}: {reason}", at_line(*line))]
    ChatTemplate {
        /// Its file, or what it was called.
        template: String,
        /// Line in it, from 1, where known.
        line: Option<usize>,
        /// What is wrong, or what the template raised.
        reason: String,
    },
    /// Settings of the encoding contradict each other.
    #[error("encoding: {reason}")]
    EncodingConfig {
        /// Which, and why.
        reason: String,
    },
    /// A row cannot be turned into tokens.
    #[error("record `{id}`: {problem}")]
    Encoding {
        /// The record's id.
        id: String,
        /// What is wrong with it.
        problem: Box<EncodingProblem>,
    },
    /// No record was given to write.
    #[error("{}: there is no record to write", path.display())]
    NothingToWrite {
        /// The output.
        path: PathBuf,
    },
    /// A record that would be a longer line than this crate reads.
    #[error(
        "{}: record {number} would be a line of {bytes} bytes, expected at most {limit}; write fewer or smaller images a record, or to a \
         Parquet table",
        path.display()
    )]
    LongRecord {
        /// The output.
        path: PathBuf,
        /// Place among the records, from 1.
        number: usize,
        /// As JSON.
        bytes: usize,
        /// What a line may have.
        limit: usize,
    },
    /// Two files of one dataset hold different records, though their layout is the same.
    #[error(
        "{} holds {second_records}, but {} holds {first_records}; one dataset has one kind of record",
        second.display(),
        first.display()
    )]
    MixedRecords {
        /// The first file.
        first: PathBuf,
        /// What it holds.
        first_records: RecordKind,
        /// The file that differs.
        second: PathBuf,
        /// What it holds.
        second_records: RecordKind,
    },
    /// The output of a conversion is one of its inputs.
    #[error("{}: this file is read by the conversion and cannot be its output, too; choose another output", path.display())]
    OverwritesInput {
        /// The file.
        path: PathBuf,
    },
    /// Records that a Parquet table cannot be made of.
    #[error("{}: {records} cannot be written as a Parquet table: {reason}; choose a file that ends in .jsonl", path.display())]
    NotATable {
        /// The output.
        path: PathBuf,
        /// What was to be written.
        records: RecordKind,
        /// Why not.
        reason: &'static str,
    },
    /// Text where images are needed, or the other way round.
    #[error("{paths}: these are {found}; expected {expected}")]
    OtherRecords {
        /// The files.
        paths: String,
        /// What they hold.
        found: RecordKind,
        /// What is needed.
        expected: &'static str,
    },
}

/// What is wrong with one row of a JSON lines file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// The line is longer than this crate reads.
    #[error("the line is longer than {limit} bytes; keep large images in files and name them by path")]
    TooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The line is not text.
    #[error("not UTF-8 at byte {byte} of the line")]
    NotUtf8 {
        /// Offset in the line, from 0.
        byte: usize,
    },
    /// The line is not one JSON object.
    #[error("not one JSON object a line: {reason} at column {column}")]
    Json {
        /// What the parser said.
        reason: String,
        /// Column, from 1.
        column: usize,
    },
    /// A key that the layout does not know.
    #[error("unknown key `{key}`{}; expected {expected}", did_you_mean(nearest.as_deref()))]
    UnknownKey {
        /// The key.
        key: String,
        /// The keys that the layout knows.
        expected: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A key that the layout needs.
    #[error("missing key `{key}`; expected {expected}")]
    MissingKey {
        /// The key.
        key: String,
        /// What its value should be.
        expected: String,
    },
    /// A value of the wrong kind.
    #[error("`{key}`: found {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What should be.
        expected: String,
    },
    /// Embedded bytes that are not base64.
    #[error("`{key}`: not base64: {reason}")]
    Base64 {
        /// The key.
        key: String,
        /// What the decoder said.
        reason: String,
    },
    /// An image path that leaves the dataset's folder.
    #[error(
        "`{key}`: the path `{found}` {reason}; expected a path relative to the file's folder and inside it (a symbolic \
         link there may lead elsewhere)"
    )]
    ImagePath {
        /// The key.
        key: String,
        /// The path as written.
        found: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An image path that names no file.
    #[error("`{key}`: no image file at {}", path.display())]
    MissingImage {
        /// The key.
        key: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Images without a place in the conversation, or places without an image.
    #[error(
        "`{key}` has places for {places} images (blocks {{\"type\": \"image\"}}, or `<image>` in the words), but the row has \
         {images}; both must be as many"
    )]
    ImageCount {
        /// The key of the text.
        key: String,
        /// Places in it.
        places: usize,
        /// Images of the row.
        images: usize,
    },
    /// A row whose texts are of another kind than those of the rows before.
    #[error("has {found}, but the first row has {expected}; all rows of a dataset are of one kind")]
    OtherForm {
        /// What the row has.
        found: String,
        /// What the first row of the dataset has.
        expected: String,
    },
    /// A conversation from which no prompt and completion can be taken.
    #[error("`{key}`: {reason}")]
    Turns {
        /// The key of the messages.
        key: String,
        /// What is wrong with their order.
        reason: String,
    },
    /// Neither this row nor any behind it can be read: how many are lost is unknown.
    #[error("the file cannot be read from here on: {reason}")]
    Rest {
        /// What the reader said.
        reason: String,
    },
    /// A Parquet table that cannot be read, in a build with the feature `parquet`.
    #[error("not a readable Parquet table: {reason}")]
    Table {
        /// What the reader said.
        reason: String,
    },
    /// A row that prefers neither side, where ties are refused.
    #[error("neither side is preferred; set `ties` to drop or both to use the rest")]
    Tie,
    /// Two keys that say the same thing differently.
    #[error("`{key}` {reason}")]
    Conflict {
        /// The key that is in the way.
        key: String,
        /// What it disagrees with.
        reason: String,
    },
}

impl Error {
    /// Whether the user's configuration is at fault (paths, patterns, the layout), rather than the machine or the data.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::NoPaths
                | Self::NoMatch { .. }
                | Self::Pattern { .. }
                | Self::DuplicateFile { .. }
                | Self::NoRecordFiles { .. }
                | Self::OtherLayout { .. }
                | Self::UnknownLayout { .. }
                | Self::MixedLayouts { .. }
                | Self::ImageSize { .. }
                | Self::MixedRecords { .. }
                | Self::OtherRecords { .. }
                | Self::OverwritesInput { .. }
                | Self::NotATable { .. }
        )
    }

    /// Whether one record is at fault, so that a dataset without it can be used.
    pub(crate) fn is_of_one_record(&self) -> bool {
        match self {
            Self::Row {
                problem: RowProblem::Rest { .. },
                ..
            } => false,
            Self::Row { .. } | Self::Image { .. } | Self::ImageSize { .. } => true,
            // The file of an image, not that of the records.
            Self::Record { source, .. } => source.is_of_one_record() || matches!(**source, Self::Io { .. }),
            _ => false,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}
