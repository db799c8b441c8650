//! What can go wrong in this crate.

/// Failure of vision-language training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be used.
    #[error("`{key}` is {found}; expected {expected}")]
    Setting {
        /// Its key.
        key: String,
        /// Its value.
        found: String,
        /// What it may be.
        expected: String,
    },
}

/// Result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
