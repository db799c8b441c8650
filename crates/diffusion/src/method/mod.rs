//! Methods: how the numbers for an objective are obtained.

mod autoencoder;
mod cache;
mod checks;
mod complete;
mod config;
mod consistency;
mod curriculum;
mod denoising_records;
mod draws;
mod encode;
mod inverted_noise;
mod offline_pairs;
mod online;
mod preference_model;
mod preferences;
mod prepare;
mod ranked;
mod records;
mod reference;
mod scoring;
mod sft;
mod shift;
mod showcase;
mod single_images;
mod source;
mod timesteps;
mod trained;
mod unpaired;
mod users;

use std::path::{Path, PathBuf};

use diptych_tensor::Params;
use diptych_train::{Item, Method, MicroBatch, StepOutput};

pub use autoencoder::Autoencoder;
pub(crate) use checks::{CHECKPOINT, validate_method};
pub(crate) use complete::complete;
pub use config::{
    AutoencoderConfig, Baseline, CurriculumConfig, GapKind, InversionConfig, ListNoise, ListScores, MethodConfig,
    OfflinePairsConfig, PairLabels, PairNoise, Pools, PosteriorUse, RankedConfig, Reconstruction, SftConfig,
    UnpairedConfig, UsersConfig,
};
pub(crate) use consistency::teacher_key;
pub use consistency::{ConsistencyConfig, ConsistencySolver, ConsistencyTarget, ImageError, TeacherConfig};
pub use offline_pairs::OfflinePairs;
pub(crate) use online::judge_files;
pub use online::{
    AdvantageConfig, Continuation, DirectRewardConfig, GradientGuidance, GradientSpan, JudgeReward, Online,
    PolicyGradientConfig, ReuseConfig, Reward, RewardLoss, RolloutConfig, StepAwareConfig, StepDivergence,
    TrajectoryPairsConfig,
};
pub use preference_model::{Negatives, PreferenceModel, PreferenceModelConfig, RecordWeights, StepAwareTrainingConfig};
pub(crate) use preference_model::{PIPELINE, pipeline_of};
pub(crate) use prepare::network_options;
pub use prepare::{cache_records, prepare, prepare_with_reward};
pub use ranked::Ranked;
pub use sft::Sft;
pub(crate) use showcase::shown;
pub(crate) use source::{load as load_records, validate as validate_data};
pub use timesteps::TimestepConfig;
pub(crate) use trained::{TextTraining, TrainedDenoiser, load_frozen};
pub use unpaired::Unpaired;
pub(crate) use users::{EMBEDDINGS, INIT};

use crate::{Error, Result};

/// A method with its networks and records, ready for the loop.
#[derive(Debug)]
pub enum DiffusionMethod {
    /// See [`OfflinePairs`].
    OfflinePairs(Box<OfflinePairs>),
    /// See [`Unpaired`].
    Unpaired(Box<Unpaired>),
    /// See [`Ranked`].
    Ranked(Box<Ranked>),
    /// See [`Sft`].
    Sft(Box<Sft>),
    /// See [`Autoencoder`].
    Autoencoder(Box<Autoencoder>),
    /// See [`Online`].
    Online(Box<Online>),
    /// See [`PreferenceModel`].
    PreferenceModel(Box<PreferenceModel>),
}

impl DiffusionMethod {
    /// The denoiser that is trained, if one is.
    pub(crate) fn policy(&self) -> Option<&TrainedDenoiser> {
        match self {
            Self::OfflinePairs(method) => Some(&method.policy),
            Self::Unpaired(method) => Some(&method.policy),
            Self::Ranked(method) => Some(&method.policy),
            Self::Sft(method) => Some(&method.policy),
            Self::Autoencoder(_) | Self::PreferenceModel(_) => None,
            Self::Online(method) => Some(method.policy()),
        }
    }
}

/// Calls the same function of whichever method it is.
macro_rules! forward {
    ($self:ident, $method:ident => $call:expr) => {
        match $self {
            DiffusionMethod::OfflinePairs($method) => $call,
            DiffusionMethod::Unpaired($method) => $call,
            DiffusionMethod::Ranked($method) => $call,
            DiffusionMethod::Sft($method) => $call,
            DiffusionMethod::Autoencoder($method) => $call,
            DiffusionMethod::Online($method) => $call,
            DiffusionMethod::PreferenceModel($method) => $call,
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

    fn choose(&self, seed: u64, step: u64, item: Item) -> usize {
        forward!(self, method => method.choose(seed, step, item))
    }

    fn buckets(&self) -> Option<Vec<usize>> {
        forward!(self, method => method.buckets())
    }

    fn updates_per_batch(&self) -> u64 {
        forward!(self, method => method.updates_per_batch())
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

    fn after_step(&self, step: u64) -> Result<()> {
        forward!(self, method => method.after_step(step))
    }

    fn save_state(&self, path: &Path) -> Result<bool> {
        forward!(self, method => method.save_state(path))
    }

    fn load_state(&self, path: &Path) -> Result<()> {
        forward!(self, method => method.load_state(path))
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        forward!(self, method => method.sample(stem))
    }
}
