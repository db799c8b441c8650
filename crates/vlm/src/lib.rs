//! Image prompts, visual corruption and alignment methods for vision-language models.

pub mod corruption;
mod error;

pub use error::{Error, Result};
