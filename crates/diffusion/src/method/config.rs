//! `[method.*]` of a diffusion recipe.

use serde::{Deserialize, Serialize};

use super::timesteps::TimestepConfig;

/// How the objective's numbers are obtained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodConfig {
    /// Denoising errors of stored pairs, with one timestep and one noise shared inside a pair.
    OfflinePairs(OfflinePairsConfig),
    /// Denoising of captioned images, or of the chosen side of pairs.
    Sft(SftConfig),
    /// Reconstruction of images by the autoencoder.
    Autoencoder(AutoencoderConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::OfflinePairs(OfflinePairsConfig::default())
    }
}

impl MethodConfig {
    /// Names in recipes, each with one line.
    pub const DESCRIPTIONS: [(&'static str, &'static str); 3] = [
        (
            "offline_pairs",
            "denoising errors of stored pairs, timestep and noise shared inside a pair",
        ),
        ("sft", "denoising of captioned images, or of the chosen side of pairs"),
        ("autoencoder", "reconstruction of images by the VAE"),
    ];

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OfflinePairs(_) => "offline_pairs",
            Self::Sft(_) => "sft",
            Self::Autoencoder(_) => "autoencoder",
        }
    }
}

/// `[method.offline_pairs]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
}

impl Default for OfflinePairsConfig {
    fn default() -> Self {
        Self {
            prompt_dropout: 0.0,
            timesteps: TimestepConfig::default(),
            posterior: PosteriorUse::default(),
            resolution: None,
        }
    }
}

/// `[method.sft]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
    /// Whether the text encoder is trained too; only with `[adapter.full]`.
    pub train_text_encoder: bool,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            prompt_dropout: 0.1,
            timesteps: TimestepConfig::default(),
            posterior: PosteriorUse::default(),
            resolution: None,
            train_text_encoder: false,
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
