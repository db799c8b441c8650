//! From the paths of a recipe to the files of a dataset and their layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::row::Row;
use crate::rows::Rows;
use crate::{Layout, RecordKind, detect};

const JSON_LINES: [&str; 2] = ["jsonl", "ndjson"];
const PARQUET: [&str; 1] = ["parquet"];
const SAFETENSORS: [&str; 1] = ["safetensors"];

/// The files of a dataset, in reading order, and their layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFiles {
    layout: Layout,
    records: RecordKind,
    files: Vec<PathBuf>,
    max_frames: Option<usize>,
}

impl DataFiles {
    /// Finds the files behind `paths`: each a file, a folder, or a pattern with `*`, `?`, `[..]` or `**`.
    ///
    /// A folder stands for the record files directly in it, sorted by name: `*.jsonl` and `*.ndjson`, or where
    /// there is none `*.parquet`, or `*.safetensors`; a `*.json` file, which may be anything, is named itself. Hidden files are passed over. A pattern stands for its matches, sorted. With [`Layout::Auto`]
    /// the extension and, for JSON lines, the keys of the first row decide.
    ///
    /// # Errors
    /// Nothing at a path, no record file in a folder, the same file twice, files of different layouts, or a layout
    /// that cannot be told: the message says what was seen.
    pub fn find(paths: &[PathBuf], layout: Layout) -> Result<Self> {
        if paths.is_empty() {
            return Err(Error::NoPaths);
        }
        let mut files = Vec::new();
        for path in paths {
            for path in expand(path)? {
                if path.is_dir() {
                    files.extend(in_folder(&path, layout)?);
                } else {
                    files.push(path);
                }
            }
        }
        let mut seen = BTreeSet::new();
        for file in &files {
            if !seen.insert(file.canonicalize().map_err(Error::io(file))?) {
                return Err(Error::DuplicateFile { path: file.clone() });
            }
        }
        let (layout, records) = if layout == Layout::Auto {
            common_layout(&files)?
        } else {
            (layout, records_of(&files, layout)?)
        };
        Ok(Self {
            layout,
            records,
            files,
            max_frames: None,
        })
    }

    /// Takes no more than so many frames of each video that rows have as a list of frames: evenly spaced ones.
    #[must_use]
    pub fn with_max_frames(mut self, max_frames: Option<usize>) -> Self {
        self.max_frames = max_frames;
        self
    }

    /// How many frames of a video are taken, at most.
    pub(crate) fn max_frames(&self) -> Option<usize> {
        self.max_frames
    }

    /// The layout; never [`Layout::Auto`].
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// What the records are.
    pub fn records(&self) -> RecordKind {
        self.records
    }

    /// The files, in reading order; at least one.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Why these are not the records that a caller needs: a damaged or strange first row, or records of another kind.
    pub(crate) fn not(&self, expected: &'static str) -> Error {
        for path in &self.files {
            match first_row(path) {
                Ok(Some(row)) if detect::records(self.layout, &row).is_none() => return unknown_row(path, &row),
                Ok(Some(_)) => break,
                Ok(None) => {}
                Err(error) => return error,
            }
        }
        Error::OtherRecords {
            paths: self.describe(),
            found: self.records,
            expected,
        }
    }

    /// Names the files in a message.
    pub(crate) fn describe(&self) -> String {
        let mut names: Vec<String> = self
            .files
            .iter()
            .take(4)
            .map(|path| path.display().to_string())
            .collect();
        if self.files.len() > names.len() {
            names.push(format!("… ({} files)", self.files.len()));
        }
        names.join(", ")
    }
}

