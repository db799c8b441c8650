//! What can go wrong in this crate.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of a tensor operation, a device, a file or a parameter set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// candle refused an operation.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// Operands do not fit together.
    #[error("{op}: {what}: found {found}, expected {expected}")]
    Operand {
        /// The operation.
        op: &'static str,
        /// Which operand or property.
        what: &'static str,
        /// What was given.
        found: String,
        /// What fits.
        expected: String,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// `read`, `write`, `create` …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A safetensors file is damaged or not one.
    #[error("{path} is not a whole safetensors file: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that was asked for is not in the file.
    #[error("{path} has no tensor `{name}`{hint}")]
    MissingTensor {
        /// The file or directory.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// Nearest names, as a clause, or nothing.
        hint: String,
    },
    /// A tensor does not have the shape the network needs.
    #[error("tensor `{name}` of {path} has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The file or directory, or where the tensor came from.
        path: PathBuf,
        /// Its name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the network needs.
        expected: Vec<usize>,
    },
    /// Two trainable parameters have one name.
    #[error("two trainable parameters are called `{name}`")]
    DuplicateParameter {
        /// The name.
        name: String,
    },
    /// A set of named tensors does not match the trainable parameters.
    #[error("{what}: missing {missing:?}, unknown {unknown:?}")]
    ParameterNames {
        /// What was being matched.
        what: &'static str,
        /// Parameters without a tensor (at most eight are named).
        missing: Vec<String>,
        /// Tensors without a parameter (at most eight are named).
        unknown: Vec<String>,
    },
    /// Trainable parameters that a backward pass did not reach.
    #[error("{count} of {total} trainable parameters got no gradient: {names}")]
    SilentParameters {
        /// How many.
        count: usize,
        /// Out of how many.
        total: usize,
        /// Their names, the first eight.
        names: String,
    },
    /// A device that was asked for cannot be used.
    #[error("device `{device}` cannot be used: {reason}")]
    Device {
        /// As written by the user.
        device: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread with a stack of {stack_bytes} bytes: {source}")]
    Thread {
        /// Stack asked for, in bytes.
        stack_bytes: usize,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the user's configuration is at fault: a device that this program or machine does not have.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Device { .. })
    }
}

impl From<Error> for candle_core::Error {
    /// For closures that candle calls: the typed error stays the source.
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            other => candle_core::Error::wrap(other),
        }
    }
}
