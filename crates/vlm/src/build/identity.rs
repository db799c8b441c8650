//! What a build is known by, so that only the same one goes on with what is done.

use std::path::Path;
use std::time::UNIX_EPOCH;

use diptych_data::{ImageSource, OnError};
use serde_json::{Map, Value, json};

use super::journal::io;
use super::source::SourceRow;
use super::{BuildConfig, BuildRecipe};
use crate::Result;
use crate::answers::PromptFormat;

impl BuildConfig {
    /// All that the result depends on.
    pub(super) fn identity(&self, rows: &[SourceRow]) -> Result<Map<String, Value>> {
        let captions = match &self.recipe {
            BuildRecipe::LlavaHound(recipe) => Some(fingerprint(&recipe.captions)?),
            _ => None,
        };
        let judge = self.judge.as_ref();
        let value = json!({
            "captions": captions,
            "recipe": self.recipe,
            "rows": { "number": rows.len(), "digest": digest(rows) },
            "unfinished": self.unfinished,
            "on_error": if self.on_error == OnError::Skip { "skip" } else { "fail" },
            "model": fingerprint(&self.model)?,
            "adapter": self.adapter.as_deref().map(fingerprint).transpose()?,
            "judge": judge.map(|judge| fingerprint(&judge.model)).transpose()?,
            "judge_format": judge.and_then(|judge| judge.format.as_ref()).map(format),
            "embedder": self.embedder.as_deref().map(fingerprint).transpose()?,
            "format": self.format.as_ref().map(format),
            "seed": self.answers.seed,
            "batch_size": self.answers.batch_size,
            "max_new_tokens": self.answers.max_new_tokens,
            "sampling": self.answers.sampling,
            "precision": format!("{:?}", self.answers.network.dtype),
        });
        Ok(value.as_object().cloned().unwrap_or_default())
    }
}

fn format(format: &PromptFormat) -> Value {
    match format {
        PromptFormat::Chat { system } => json!({ "system": system }),
        PromptFormat::Plain(text) => json!(text),
    }
}

/// The files of a model by name, size and time: weights are too large to be read only to be told apart.
pub(super) fn fingerprint(path: &Path) -> Result<Value> {
    let mut files = Map::new();
    if path.is_file() {
        files.insert(path.display().to_string(), stamp(path));
        return Ok(Value::Object(files));
    }
    // A directory that is not there is for the loader to tell about.
    let Ok(entries) = std::fs::read_dir(path) else {
        return Ok(json!(path.display().to_string()));
    };
    for entry in entries {
        let path = entry.map_err(io("read", path))?.path();
        if path.is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.insert(name, stamp(&path));
        }
    }
    Ok(Value::Object(files))
}

/// Size and time of a file; null for one that is not there.
fn stamp(path: &Path) -> Value {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Value::Null;
    };
    let modified = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    json!([metadata.len(), modified.map(|age| age.as_secs())])
}

/// What rows say, and the sizes and times of the files that their images are in, as one number.
fn digest(rows: &[SourceRow]) -> String {
    let mut digest = Fnv::default();
    for row in rows {
        digest.add(format!("{:?} {:?}", row.prompt, row.answer).as_bytes());
        for image in row.images() {
            match image {
                ImageSource::Path(path) => digest.add(stamp(path).to_string().as_bytes()),
                ImageSource::Bytes(bytes) => digest.add(bytes),
                // Which cell it is stands in the prompt; that another table has come to its place shows in the file.
                ImageSource::Cell(cell) => digest.add(stamp(cell.path()).to_string().as_bytes()),
            }
        }
    }
    format!("{:016x}", digest.0)
}

/// FNV-1a of 64 bits: nobody makes rows collide on purpose here.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().chain(&[0xff]) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_function() {
        // FNV-1a of "foobar" is 85944171f73967e8; here each part ends in 0xff.
        let mut digest = Fnv::default();
        digest.add(b"foobar");
        let expected = (0x8594_4171_f739_67e8_u64 ^ 0xff).wrapping_mul(0x0100_0000_01b3);
        assert_eq!(digest.0, expected);
    }
}
