//! From the paths of a recipe to the files of a dataset and their layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::Layout;
use crate::error::{Error, Result};
use crate::json_lines::JsonLines;

const JSON_LINES: [&str; 2] = ["jsonl", "ndjson"];
const SAFETENSORS: [&str; 1] = ["safetensors"];

/// The files of a dataset, in reading order, and their layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFiles {
    layout: Layout,
    files: Vec<PathBuf>,
}

impl DataFiles {
    /// Finds the files behind `paths`: each a file, a folder, or a pattern with `*`, `?`, `[..]` or `**`.
    ///
    /// A folder stands for the record files directly in it, sorted by name: `*.jsonl` and `*.ndjson`, or
    /// `*.safetensors`. Hidden files are passed over. A pattern stands for its matches, sorted. With [`Layout::Auto`]
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
        let layout = if layout == Layout::Auto {
            common_layout(&files)?
        } else {
            refuse_other_layouts(&files, layout)?;
            layout
        };
        Ok(Self { layout, files })
    }

    /// The layout; never [`Layout::Auto`].
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The files, in reading order; at least one.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
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
            ext if SAFETENSORS.contains(&ext.as_str()) => shards.push(path),
            _ => {}
        }
    }
    rows.sort();
    shards.sort();
    let found = || match extensions.len() {
        0 => "nothing".to_owned(),
        _ => extensions
            .iter()
            .take(8)
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let (chosen, expected) = match layout {
        Layout::Preference | Layout::ImageCaption => (rows, "*.jsonl files"),
        Layout::LatentPairs => (shards, "*.safetensors files"),
        Layout::Auto => match (rows.is_empty(), shards.is_empty()) {
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

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn common_layout(files: &[PathBuf]) -> Result<Layout> {
    let mut common: Option<(&Path, Layout)> = None;
    for file in files {
        // A file without rows says nothing about the layout; the others decide.
        let Some(layout) = detect(file)? else { continue };
        match common {
            None => common = Some((file, layout)),
            Some((first, first_layout)) if first_layout != layout => {
                let (first, second) = (first.to_path_buf(), file.clone());
                return Err(Error::MixedLayouts {
                    first,
                    first_layout,
                    second,
                    second_layout: layout,
                });
            }
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
        .map(|(_, layout)| layout)
        .ok_or_else(|| Error::EmptyDataset { paths: paths() })
}

/// A file that can be told to have another layout than the one asked for is not read as what it is not. What cannot be told
/// (a foreign extension, a damaged row) is left to the reader, which says more.
fn refuse_other_layouts(files: &[PathBuf], layout: Layout) -> Result<()> {
    for file in files {
        match detect(file) {
            Ok(Some(found)) if found != layout => {
                return Err(Error::OtherLayout {
                    path: file.clone(),
                    layout,
                    found,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The layout of a file, or none where it has no row to tell from.
fn detect(path: &Path) -> Result<Option<Layout>> {
    let unknown = |found: String| Error::UnknownLayout {
        path: path.to_path_buf(),
        found,
    };
    let ext = extension(path);
    if SAFETENSORS.contains(&ext.as_str()) {
        return Ok(Some(Layout::LatentPairs));
    }
    if !JSON_LINES.contains(&ext.as_str()) && ext != "json" {
        return Err(unknown(if ext.is_empty() {
            "no file extension".to_owned()
        } else {
            format!("a .{ext} file")
        }));
    }
    let Some(row) = JsonLines::open(path)?.next().transpose()? else {
        return Ok(None);
    };
    let has = |key: &str| row.fields.iter().any(|(known, _)| known == key);
    match (has("chosen_image") || has("rejected_image"), has("image")) {
        (true, false) => Ok(Some(Layout::Preference)),
        (false, true) => Ok(Some(Layout::ImageCaption)),
        (true, true) | (false, false) => {
            let keys: Vec<&str> = row.fields.iter().take(16).map(|(key, _)| key.as_str()).collect();
            Err(unknown(format!("a first row with the keys [{}]", keys.join(", "))))
        }
    }
}
