//! From a recipe to a method: loads what the run needs, encodes images and prompts once, and drops what is not needed after.

use diptych_data::{Dataset, ImageSource, LatentPairs};
use diptych_models::diffusers::PipelineDir;
use diptych_models::unet::UNet2DConditionConfig;
use diptych_models::vae::AutoencoderKl;
use diptych_models::{AdapterConfig, Trainable};
use diptych_train::{Recipe, ReferenceConfig};
use image::RgbImage;

use super::autoencoder::Autoencoder;
use super::config::{AutoencoderConfig, MethodConfig, OfflinePairsConfig, PosteriorUse, SftConfig, TimestepRange};
use super::denoising_records::{DenoisingRecords, Prompts};
use super::draws::Draws;
use super::offline_pairs::{OfflinePairs, Reference};
use super::records::{LatentEncoder, Latents};
use super::sft::Sft;
use super::showcase::{Showcase, texts};
use super::trained::{TextTraining, TrainedDenoiser, load_frozen};
use super::DiffusionMethod;
use crate::modality::{Diffusion, SamplesConfig, adapter_of};
use crate::pipeline::{NetworkOptions, PromptEmbeddings, SampleConfig, TextConditioner, load_vae};
use crate::progress::Reporter;
use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// Loads the networks and the data of a recipe and computes what training reads of them.
///
/// # Errors
/// Files that are missing, damaged or do not fit each other, settings that contradict the data, [`Error::Stopped`].
pub fn prepare(recipe: &Recipe<Diffusion>, reporter: &mut Reporter<'_>) -> Result<DiffusionMethod> {
    let dataset = Dataset::load(&recipe.data_paths()?, recipe.data.layout)?;
    let pipeline = PipelineDir::open(recipe.model_path()?)?;
    let options = network_options(recipe)?;
    let preparation = Preparation { recipe, pipeline: &pipeline, adapter: adapter_of(recipe)?, options };
    match recipe.method {
        MethodConfig::OfflinePairs(config) => preparation.offline_pairs(config, dataset, reporter),
        MethodConfig::Sft(config) => preparation.sft(config, dataset, reporter),
        MethodConfig::Autoencoder(config) => preparation.autoencoder(config, dataset),
    }
}

/// Where and how the recipe's networks are built.
pub(crate) fn network_options(recipe: &Recipe<Diffusion>) -> Result<NetworkOptions> {
    Ok(NetworkOptions {
        device: recipe.run.device.resolve()?,
        dtype: recipe.run.precision.dtype(),
        seed: recipe.run.seed,
    })
}

struct Preparation<'a> {
    recipe: &'a Recipe<Diffusion>,
    pipeline: &'a PipelineDir,
    adapter: AdapterConfig,
    options: NetworkOptions,
}

/// What a denoising method asks of its records.
struct Settings {
    method: &'static str,
    prompt_dropout: f64,
    timesteps: TimestepRange,
    posterior: PosteriorUse,
    resolution: Option<u32>,
    text: TextTraining,
}

/// Images and prompts of records, not encoded yet.
struct Source {
    ids: Vec<String>,
    prompts: Vec<String>,
    chosen: Vec<ImageSource>,
    rejected: Vec<ImageSource>,
}

/// Everything computed before the denoiser is loaded.
struct Encoded {
    records: DenoisingRecords,
    rejected: Option<Latents>,
    vae: Option<AutoencoderKl>,
    sample_embeddings: Option<PromptEmbeddings>,
    samples: Option<(Vec<String>, SampleConfig)>,
}

