//! Features of a tower that never changes, kept on disk for the next run.
//!
//! A directory with `features.json`, which says what it is, and a safetensors file an image. The name of a file is the hash of all that its
//! features depend on: the tower with what an adapter does to it, the number format and the kind of device, and the pixels that the tower
//! reads, in which the image and its processing are. So one directory serves several models, and nothing in it is ever of something else.
//! Files are written aside, synced and renamed. One that is damaged, or that stands under a name which is not its own, is made again and
//! counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use diptych_models::lora::LoraAdapter;
use diptych_models::vlm::VlmDir;
use diptych_tensor::files::write_file;
use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::images::guard;
use crate::policy::NetworkOptions;
use crate::{Error, Result};

/// Raised when the same files would mean something else.
const FORMAT: u32 = 1;
const MANIFEST: &str = "features.json";
/// The tensor of a file, and the keys of its metadata.
const FEATURES: &str = "features";
const KEY: &str = "key";
const CONTENT: &str = "sha256";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    holds: String,
}

/// What the manifest says that the directory holds.
const HOLDS: &str = "features of images under frozen vision towers";

/// What became of the images so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Features that were read.
    pub num_read: usize,
    /// Features that were computed and written.
    pub num_written: usize,
    /// Those of the written ones in whose place a file was that could not be used.
    pub num_damaged: usize,
}

/// A directory of features, for one tower.
#[derive(Debug)]
pub struct FeatureCache {
    directory: PathBuf,
    tower: [u8; 32],
    counts: Mutex<CacheCounts>,
}

impl FeatureCache {
    /// Opens a directory, or makes one where there is nothing, for the tower of a model as `adapter` leaves it.
    ///
    /// # Errors
    /// [`Error::FeatureCache`] for a directory that holds something else; files that cannot be read or written.
    pub fn open(
        directory: &Path,
        model: &VlmDir,
        adapter: Option<&LoraAdapter>,
        options: &NetworkOptions,
    ) -> Result<Self> {
        check_directory(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            tower: tower_hash(model, adapter, options)?,
            counts: Mutex::default(),
        })
    }

    /// What became of the images so far.
    pub fn counts(&self) -> CacheCounts {
        *guard(&self.counts)
    }

    /// The features of an image with these pixels, if they are there and whole.
    pub(super) fn read(&self, pixels: &[u8; 32], dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let (path, key) = self.place(pixels);
        if !path.is_file() {
            return Ok(None);
        }
        match read_whole(&path, &key, dtype) {
            Ok(features) => {
                guard(&self.counts).num_read += 1;
                let placed = || -> diptych_tensor::Result<Tensor> { Ok(features.to_device(device)?) };
                Ok(Some(placed()?))
            }
            Err(problem) => {
                let mut counts = guard(&self.counts);
                counts.num_damaged += 1;
                if counts.num_damaged == 1 {
                    tracing::warn!(
                        "{}: {problem}; it is made again, and so is every other file that cannot be used",
                        path.display()
                    );
                }
                Ok(None)
            }
        }
    }

    /// Keeps the features of an image with these pixels.
    pub(super) fn write(&self, pixels: &[u8; 32], features: &Tensor) -> Result<()> {
        let (path, key) = self.place(pixels);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let metadata = BTreeMap::from([
            (KEY.to_owned(), key),
            (CONTENT.to_owned(), hex(&content_hash(features)?)),
        ]);
        save_tensors(
            &path,
            &BTreeMap::from([(FEATURES.to_owned(), features.clone())]),
            &metadata,
        )?;
        guard(&self.counts).num_written += 1;
        Ok(())
    }

    /// Where the features of an image with these pixels are, and the key that is in the file too.
    fn place(&self, pixels: &[u8; 32]) -> (PathBuf, String) {
        let mut hasher = Sha256::new();
        hasher.update(self.tower);
        hasher.update(pixels);
        let key = hex(&hasher.finalize());
        let path = self.directory.join(&key[..2]).join(format!("{key}.safetensors"));
        (path, key)
    }
}