/// The path itself where something lies there, else the matches of the pattern it is.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if path.exists() {
        return Ok(vec![path.to_path_buf()]);
    }
    let not_found = || Error::NotFound {
        path: path.to_path_buf(),
    };
    let pattern = path.to_str().ok_or_else(not_found)?;
    if !pattern.contains(['*', '?', '[']) {
        return Err(not_found());
    }
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        ..glob::MatchOptions::default()
    };
    let matches = glob::glob_with(pattern, options).map_err(|error| Error::Pattern {
        pattern: pattern.to_owned(),
        reason: error.to_string(),
    })?;
    let found: Vec<PathBuf> = matches
        .map(|entry| {
            entry.map_err(|error| Error::Io {
                path: error.path().to_path_buf(),
                source: error.into(),
            })
        })
        .collect::<Result<_>>()?;
    if found.is_empty() {
        return Err(Error::NoMatch {
            pattern: pattern.to_owned(),
        });
    }
    Ok(found)
}

/// The record files directly in a folder, sorted by name.
fn in_folder(folder: &Path, layout: Layout) -> Result<Vec<PathBuf>> {
    let mut rows = Vec::new();
    let mut tables = Vec::new();
    let mut shards = Vec::new();
    let mut extensions: BTreeMap<String, usize> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'))
        {
            continue;
        }
        let kind = if path.is_dir() {
            "folder".to_owned()
        } else {
            format!("*.{}", extension(&path))
        };
        *extensions.entry(kind).or_default() += 1;
        match extension(&path) {
            _ if path.is_dir() => {}
            ext if JSON_LINES.contains(&ext.as_str()) => rows.push(path),
            ext if PARQUET.contains(&ext.as_str()) => tables.push(path),
            ext if SAFETENSORS.contains(&ext.as_str()) => shards.push(path),
            _ => {}
        }
    }
    // Tables beside JSON lines are most likely the same rows once more.
    let mut rows = if rows.is_empty() { tables } else { rows };
    rows.sort();
    shards.sort();
    let found = || summary(&extensions);
    let (chosen, expected) = match layout {
        layout if layout.is_rows() => (rows, "*.jsonl files"),
        Layout::LatentPairs => (shards, "*.safetensors files"),
        _ => match (rows.is_empty(), shards.is_empty()) {
            (false, true) => (rows, ""),
            (true, false) => (shards, ""),
            (true, true) | (false, false) => {
                return Err(Error::UnknownLayout {
                    path: folder.to_path_buf(),
                    found: found(),
                });
            }
        },
    };
    if chosen.is_empty() {
        return Err(Error::NoRecordFiles {
            path: folder.to_path_buf(),
            layout,
            found: found(),
            expected,
        });
    }
    Ok(chosen)
}

