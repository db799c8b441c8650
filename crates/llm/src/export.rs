//! Checkpoints written anew: with an adapter merged in, in another number format.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_models::lm::{self, LmDir};
use diptych_tensor::files::write_directory;
use diptych_tensor::{DType, Device, Tensor, Weights};

use crate::policy::{copy_companions, load_adapter};
use crate::{Error, Result};

/// Writes `model`, with `adapter` merged into it where one is given, as a new directory that transformers loads, with the files of
/// its tokenizer. Weights are in `dtype`, or in the one the first of them is stored in.
///
/// # Errors
/// `out` exists already or cannot be written; files that are missing, damaged or do not fit.
pub fn export(model: &Path, adapter: Option<&Path>, out: &Path, dtype: Option<DType>) -> Result<()> {
    let directory = LmDir::open(model)?;
    let adapter = adapter.map(load_adapter).transpose()?;
    let checkpoint = Checkpoint {
        path: directory.path(),
        weights: &directory.weights()?,
        config: directory.config(),
    };
    let merged = adapter.map(|adapter| {
        let directory = &directory;
        move |dtype| Ok(directory.merged(&adapter, dtype)?)
    });
    write_merged(&checkpoint, (out, dtype), merged, |dir, config, tensors, dtype| {
        Ok(lm::save(dir, config, (tensors, dtype))?)
    })
}

/// A checkpoint that is written anew, whose configuration is a `C`.
#[derive(Debug)]
pub struct Checkpoint<'a, C> {
    /// Its directory, with the files that are copied.
    pub path: &'a Path,
    /// Its tensors.
    pub weights: &'a Weights,
    /// Its configuration.
    pub config: &'a C,
}

/// Writes a checkpoint, or what `merged` makes of it, into the new directory `out` in `dtype` or the type it has, by `save`.
///
/// # Errors
/// Those of [`export()`] and of `merged` and `save`.
pub fn write_merged<C: Clone>(
    checkpoint: &Checkpoint<'_, C>,
    (out, dtype): (&Path, Option<DType>),
    merged: Option<impl FnOnce(DType) -> Result<(C, BTreeMap<String, Tensor>)>>,
    save: impl FnOnce(&Path, &C, &BTreeMap<String, Tensor>, DType) -> Result<()>,
) -> Result<()> {
    let weights = checkpoint.weights;
    let stored = weights.names().next().and_then(|first| weights.dtype(first));
    let dtype = dtype.or(stored).unwrap_or(DType::F32);
    let (config, tensors) = if let Some(merged) = merged {
        merged(dtype)?
    } else {
        let read = |name: &str| -> Result<(String, Tensor)> {
            Ok((name.to_owned(), weights.read(name, dtype, &Device::Cpu)?))
        };
        let tensors: Result<BTreeMap<_, _>> = weights.names().map(read).collect();
        (checkpoint.config.clone(), tensors?)
    };
    write_directory::<Error>(out, |partial| {
        save(partial, &config, &tensors, dtype)?;
        copy_companions(checkpoint.path, partial)
    })
}
