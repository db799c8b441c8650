//! The networks of a pipeline, each loaded on its own: a run reads only what it needs.

use std::path::{Path, PathBuf};

use diptych_models::diffusers::PipelineDir;
use diptych_models::lora::{self, LoraAdapter};
use diptych_models::unet::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig, Trainable};
use diptych_tensor::{DType, Device, Params, Tensor};

use super::{Conditioning, sizes};
use crate::schedule::NoiseSchedule;
use crate::tensors::cast;
use crate::{Error, Result};

/// Where and how networks are built.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Where they live.
    pub device: Device,
    /// Type of frozen weights and activations.
    pub dtype: DType,
    /// Seed of initial values, for adapters.
    pub seed: u64,
}

impl NetworkOptions {
    pub(super) fn builder<'a>(
        &self,
        weights: &'a diptych_tensor::Weights,
        trainable: Trainable<'a>,
        adapter: Option<&'a LoraAdapter>,
        params_prefix: &'a str,
    ) -> Result<Builder<'a>> {
        Ok(Builder::new(BuilderConfig {
            device: self.device.clone(),
            dtype: self.dtype,
            trainable,
            adapter,
            seed: self.seed,
            params_prefix,
            ..BuilderConfig::new(Some(weights))
        })?)
    }
}

/// A denoiser with its noise schedule.
#[derive(Debug)]
pub struct Denoiser {
    unet: UNet2DConditionModel,
    schedule: NoiseSchedule,
    device: Device,
    dtype: DType,
    config_file: PathBuf,
}

impl Denoiser {
    /// Loads `unet/` and `scheduler/` of a pipeline, and says which of its parameters are trained.
    ///
    /// `adapter` is the starting point when adapters are trained, else attached frozen.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit; values that are not implemented.
    pub fn load(
        pipeline: &PipelineDir,
        options: &NetworkOptions,
        trainable: Trainable<'_>,
        adapter: Option<&LoraAdapter>,
    ) -> Result<(Self, Params)> {
        let component = pipeline.component("unet")?;
        let config = UNet2DConditionConfig::from_file(component.config())?;
        let weights = component.weights()?;
        let builder = options.builder(&weights, trainable, adapter, "")?;
        let unet = UNet2DConditionModel::load(&builder, &config)?;
        let params = builder.finish()?;
        let schedule = NoiseSchedule::read(pipeline.component("scheduler")?.path())?;
        let denoiser = Self {
            unet,
            schedule,
            device: options.device.clone(),
            dtype: options.dtype,
            config_file: component.config(),
        };
        Ok((denoiser, params))
    }

    /// The network.
    pub fn unet(&self) -> &UNet2DConditionModel {
        &self.unet
    }

    /// Whether the backward pass recomputes activations instead of keeping them.
    pub fn set_gradient_checkpointing(&mut self, enabled: Checkpointing) {
        self.unet.gradient_checkpointing = enabled == Checkpointing::On;
    }

    /// The noise schedule.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// Where the network lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Type of frozen weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Channels, height and width of the latents the network was made for.
    ///
    /// # Errors
    /// [`Error::Config`] when `unet/config.json` has no `sample_size`.
    pub fn latent_shape(&self) -> Result<[usize; 3]> {
        let config = self.unet.config();
        let [y, x] = config.sample_size.ok_or_else(|| Error::Config {
            file: self.config_file.clone(),
            key: "sample_size".into(),
            found: "missing".into(),
            expected: "the height and width of the latents".into(),
        })?;
        Ok([config.in_channels, y, x])
    }

    /// The network's answer to noisy latents.
    ///
    /// # Shape
    /// `noisy_latents` and the result (B, C, Y, X), `timesteps` B entries, `conditioning` of B examples. Inputs may be of any
    /// floating type; the result has the type of the activations.
    ///
    /// # Errors
    /// Shapes that do not fit the network; [`Error::Conditioning`] for a part that it does not take.
    pub fn predict(&self, noisy_latents: &Tensor, timesteps: &[f32], conditioning: &Conditioning) -> Result<Tensor> {
        let noisy_latents = cast(noisy_latents, self.dtype)?;
        let timesteps = column(timesteps, &self.device)?;
        let text = cast(&conditioning.encoder_hidden_states, self.dtype)?;
        match self.added(conditioning)? {
            Some(added) => Ok(self.unet.forward_added(&noisy_latents, &timesteps, &text, &added)?),
            None => Ok(self.unet.forward(&noisy_latents, &timesteps, &text)?),
        }
    }

