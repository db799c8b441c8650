//! Noise schedules, denoising errors, samplers and alignment methods for image diffusion.
mod error;
pub mod sampler;
pub mod schedule;
pub use error::{Error, Result};