/// What lies in a folder, by extension.
fn summary(extensions: &BTreeMap<String, usize>) -> String {
    match extensions.len() {
        0 => "nothing".to_owned(),
        _ => extensions
            .iter()
            .take(8)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn common_layout(files: &[PathBuf]) -> Result<(Layout, RecordKind)> {
    let mut common: Option<(&Path, (Layout, RecordKind))> = None;
    for file in files {
        // A file without rows says nothing about the layout; the others decide.
        let Some(found) = detect_file(file)? else { continue };
        match common {
            None => common = Some((file, found)),
            Some((first, first_found)) if first_found != found => return Err(mixed(first, first_found, file, found)),
            Some(_) => {}
        }
    }
    let paths = || {
        files
            .iter()
            .map(|path| path.display().to_string())
            .collect::<Vec<_>>()
            .join(", ")
    };
    common
        .map(|(_, found)| found)
        .ok_or_else(|| Error::EmptyDataset { paths: paths() })
}

fn mixed(first: &Path, first_found: (Layout, RecordKind), second: &Path, second_found: (Layout, RecordKind)) -> Error {
    let (first, second) = (first.to_path_buf(), second.to_path_buf());
    if first_found.0 == second_found.0 {
        return Error::MixedRecords {
            first,
            first_records: first_found.1,
            second,
            second_records: second_found.1,
        };
    }
    Error::MixedLayouts {
        first,
        first_layout: first_found.0,
        second,
        second_layout: second_found.0,
    }
}

/// What the records are if the layout is as it was asked for.
///
/// A file that can be told to have another layout is not read as what it is not. What cannot be told (a foreign
/// extension, a damaged row) is left to the reader, which says more.
fn records_of(files: &[PathBuf], layout: Layout) -> Result<RecordKind> {
    let mut common: Option<(&Path, RecordKind)> = None;
    for file in files {
        let Some(found) = first_records(file, layout) else {
            match detect_file(file) {
                // A row with nothing but a prompt is rather one that lacks the rest than one of another layout.
                Ok(Some((found, _))) if found != layout && found != Layout::PromptOnly => {
                    return Err(Error::OtherLayout {
                        path: file.clone(),
                        layout,
                        found,
                    });
                }
                _ => continue,
            }
        };
        match common {
            None => common = Some((file, found)),
            Some((first, first_found)) if first_found != found => {
                return Err(mixed(first, (layout, first_found), file, (layout, found)));
            }
            Some(_) => {}
        }
    }
    Ok(common.map_or_else(|| usual_records(layout), |(_, records)| records))
}

/// Rows of a file that are looked at for one that says what the records are.
const MAX_TRIED: usize = 100;

/// What the first row that can be of a layout says of the records. Damaged rows before it are the reader's.
fn first_records(path: &Path, layout: Layout) -> Option<RecordKind> {
    if !layout.is_rows() || SAFETENSORS.contains(&extension(path).as_str()) {
        return None;
    }
    let mut rows = Rows::open(path).ok()?.take(MAX_TRIED);
    match rows.next()? {
        Ok(row) => detect::records(layout, &row),
        Err(_) => rows.flatten().find_map(|row| detect::records(layout, &row)),
    }
}

/// What the records of a layout are where no row could be read.
fn usual_records(layout: Layout) -> RecordKind {
    match layout {
        Layout::Preference | Layout::PickAPic | Layout::Hpdv2 => RecordKind::ImagePair,
        Layout::ImageCaption => RecordKind::ImageCaption,
        Layout::LatentPairs | Layout::Auto => RecordKind::LatentPair,
        Layout::Unpaired => RecordKind::UnpairedText,
        Layout::Ranked => RecordKind::RankedText,
        Layout::Sft | Layout::Llava => RecordKind::TextSample,
        Layout::PromptOnly => RecordKind::TextPrompt,
        Layout::LlamaFactory
        | Layout::MsSwift
        | Layout::Axolotl
        | Layout::Openrlhf
        | Layout::Hh
        | Layout::RlhfV
        | Layout::RlaifV
        | Layout::Povid
        | Layout::MiaDpo
        | Layout::ReAlign
        | Layout::HaDpo => RecordKind::TextPair,
        Layout::ImageRewardDb => RecordKind::RankedImages,
        Layout::RichHf => RecordKind::ImageLabel,
        Layout::SpoPrompts => RecordKind::ImagePrompt,
    }
}

/// The layout of a file, or none where it has no row to tell from.
fn detect_file(path: &Path) -> Result<Option<(Layout, RecordKind)>> {
    let unknown = |found: String| Error::UnknownLayout {
        path: path.to_path_buf(),
        found,
    };
    let ext = extension(path);
    if SAFETENSORS.contains(&ext.as_str()) {
        return Ok(Some((Layout::LatentPairs, RecordKind::LatentPair)));
    }
    if ![JSON_LINES.as_slice(), &PARQUET, &["json"]]
        .concat()
        .contains(&ext.as_str())
    {
        return Err(unknown(if ext.is_empty() {
            "no file extension".to_owned()
        } else {
            format!("a .{ext} file")
        }));
    }
    let Some(row) = first_row(path)? else {
        return Ok(None);
    };
    detect::guess(&row).map(Some).ok_or_else(|| unknown_row(path, &row))
}

fn unknown_row(path: &Path, row: &Row) -> Error {
    let keys: Vec<&str> = row.fields.iter().take(16).map(|(key, _)| key.as_str()).collect();
    Error::UnknownLayout {
        path: path.to_path_buf(),
        found: format!("a first row with the keys [{}]", keys.join(", ")),
    }
}

fn first_row(path: &Path) -> Result<Option<Row>> {
    if SAFETENSORS.contains(&extension(path).as_str()) {
        return Ok(None);
    }
    Rows::open(path)?.next().transpose()
}
