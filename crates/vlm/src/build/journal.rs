//! What is done of a build, on disk: a stopped one goes on.
//!
//! ```text
//! OUT.building/build.json           what is built, of what: another build is refused
//! OUT.building/rows-000000.jsonl    what became of the first rows, one object a row; written aside, synced, renamed
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use diptych_tensor::files::write_file;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::problem::BuildProblem;
use super::skip::Skip;
use crate::Result;

/// The file that says what is built.
const IDENTITY: &str = "build.json";

/// What became of a row.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its pairs, as rows of the `preference` layout.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) pairs: Vec<StagedRow>,
    /// Why pairs that it could have had were not made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) skipped: Vec<Skip>,
}

/// A row and where in the file it belongs: rows of the first stage come first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StagedRow {
    #[serde(default, skip_serializing_if = "is_first")]
    pub(super) stage: usize,
    pub(super) row: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
fn is_first(stage: &usize) -> bool {
    *stage == 0
}

/// The folder of a build that is under way.
#[derive(Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    num_done: usize,
    entries: Vec<Entry>,
}

impl Journal {
    /// Begins a build that writes `out`, or goes on with what is done of the same one.
    ///
    /// # Errors
    /// [`BuildProblem::OtherBuild`] when something else was begun there; files that cannot be read or written.
    pub(super) fn open(out: &Path, identity: &Map<String, Value>) -> Result<Self> {
        let folder = folder_of(out);
        let path = folder.join(IDENTITY);
        fs::create_dir_all(&folder).map_err(io("create", &folder))?;
        let mut journal = Self {
            folder,
            num_done: 0,
            entries: Vec::new(),
        };
        if !path.exists() {
            write_file(&path, Value::Object(identity.clone()).to_string().as_bytes())?;
            return Ok(journal);
        }
        let text = fs::read_to_string(&path).map_err(io("read", &path))?;
        let found: Map<String, Value> = serde_json::from_str(&text).map_err(|error| BuildProblem::Damaged {
            path: path.clone(),
            line: 1,
            reason: error.to_string(),
        })?;
        let differing: Vec<&str> = identity
            .keys()
            .chain(found.keys())
            .filter(|key| identity.get(*key) != found.get(*key))
            .map(String::as_str)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if !differing.is_empty() {
            return Err(BuildProblem::OtherBuild {
                path: journal.folder,
                keys: differing.join(", "),
            }
            .into());
        }
        while let Some(entries) = journal.read(journal.num_done)? {
            journal.entries.extend(entries);
            journal.num_done += 1;
        }
        Ok(journal)
    }

    /// Rows that are done.
    pub(super) fn num_rows(&self) -> usize {
        self.entries.len()
    }

    /// The folder, for what a recipe keeps beside its rows.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Adds what became of the next rows; it is on disk when this returns.
    pub(super) fn add(&mut self, entries: Vec<Entry>) -> Result<()> {
        let mut text = String::new();
        for entry in &entries {
            let line = serde_json::to_string(entry).map_err(|source| self.damaged(self.num_done, 0, &source))?;
            text.push_str(&line);
            text.push('\n');
        }
        write_file(&self.chunk(self.num_done), text.as_bytes())?;
        self.num_done += 1;
        self.entries.extend(entries);
        Ok(())
    }

    /// What became of all rows, in their order.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Removes the folder: what was built is in its place.
    pub(super) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).map_err(io("remove", &self.folder))?;
        Ok(())
    }

    fn chunk(&self, number: usize) -> PathBuf {
        self.folder.join(format!("rows-{number:06}.jsonl"))
    }

    fn read(&self, number: usize) -> Result<Option<Vec<Entry>>> {
        let path = self.chunk(number);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(io("read", &path))?;
        let entry = |(at, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| self.damaged(number, at + 1, &error).into())
        };
        text.lines().enumerate().map(entry).collect::<Result<_>>().map(Some)
    }

    fn damaged(&self, number: usize, line: usize, error: &serde_json::Error) -> BuildProblem {
        BuildProblem::Damaged {
            path: self.chunk(number),
            line,
            reason: error.to_string(),
        }
    }
}

/// The folder of what is done of `out`.
fn folder_of(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".building");
    out.with_file_name(name)
}

pub(super) fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> BuildProblem + use<> {
    let path = path.to_owned();
    move |source| BuildProblem::Io {
        action,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Error;

    fn identity(seed: u64) -> Map<String, Value> {
        let value = json!({ "seed": seed, "recipe": { "seva": {} } });
        value.as_object().cloned().unwrap_or_default()
    }

    fn entry(stage: usize) -> Entry {
        let row = json!({ "prompt": "a", "chosen": "b", "rejected": "c" });
        Entry {
            pairs: vec![StagedRow {
                stage,
                row: row.as_object().cloned().unwrap_or_default(),
            }],
            skipped: vec![Skip::EqualAnswers],
        }
    }

    #[test]
    fn what_is_done_is_found_again_and_another_build_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pairs.jsonl");
        let mut journal = Journal::open(&out, &identity(0)).unwrap();
        journal.add(vec![entry(0), Entry::default()]).unwrap();
        journal.add(vec![entry(2)]).unwrap();
        let again = Journal::open(&out, &identity(0)).unwrap();
        assert_eq!(again.entries(), [entry(0), Entry::default(), entry(2)]);
        let other = Journal::open(&out, &identity(1)).unwrap_err();
        assert!(other.to_string().contains("its seed differ"), "{other}");
        assert!(other.is_configuration());

        // A file that was cut by hand is named.
        std::fs::write(again.chunk(1), "{\"pairs\": [").unwrap();
        match Journal::open(&out, &identity(0)) {
            Err(Error::Build(problem)) => {
                assert!(problem.to_string().contains("rows-000001.jsonl, line 1"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
        again.remove().unwrap();
        assert_eq!(Journal::open(&out, &identity(1)).unwrap().num_rows(), 0);
    }
}
