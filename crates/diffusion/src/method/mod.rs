//! Methods: how the numbers for an objective are obtained.

mod autoencoder;
mod complete;
mod config;
mod denoising_records;
mod draws;
mod encode;
mod offline_pairs;
mod prepare;
mod records;
mod sft;
mod showcase;
mod timesteps;
mod trained;

use std::path::{Path, PathBuf};

use diptych_tensor::Params;
use diptych_train::{Method, MicroBatch, StepOutput};

pub use autoencoder::Autoencoder;
pub use config::{AutoencoderConfig, MethodConfig, OfflinePairsConfig, PosteriorUse, Reconstruction, SftConfig};
pub use offline_pairs::OfflinePairs;
pub(crate) use prepare::network_options;
pub use prepare::prepare;
pub use sft::Sft;
pub(crate) use showcase::texts;
pub use timesteps::TimestepConfig;
pub(crate) use trained::TrainedDenoiser;

use crate::{Error, Result};

/// A method with its networks and records, ready for the loop.
#[derive(Debug)]
pub enum DiffusionMethod {
    /// See [`OfflinePairs`].
    OfflinePairs(Box<OfflinePairs>),
    /// See [`Sft`].
    Sft(Box<Sft>),
    /// See [`Autoencoder`].
    Autoencoder(Box<Autoencoder>),
}

impl DiffusionMethod {
    /// The denoiser that is trained, if one is.
    pub(crate) fn policy(&self) -> Option<&TrainedDenoiser> {
        match self {
            Self::OfflinePairs(method) => Some(&method.policy),
            Self::Sft(method) => Some(&method.policy),
            Self::Autoencoder(_) => None,
        }
    }
}

/// Calls the same function of whichever method it is.
macro_rules! forward {
    ($self:ident, $method:ident => $call:expr) => {
        match $self {
            DiffusionMethod::OfflinePairs($method) => $call,
            DiffusionMethod::Sft($method) => $call,
            DiffusionMethod::Autoencoder($method) => $call,
        }
    };
}

impl Method for DiffusionMethod {
    type Error = Error;

    fn params(&self) -> &Params {
        forward!(self, method => method.params())
    }

    fn num_records(&self) -> usize {
        forward!(self, method => method.num_records())
    }

    fn record_id(&self, index: usize) -> String {
        forward!(self, method => method.record_id(index))
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        forward!(self, method => method.step(batch))
    }

    fn save(&self, directory: &Path) -> Result<()> {
        forward!(self, method => method.save(directory))
    }

    fn save_final(&self, directory: &Path) -> Result<()> {
        forward!(self, method => method.save_final(directory))
    }

    fn load(&self, directory: &Path) -> Result<()> {
        forward!(self, method => method.load(directory))
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        forward!(self, method => method.sample(stem))
    }
}
