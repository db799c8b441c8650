//! Pipelines: text to images.

mod components;
mod conditioning;
mod embeddings;
mod export;
mod generate;
mod guidance;
pub(crate) mod sizes;
mod text;

use std::path::Path;

use diptych_models::diffusers::PipelineDir;
use diptych_models::vae::AutoencoderKl;
use diptych_models::{AdapterSwitch, Trainable};

pub(crate) use components::load_adapter;
pub use components::{Checkpointing, Denoiser, NetworkOptions, load_vae};
pub use conditioning::Conditioning;
pub use embeddings::PromptEmbeddings;
pub use export::export;
pub(crate) use generate::{ImageSampler, NoiseSet, generate_candidates};
pub use generate::{SampleConfig, generate, generate_with, image_tokens};
pub use guidance::Guided;
pub use text::TextConditioner;
pub(crate) use text::{TEXT_PREFIX, is_of_sdxl};

use crate::Result;

/// Every network of a text-to-image pipeline, frozen.
#[derive(Debug)]
pub struct Pipeline {
    /// Noise and text to less noise.
    pub denoiser: Denoiser,
    /// Prompts to embeddings.
    pub text: TextConditioner,
    /// Latents to images.
    pub vae: AutoencoderKl,
}

impl Pipeline {
    /// Loads a directory in diffusers layout; `adapter` is a PEFT or diffusers adapter of its denoiser.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit; values that are not implemented.
    pub fn load(path: &Path, adapter: Option<&Path>, options: &NetworkOptions) -> Result<Self> {
        let directory = PipelineDir::open(path)?;
        let adapter = adapter.map(|path| load_adapter(path, "unet")).transpose()?;
        let (denoiser, _) = Denoiser::load(&directory, options, Trainable::None, adapter.as_ref())?;
        let (text, _) = TextConditioner::load(&directory, options, Trainable::None, None)?;
        let (vae, _) = load_vae(&directory, options, Trainable::None)?;
        Ok(Self { denoiser, text, vae })
    }

    /// Turns the adapter off while the guard lives, which gives the base model.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        self.denoiser.unet().adapter_switch()
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