/// The features of a file, or why they cannot be used.
fn read_whole(path: &Path, key: &str, dtype: DType) -> std::result::Result<Tensor, String> {
    let weights = Weights::open(path).map_err(|error| error.to_string())?;
    let metadata = weights.metadata();
    if metadata.get(KEY).map(String::as_str) != Some(key) {
        return Err("it is the file of another image or tower".to_owned());
    }
    if weights.dtype(FEATURES) != Some(dtype) {
        return Err(format!("it has no tensor `{FEATURES}` of type {}", dtype.as_str()));
    }
    let features = weights
        .read(FEATURES, dtype, &Device::Cpu)
        .map_err(|error| error.to_string())?;
    let content = content_hash(&features).map_err(|error| error.to_string())?;
    if metadata.get(CONTENT) != Some(&hex(&content)) {
        return Err("its numbers are not those that were written".to_owned());
    }
    Ok(features)
}

/// Makes a directory of features where nothing is, and refuses one of something else.
fn check_directory(directory: &Path) -> Result<()> {
    let refuse = |problem: String| Error::FeatureCache {
        path: directory.to_owned(),
        problem,
    };
    let path = directory.join(MANIFEST);
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let found: Manifest = serde_json::from_str(&text).map_err(|source| Error::Json { path, source })?;
        return match found.format {
            FORMAT if found.holds == HOLDS => Ok(()),
            FORMAT => Err(refuse(format!("holds {}", found.holds))),
            other => Err(refuse(format!(
                "has the format {other}, and this program writes {FORMAT}"
            ))),
        };
    }
    std::fs::create_dir_all(directory).map_err(Error::io("create", directory))?;
    let mut entries = std::fs::read_dir(directory).map_err(Error::io("read", directory))?;
    let is_leftover = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
    if entries.any(|entry| entry.is_ok_and(|entry| !is_leftover(&entry.file_name()))) {
        return Err(refuse(format!("holds files and no {MANIFEST}")));
    }
    let manifest = Manifest {
        format: FORMAT,
        holds: HOLDS.to_owned(),
    };
    let text = serde_json::to_string_pretty(&manifest).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    Ok(write_file(&path, format!("{text}\n").as_bytes())?)
}

/// Hash of all that features depend on beside the pixels.
fn tower_hash(model: &VlmDir, adapter: Option<&LoraAdapter>, options: &NetworkOptions) -> Result<[u8; 32]> {
    let config = model.config();
    let mut hasher = Sha256::new();
    let device = match options.device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    };
    hasher.update(format!(
        "{FORMAT} {device} {} {:?}\n",
        options.dtype.as_str(),
        config.vision
    ));
    let mut add = |name: &str, tensor: &Tensor| -> Result<()> {
        hasher.update(format!("{name} {:?}\n", tensor.dims()));
        hasher.update(content_hash(tensor)?);
        Ok(())
    };
    let weights = model.weights()?;
    for name in weights.names().filter(|name| config.is_tower_parameter(name)) {
        add(name, &weights.read(name, DType::F32, &Device::Cpu)?)?;
    }
    let of_tower = |name: &&String| config.is_tower_parameter(name);
    for (name, module) in adapter.iter().flat_map(|adapter| &adapter.modules) {
        if of_tower(&name) {
            add(&format!("{name} times {}", module.scale), &module.down)?;
            add(name, &module.up)?;
            module.magnitude.iter().try_for_each(|magnitude| add(name, magnitude))?;
        }
    }
    for (name, tensor) in adapter.iter().flat_map(|adapter| &adapter.base) {
        if of_tower(&name) {
            add(name, tensor)?;
        }
    }
    Ok(hasher.finalize().into())
}

/// Hash of a tensor's type, shape and numbers.
fn content_hash(tensor: &Tensor) -> Result<[u8; 32]> {
    // Every number of the narrower types is one of these.
    let read = || -> diptych_tensor::Result<Vec<f32>> {
        Ok(tensor
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1()?)
    };
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {:?}\n", tensor.dtype().as_str(), tensor.dims()));
    let mut bytes = Vec::with_capacity(1 << 16);
    for values in read()?.chunks(1 << 14) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().into())
}

/// Two hexadecimal digits a byte.
fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
