//! Grids of samples while training: one row a prompt, before on the left, after on the right, at fixed seeds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_models::vae::AutoencoderKl;
use image::RgbImage;

use super::trained::TrainedDenoiser;
use diptych_train::Reporter;

use crate::pipeline::{ImageSampler, NoiseSet, PromptEmbeddings, SampleConfig, SampleSizes, TextConditioner};
use crate::stage::Stage;
use crate::{Result, images};

/// What is sampled, and what it looked like before training.
#[derive(Debug)]
pub(crate) struct Showcase {
    vae: Arc<AutoencoderKl>,
    /// `None` where the text encoder is trained: then prompts are encoded anew each time.
    embeddings: Option<PromptEmbeddings>,
    prompts: Vec<String>,
    config: SampleConfig,
    latent_shape: [usize; 3],
    before: Vec<RgbImage>,
}

impl Showcase {
    /// Samples the images before training. `latent_shape` is theirs where the settings do not say another size.
    pub(crate) fn new(
        vae: impl Into<Arc<AutoencoderKl>>,
        embeddings: Option<PromptEmbeddings>,
        (prompts, config): (Vec<String>, SampleConfig),
        policy: &TrainedDenoiser,
        latent_shape: [usize; 3],
        reporter: &mut Reporter<'_>,
    ) -> Result<Self> {
        let vae: Arc<AutoencoderKl> = vae.into();
        let sizes = SampleSizes::of(policy.denoiser.config(), vae.downscale());
        let latent_shape = config.latent_shape(latent_shape, sizes)?;
        let mut showcase = Self {
            vae,
            embeddings,
            prompts,
            config,
            latent_shape,
            before: Vec::new(),
        };
        showcase.before = showcase.sample(policy, reporter)?;
        Ok(showcase)
    }

    /// Writes the grid and returns its path.
    pub(crate) fn write(&self, policy: &TrainedDenoiser, stem: &Path) -> Result<PathBuf> {
        let after = self.sample(policy, &mut Reporter::silent())?;
        let rows: Vec<_> = self
            .before
            .iter()
            .cloned()
            .zip(after)
            .map(|(before, after)| vec![before, after])
            .collect();
        let path = stem.with_extension("png");
        images::save(&images::grid(&rows), &path)?;
        Ok(path)
    }

    fn sample(&self, policy: &TrainedDenoiser, reporter: &mut Reporter<'_>) -> Result<Vec<RgbImage>> {
        let live = policy
            .text
            .as_ref()
            .map(|text| shown(text, &self.prompts, &self.config, &mut Reporter::silent()));
        let live = live.transpose()?;
        let embeddings = live
            .as_ref()
            .or(self.embeddings.as_ref())
            .ok_or(crate::Error::MissingComponent {
                action: "sampling",
                component: "text_encoder",
            })?;
        let sampler = ImageSampler {
            user: None,
            denoiser: &policy.denoiser,
            negative: None,
            vae: &self.vae,
            embeddings,
            latent_shape: self.latent_shape,
            noise: NoiseSet::Shown,
            config: &self.config,
        };
        sampler.sample(&self.prompts, Stage::Sampling, reporter)
    }
}

/// What sampling needs: the prompts, and for guidance none.
pub(crate) fn shown(
    text: &TextConditioner,
    prompts: &[String],
    config: &SampleConfig,
    reporter: &mut Reporter<'_>,
) -> Result<PromptEmbeddings> {
    let mut embeddings = PromptEmbeddings::encode(text, prompts.iter().map(String::as_str), reporter)?;
    if config.is_guided() {
        embeddings.add_missing(text)?;
    }
    Ok(embeddings)
}
