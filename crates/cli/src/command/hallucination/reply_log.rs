//! A judge's replies on disk as they come: a call that was stopped asks only what is missing.
//!
//! ```text
//! judging-0123456789abcdef.jsonl    beside the result, named after what is asked of whom: a line that says it, then a line a batch of replies
//! ```
//!
//! It is named after the questions and not after the result, so that a call goes on which writes elsewhere, or which reads answers that a model
//! gave in the call before.

use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::output::create_parent;

/// The replies to some questions, as far as they came.
pub(super) struct ReplyLog {
    path: PathBuf,
    file: File,
    replies: Vec<String>,
}

impl ReplyLog {
    /// Begins a log beside `out`, or goes on with that of a call which asked the same. `judge` is all that the replies depend on beside what is
    /// asked.
    pub(super) fn open(out: &Path, judge: &Value, prompts: &[String]) -> anyhow::Result<Self> {
        let asked = json!({ "judge": judge, "num_prompts": prompts.len(), "prompts": digest(prompts) }).to_string();
        let path = out.with_file_name(format!("judging-{:016x}.jsonl", digest(&asked)));
        create_parent(&path)?;
        let cannot = |action: &str| format!("cannot {action} {}", path.display());
        let mut bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| cannot("read")),
        };
        // A line may have been cut off in the middle of a character.
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        let text = String::from_utf8(bytes).with_context(|| cannot("read"))?;
        let (replies, whole) = kept(&text, &asked);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| cannot("write"))?;
        // What was cut off, or is of something else, goes.
        file.set_len(whole as u64).with_context(|| cannot("write"))?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).with_context(|| cannot("write"))?;
        let mut log = Self { path, file, replies };
        if whole == 0 {
            log.write(&asked)?;
        }
        Ok(log)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The replies to the first questions.
    pub(super) fn replies(&self) -> &[String] {
        &self.replies
    }

    /// Adds the replies to the next questions; they are on disk when this returns.
    pub(super) fn add(&mut self, replies: Vec<String>) -> anyhow::Result<()> {
        self.write(&json!(replies).to_string())?;
        self.replies.extend(replies);
        Ok(())
    }

    /// An error with where the replies are that came before it. Where there are none the file goes.
    pub(super) fn kept_after(self, error: anyhow::Error) -> anyhow::Error {
        let path = self.path.display();
        if self.replies.is_empty() {
            let removed = std::fs::remove_file(&self.path);
            // The first error is the one to tell.
            drop(removed);
            return error;
        }
        error.context(format!(
            "the judge's replies so far are kept in {path}, and a call that asks the same goes on from there"
        ))
    }

    fn write(&mut self, line: &str) -> anyhow::Result<()> {
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The replies of whole lines behind the one that says what is asked, and the bytes of all these lines.
fn kept(text: &str, asked: &str) -> (Vec<String>, usize) {
    let mut lines = text.split_inclusive('\n');
    let first = lines.next().and_then(|line| line.strip_suffix('\n'));
    if first != Some(asked) {
        return (Vec::new(), 0);
    }
    let (mut replies, mut whole) = (Vec::new(), asked.len() + 1);
    for line in lines {
        match line.strip_suffix('\n').map(serde_json::from_str::<Vec<String>>) {
            Some(Ok(batch)) => replies.extend(batch),
            Some(Err(_)) | None => break,
        }
        whole += line.len();
    }
    (replies, whole)
}

/// The files of a model by name, size and time.
pub(super) fn fingerprint(directory: &Path) -> anyhow::Result<Value> {
    let mut files = serde_json::Map::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let age = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = entry.file_name().to_string_lossy().into_owned();
        files.insert(name, json!([metadata.len(), age.as_secs()]));
    }
    Ok(Value::Object(files))
}

/// Nobody makes questions collide on purpose here, and what is asked stands in the file too.
fn digest(value: &(impl std::hash::Hash + ?Sized)) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_batches_are_found_again_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("below/out");
        let prompts = ["a", "b", "c"].map(str::to_owned);
        let judge = json!({ "precision": "f32" });
        let mut log = ReplyLog::open(&out, &judge, &prompts).unwrap();
        log.add(vec!["one".to_owned(), "two\n".to_owned()]).unwrap();
        let path = log.path().to_owned();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"[\"thr"].concat()).unwrap();
        let mut again = ReplyLog::open(&folder.path().join("below/other"), &judge, &prompts).unwrap();
        assert_eq!(again.replies(), ["one", "two\n"]);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        again.add(vec!["three".to_owned()]).unwrap();
        assert_eq!(ReplyLog::open(&out, &judge, &prompts).unwrap().replies().len(), 3);
        // Other questions, or another judge.
        assert!(
            ReplyLog::open(&out, &judge, &prompts[..2])
                .unwrap()
                .replies()
                .is_empty()
        );
        let other = json!({ "precision": "bf16" });
        assert!(ReplyLog::open(&out, &other, &prompts).unwrap().replies().is_empty());
    }
}
