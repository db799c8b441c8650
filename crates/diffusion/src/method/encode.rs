//! Images and prompts of records, encoded once with frozen networks.

mod cached;
mod framings;
mod given;

use diptych_data::{Dataset, HostTensor, ImageSource};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};

use self::cached::{LazyText, LazyVae, SideJob};
use super::cache::Cache;
use super::config::PosteriorUse;
use super::denoising_records::{DenoisingRecords, Prompts};
use super::draws::{DrawUnit, Draws, FormDraw, LatentShapes};
use super::prepare::{Preparation, not_a_multiple};
use super::records::{ImageSide, Latents};
use super::showcase::shown;
use super::timesteps::TimestepConfig;
use super::trained::TextTraining;
use diptych_train::Reporter;

use crate::modality::SamplesConfig;
use crate::pipeline::{DenoiserConfig, PromptEmbeddings, SampleConfig};
use crate::schedule::NoiseSchedule;
use crate::stage::Stage;
use crate::{Error, Result};

/// What a denoising method asks of its records.
pub(super) struct Settings {
    pub(super) method: &'static str,
    pub(super) prompt_dropout: f64,
    pub(super) timesteps: TimestepConfig,
    pub(super) posterior: PosteriorUse,
    pub(super) resolution: Option<u32>,
    pub(super) text: TextTraining,
    /// Whether the empty prompt is asked for beside those that are dropped.
    pub(super) needs_empty: bool,
}

impl Settings {
    /// Whether the empty prompt is encoded.
    fn has_empty(&self) -> bool {
        self.prompt_dropout > 0.0 || self.needs_empty
    }
}

/// Images and prompts of records, not encoded yet.
struct Source {
    ids: Vec<String>,
    prompts: Vec<String>,
    chosen: Vec<ImageSource>,
    /// What the records call the chosen side.
    chosen_key: &'static str,
    rejected: Vec<ImageSource>,
}

impl Source {
    fn new(chosen_key: &'static str) -> Self {
        Self {
            ids: vec![],
            prompts: vec![],
            chosen: vec![],
            chosen_key,
            rejected: vec![],
        }
    }
}

/// Everything computed before the denoiser is loaded.
pub(super) struct Encoded {
    pub(super) records: DenoisingRecords,
    /// (C, Y, X) of the latents of samples.
    pub(super) sample_shape: [usize; 3],
    pub(super) rejected: Option<Latents>,
    pub(super) vae: Option<AutoencoderKl>,
    pub(super) sample_embeddings: Option<PromptEmbeddings>,
    pub(super) samples: Option<(Vec<String>, SampleConfig)>,
}

