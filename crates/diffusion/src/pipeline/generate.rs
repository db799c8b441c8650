//! Prompts to images.
//!
//! Each image is a function of (seed, its place in the list, prompt). The batch it was computed in changes it by rounding only:
//! matrices of another size are multiplied in another order.
//!
//! Shape letters: B batch, C channels, Y x X spatial, T tokens, D width.

use diptych_models::vae::AutoencoderKl;
use diptych_tensor::Tensor;
use diptych_tensor::random::Stream;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::guidance::Guided;
use super::{Conditioning, Denoiser, DenoiserConfig, Pipeline, PromptEmbeddings, for_rows};
use diptych_train::Reporter;

use crate::method::shown;
use crate::sampler::{Sampler, SamplerConfig, SamplerKind, SamplerNoise};
use crate::stage::Stage;
use crate::tensors::cast;
use crate::trajectory::Walk;
use crate::{Result, images};

/// How images are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleConfig {
    /// The sampler; by default the one that the pipeline's scheduler is made for.
    pub sampler: SamplerKind,
    /// Denoising steps.
    pub steps: usize,
    /// Strength of classifier-free guidance (Ho and Salimans, arXiv:2207.12598, as `diffusers` writes it): the prediction is
    /// `unconditional + guidance_scale (conditional - unconditional)`. Up to 1: none, the conditional prediction alone.
    pub guidance_scale: f64,
    /// Fresh noise in every step, for the samplers that leave a choice: `ddim`, from 0 to 1, and `flow_euler`, at least 0. 0: none.
    pub eta: f64,
    /// Height of the images, pixels; by default what the denoiser was made for. A multiple of what one latent, or one patch of them, stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Width of the images, pixels, likewise. SDXL is told the size as that of a whole image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Source of the initial noise.
    pub seed: u64,
    /// Images computed together. It changes them by rounding only.
    pub batch_size: usize,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerKind::Auto,
            steps: 20,
            guidance_scale: 5.0,
            eta: 0.0,
            height: None,
            width: None,
            seed: 0,
            batch_size: 16,
        }
    }
}

impl SampleConfig {
    /// Whether predictions without the prompt are needed.
    pub fn is_guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// The sampler's settings.
    pub fn sampler(&self) -> SamplerConfig {
        SamplerConfig {
            eta: self.eta,
            ..SamplerConfig::new(self.sampler, self.steps)
        }
    }

    /// Channels, height and width of the latents; `default` where the settings do not say.
    ///
    /// # Errors
    /// [`crate::Error::SampleSize`].
    pub(crate) fn latent_shape(&self, default: [usize; 3], sizes: SampleSizes) -> Result<[usize; 3]> {
        let [channels, y, x] = default;
        Ok([
            channels,
            sizes.latents("height", self.height)?.unwrap_or(y),
            sizes.latents("width", self.width)?.unwrap_or(x),
        ])
    }
}

/// Which sizes images can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SampleSizes {
    /// Pixels of a latent along a side.
    factor: usize,
    /// Sides of latents are multiples of this.
    multiple: usize,
}

impl SampleSizes {
    /// `factor` is that of the autoencoder.
    pub(crate) fn of(denoiser: &DenoiserConfig, factor: usize) -> Self {
        Self {
            factor,
            multiple: denoiser.latent_multiple(),
        }
    }

    /// Latents along a side of so many pixels.
    ///
    /// # Errors
    /// [`crate::Error::SampleSize`].
    pub(crate) fn latents(self, key: &'static str, pixels: Option<u32>) -> Result<Option<usize>> {
        let Some(pixels) = pixels else { return Ok(None) };
        let multiple = self.factor * self.multiple;
        if pixels == 0 || !(pixels as usize).is_multiple_of(multiple) {
            let found = pixels;
            return Err(crate::Error::SampleSize { key, found, multiple });
        }
        Ok(Some(pixels as usize / self.factor))
    }
}

/// One image for each prompt.
///
/// # Errors
/// [`crate::Error::Steps`] for a number of steps the schedule cannot serve, or a network refuses.
pub fn generate(pipeline: &Pipeline, prompts: &[String], config: &SampleConfig) -> Result<Vec<RgbImage>> {
    generate_with(pipeline, prompts, config, &mut Reporter::silent())
}