    /// The conditions that the network adds to the time embedding, all of them or none.
    fn added(&self, conditioning: &Conditioning) -> Result<Option<AddedConditions>> {
        let wrong = |name, problem| Err(Error::Conditioning { name, problem });
        let (unused, missing) = (
            "is not taken by this network",
            "is missing, as the network's `addition_embed_type` is \"text_time\"",
        );
        let is_added = self.unet.config().addition_embed.is_some();
        match (is_added, &conditioning.pooled, &conditioning.time_ids) {
            (false, None, None) => Ok(None),
            (true, Some(text_embeds), Some(time_ids)) => Ok(Some(AddedConditions {
                text_embeds: text_embeds.clone(),
                time_ids: time_ids.clone(),
            })),
            (false, Some(_), _) => wrong("pooled", unused),
            (false, None, Some(_)) => wrong("time_ids", unused),
            (true, None, _) => wrong("pooled", missing),
            (true, Some(_), None) => wrong("time_ids", missing),
        }
    }

    /// With the sizes of whole images of `[height, width]` pixels, where the network takes sizes and they are not there yet.
    ///
    /// # Errors
    /// [`Error::Conditioning`] for a network that takes other numbers, as SDXL's refiner, which asks for an aesthetic score.
    pub fn sized(&self, conditioning: Conditioning, image_size: [usize; 2]) -> Result<Conditioning> {
        let Some(config) = self.unet.config().addition_embed else {
            return Ok(conditioning);
        };
        if conditioning.time_ids.is_some() {
            return Ok(conditioning);
        }
        let pooled_dim = conditioning.pooled.as_ref().map_or(0, |pooled| pooled.dims()[1]);
        if !sizes::fit(config, pooled_dim) {
            return Err(Error::Conditioning {
                name: "time_ids",
                problem: "are not original size, crop and target size alone, which is all that is known here",
            });
        }
        let numbers = sizes::time_ids(image_size, [0, 0], image_size).repeat(conditioning.batch_size());
        let time_ids = matrix(numbers, sizes::NUM_NUMBERS, &self.device)?;
        Ok(conditioning.with_time_ids(time_ids))
    }
}

/// Whether activations are recomputed in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpointing {
    /// Recompute them: less memory, about a third more time.
    On,
    /// Keep them.
    Off,
}

impl From<bool> for Checkpointing {
    fn from(enabled: bool) -> Self {
        if enabled { Self::On } else { Self::Off }
    }
}

/// Loads `vae/` of a pipeline: in f32 where it is asked for in f16 and its `force_upcast` is set.
///
/// # Errors
/// Files that are missing, damaged or do not fit; values that are not implemented.
pub fn load_vae(
    pipeline: &PipelineDir,
    options: &NetworkOptions,
    trainable: Trainable<'_>,
) -> Result<(AutoencoderKl, Params)> {
    let component = pipeline.component("vae")?;
    let config = AutoencoderKlConfig::from_file(component.config())?;
    let weights = component.weights()?;
    let mut options = options.clone();
    if config.force_upcast && options.dtype == DType::F16 {
        // diffusers does the same: such an autoencoder overflows in f16.
        options.dtype = DType::F32;
    }
    let builder = options.builder(&weights, trainable, None, "")?;
    let vae = AutoencoderKl::load(&builder, &config)?;
    Ok((vae, builder.finish()?))
}

/// The adapter of one network alone.
///
/// # Errors
/// [`Error::AdapterParts`] when it adapts another network too: leaving that part out would change the images.
pub(crate) fn load_adapter(path: &Path, component: &str) -> Result<LoraAdapter> {
    let other = lora::parts(path)?.into_iter().find(|part| *part != component);
    match other {
        Some(part) => Err(Error::AdapterParts {
            path: path.to_path_buf(),
            part,
        }),
        None => Ok(LoraAdapter::load(path, component)?),
    }
}

fn matrix(values: Vec<f32>, width: usize, device: &Device) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::from_vec(values.clone(), (values.len() / width, width), device)?)
}

fn column(values: &[f32], device: &Device) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), device)?)
}
