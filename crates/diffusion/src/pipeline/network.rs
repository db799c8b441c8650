//! The network that denoises: a UNet, or a transformer of a flow.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_models::diffusers::PipelineDir;
use diptych_models::flux::{FluxTransformer2DConfig, FluxTransformer2DModel};
use diptych_models::mmdit::{SD3Transformer2DConfig, SD3Transformer2DModel};
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::{AdapterSwitch, Builder};
use diptych_tensor::{CheckpointPolicy, Tensor};
use serde_json::Value;

use super::flux::DEFAULT_LATENT_SIDE;
use crate::{Error, Result};

/// What a pipeline's denoiser looks like, read without its weights.
#[derive(Debug, Clone)]
pub struct DenoiserConfig {
    file: PathBuf,
    kind: ConfigKind,
}

#[derive(Debug, Clone)]
enum ConfigKind {
    UNet(Box<UNet2DConditionConfig>),
    Sd3(SD3Transformer2DConfig),
    Flux(FluxTransformer2DConfig),
}

/// The component of a pipeline that denoises: `unet`, or `transformer` where there is one.
pub fn denoiser_component(pipeline: &PipelineDir) -> &'static str {
    const TRANSFORMER: &str = "transformer";
    if pipeline.has(TRANSFORMER) { TRANSFORMER } else { "unet" }
}

impl DenoiserConfig {
    /// Reads the `config.json` of a pipeline's denoiser.
    ///
    /// # Errors
    /// Files that are missing or damaged; classes of transformers and values that are not implemented.
    pub fn read(pipeline: &PipelineDir) -> Result<Self> {
        let name = denoiser_component(pipeline);
        let component = pipeline.component(name)?;
        let file = component.config();
        let kind = match (name, component.class_name().unwrap_or_default()) {
            ("unet", _) => ConfigKind::UNet(Box::new(UNet2DConditionConfig::from_file(&file)?)),
            (_, "SD3Transformer2DModel") => ConfigKind::Sd3(SD3Transformer2DConfig::from_file(&file)?),
            (_, "FluxTransformer2DModel") => ConfigKind::Flux(FluxTransformer2DConfig::from_file(&file)?),
            (_, other) => {
                return Err(Error::Config {
                    file: pipeline.path().join("model_index.json"),
                    key: name.into(),
                    found: other.into(),
                    expected: "SD3Transformer2DModel or FluxTransformer2DModel".into(),
                });
            }
        };
        Ok(Self { file, kind })
    }

    /// The file it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// That of a `UNet2DConditionModel`, for what no transformer has.
    pub fn unet(&self) -> Option<&UNet2DConditionConfig> {
        match &self.kind {
            ConfigKind::UNet(config) => Some(config),
            ConfigKind::Sd3(_) | ConfigKind::Flux(_) => None,
        }
    }

    /// Channels of the latents, and the key they follow from.
    pub fn latent_channels(&self) -> (usize, &'static str) {
        match &self.kind {
            ConfigKind::UNet(config) => (config.in_channels, "`in_channels`"),
            ConfigKind::Sd3(config) => (config.in_channels, "`in_channels`"),
            // Squares of two by two latents are one token.
            ConfigKind::Flux(config) => (config.in_channels / 4, "a quarter of `in_channels`"),
        }
    }

    /// Height and width of the latents that the network was made for. Flux's files do not say it; diffusers' pipeline does.
    ///
    /// # Errors
    /// [`Error::Config`] for a UNet whose file does not say it.
    pub fn sample_size(&self) -> Result<[usize; 2]> {
        match &self.kind {
            ConfigKind::UNet(config) => config.sample_size.ok_or_else(|| Error::Config {
                file: self.file.clone(),
                key: "sample_size".into(),
                found: "missing".into(),
                expected: "the height and width of the latents".into(),
            }),
            ConfigKind::Sd3(config) => Ok([config.sample_size; 2]),
            ConfigKind::Flux(_) => Ok([DEFAULT_LATENT_SIDE; 2]),
        }
    }