/// [`generate`], with progress and a way to stop.
///
/// # Errors
/// As [`generate`]; [`crate::Error::Stopped`].
pub fn generate_with(
    pipeline: &Pipeline,
    prompts: &[String],
    config: &SampleConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<RgbImage>> {
    generate_from(NoiseSet::Shown, pipeline, prompts, config, reporter)
}

/// As [`generate_with`], from noise that no image to look at or to judge begins with.
pub(crate) fn generate_candidates(
    pipeline: &Pipeline,
    prompts: &[String],
    config: &SampleConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<RgbImage>> {
    generate_from(NoiseSet::Candidates, pipeline, prompts, config, reporter)
}

fn generate_from(
    noise: NoiseSet,
    pipeline: &Pipeline,
    prompts: &[String],
    config: &SampleConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Vec<RgbImage>> {
    let sizes = SampleSizes::of(pipeline.denoiser.config(), pipeline.vae.downscale());
    let latent_shape = match (config.height, config.width) {
        // A UNet whose file says no size has one here.
        (Some(_), Some(_)) => [pipeline.denoiser.config().latent_channels().0, 0, 0],
        _ => pipeline.denoiser.latent_shape()?,
    };
    let latent_shape = config.latent_shape(latent_shape, sizes)?;
    config.sampler().check(pipeline.denoiser.schedule())?;
    let embeddings = shown(&pipeline.text, prompts, config, reporter)?;
    let sampler = ImageSampler {
        denoiser: &pipeline.denoiser,
        user: pipeline.user.as_ref(),
        negative: pipeline.negative.as_ref(),
        vae: &pipeline.vae,
        embeddings: &embeddings,
        latent_shape,
        noise,
        config,
    };
    sampler.sample(prompts, Stage::Sampling, reporter)
}

/// What images are for, which sets their initial noise apart at the same seed: the `step` of the noise's generator.
///
/// Images that pairs are made of and that a model is trained on must not begin with the noise that it is judged from later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum NoiseSet {
    /// To look at, or to judge a model by.
    Shown = 0,
    /// To make training pairs of.
    Candidates = 1,
}

impl NoiseSet {
    fn source(self, seed: u64) -> SamplerNoise {
        SamplerNoise {
            seed,
            stream: Stream::Sampler,
            set: self as u32,
        }
    }
}

/// Everything that turns embedded prompts into images.
pub(crate) struct ImageSampler<'a> {
    pub(crate) denoiser: &'a Denoiser,
    /// Who the images are for, (S, width of users).
    pub(crate) user: Option<&'a Tensor>,
    /// Who answers without the prompt, where that is another network.
    pub(crate) negative: Option<&'a Denoiser>,
    pub(crate) vae: &'a AutoencoderKl,
    /// Holds every prompt and, with guidance, what is told without one.
    pub(crate) embeddings: &'a PromptEmbeddings,
    /// (C, Y, X).
    pub(crate) latent_shape: [usize; 3],
    pub(crate) noise: NoiseSet,
    pub(crate) config: &'a SampleConfig,
}

impl ImageSampler<'_> {
    /// One image for each prompt; the place in the list is the image's number.
    pub(crate) fn sample(
        &self,
        prompts: &[String],
        stage: Stage,
        reporter: &mut Reporter<'_>,
    ) -> Result<Vec<RgbImage>> {
        let schedule = self.denoiser.schedule();
        let schedule = schedule.with_image_tokens(image_tokens(self.latent_shape));
        let sampler = self.config.sampler().prepare(&schedule)?;
        let mut images = Vec::with_capacity(prompts.len());
        for (batch_idx, batch) in prompts.chunks(self.config.batch_size.max(1)).enumerate() {
            let first = (batch_idx * self.config.batch_size.max(1)) as u64;
            let latents = self.latents(&sampler, batch, first)?;
            images.extend(decode(self.vae, &latents)?);
            reporter.advance(stage, images.len() as u64, prompts.len() as u64)?;
        }
        Ok(images)
    }

    /// Clean latents of some prompts; `first` is the number of the first image.
    fn latents(&self, sampler: &Sampler, prompts: &[String], first: u64) -> Result<Tensor> {
        let images: Vec<u64> = (first..first + prompts.len() as u64).collect();
        let network = Guided::stacked(self.denoiser, self.conditioning(prompts)?, self.config.guidance_scale)
            .with_negative(self.negative);
        let walk = Walk {
            sampler,
            network: &network,
            noise: self.noise.source(self.config.seed),
            images: &images,
            latent_shape: self.latent_shape,
        };
        walk.latents()
    }

    /// What the denoiser is told about B prompts; with guidance about B times no prompt first.
    fn conditioning(&self, prompts: &[String]) -> Result<Conditioning> {
        let known = |row: Option<usize>| {
            row.ok_or(crate::Error::MissingComponent {
                action: "a prompt that was not encoded",
                component: "text_encoder",
            })
        };
        let mut rows = Vec::new();
        if self.denoiser.is_doubled(self.config.guidance_scale) {
            rows.resize(prompts.len(), known(self.embeddings.missing())?);
        }
        let num_nobody = rows.len();
        for prompt in prompts {
            rows.push(known(self.embeddings.row(prompt))?);
        }
        let factor = self.vae.downscale();
        let image_size = [self.latent_shape[1] * factor, self.latent_shape[2] * factor];
        let mut conditioning = self.embeddings.gather(&rows, self.denoiser.device())?;
        if let Some(user) = self.user {
            conditioning = conditioning.with_users(for_rows(user, rows.len(), num_nobody)?);
        }
        self.denoiser.sized(conditioning, image_size)
    }
}

