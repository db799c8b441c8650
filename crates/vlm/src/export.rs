//! Checkpoints written anew: with an adapter merged in, in another number format.

use std::path::Path;

use diptych_llm::{Checkpoint, write_merged};
use diptych_models::vlm::{self, VlmDir};
use diptych_tensor::DType;

use crate::Result;

/// Writes `model`, with `adapter` merged into it where one is given, as a new directory that transformers loads, with the files of
/// tokenizer and image processor. Weights are in `dtype`, or in the one the first of them is stored in.
///
/// # Errors
/// `out` exists already or cannot be written; files that are missing, damaged or do not fit.
pub fn export(model: &Path, adapter: Option<&Path>, out: &Path, dtype: Option<DType>) -> Result<()> {
    let directory = VlmDir::open(model)?;
    let adapter = adapter.map(|path| directory.adapter(path)).transpose()?;
    let checkpoint = Checkpoint {
        path: directory.path(),
        weights: &directory.weights()?,
        config: directory.config(),
    };
    let merged = adapter.map(|adapter| {
        let directory = &directory;
        move |dtype| Ok(directory.merged(&adapter, dtype)?)
    });
    Ok(write_merged(
        &checkpoint,
        (out, dtype),
        merged,
        |dir, config, tensors, dtype| Ok(vlm::save(dir, config, (tensors, dtype))?),
    )?)
}
