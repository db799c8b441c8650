//! Checkpoints written anew: with an adapter merged in, in another number format.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_llm::policy::copy_companions;
use diptych_models::vlm::{self, VlmDir};
use diptych_tensor::files::write_directory;
use diptych_tensor::{DType, Device, Tensor};

use crate::{Error, Result};

/// Writes `model`, with `adapter` merged into it where one is given, as a new directory that transformers loads, with the files of
/// tokenizer and image processor. Weights are in `dtype`, or in the one the first of them is stored in.
///
/// # Errors
/// `out` exists already or cannot be written; files that are missing, damaged or do not fit.
pub fn export(model: &Path, adapter: Option<&Path>, out: &Path, dtype: Option<DType>) -> Result<()> {
    let directory = VlmDir::open(model)?;
    let adapter = adapter.map(|path| directory.adapter(path)).transpose()?;
    let weights = directory.weights()?;
    let stored = weights.names().next().and_then(|first| weights.dtype(first));
    let dtype = dtype.or(stored).unwrap_or(DType::F32);
    let (config, tensors) = if let Some(adapter) = &adapter {
        directory.merged(adapter, dtype)?
    } else {
        let read = |name: &str| -> Result<(String, Tensor)> {
            Ok((name.to_owned(), weights.read(name, dtype, &Device::Cpu)?))
        };
        let tensors: Result<BTreeMap<_, _>> = weights.names().map(read).collect();
        (directory.config().clone(), tensors?)
    };
    write_directory::<Error>(out, |partial| {
        vlm::save(partial, &config, (&tensors, dtype))?;
        Ok(copy_companions(directory.path(), partial)?)
    })
}
