//! Writing datasets: aside, synced, then renamed into place, so that a reader sees the whole or nothing.

pub(crate) mod image_rows;
#[cfg(feature = "parquet")]
pub(crate) mod table;
mod text;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::json_lines::MAX_LINE_BYTES;
use crate::latent_pairs::LatentTensors;
use crate::{ImageCaption, ImagePair, ImageSource, LatentPairs, RankedImages};

use self::image_rows::{ImageRecord, WrittenImage};
pub(crate) use text::checked_row;
pub use text::write_text;

/// Writes one JSON lines file of the `preference` layout, images embedded. An existing file is replaced.
///
/// # Errors
/// [`Error::NothingToWrite`] without pairs; [`Error::InvalidRecord`] for an empty id or a score that is not finite;
/// an image file that cannot be read; a file that cannot be written. In each case nothing changes at `path`.
pub fn write_pairs(path: &Path, pairs: &[ImagePair]) -> Result<()> {
    write_embedded(path, pairs)
}

/// Writes one JSON lines file of the `image-caption` layout, images embedded. An existing file is replaced.
///
/// # Errors
/// As [`write_pairs`].
pub fn write_captions(path: &Path, captions: &[ImageCaption]) -> Result<()> {
    write_embedded(path, captions)
}

/// Writes one JSON lines file of the `ranked` layout, images embedded. An existing file is replaced.
///
/// # Errors
/// As [`write_pairs`]; [`Error::InvalidRecord`] also for a list of fewer than two images.
pub fn write_ranked(path: &Path, lists: &[RankedImages]) -> Result<()> {
    write_embedded(path, lists)
}

fn write_embedded<T: ImageRecord>(path: &Path, records: &[T]) -> Result<()> {
    write_rows(path, records, |record| {
        record.check()?;
        // The encoded bytes as they are: nothing is compressed a second time.
        let embed = |(key, image): (&'static str, &ImageSource)| match image.encoded() {
            Ok(bytes) => Ok(WrittenImage::Embedded {
                bytes: STANDARD.encode(bytes),
            }),
            Err(source) => Err(Error::Record {
                id: record.id().to_owned(),
                key,
                source: source.into(),
            }),
        };
        let images = record.images().into_iter().map(embed).collect::<Result<_>>()?;
        Ok(record.row(images))
    })
}

fn write_rows<'a, T, R: Serialize>(path: &Path, records: &'a [T], row: impl Fn(&'a T) -> Result<R>) -> Result<()> {
    if records.is_empty() {
        return Err(Error::NothingToWrite {
            path: path.to_path_buf(),
        });
    }
    let file = AtomicWriteFile::open(path).map_err(Error::io(path))?;
    let mut writer = BufWriter::new(file);
    for (index, record) in records.iter().enumerate() {
        let mut line = serde_json::to_vec(&row(record)?).map_err(|error| Error::io(path)(error.into()))?;
        if line.len() > MAX_LINE_BYTES {
            return Err(Error::LongRecord {
                path: path.to_path_buf(),
                number: index + 1,
                bytes: line.len(),
                limit: MAX_LINE_BYTES,
            });
        }
        line.push(b'\n');
        writer.write_all(&line).map_err(Error::io(path))?;
    }
    let file = writer
        .into_inner()
        .map_err(|error| Error::io(path)(error.into_error()))?;
    file.commit().map_err(Error::io(path))
}

/// Writes a folder of the `latent-pairs` layout in f32, `shard_len` records a file (0 counts as 1). The folder appears
/// when all of it is written.
///
/// # Errors
/// [`Error::OutputExists`] when `folder` exists and is not empty: old shards would be read along with the new ones; a
/// folder or file that cannot be written.
pub fn write_latent_pairs(folder: &Path, pairs: &LatentPairs, shard_len: usize) -> Result<()> {
    if folder.exists() && fs::read_dir(folder).map_err(Error::io(folder))?.next().is_some() {
        return Err(Error::OutputExists {
            path: folder.to_path_buf(),
        });
    }
    let aside = aside(folder);
    fs::create_dir_all(&aside).map_err(Error::io(&aside))?;
    let written = write_shards(&aside, pairs, shard_len.max(1))
        .and_then(|()| fs::rename(&aside, folder).map_err(Error::io(folder)));
    if written.is_err() {
        // The first error is the one to report; what is left aside is hidden and harmless.
        let _ = fs::remove_dir_all(&aside);
    }
    written
}

/// A hidden folder beside the one to write, of this process alone.
fn aside(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}

fn write_shards(folder: &Path, pairs: &LatentPairs, shard_len: usize) -> Result<()> {
    let num_shards = pairs.len().div_ceil(shard_len);
    for shard in 0..num_shards {
        let records = shard * shard_len..((shard + 1) * shard_len).min(pairs.len());
        let path = folder.join(format!("shard-{shard:05}-of-{num_shards:05}.safetensors"));
        let bytes = serialize(&pairs.tensors().slice(records))
            .map_err(|error| Error::io(&path)(std::io::Error::other(error)))?;
        let mut file = File::create(&path).map_err(Error::io(&path))?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .map_err(Error::io(&path))?;
    }
    Ok(())
}

fn serialize(tensors: &LatentTensors) -> std::result::Result<Vec<u8>, safetensors::SafeTensorError> {
    let mut bytes: BTreeMap<&str, (Dtype, Vec<usize>, Vec<u8>)> = BTreeMap::new();
    for (name, tensor) in tensors.floats() {
        let data = tensor.data().iter().flat_map(|value| value.to_le_bytes()).collect();
        bytes.insert(name, (Dtype::F32, tensor.shape().to_vec(), data));
    }
    if let Some(timesteps) = &tensors.timesteps {
        // I64 is what PyTorch indexes with.
        let data = timesteps
            .iter()
            .flat_map(|value| i64::from(*value).to_le_bytes())
            .collect();
        bytes.insert("timesteps", (Dtype::I64, vec![timesteps.len()], data));
    }
    let views = bytes
        .iter()
        .map(|(name, (dtype, shape, data))| Ok((*name, TensorView::new(*dtype, shape.clone(), data)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()?;
    safetensors::serialize(views, None)
}
