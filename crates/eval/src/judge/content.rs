//! What a judge is, in 64 hexadecimal digits.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Judge;
use crate::error::{Error, Result};

const CHUNK: usize = 1 << 20;

/// Paths do not matter, what lies there does.
pub(super) fn hash(judge: &Judge) -> Result<String> {
    let by_content = judge.map_paths(&mut |path: &Path| Ok::<_, Error>(PathBuf::from(hash_path(path)?)))?;
    let text = serde_json::to_string(&by_content).map_err(|error| Error::JudgeSetup {
        path: PathBuf::new(),
        found: error.to_string(),
        expected: "a judge that can be written as JSON".to_owned(),
    })?;
    let mut hasher = Sha256::new();
    hasher.update(text);
    if mentions_verifier(judge) {
        // It has no files: another release may read pixels differently.
        hasher.update(env!("CARGO_PKG_VERSION"));
    }
    for described in descriptions(judge) {
        hasher.update(hash_path(&described)?);
    }
    Ok(hex(hasher))
}

fn mentions_verifier(judge: &Judge) -> bool {
    match judge {
        Judge::Verifier => true,
        Judge::Combined(config) => config.judges.iter().any(mentions_verifier),
        _ => false,
    }
}

/// Files that are read because they lie beside one that is named.
fn descriptions(judge: &Judge) -> Vec<PathBuf> {
    match judge {
        Judge::Hps(config) if config.path.is_file() => {
            let described = super::clip::hps_description(&config.path);
            described.is_file().then_some(described).into_iter().collect()
        }
        Judge::Combined(config) => config.judges.iter().flat_map(descriptions).collect(),
        _ => Vec::new(),
    }
}

/// Of a file, or of the files directly in a directory, by name.
fn hash_path(path: &Path) -> Result<String> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let mut hasher = Sha256::new();
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(io)?;
        let mut files = entries
            .map(|entry| Ok(entry.map_err(io)?.path()))
            .collect::<Result<Vec<_>>>()?;
        files.retain(|file| file.is_file());
        files.sort();
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            hasher.update(format!("{name} {}\n", hash_path(&file)?));
        }
        return Ok(hex(hasher));
    }
    let mut file = File::open(path).map_err(io)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer).map_err(io)?;
        if count == 0 {
            return Ok(hex(hasher));
        }
        hasher.update(&buffer[..count]);
    }
}

/// The digest in hexadecimal.
pub(crate) fn hex(hasher: Sha256) -> String {
    let mut text = String::new();
    for byte in hasher.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
