//! Scores of the reference, computed once and kept.
//!
//! The file is safetensors: `per_token_logps`, the log-probability of every response token of the data set, record after record and
//! response after response. Its metadata has a hash of everything the numbers depend on; a file whose hashes differ is
//! refused, and the error says which.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use sha2::{Digest, Sha256};

use crate::records::EncodedRecord;
use crate::reference::ResponsePlace;
use crate::scoring::Scored;
use crate::vision::RunImages;
use crate::{Error, Result};

const LOGPS: &str = "per_token_logps";

/// What cached scores depend on, each with its hash or its word.
pub(crate) type Origin = BTreeMap<String, String>;

/// Log-probabilities of every response token of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct CachedLogps {
    per_token_logps: Vec<f32>,
    /// For each record where its responses begin, and where the last one ends.
    offsets: Vec<Vec<usize>>,
    /// Whether only the sum over a response means something.
    is_summed: bool,
}

impl CachedLogps {
    /// From the log-probabilities of all response tokens, in the order of the records and their responses.
    ///
    /// # Errors
    /// [`Error::CacheLength`] for another number of them.
    pub(crate) fn try_new(per_token_logps: Vec<f32>, records: &[EncodedRecord], origin: &Path) -> Result<Self> {
        let mut next = 0;
        let mut offsets = Vec::with_capacity(records.len());
        for record in records {
            let mut starts = vec![next];
            for response in &record.responses {
                next += response.ids.len();
                starts.push(next);
            }
            offsets.push(starts);
        }
        if per_token_logps.len() != next {
            return Err(Error::CacheLength {
                path: origin.to_owned(),
                found: per_token_logps.len(),
                expected: next,
            });
        }
        Ok(Self {
            per_token_logps,
            offsets,
            is_summed: false,
        })
    }

    /// From the summed scores that the data brings along: the whole score of a response stands at its first token that counts, so
    /// that its sum is right whatever its tokens are weighted with.
    ///
    /// Every response must have one.
    pub(crate) fn of_sums(records: &[EncodedRecord]) -> Self {
        let mut per_token_logps = Vec::new();
        let mut offsets = Vec::with_capacity(records.len());
        for record in records {
            let mut starts = vec![per_token_logps.len()];
            for response in &record.responses {
                let weight = |at: usize| response.weights.as_ref().map_or(1.0, |weights| weights[at]);
                let first = (0..response.ids.len()).find(|&at| weight(at) != 0.0);
                let sum = response.reference_logps.unwrap_or(0.0);
                let value = |at: usize| {
                    if Some(at) == first {
                        (sum / f64::from(weight(at))) as f32
                    } else {
                        0.0
                    }
                };
                per_token_logps.extend((0..response.ids.len()).map(value));
                starts.push(per_token_logps.len());
            }
            offsets.push(starts);
        }
        Self {
            per_token_logps,
            offsets,
            is_summed: true,
        }
    }

    /// Whether there is a score of every token, rather than of whole responses alone.
    pub(crate) fn has_token_scores(&self) -> bool {
        !self.is_summed
    }

    /// Reads a file that [`CachedLogps::save`] wrote, if it is there.
    ///
    /// # Errors
    /// [`Error::CacheOrigin`] when it was computed from something else.
    pub(crate) fn read(path: &Path, records: &[EncodedRecord], origin: &Origin) -> Result<Option<Self>> {
        if !path.is_file() {
            return Ok(None);
        }
        let weights = Weights::open(path)?;
        let found = weights.metadata();
        let changed: Vec<String> = origin
            .iter()
            .filter(|(key, value)| found.get(*key) != Some(value))
            .map(|(key, _)| key.clone())
            .collect();
        if !changed.is_empty() {
            return Err(Error::CacheOrigin {
                path: path.to_owned(),
                changed,
            });
        }
        let len: usize = records
            .iter()
            .flat_map(|record| &record.responses)
            .map(|response| response.ids.len())
            .sum();
        let tensor = weights.get(LOGPS, &[len], DType::F32, &Device::Cpu)?;
        let values = || -> diptych_tensor::Result<Vec<f32>> { Ok(tensor.to_vec1()?) };
        Self::try_new(values()?, records, path).map(Some)
    }

    /// Writes the scores and what they depend on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn save(&self, path: &Path, origin: &Origin) -> Result<()> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        let tensor =
            || -> diptych_tensor::Result<Tensor> { Ok(Tensor::new(self.per_token_logps.as_slice(), &Device::Cpu)?) };
        let tensors = BTreeMap::from([(LOGPS.to_owned(), tensor()?)]);
        Ok(save_tensors(path, &tensors, origin)?)
    }

    /// The scores of some responses, one after another.
    pub(crate) fn scored(&self, places: &[ResponsePlace], device: &Device) -> Result<Scored> {
        let mut logps = Vec::new();
        for place in places {
            let starts = &self.offsets[place.record];
            logps.extend_from_slice(&self.per_token_logps[starts[place.response]..starts[place.response + 1]]);
        }
        let tensor = || -> diptych_tensor::Result<Tensor> { Ok(Tensor::new(logps.as_slice(), device)?) };
        Ok(Scored {
            per_token_logps: tensor()?,
            statistics: None,
            states: None,
        })
    }
}

/// A hash of the tokens of all records: tokenizer, chat template, truncation and rows are in it.
pub(crate) fn hash_records(records: &[EncodedRecord]) -> String {
    let mut hasher = Sha256::new();
    let mut add = |ids: &[u32]| {
        hasher.update((ids.len() as u64).to_le_bytes());
        for id in ids {
            hasher.update(id.to_le_bytes());
        }
    };
    for record in records {
        for response in &record.responses {
            add(&response.prompt);
            add(&response.ids);
        }
    }
    hex(&hasher.finalize())
}

/// A hash of what the images of all records look like, in their order.
pub(crate) fn hash_images(records: &[EncodedRecord], images: &RunImages) -> String {
    let mut hasher = Sha256::new();
    for image in records
        .iter()
        .flat_map(|record| &record.responses)
        .flat_map(|response| &response.images)
    {
        hasher.update(images.content(image.index));
    }
    hex(&hasher.finalize())
}

/// A hash of the weight and configuration files in a directory, or of one file. Their names count, their place does not.
pub(crate) fn hash_network(path: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(Error::io("read", path))?;
        let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
        paths.map_err(Error::io("read", path))?
    } else {
        vec![path.to_owned()]
    };
    files.retain(|file| {
        let is_config = file
            .file_name()
            .is_some_and(|name| name == "config.json" || name == "adapter_config.json");
        is_config || file.extension().is_some_and(|extension| extension == "safetensors")
    });
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        let mut open = std::fs::File::open(&file).map_err(Error::io("read", &file))?;
        std::io::copy(&mut open, &mut hasher).map_err(Error::io("read", &file))?;
    }
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