impl Preparation<'_> {
    /// Encodes images and prompts with frozen networks; those are dropped unless samples need them.
    pub(super) fn encode(&self, settings: &Settings, dataset: Dataset, reporter: &mut Reporter<'_>) -> Result<Encoded> {
        match dataset {
            Dataset::LatentPairs(pairs) => self.encode_given(settings, pairs, reporter),
            Dataset::Pairs(pairs) => {
                let mut source = Source::new("chosen_image");
                for pair in pairs {
                    source.ids.push(pair.id);
                    source.prompts.push(pair.prompt);
                    source.chosen.push(pair.chosen);
                    source.rejected.push(pair.rejected);
                }
                self.encode_images(settings, source, reporter)
            }
            Dataset::Captions(captions) => {
                let mut source = Source::new("image");
                for caption in captions {
                    source.ids.push(caption.id);
                    source.prompts.push(caption.prompt);
                    source.chosen.push(caption.image);
                }
                self.encode_images(settings, source, reporter)
            }
            other => Err(Error::DataKind {
                method: settings.method,
                found: other.records().name(),
                expected: "image pairs, captioned images or latent pairs",
            }),
        }
    }

    fn encode_images(&self, settings: &Settings, source: Source, reporter: &mut Reporter<'_>) -> Result<Encoded> {
        let samples = self.samples(&source.prompts)?;
        let config = AutoencoderKlConfig::from_file(self.pipeline.component("vae")?.config())?;
        let factor = config.downscale();
        let [y, x] = self.latent_size(settings, factor)?;
        let size = ((x * factor) as u32, (y * factor) as u32);
        let multiple = factor * DenoiserConfig::read(self.pipeline)?.latent_multiple();
        let framings = self.framings(&source, size, multiple as u32)?;
        let cache = self.cache(settings, &framings.sizes)?;
        let mut vae = LazyVae::new(self);
        let total = source.chosen.len() + source.rejected.len();
        let mut encode = |key, images: &[ImageSource], before: usize| {
            let side = ImageSide {
                ids: &source.ids,
                key,
                images,
                framings: &framings.of_records,
            };
            let mut done = |num: usize| Ok(reporter.advance(Stage::Latents, (before + num) as u64, total as u64)?);
            let job = SideJob {
                side,
                latents: (config.latent_channels, factor),
                settings,
            };
            job.encode(&mut vae, cache.as_ref(), &mut done)
        };
        let chosen = encode(source.chosen_key, &source.chosen, 0)?;
        let rejected = if source.rejected.is_empty() {
            None
        } else {
            Some(encode("rejected_image", &source.rejected, source.chosen.len())?.latents)
        };
        let (prompts, sample_embeddings) =
            self.embed(settings, source.prompts, samples.as_ref(), cache.as_ref(), reporter)?;
        let shape = [config.latent_channels, y, x];
        let draws = Draws {
            forms: framings.draw,
            ..self.draws(settings, LatentShapes::new(shape, &chosen.latents))?
        };
        let sizes = || HostTensor::new(vec![chosen.latents.len(), 6], chosen.time_ids);
        let time_ids = self.is_told_sizes()?.then(sizes).transpose()?;
        let records = DenoisingRecords {
            ids: source.ids,
            latents: chosen.latents,
            prompts,
            time_ids,
            draws,
            buckets: framings.buckets,
            guidance: self.told_guidance()?,
            users: None,
        };
        Ok(Encoded {
            records,
            sample_shape: shape,
            rejected,
            vae: samples.is_some().then(|| vae.take()).transpose()?,
            sample_embeddings,
            samples,
        })
    }

    /// Whether the denoiser is told sizes and crops, as SDXL's is: those of its image, of a pair the chosen one's, as both sides share what
    /// the denoiser is told.
    fn is_told_sizes(&self) -> Result<bool> {
        let config = DenoiserConfig::read(self.pipeline)?;
        Ok(config.unet().is_some_and(|unet| unet.addition_embed.is_some()))
    }

    /// Embeddings of all prompts, or their texts where the encoder is trained.
    fn embed(
        &self,
        settings: &Settings,
        prompts: Vec<String>,
        samples: Option<&(Vec<String>, SampleConfig)>,
        cache: Option<&Cache>,
        reporter: &mut Reporter<'_>,
    ) -> Result<(Prompts, Option<PromptEmbeddings>)> {
        if settings.text == TextTraining::Trained {
            return Ok((Prompts::Texts(prompts), None));
        }
        let mut text = LazyText::new(self);
        let mut embeddings = match cache {
            Some(cache) => cached::embeddings(cache, &prompts, &mut text, reporter)?,
            None => PromptEmbeddings::encode(text.get()?, prompts.iter().map(String::as_str), reporter)?,
        };
        let rows = prompts.iter().filter_map(|prompt| embeddings.row(prompt)).collect();
        let empty = if settings.has_empty() {
            Some(embeddings.add_missing(text.get()?)?)
        } else {
            None
        };
        let sample_embeddings = samples
            .map(|(prompts, config)| shown(text.get()?, prompts, config, reporter))
            .transpose()?;
        Ok((
            Prompts::Embedded {
                embeddings,
                rows,
                empty,
            },
            sample_embeddings,
        ))
    }

    fn draws(&self, settings: &Settings, latent_shapes: LatentShapes) -> Result<Draws> {
        let schedule = NoiseSchedule::read(self.pipeline.component("scheduler")?.path())?;
        let is_compared = self.recipe.objective.requirements().prompt_distances;
        Ok(Draws {
            unit: if is_compared { DrawUnit::Step } else { DrawUnit::Record },
            timesteps: settings.timesteps.resolve(settings.method, &schedule)?,
            prompt_dropout: settings.prompt_dropout,
            latent_shapes,
            forms: FormDraw::only(),
            given_noise: None,
            given_timesteps: None,
        })
    }

    /// Height and width of the latents.
    fn latent_size(&self, settings: &Settings, factor: usize) -> Result<[usize; 2]> {
        let config = DenoiserConfig::read(self.pipeline)?;
        let of_data = self.recipe.data.resolution;
        if let Some(side) = settings.resolution.or(of_data) {
            let multiple = factor * config.latent_multiple();
            return if side > 0 && (side as usize).is_multiple_of(multiple) {
                Ok([side as usize / factor; 2])
            } else {
                Err(not_a_multiple(settings.method, of_data, side, multiple as u32))
            };
        }
        config.sample_size().map_err(|error| match error {
            Error::Config { file, key, found, .. } => Error::Config {
                file,
                key,
                found,
                expected: format!(
                    "the latents' height and width, or `method.{}.resolution` in the recipe",
                    settings.method
                ),
            },
            other => other,
        })
    }

    /// What is sampled while training, if anything.
    pub(super) fn samples(&self, prompts: &[String]) -> Result<Option<(Vec<String>, SampleConfig)>> {
        if self.recipe.train.sample_every == 0 || !self.recipe.method.trains_denoiser() {
            return Ok(None);
        }
        let config: SamplesConfig = self.recipe.samples.clone().unwrap_or_default();
        Ok(Some((config.choose(prompts)?, config.sampling())))
    }
}
