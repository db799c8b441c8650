//! The networks of a pipeline, each loaded on its own: a run reads only what it needs.

use std::path::Path;
use std::sync::Arc;

use diptych_models::diffusers::PipelineDir;
use diptych_models::lora::{self, LoraAdapter};
use diptych_models::unet::{AddedConditions, UNet2DConditionModel, UserAttention, UserAttentionOptions};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{AdapterSwitch, Builder, BuilderConfig, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Params, Tensor};

use super::network::{DenoiserConfig, Network, denoiser_component};
use super::{Conditioning, flux, sd3, sizes};
use crate::schedule::{FlowSpacing, NoiseSchedule};
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
    network: Network,
    /// How it attends to users, where it does.
    users: Option<Arc<UserAttention>>,
    config: DenoiserConfig,
    component: &'static str,
    schedule: NoiseSchedule,
    device: Device,
    dtype: DType,
}

impl Denoiser {
    /// Loads `unet/` or `transformer/`, and `scheduler/` of a pipeline, and says which of its parameters are trained.
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
        let component = denoiser_component(pipeline);
        let config = DenoiserConfig::read(pipeline)?;
        let weights = pipeline.component(component)?.weights()?;
        let builder = options.builder(&weights, trainable, adapter, "")?;
        let network = config.load(&builder)?;
        let params = builder.finish()?;
        let mut schedule = NoiseSchedule::read(pipeline.component("scheduler")?.path())?;
        if let (Network::Flux(_), NoiseSchedule::Flow(flow)) = (&network, &schedule) {
            schedule = NoiseSchedule::Flow(flow.clone().with_spacing(FlowSpacing::Unit));
        }
        let denoiser = Self {
            network,
            users: None,
            config,
            component,
            schedule,
            device: options.device.clone(),
            dtype: options.dtype,
        };
        Ok((denoiser, params))
    }

    /// The same network with attention to users, new or from where a file ends, which is trained.
    ///
    /// # Errors
    /// [`Error::Conditioning`] for a network without such layers; what [`UserAttention::fresh`] and [`UserAttention::start`] refuse.
    pub(crate) fn with_trained_users(
        self,
        dim: usize,
        start: Option<&Path>,
        options: &NetworkOptions,
    ) -> Result<(Self, Params)> {
        let (network, own) = (self.cross_attending()?, user_options(options));
        let (users, params) = match start {
            None => UserAttention::fresh(network, dim, &own)?,
            Some(path) => UserAttention::start(network, path, &own)?,
        };
        Ok((self.with_users(users), params))
    }

    /// The same network with the attention to users of a file, frozen.
    ///
    /// # Errors
    /// As [`Denoiser::with_trained_users`].
    pub(crate) fn with_frozen_users(self, path: &Path, options: &NetworkOptions) -> Result<Self> {
        let users = UserAttention::frozen(self.cross_attending()?, path, &user_options(options))?;
        Ok(self.with_users(users))
    }

    fn with_users(self, users: UserAttention) -> Self {
        Self {
            users: Some(Arc::new(users)),
            ..self
        }
    }

    fn cross_attending(&self) -> Result<&UNet2DConditionModel> {
        match &self.network {
            Network::UNet(unet) => Ok(unet),
            Network::Sd3(_) | Network::Flux(_) => Err(Error::Conditioning {
                name: "users",
                problem: "are for UNets: a transformer attends to text and image together",
            }),
        }
    }

    /// How the network attends to users, where it does.
    pub fn users(&self) -> Option<&UserAttention> {
        self.users.as_deref()
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// What the network looks like.
    pub fn config(&self) -> &DenoiserConfig {
        &self.config
    }

    /// The component of the pipeline that it was loaded from: `unet` or `transformer`.
    pub fn component(&self) -> &'static str {
        self.component
    }

    /// The switch of the network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        self.network.adapter_switch()
    }

    /// Which blocks' activations the backward pass recomputes instead of keeping them.
    pub fn set_gradient_checkpointing(&mut self, policy: CheckpointPolicy) {
        *self.network.checkpointing_mut() = policy;
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
    /// [`Error::Config`] when the network's `config.json` does not say it.
    pub fn latent_shape(&self) -> Result<[usize; 3]> {
        let [y, x] = self.config.sample_size()?;
        Ok([self.config.latent_channels().0, y, x])
    }

    /// Whether guidance of this strength needs a prediction without the prompt too.
    pub fn is_doubled(&self, guidance_scale: f64) -> bool {
        guidance_scale > 1.0 && !self.network.takes_guidance()
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
        if !matches!(&self.network, Network::UNet(_)) {
            refused(conditioning.time_ids.is_some(), "time_ids")?;
        }
        refused(conditioning.users.is_some() && self.users.is_none(), "users")?;
        refused(
            conditioning.guidance.is_some() && !self.network.takes_guidance(),
            "guidance",
        )?;
        let input = (&noisy_latents, &timesteps);
        match &self.network {
            Network::UNet(unet) => {
                let text = cast(&conditioning.encoder_hidden_states, self.dtype)?;
                let added = added(unet, conditioning)?;
                let users = self.users.as_ref().zip(conditioning.users.as_ref());
                Ok(unet.forward_for(&noisy_latents, &timesteps, &text, (added.as_ref(), users))?)
            }
            Network::Sd3(network) => sd3::predict(network, input, conditioning, self.dtype),
            Network::Flux(network) => flux::predict(network, input, conditioning, self.dtype),
        }
    }

    /// With the sizes of whole images of `[height, width]` pixels, where the network takes sizes and they are not there yet.
    ///
    /// # Errors
    /// [`Error::Conditioning`] for a network that takes other numbers, as SDXL's refiner, which asks for an aesthetic score.
    pub fn sized(&self, conditioning: Conditioning, image_size: [usize; 2]) -> Result<Conditioning> {
        let Some(config) = self.config.unet().and_then(|config| config.addition_embed) else {
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
        let time_ids = matrix(&numbers, sizes::NUM_NUMBERS, &self.device)?;
        Ok(conditioning.with_time_ids(time_ids))
    }
}

fn user_options(options: &NetworkOptions) -> UserAttentionOptions {
    UserAttentionOptions {
        device: options.device.clone(),
        dtype: options.dtype,
        seed: options.seed,
    }
}

fn refused(is_given: bool, name: &'static str) -> Result<()> {
    let problem = "is not taken by this network";
    if is_given {
        Err(Error::Conditioning { name, problem })
    } else {
        Ok(())
    }
}

/// The conditions that a UNet adds to the time embedding, all of them or none.
fn added(unet: &UNet2DConditionModel, conditioning: &Conditioning) -> Result<Option<AddedConditions>> {
    let wrong = |name, problem| Err(Error::Conditioning { name, problem });
    let (unused, missing) = (
        "is not taken by this network",
        "is missing, as the network's `addition_embed_type` is \"text_time\"",
    );
    let is_added = unet.config().addition_embed.is_some();
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
    /// What the files that do not name their network are said to be for.
    const UNNAMED: &str = "unet";
    let other = lora::parts(path)?
        .into_iter()
        .find(|part| part != component && part != UNNAMED);
    match other {
        Some(part) => Err(Error::AdapterParts {
            path: path.to_path_buf(),
            part,
        }),
        None => Ok(LoraAdapter::load(path, component)?),
    }
}

fn matrix(values: &[f32], width: usize, device: &Device) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::from_slice(values, (values.len() / width, width), device)?)
}

fn column(values: &[f32], device: &Device) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::from_slice(values, values.len(), device)?)
}
