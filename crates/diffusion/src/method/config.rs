//! `[method.*]` of a diffusion recipe.

use std::path::PathBuf;

use diptych_eval::Judge;
use serde::{Deserialize, Serialize};

use super::consistency::{ConsistencyConfig, ImageError};
use super::online::{DirectRewardConfig, PolicyGradientConfig, StepAwareConfig, TrajectoryPairsConfig};
use super::preference_model::PreferenceModelConfig;
use super::timesteps::TimestepConfig;

/// How the objective's numbers are obtained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodConfig {
    /// Denoising errors of stored pairs, with one timestep shared inside a pair.
    OfflinePairs(OfflinePairsConfig),
    /// Denoising errors of images that were each judged good or bad.
    Unpaired(UnpairedConfig),
    /// Denoising errors of ranked lists of images, with one timestep shared inside a list.
    Ranked(RankedConfig),
    /// Denoising of captioned images, or of the chosen side of pairs.
    Sft(SftConfig),
    /// Reconstruction of images by the autoencoder.
    Autoencoder(AutoencoderConfig),
    /// Pairs of trajectories sampled while training, of which a judge prefers one.
    TrajectoryPairs(TrajectoryPairsConfig),
    /// Pairs of candidates for a step of the sampler, ranked by the images that they promise.
    StepAware(StepAwareConfig),
    /// Rewarded trajectories and the probabilities of their steps.
    PolicyGradient(PolicyGradientConfig),
    /// The gradient of a reward through the sampler.
    DirectReward(DirectRewardConfig),
    /// Which of two images is preferred, by a CLIP that becomes a judge.
    PreferenceModel(PreferenceModelConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::OfflinePairs(OfflinePairsConfig::default())
    }
}

impl MethodConfig {
    /// Names in recipes, each with one line.
    pub const DESCRIPTIONS: [(&'static str, &'static str); 10] = [
        (
            "offline_pairs",
            "denoising errors of stored pairs, timestep shared inside a pair, and noise if not said otherwise",
        ),
        (
            "unpaired",
            "denoising errors of images that were each judged good or bad",
        ),
        (
            "ranked",
            "denoising errors of ranked lists, timestep shared inside a list",
        ),
        ("sft", "denoising of captioned images, or of the chosen side of pairs"),
        ("autoencoder", "reconstruction of images by the VAE"),
        (
            "trajectory_pairs",
            "two sampled trajectories a prompt, of which a judge prefers one",
        ),
        (
            "step_aware",
            "sampled candidates for a step, ranked by the images that they promise",
        ),
        (
            "policy_gradient",
            "sampled trajectories and the rewards of their images",
        ),
        ("direct_reward", "the gradient of a reward through the sampler"),
        (
            "preference_model",
            "which of two images is preferred, by a CLIP that becomes a judge",
        ),
    ];

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OfflinePairs(_) => "offline_pairs",
            Self::Unpaired(_) => "unpaired",
            Self::Ranked(_) => "ranked",
            Self::Sft(_) => "sft",
            Self::Autoencoder(_) => "autoencoder",
            Self::TrajectoryPairs(_) => "trajectory_pairs",
            Self::StepAware(_) => "step_aware",
            Self::PolicyGradient(_) => "policy_gradient",
            Self::DirectReward(_) => "direct_reward",
            Self::PreferenceModel(_) => "preference_model",
        }
    }

    /// Whether it samples what it learns from, so that records are prompts.
    pub fn is_online(&self) -> bool {
        match self {
            Self::TrajectoryPairs(_) | Self::StepAware(_) | Self::PolicyGradient(_) | Self::DirectReward(_) => true,
            Self::OfflinePairs(_)
            | Self::Unpaired(_)
            | Self::Ranked(_)
            | Self::Sft(_)
            | Self::Autoencoder(_)
            | Self::PreferenceModel(_) => false,
        }
    }

    /// Strength of guidance that the denoiser is told while training, where the recipe says.
    pub fn told_guidance(&self) -> Option<f64> {
        match self {
            Self::OfflinePairs(config) => config.guidance_scale,
            Self::Unpaired(config) => config.guidance_scale,
            Self::Ranked(config) => config.guidance_scale,
            Self::Sft(config) => config.guidance_scale,
            // Those that sample have it in their `rollout`.
            Self::Autoencoder(_)
            | Self::PreferenceModel(_)
            | Self::TrajectoryPairs(_)
            | Self::StepAware(_)
            | Self::PolicyGradient(_)
            | Self::DirectReward(_) => None,
        }
    }

    /// How consistency distances are computed, where errors are such.
    pub fn consistency(&self) -> Option<&ConsistencyConfig> {
        match self {
            Self::OfflinePairs(config) => config.error.consistency(),
            Self::Sft(config) => config.error.consistency(),
            _ => None,
        }
    }

    /// Who preferred, where the denoiser is told.
    pub fn users(&self) -> Option<&UsersConfig> {
        match self {
            Self::OfflinePairs(config) => config.users.as_ref(),
            _ => None,
        }
    }

    /// Who judges what an online method samples, where the recipe says.
    pub fn judge(&self) -> Option<&Judge> {
        match self {
            Self::TrajectoryPairs(config) => config.judge.as_ref(),
            Self::StepAware(config) => config.judge.as_ref(),
            Self::PolicyGradient(config) => config.judge.as_ref(),
            Self::DirectReward(config) => config.judge.as_ref(),
            Self::OfflinePairs(_)
            | Self::Unpaired(_)
            | Self::Ranked(_)
            | Self::Sft(_)
            | Self::Autoencoder(_)
            | Self::PreferenceModel(_) => None,
        }
    }

    /// Whether `model.path` is a pipeline that images are sampled from, so that samples can be shown and compared.
    pub(crate) fn trains_denoiser(&self) -> bool {
        !matches!(self, Self::Autoencoder(_) | Self::PreferenceModel(_))
    }

    /// Optimizer steps on each batch of records.
    pub fn updates_per_batch(&self) -> u64 {
        match self {
            Self::TrajectoryPairs(config) => config.reuse.updates_per_batch(),
            Self::StepAware(config) => config.reuse.updates_per_batch(),
            Self::PolicyGradient(config) => config.reuse.updates_per_batch(),
            _ => 1,
        }
    }
}