/// Tokens of an image's latents (C, Y, X), as the published flow-matching transformers cut them: patches of 2 x 2.
pub fn image_tokens(latent_shape: [usize; 3]) -> usize {
    const PATCH: usize = 2;
    let [_, y, x] = latent_shape;
    (y / PATCH) * (x / PATCH)
}

/// Images of scaled latents (B, C, Y, X).
pub(crate) fn decode(vae: &AutoencoderKl, latents: &Tensor) -> Result<Vec<RgbImage>> {
    let latents = cast(&vae.unscale(latents)?, vae.dtype())?;
    images::from_tensor(&vae.decode(&latents)?)
}

#[cfg(test)]
mod tests {
    use diptych_models::Trainable;
    use diptych_models::diffusers::PipelineDir;
    use diptych_tensor::{DType, Device, backward};

    use super::*;
    use crate::pipeline::{NetworkOptions, TextConditioner, load_vae};
    use crate::shapes_pipeline::{ShapesPipelineConfig, initialize};
    use crate::tensors::host_f32;

    #[test]
    fn samples_of_a_network_under_training_carry_no_graph() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        let sizes = ShapesPipelineConfig::smallest();
        initialize(&path, &sizes, &["red"], 0).unwrap();
        let pipeline = PipelineDir::open(&path).unwrap();
        let options = NetworkOptions {
            device: Device::Cpu,
            dtype: DType::F32,
            seed: 0,
        };
        let (denoiser, params) = Denoiser::load(&pipeline, &options, Trainable::All, None).unwrap();
        let (text, _) = TextConditioner::load(&pipeline, &options, Trainable::None, None).unwrap();
        let (vae, _) = load_vae(&pipeline, &options, Trainable::None).unwrap();
        let mut embeddings = PromptEmbeddings::encode(&text, ["red"], &mut Reporter::silent()).unwrap();
        embeddings.add_missing(&text).unwrap();
        for guidance_scale in [1.0, 3.0] {
            let config = SampleConfig {
                steps: 2,
                guidance_scale,
                ..SampleConfig::default()
            };
            let latent_shape = denoiser.latent_shape().unwrap();
            let sampler = ImageSampler {
                user: None,
                denoiser: &denoiser,
                negative: None,
                vae: &vae,
                embeddings: &embeddings,
                latent_shape,
                noise: NoiseSet::Shown,
                config: &config,
            };
            let prepared = config.sampler.prepare(denoiser.schedule(), 2).unwrap();
            let latents = sampler.latents(&prepared, &["red".to_owned()], 0).unwrap();
            let candidates = ImageSampler {
                user: None,
                noise: NoiseSet::Candidates,
                ..sampler
            };
            let others = candidates.latents(&prepared, &["red".to_owned()], 0).unwrap();
            assert_ne!(
                host_f32(&latents).unwrap(),
                host_f32(&others).unwrap(),
                "a model is judged from the noise of its training pairs"
            );
            let gradients = backward(&latents.sum_all().unwrap(), &params).unwrap();
            assert_eq!(gradients.iter().count(), 0);
        }
    }
}
