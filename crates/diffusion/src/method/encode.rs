//! Images and prompts of records, encoded once with frozen networks.

mod given;

use std::cell::RefCell;

use diptych_data::{Dataset, HostTensor, ImageSource};
use diptych_models::Trainable;
use diptych_models::vae::AutoencoderKl;
use image::RgbImage;

use super::config::PosteriorUse;
use super::denoising_records::{DenoisingRecords, Prompts};
use super::draws::Draws;
use super::prepare::{Preparation, not_a_multiple};
use super::records::{LatentEncoder, Latents};
use super::showcase::texts;
use super::timesteps::TimestepConfig;
use super::trained::TextTraining;
use diptych_train::Reporter;

use crate::modality::SamplesConfig;
use crate::pipeline::{DenoiserConfig, PromptEmbeddings, SampleConfig, TextConditioner, load_vae, sizes};
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// What a denoising method asks of its records.
pub(super) struct Settings {
    pub(super) method: &'static str,
    pub(super) prompt_dropout: f64,
    pub(super) timesteps: TimestepConfig,
    pub(super) posterior: PosteriorUse,
    pub(super) resolution: Option<u32>,
    pub(super) text: TextTraining,
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

/// Everything computed before the denoiser is loaded.
pub(super) struct Encoded {
    pub(super) records: DenoisingRecords,
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
                let mut source = Source {
                    ids: vec![],
                    prompts: vec![],
                    chosen: vec![],
                    chosen_key: "chosen_image",
                    rejected: vec![],
                };
                for pair in pairs {
                    source.ids.push(pair.id);
                    source.prompts.push(pair.prompt);
                    source.chosen.push(pair.chosen);
                    source.rejected.push(pair.rejected);
                }
                self.encode_images(settings, source, reporter)
            }
            other @ (Dataset::Ranked(_) | Dataset::Labels(_) | Dataset::Prompts(_)) => Err(Error::DataKind {
                method: settings.method,
                found: other.records().name(),
                expected: "image pairs, captioned images or latent pairs",
            }),
            Dataset::Captions(captions) => {
                let mut source = Source {
                    ids: vec![],
                    prompts: vec![],
                    chosen: vec![],
                    chosen_key: "image",
                    rejected: vec![],
                };
                for caption in captions {
                    source.ids.push(caption.id);
                    source.prompts.push(caption.prompt);
                    source.chosen.push(caption.image);
                }
                self.encode_images(settings, source, reporter)
            }
        }
    }

    fn encode_images(&self, settings: &Settings, source: Source, reporter: &mut Reporter<'_>) -> Result<Encoded> {
        let samples = self.samples(&source.prompts)?;
        let (vae, _) = load_vae(self.pipeline, &self.options, Trainable::None)?;
        let latent_size = self.latent_size(settings, vae.downscale())?;
        let factor = vae.downscale() as u32;
        let encoder = LatentEncoder {
            vae: &vae,
            device: &self.options.device,
            size: (latent_size[1] as u32 * factor, latent_size[0] as u32 * factor),
            posterior: settings.posterior,
        };
        let sizes = RefCell::new(vec![[0; 2]; source.chosen.len()]);
        let total = source.chosen.len() + source.rejected.len();
        let chosen = |index: usize| {
            let image = decode(&source.ids[index], source.chosen_key, &source.chosen[index])?;
            sizes.borrow_mut()[index] = [image.height() as usize, image.width() as usize];
            Ok(image)
        };
        let latents = Latents::encode(&encoder, source.chosen.len(), chosen, reporter, (0, total))?;
        let rejected = if source.rejected.is_empty() {
            None
        } else {
            let rejected = |index: usize| decode(&source.ids[index], "rejected_image", &source.rejected[index]);
            let done = (source.chosen.len(), total);
            Some(Latents::encode(
                &encoder,
                source.rejected.len(),
                rejected,
                reporter,
                done,
            )?)
        };
        let (prompts, sample_embeddings) = self.embed(settings, source.prompts, samples.as_ref(), reporter)?;
        let draws = self.draws(settings, &latents)?;
        let records = DenoisingRecords {
            ids: source.ids,
            latents,
            prompts,
            time_ids: self.time_ids(&sizes.into_inner(), latent_size.map(|side| side * factor as usize))?,
            draws,
        };
        Ok(Encoded {
            records,
            rejected,
            vae: samples.is_some().then_some(vae),
            sample_embeddings,
            samples,
        })
    }

    /// Sizes and crops of each record, where the denoiser takes them: those of its image, of a pair the chosen one's, as both sides share
    /// what the denoiser is told.
    fn time_ids(&self, originals: &[[usize; 2]], target: [usize; 2]) -> Result<Option<HostTensor>> {
        let config = DenoiserConfig::read(self.pipeline)?;
        if config.unet().is_none_or(|unet| unet.addition_embed.is_none()) {
            return Ok(None);
        }
        let numbers = originals
            .iter()
            .flat_map(|&original| sizes::of_cropped(original, target))
            .collect();
        let shape = vec![originals.len(), sizes::NUM_NUMBERS];
        Ok(Some(HostTensor::new(shape, numbers)?))
    }

    /// Embeddings of all prompts, or their texts where the encoder is trained.
    fn embed(
        &self,
        settings: &Settings,
        prompts: Vec<String>,
        samples: Option<&(Vec<String>, SampleConfig)>,
        reporter: &mut Reporter<'_>,
    ) -> Result<(Prompts, Option<PromptEmbeddings>)> {
        if settings.text == TextTraining::Trained {
            return Ok((Prompts::Texts(prompts), None));
        }
        let (text, _) = TextConditioner::load(self.pipeline, &self.options, Trainable::None, None)?;
        let is_dropping = settings.prompt_dropout > 0.0;
        let own = prompts.iter().map(String::as_str).chain(is_dropping.then_some(""));
        let embeddings = PromptEmbeddings::encode(&text, own, reporter)?;
        let rows = prompts.iter().filter_map(|prompt| embeddings.row(prompt)).collect();
        let empty = if is_dropping { embeddings.row("") } else { None };
        let sample_embeddings = samples
            .map(|(prompts, config)| PromptEmbeddings::encode(&text, texts(prompts, config), reporter))
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

    fn draws(&self, settings: &Settings, latents: &Latents) -> Result<Draws> {
        let schedule = NoiseSchedule::read(self.pipeline.component("scheduler")?.path())?;
        Ok(Draws {
            timesteps: settings.timesteps.resolve(settings.method, &schedule)?,
            prompt_dropout: settings.prompt_dropout,
            latent_shape: latents.shape(),
            given_noise: None,
            given_timesteps: None,
        })
    }

    /// Height and width of the latents.
    fn latent_size(&self, settings: &Settings, factor: usize) -> Result<[usize; 2]> {
        let config = DenoiserConfig::read(self.pipeline)?;
        if let Some(side) = settings.resolution {
            let multiple = factor * config.latent_multiple();
            return if side > 0 && (side as usize).is_multiple_of(multiple) {
                Ok([side as usize / factor; 2])
            } else {
                Err(not_a_multiple(settings.method, side, multiple as u32))
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
        if self.recipe.train.sample_every == 0 {
            return Ok(None);
        }
        let config: SamplesConfig = self.recipe.samples.clone().unwrap_or_default();
        Ok(Some((config.choose(prompts)?, config.sampling())))
    }
}

/// The pixels of a record's image; `key` is what the record calls it.
fn decode(id: &str, key: &'static str, image: &ImageSource) -> Result<RgbImage> {
    let named = |source| diptych_data::Error::Record {
        id: id.to_owned(),
        key,
        source: Box::new(source),
    };
    Ok(image.decode().map_err(named)?)
}