/// `[method.offline_pairs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OfflinePairsConfig {
    /// Share of examples whose prompt is replaced by the empty one, so that guidance keeps working. The Diffusion-DPO
    /// authors use 0.2.
    pub prompt_dropout: f64,
    /// Timesteps that are trained.
    pub timesteps: TimestepConfig,
    /// How latents are taken from the autoencoder's posterior.
    pub posterior: PosteriorUse,
    /// Width and height that images are brought to, pixels; by default what the denoiser was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    /// Strength of guidance that a denoiser which takes it as an input (Flux dev) is told while training; such a one is told 3.5 by default. Other
    /// denoisers have no such input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Where the noise of the two images of a pair comes from.
    pub noise: PairNoise,
    /// What the score of an image is minus one half of.
    pub error: ImageError,
    /// Which of the two images is taken for the chosen one.
    pub labels: PairLabels,
    /// Easy pairs first; without the section every pair has its turn in every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub curriculum: Option<CurriculumConfig>,
    /// Who preferred, told to the denoiser: PPD. What is trained is the attention to users alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<UsersConfig>,
}

impl Default for OfflinePairsConfig {
    fn default() -> Self {
        Self {
            prompt_dropout: 0.0,
            timesteps: TimestepConfig::default(),
            posterior: PosteriorUse::default(),
            resolution: None,
            guidance_scale: None,
            noise: PairNoise::default(),
            error: ImageError::default(),
            labels: PairLabels::default(),
            curriculum: None,
            users: None,
        }
    }
}

/// `[method.offline_pairs.users]`: user-conditioned Diffusion-DPO (PPD: Dang et al., CVPR 2025, arXiv:2501.06655). Every record names its user (`user_id`),
/// whose embedding every cross attention of the UNet attends to beside the text. Those layers are new and all that is trained; the reference is the
/// network without them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsersConfig {
    /// Safetensors with one tensor a user, by `user_id`: (D) or (S, D), of one shape.
    pub embeddings: PathBuf,
    /// Share of pairs whose user is replaced by nobody, so that the network is still one for everybody; from 0 to 1.
    #[serde(default = "UsersConfig::dropout")]
    pub dropout: f64,
    /// A result of this method, or its `user_attention.safetensors`, to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

impl UsersConfig {
    /// The paper has such a dropout; how much we have not read.
    fn dropout() -> f64 {
        0.1
    }
}

/// Where the noise of the two images of a pair comes from. The timestep is one in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairNoise {
    /// One draw for both, as in Diffusion-DPO: what differs between their errors is not the noise.
    #[default]
    Shared,
    /// One draw each.
    Independent,
    /// The noise that leads to each image under the policy (`SmPO`-Diffusion), which needs no draw but of a timestep.
    Inverted(InversionConfig),
}

/// `[method.offline_pairs.noise.inverted]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InversionConfig {
    /// Steps from an image to the noisiest timestep, at least 1; the drawn timestep is rounded up to one of these.
    pub steps: usize,
    /// Predictions beside the first that each step is averaged over (`ReNoise`); 0 is plain DDIM inversion.
    pub num_renoise: usize,
}

impl Default for InversionConfig {
    /// The paper's.
    fn default() -> Self {
        Self {
            steps: 9,
            num_renoise: 1,
        }
    }
}

/// Which of the two images of a pair is taken for the chosen one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PairLabels {
    /// The one that the data calls so.
    #[default]
    Given,
    /// The other one: the network learns what to steer away from (Diffusion-NPO: Wang et al., ICLR 2025), and is used for the unconditional branch of
    /// guidance.
    Swapped,
}

/// `[method.offline_pairs.curriculum]`: Curriculum-DPO (Croitoru et al., CVPR 2025, arXiv:2405.13637). Every step draws its pairs, all
/// alike, from a pool that begins with the pairs that are easiest to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CurriculumConfig {
    /// How far apart the images of a pair are.
    pub by: GapKind,
    /// How the pool grows.
    pub pools: Pools,
    /// Stages until the pool holds all pairs, at least 1; 1 draws from all pairs from the start.
    pub num_chunks: u32,
    /// Optimizer steps of a stage, at least 1.
    pub update_every: u64,
}