impl Preparation<'_> {
    fn offline_pairs(
        &self,
        config: OfflinePairsConfig,
        dataset: Dataset,
        reporter: &mut Reporter<'_>,
    ) -> Result<DiffusionMethod> {
        let settings = Settings {
            method: "offline_pairs",
            prompt_dropout: config.prompt_dropout,
            timesteps: config.timesteps,
            posterior: config.posterior,
            resolution: config.resolution,
            text: TextTraining::Frozen,
        };
        let encoded = self.encode(&settings, dataset, reporter)?;
        let Some(rejected) = encoded.rejected.clone() else {
            let expected = "preference or latent-pairs";
            return Err(Error::DataKind { method: "offline_pairs", found: "image-caption", expected });
        };
        let policy = self.policy(TextTraining::Frozen)?;
        let reference = match self.recipe.reference {
            ReferenceConfig::None {} => Reference::None,
            ReferenceConfig::AdapterOff {} => Reference::AdapterOff,
            ReferenceConfig::Frozen {} => {
                Reference::Frozen(Box::new(load_frozen(self.pipeline, &self.options, &self.adapter)?))
            }
        };
        let (records, showcase) = self.showcase(encoded, &policy, reporter)?;
        let objective = self.recipe.objective;
        Ok(DiffusionMethod::OfflinePairs(Box::new(OfflinePairs { policy, reference, objective, records, rejected, showcase })))
    }

    fn sft(&self, config: SftConfig, dataset: Dataset, reporter: &mut Reporter<'_>) -> Result<DiffusionMethod> {
        let text = if config.train_text_encoder { TextTraining::Trained } else { TextTraining::Frozen };
        let settings = Settings {
            method: "sft",
            prompt_dropout: config.prompt_dropout,
            timesteps: config.timesteps,
            posterior: config.posterior,
            resolution: config.resolution,
            text,
        };
        let encoded = self.encode(&settings, chosen_only(dataset), reporter)?;
        let policy = self.policy(text)?;
        let (records, showcase) = self.showcase(encoded, &policy, reporter)?;
        Ok(DiffusionMethod::Sft(Box::new(Sft { policy, objective: self.recipe.objective, records, showcase })))
    }

    fn autoencoder(&self, config: AutoencoderConfig, dataset: Dataset) -> Result<DiffusionMethod> {
        let images = match dataset {
            Dataset::Captions(captions) => captions.into_iter().map(|caption| (caption.id, caption.image)).collect(),
            Dataset::Pairs(pairs) => pairs
                .into_iter()
                .flat_map(|pair| [(format!("{} (chosen)", pair.id), pair.chosen), (format!("{} (rejected)", pair.id), pair.rejected)])
                .collect(),
            Dataset::LatentPairs(_) => {
                let expected = "image-caption or preference";
                return Err(Error::DataKind { method: "autoencoder", found: "latent-pairs", expected });
            }
        };
        let (mut vae, params) = load_vae(self.pipeline, &self.options, Trainable::All)?;
        vae.gradient_checkpointing = self.recipe.train.gradient_checkpointing;
        let size = self.autoencoder_size(config.resolution, &vae)?;
        Ok(DiffusionMethod::Autoencoder(Box::new(Autoencoder {
            vae,
            params,
            objective: self.recipe.objective,
            config,
            images,
            size,
            device: self.options.device.clone(),
            dtype: self.options.dtype,
        })))
    }

    fn autoencoder_size(&self, resolution: Option<u32>, vae: &AutoencoderKl) -> Result<(u32, u32)> {
        let factor = vae.downscale() as u32;
        match (resolution, vae.config().sample_size) {
            (Some(side), _) if side > 0 && side.is_multiple_of(factor) => Ok((side, side)),
            (Some(side), _) => Err(not_a_multiple("autoencoder", side, factor)),
            (None, Some([height, width])) => Ok((width as u32, height as u32)),
            (None, None) => Err(Error::Config {
                file: self.pipeline.component("vae")?.config(),
                key: "sample_size".into(),
                found: "missing".into(),
                expected: "the images' height and width, or `method.autoencoder.resolution` in the recipe".into(),
            }),
        }
    }

    fn policy(&self, text: TextTraining) -> Result<TrainedDenoiser> {
        let checkpointing = self.recipe.train.gradient_checkpointing.into();
        TrainedDenoiser::load(self.pipeline, &self.options, &self.adapter, text, checkpointing)
    }

    /// Encodes images and prompts with frozen networks; those are dropped unless samples need them.
    fn encode(&self, settings: &Settings, dataset: Dataset, reporter: &mut Reporter<'_>) -> Result<Encoded> {
        match dataset {
            Dataset::LatentPairs(pairs) => self.encode_given(settings, pairs, reporter),
            Dataset::Pairs(pairs) => {
                let mut source = Source { ids: vec![], prompts: vec![], chosen: vec![], rejected: vec![] };
                for pair in pairs {
                    source.ids.push(pair.id);
                    source.prompts.push(pair.prompt);
                    source.chosen.push(pair.chosen);
                    source.rejected.push(pair.rejected);
                }
                self.encode_images(settings, source, reporter)
            }
            Dataset::Captions(captions) => {
                let mut source = Source { ids: vec![], prompts: vec![], chosen: vec![], rejected: vec![] };
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
            dtype: self.options.dtype,
            size: (latent_size[1] as u32 * factor, latent_size[0] as u32 * factor),
            posterior: settings.posterior,
        };
        let total = source.chosen.len() + source.rejected.len();
        let image = |images: &[ImageSource], index: usize| decode(&source.ids[index], &images[index]);
        let chosen = |index: usize| image(&source.chosen, index);
        let latents = Latents::encode(&encoder, source.chosen.len(), chosen, reporter, (0, total))?;
        let rejected = if source.rejected.is_empty() {
            None
        } else {
            let rejected = |index: usize| image(&source.rejected, index);
            let done = (source.chosen.len(), total);
            Some(Latents::encode(&encoder, source.rejected.len(), rejected, reporter, done)?)
        };
        let (prompts, sample_embeddings) = self.embed(settings, source.prompts, samples.as_ref(), reporter)?;
        let draws = self.draws(settings, &latents)?;
        let records = DenoisingRecords { ids: source.ids, latents, prompts, draws };
        Ok(Encoded { records, rejected, vae: samples.is_some().then_some(vae), sample_embeddings, samples })
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
        Ok((Prompts::Embedded { embeddings, rows, empty }, sample_embeddings))
    }

    /// Records that were encoded elsewhere: neither tokenizer, text encoder nor autoencoder is read unless samples or dropped
    /// prompts need them.
    fn encode_given(&self, settings: &Settings, pairs: LatentPairs, reporter: &mut Reporter<'_>) -> Result<Encoded> {
        self.refuse_unused(settings, &pairs)?;
        let ids: Vec<String> = (0..pairs.len()).map(|index| pairs.record_id(index)).collect();
        let tensors = pairs.into_tensors();
        if tensors.pooled.is_some() {
            return Err(Error::Recipe {
                key: "data.path".into(),
                problem: "has `pooled` and `time_ids`, which this denoiser does not take".into(),
                hint: "use data encoded for its text encoder".into(),
            });
        }
        let (shape, values) = tensors.encoder_hidden_states.into_parts();
        let mut embeddings = PromptEmbeddings::from_rows(values, [shape[1], shape[2]]);
        let samples = self.samples(&[])?;
        let is_dropping = settings.prompt_dropout > 0.0;
        let (mut empty, mut sample_embeddings, mut vae) = (None, None, None);
        if is_dropping || samples.is_some() {
            let (text, _) = TextConditioner::load(self.pipeline, &self.options, Trainable::None, None)?;
            if is_dropping {
                empty = Some(embeddings.append(&PromptEmbeddings::encode(&text, [""], reporter)?)?);
            }
            if let Some((prompts, config)) = &samples {
                sample_embeddings = Some(PromptEmbeddings::encode(&text, texts(prompts, config), reporter)?);
                vae = Some(load_vae(self.pipeline, &self.options, Trainable::None)?.0);
            }
        }
        let latents = Latents::from_host(tensors.latents_chosen)?;
        let rejected = Latents::from_host(tensors.latents_rejected)?;
        let draws = Draws { given_noise: tensors.noise, given_timesteps: tensors.timesteps, ..self.draws(settings, &latents)? };
        let rows = (0..ids.len()).collect();
        let records = DenoisingRecords { ids, latents, prompts: Prompts::Embedded { embeddings, rows, empty }, draws };
        Ok(Encoded { records, rejected: Some(rejected), vae, sample_embeddings, samples })
    }

    /// Settings that given tensors leave nothing to decide.
    fn refuse_unused(&self, settings: &Settings, pairs: &LatentPairs) -> Result<()> {
        let unused = |key: &str, hint: &str| {
            Err(Error::Recipe {
                key: format!("method.{}.{key}", settings.method),
                problem: "is unused with this latent-pairs data".into(),
                hint: hint.into(),
            })
        };
        if settings.text == TextTraining::Trained {
            return unused("train_text_encoder", "its prompts are already encoded: leave it out");
        }
        if settings.resolution.is_some() {
            return unused("resolution", "its images are already encoded: leave it out");
        }
        if settings.timesteps != TimestepRange::default() && pairs.tensors().timesteps.is_some() {
            return unused("timesteps", "it carries timesteps: leave the key out, or the tensor");
        }
        Ok(())
    }

    fn draws(&self, settings: &Settings, latents: &Latents) -> Result<Draws> {
        let schedule = NoiseSchedule::read(self.pipeline.component("scheduler")?.path())?;
        Ok(Draws {
            timesteps: settings.timesteps.resolve(settings.method, schedule.num_train_timesteps())?,
            prompt_dropout: settings.prompt_dropout,
            latent_shape: latents.shape(),
            given_noise: None,
            given_timesteps: None,
        })
    }

    /// Height and width of the latents.
    fn latent_size(&self, settings: &Settings, factor: usize) -> Result<[usize; 2]> {
        if let Some(side) = settings.resolution {
            return if side > 0 && (side as usize).is_multiple_of(factor) {
                Ok([side as usize / factor; 2])
            } else {
                Err(not_a_multiple(settings.method, side, factor as u32))
            };
        }
        let file = self.pipeline.component("unet")?.config();
        UNet2DConditionConfig::from_file(&file)?.sample_size.ok_or_else(|| Error::Config {
            file,
            key: "sample_size".into(),
            found: "missing".into(),
            expected: format!("the latents' height and width, or `method.{}.resolution` in the recipe", settings.method),
        })
    }

    /// What is sampled while training, if anything.
    fn samples(&self, prompts: &[String]) -> Result<Option<(Vec<String>, SampleConfig)>> {
        if self.recipe.train.sample_every == 0 {
            return Ok(None);
        }
        let config: SamplesConfig = self.recipe.samples.clone().unwrap_or_default();
        Ok(Some((config.choose(prompts)?, config.sampling())))
    }

    fn showcase(
        &self,
        encoded: Encoded,
        policy: &TrainedDenoiser,
        reporter: &mut Reporter<'_>,
    ) -> Result<(DenoisingRecords, Option<Showcase>)> {
        let latent_shape = encoded.records.latents.shape();
        let showcase = match (encoded.vae, encoded.samples) {
            (Some(vae), Some(samples)) => {
                Some(Showcase::new(vae, encoded.sample_embeddings, samples, policy, latent_shape, reporter)?)
            }
            _ => None,
        };
        Ok((encoded.records, showcase))
    }
}

fn chosen_only(dataset: Dataset) -> Dataset {
    match dataset {
        Dataset::Pairs(pairs) => Dataset::Captions(
            pairs.into_iter().map(|pair| diptych_data::ImageCaption::new(pair.id, pair.prompt, pair.chosen)).collect(),
        ),
        other => other,
    }
}

fn decode(id: &str, image: &ImageSource) -> Result<RgbImage> {
    Ok(diptych_data::ImageCaption::new(id, "", image.clone()).decode()?)
}

fn not_a_multiple(method: &str, side: u32, factor: u32) -> Error {
    Error::Recipe {
        key: format!("method.{method}.resolution"),
        problem: format!("is {side}"),
        hint: format!("expected a multiple of {factor}, the autoencoder's factor"),
    }
}