    /// Sides of latents are multiples of this.
    pub fn latent_multiple(&self) -> usize {
        match &self.kind {
            ConfigKind::UNet(_) => 1,
            ConfigKind::Sd3(config) => config.patch_size,
            ConfigKind::Flux(_) => 2,
        }
    }

    /// Whether the strength of guidance is an input, so that guidance needs no prediction without the prompt.
    pub fn takes_guidance(&self) -> bool {
        match &self.kind {
            ConfigKind::UNet(_) | ConfigKind::Sd3(_) => false,
            ConfigKind::Flux(config) => config.guidance_embeds,
        }
    }

    /// Width of the text, and its key.
    pub fn text_dim(&self) -> (usize, &'static str) {
        match &self.kind {
            ConfigKind::UNet(config) => (
                config.cross_attention_dim.first().copied().unwrap_or(0),
                "cross_attention_dim",
            ),
            ConfigKind::Sd3(config) => (config.joint_attention_dim, "joint_attention_dim"),
            ConfigKind::Flux(config) => (config.joint_attention_dim, "joint_attention_dim"),
        }
    }

    /// Width of the pooled text, where the network takes one.
    pub fn pooled_dim(&self) -> Option<usize> {
        match &self.kind {
            ConfigKind::UNet(_) => None,
            ConfigKind::Sd3(config) => Some(config.pooled_projection_dim),
            ConfigKind::Flux(config) => Some(config.pooled_projection_dim),
        }
    }

    /// The network at the builder's place.
    pub(super) fn load(&self, builder: &Builder<'_>) -> Result<Network> {
        Ok(match &self.kind {
            ConfigKind::UNet(config) => Network::UNet(Box::new(UNet2DConditionModel::load(builder, config)?)),
            ConfigKind::Sd3(config) => Network::Sd3(Box::new(SD3Transformer2DModel::load(builder, config)?)),
            ConfigKind::Flux(config) => Network::Flux(Box::new(FluxTransformer2DModel::load(builder, config)?)),
        })
    }
}

/// A denoising network of one of the kinds that pipelines have.
#[derive(Debug)]
pub enum Network {
    /// Stable Diffusion 1.x, 2.x and SDXL.
    UNet(Box<UNet2DConditionModel>),
    /// Stable Diffusion 3 and 3.5.
    Sd3(Box<SD3Transformer2DModel>),
    /// Flux.
    Flux(Box<FluxTransformer2DModel>),
}

impl Network {
    /// The switch of its adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        match self {
            Self::UNet(network) => network.adapter_switch(),
            Self::Sd3(network) => network.adapter_switch(),
            Self::Flux(network) => network.adapter_switch(),
        }
    }

    /// Which blocks' activations the backward pass recomputes.
    pub fn gradient_checkpointing(&self) -> CheckpointPolicy {
        match self {
            Self::UNet(network) => network.gradient_checkpointing,
            Self::Sd3(network) => network.gradient_checkpointing,
            Self::Flux(network) => network.gradient_checkpointing,
        }
    }

    pub(super) fn checkpointing_mut(&mut self) -> &mut CheckpointPolicy {
        match self {
            Self::UNet(network) => &mut network.gradient_checkpointing,
            Self::Sd3(network) => &mut network.gradient_checkpointing,
            Self::Flux(network) => &mut network.gradient_checkpointing,
        }
    }

    /// The `config.json` that diffusers reads.
    pub fn config_json(&self) -> Value {
        match self {
            Self::UNet(network) => network.config().to_json(),
            Self::Sd3(network) => network.config().to_json(),
            Self::Flux(network) => network.config().to_json(),
        }
    }

    /// Tensors of the weight file that are no parameters.
    pub fn buffers(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::UNet(_) | Self::Flux(_) => BTreeMap::new(),
            Self::Sd3(network) => network.buffers(),
        }
    }

    /// Whether the strength of guidance is an input, so that guidance needs no prediction without the prompt.
    pub fn takes_guidance(&self) -> bool {
        match self {
            Self::UNet(_) | Self::Sd3(_) => false,
            Self::Flux(network) => network.config().guidance_embeds,
        }
    }
}
