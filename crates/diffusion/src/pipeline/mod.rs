//! Pipelines: text to images.

mod components;
mod conditioning;
mod embeddings;
mod export;
mod flux;
mod generate;
mod guidance;
mod network;
mod prompts;
mod sd3;
pub(crate) mod sizes;
mod text;
mod users;

use std::path::Path;

use diptych_models::diffusers::PipelineDir;
use diptych_models::vae::AutoencoderKl;
use diptych_models::{AdapterSwitch, SwitchGuard, Trainable};
use diptych_tensor::Tensor;

pub(crate) use components::load_adapter;
pub use components::{Checkpointing, Denoiser, NetworkOptions, load_vae};
pub use conditioning::Conditioning;
pub use embeddings::PromptEmbeddings;
pub use export::{export, export_network};
pub use flux::FluxConditioner;
pub(crate) use generate::{ImageSampler, NoiseSet, SampleSizes, generate_candidates};
pub use generate::{SampleConfig, generate, generate_with, image_tokens};
pub use guidance::Guided;
pub use network::{DenoiserConfig, Network, denoiser_component};
pub use prompts::TextConditioner;
pub use sd3::Sd3Conditioner;
pub use text::ClipConditioner;
pub use users::UserEmbeddings;
pub(crate) use users::{USER_ATTENTION_FILE, USERS_FILE, for_rows};

use crate::{Error, Result};

/// Every network of a text-to-image pipeline, frozen.
#[derive(Debug)]
pub struct Pipeline {
    /// Noise and text to less noise.
    pub denoiser: Denoiser,
    /// Prompts to embeddings.
    pub text: TextConditioner,
    /// Latents to images.
    pub vae: AutoencoderKl,
    /// Who predicts without the prompt where guidance does, if another network than the denoiser: see [`Pipeline::with_negative`].
    pub negative: Option<Denoiser>,
    /// Who images are for, (S, width of users): see [`Pipeline::for_user`].
    pub user: Option<Tensor>,
}

impl Pipeline {
    /// Loads a directory in diffusers layout; `adapter` is one of its denoiser, in any layout that [`diptych_models::lora`] reads, or a directory with
    /// `user_attention.safetensors`.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit; values that are not implemented.
    pub fn load(path: &Path, adapter: Option<&Path>, options: &NetworkOptions) -> Result<Self> {
        let directory = PipelineDir::open(path)?;
        let users = adapter
            .map(|path| path.join(USER_ATTENTION_FILE))
            .filter(|path| path.is_file());
        let adapter = adapter
            .filter(|_| users.is_none())
            .map(|path| load_adapter(path, denoiser_component(&directory)))
            .transpose()?;
        let (mut denoiser, _) = Denoiser::load(&directory, options, Trainable::None, adapter.as_ref())?;
        if let Some(path) = users {
            denoiser = denoiser.with_frozen_users(&path, options)?;
        }
        let (text, _) = TextConditioner::load(&directory, options, Trainable::None, None)?;
        let (vae, _) = load_vae(&directory, options, Trainable::None)?;
        Ok(Self {
            denoiser,
            text,
            vae,
            negative: None,
            user: None,
        })
    }

    /// The same for a mixture of users, of whom `adapter`, the one that the pipeline was loaded with, has the embeddings. Without a user a network
    /// that attends to users is the network that it was made of.
    ///
    /// # Errors
    /// [`Error::Conditioning`] for a pipeline that attends to no user; [`Error::Users`] for users that are not there.
    pub fn for_user(self, adapter: &Path, users: &[(String, f64)]) -> Result<Self> {
        let (name, problem) = ("users", "are nothing that this adapter attends to");
        let attention = self.denoiser.users().ok_or(Error::Conditioning { name, problem })?;
        let embeddings = UserEmbeddings::read(&adapter.join(USERS_FILE))?;
        if embeddings.shape()[1] != attention.dim() {
            return Err(Error::Users {
                path: embeddings.file().to_path_buf(),
                problem: format!(
                    "has users of width {}, and the network attends to {}",
                    embeddings.shape()[1],
                    attention.dim()
                ),
            });
        }
        let user = embeddings.mixture(users, self.denoiser.device())?;
        Ok(Self {
            user: Some(user),
            ..self
        })
    }

    /// The same, steering away from what an adapter of the same denoiser has learned: guidance takes the prediction without the prompt from the
    /// denoiser with this adapter (Diffusion-NPO; trained with `labels = "swapped"` of `[method.offline_pairs]`). `path` is that of the pipeline.
    ///
    /// # Errors
    /// As [`Pipeline::load`]; [`Error::Conditioning`] for a denoiser that takes the strength of guidance as an input, which makes no
    /// prediction without the prompt.
    pub fn with_negative(self, path: &Path, adapter: &Path, options: &NetworkOptions) -> Result<Self> {
        if self.denoiser.network().takes_guidance() {
            return Err(Error::Conditioning {
                name: "guidance",
                problem: "is an input of this network: there is no prediction without the prompt that an adapter could replace",
            });
        }
        let directory = PipelineDir::open(path)?;
        let adapter = load_adapter(adapter, denoiser_component(&directory))?;
        let (negative, _) = Denoiser::load(&directory, options, Trainable::None, Some(&adapter))?;
        Ok(Self {
            negative: Some(negative),
            ..self
        })
    }

    /// Turns the adapter off while the guard lives, which gives the base model.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        self.denoiser.adapter_switch()
    }

    /// Turns off all adapters while the guards live, that of a network to steer away from among them: what is sampled then is the base model's.
    #[must_use = "adapters are on again as soon as the guards are dropped"]
    pub fn switch_off(&self) -> Vec<SwitchGuard> {
        let negative = self.negative.iter().map(Denoiser::adapter_switch);
        std::iter::once(self.adapter_switch())
            .chain(negative)
            .map(AdapterSwitch::disable)
            .collect()
    }

    /// Width and height of the images, pixels.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when `unet/config.json` has no `sample_size`.
    pub fn image_size(&self) -> Result<(u32, u32)> {
        let [_, y, x] = self.denoiser.latent_shape()?;
        let factor = self.vae.downscale();
        Ok(((x * factor) as u32, (y * factor) as u32))
    }
}

/// A part of the conditioning that the network needs.
fn required<'a>(part: Option<&'a Tensor>, name: &'static str) -> Result<&'a Tensor> {
    let problem = "is missing, and this network needs it";
    part.ok_or(Error::Conditioning { name, problem })
}