impl Default for CurriculumConfig {
    fn default() -> Self {
        Self {
            by: GapKind::default(),
            pools: Pools::default(),
            num_chunks: 5,
            update_every: 500,
        }
    }
}

/// How far apart the images of a pair are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapKind {
    /// The difference of a judge's scores.
    #[default]
    ScoreGap,
    /// The difference of their ranks among all images of the prompt.
    RankGap,
}

/// How a curriculum's pool grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pools {
    /// The smallest gap in the pool falls by the same amount each time.
    #[default]
    EqualGaps,
    /// As many pairs join each time.
    EqualCounts,
}

/// `[method.unpaired]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UnpairedConfig {
    /// Share of examples whose prompt is replaced by the empty one, so that guidance keeps working.
    pub prompt_dropout: f64,
    /// Timesteps that are trained.
    pub timesteps: TimestepConfig,
    /// How latents are taken from the autoencoder's posterior.
    pub posterior: PosteriorUse,
    /// Width and height that images are brought to, pixels; by default what the denoiser was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    /// Strength of guidance that a denoiser which takes it as an input (Flux dev) is told while training; such a one is told 3.5 by default. Other
    /// denoisers have no such input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// What the divergence of policy from reference is estimated from, for an objective that subtracts it; `batch_mean` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// Probability that an example is a desirable image, between 0 and 1: examples are then drawn, each label's images all alike, rather than
    /// taken in their turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive_ratio: Option<f64>,
}

/// What the divergence of policy from reference is estimated from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The images of the micro batch, as in Diffusion-KTO.
    #[default]
    BatchMean,
    /// The same noisy images under the prompts of others of the micro batch, as KTO has it for text; a second pass through both networks.
    Mismatched,
}

/// `[method.ranked]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RankedConfig {
    /// Share of lists whose prompt is replaced by the empty one, so that guidance keeps working.
    pub prompt_dropout: f64,
    /// Timesteps that are trained.
    pub timesteps: TimestepConfig,
    /// How latents are taken from the autoencoder's posterior.
    pub posterior: PosteriorUse,
    /// Width and height that images are brought to, pixels; by default what the denoiser was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    /// Strength of guidance that a denoiser which takes it as an input (Flux dev) is told while training; such a one is told 3.5 by default. Other
    /// denoisers have no such input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Where the noise of the images of a list comes from.
    pub noise: ListNoise,
    /// How good an image is to the objective.
    pub scores: ListScores,
}

/// Where the noise of the images of a list comes from. The timestep is one in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListNoise {
    /// One draw each, as in `RankDPO`.
    #[default]
    Independent,
    /// One draw for all.
    Shared,
}

/// How good an image of a list is to the objective. The order of the list is the same for both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListScores {
    /// The share of the list's other images that it is better than: `RankDPO`'s preference probability of one judge.
    #[default]
    Wins,
    /// The score that the data has: preference probabilities averaged over several judges, say.
    Given,
}

/// `[method.sft]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// Share of examples whose prompt is replaced by the empty one, so that guidance works.
    pub prompt_dropout: f64,
    /// Timesteps that are trained.
    pub timesteps: TimestepConfig,
    /// How latents are taken from the autoencoder's posterior.
    pub posterior: PosteriorUse,
    /// Width and height that images are brought to, pixels; by default what the denoiser was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    /// Strength of guidance that a denoiser which takes it as an input (Flux dev) is told while training; such a one is told 3.5 by default. Other
    /// denoisers have no such input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Whether the text encoder is trained too, with SDXL both of them; only with `[adapter.full]`.
    pub train_text_encoder: bool,
    /// What the loss of an image is. Of consistency distances the target must be `own`.
    pub error: ImageError,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            prompt_dropout: 0.1,
            timesteps: TimestepConfig::default(),
            posterior: PosteriorUse::default(),
            resolution: None,
            guidance_scale: None,
            train_text_encoder: false,
            error: ImageError::default(),
        }
    }
}

/// `[method.autoencoder]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderConfig {
    /// How a pixel's error is measured.
    pub reconstruction: Reconstruction,
    /// Weight of the Kullback-Leibler divergence from the standard normal distribution, averaged over latent components,
    /// against the mean error of a pixel.
    pub kl_weight: f64,
    /// Width and height that images are brought to, pixels; by default `sample_size` of `vae/config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self {
            reconstruction: Reconstruction::default(),
            kl_weight: 1e-4,
            resolution: None,
        }
    }
}

/// How a pixel's error is measured, values in `[-1, 1]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconstruction {
    /// Squared.
    #[default]
    Mse,
    /// Absolute: sharper edges.
    L1,
}

/// How latents are taken from the autoencoder's posterior.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PosteriorUse {
    /// A fresh sample every time an image is seen, as the published scripts do.
    #[default]
    Sample,
    /// Its mean.
    Mean,
}
