//! What makes the networks a run has trained a pipeline that can be used on its own.

use std::fs;
use std::path::Path;

use crate::{Error, Result};

/// Copies into `directory` what it lacks of the pipeline `model`. A component that is there already is left as it is.
pub(crate) fn complete(model: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(io("create", directory))?;
    for entry in fs::read_dir(model).map_err(io("read", model))? {
        let source = entry.map_err(io("read", model))?.path();
        let Some(name) = source.file_name() else { continue };
        let target = directory.join(name);
        if target.exists() || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if source.is_dir() {
            complete(&source, &target)?;
        } else {
            fs::copy(&source, &target).map_err(io("copy", &source))?;
        }
    }
    Ok(())
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}
