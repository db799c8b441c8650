//! From a recipe to a method: loads what the run needs, encodes images and prompts once, and drops what is not needed after.

use std::sync::Arc;

use diptych_data::Dataset;
use diptych_models::diffusers::PipelineDir;
use diptych_models::vae::AutoencoderKl;
use diptych_models::{AdapterConfig, LoraConfig, Trainable};
use diptych_tensor::CheckpointPolicy;
use diptych_train::{GradientCheckpointing, Method as _, Recipe, Reporter};

use super::autoencoder::Autoencoder;
use super::config::{AutoencoderConfig, MethodConfig, SftConfig};
use super::consistency::Consistency;
use super::denoising_records::DenoisingRecords;
use super::encode::{Encoded, Settings};
use super::online::{Reward, check_reward};
use super::sft::Sft;
use super::showcase::Showcase;
use super::trained::{TextTraining, TrainedDenoiser};
use super::{DiffusionMethod, PreferenceModelConfig, preference_model, source};
use crate::modality::{Diffusion, adapter_of};
use crate::pipeline::{DenoiserConfig, NetworkOptions, denoiser_component, load_adapter, load_vae};
use crate::rounds::refuse_rounds;
use crate::{Error, Result, evaluation};

/// Loads the networks and the data of a recipe and computes what training reads of them.
///
/// # Errors
/// Files that are missing, damaged or do not fit each other, settings that contradict the data, [`Error::Stopped`].
pub fn prepare(recipe: &Recipe<Diffusion>, reporter: &mut Reporter<'_>) -> Result<DiffusionMethod> {
    prepare_for(recipe, None, reporter)
}

/// [`prepare`] for a method that samples what it learns from, rewarded by a program's own reward. The recipe must name no judge.
///
/// # Errors
/// As [`prepare`]; [`Error::Recipe`] for a method that has no use for a reward, or a recipe that names a judge.
pub fn prepare_with_reward(
    recipe: &Recipe<Diffusion>,
    reward: Arc<dyn Reward>,
    reporter: &mut Reporter<'_>,
) -> Result<DiffusionMethod> {
    prepare_for(recipe, Some(reward), reporter)
}

fn prepare_for(
    recipe: &Recipe<Diffusion>,
    reward: Option<Arc<dyn Reward>>,
    reporter: &mut Reporter<'_>,
) -> Result<DiffusionMethod> {
    check_reward(recipe, reward.as_deref())?;
    refuse_rounds(recipe, "this is for one of them")?;
    let dataset = source::load(recipe, reporter)?;
    // It starts from a model's directory, where all others have a pipeline.
    if let MethodConfig::PreferenceModel(config) = &recipe.method {
        return preference_model(recipe, config, dataset, reporter);
    }
    let pipeline = PipelineDir::open(recipe.model_path()?)?;
    let options = network_options(recipe)?;
    evaluation::check_inputs(recipe, &pipeline)?;
    let adapter = adapter_of(recipe)?;
    if let AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) = &adapter {
        // Read again where it is attached; here its other parts are refused, which the run would drop.
        load_adapter(path, denoiser_component(&pipeline))?;
    }
    let preparation = Preparation {
        recipe,
        pipeline: &pipeline,
        adapter,
        options,
    };
    match recipe.method.clone() {
        MethodConfig::OfflinePairs(config) => preparation.offline_pairs(&config, dataset, reporter),
        MethodConfig::Unpaired(config) => preparation.unpaired(config, dataset, reporter),
        MethodConfig::Ranked(config) => preparation.ranked(config, dataset, reporter),
        MethodConfig::Sft(config) => preparation.sft(&config, dataset, reporter),
        MethodConfig::Autoencoder(config) => preparation.autoencoder(config, dataset),
        MethodConfig::TrajectoryPairs(_)
        | MethodConfig::StepAware(_)
        | MethodConfig::PolicyGradient(_)
        | MethodConfig::DirectReward(_) => preparation.online(dataset, reward, reporter),
        MethodConfig::PreferenceModel(config) => preference_model(recipe, &config, dataset, reporter),
    }
}

fn preference_model(
    recipe: &Recipe<Diffusion>,
    config: &PreferenceModelConfig,
    dataset: Dataset,
    reporter: &mut Reporter<'_>,
) -> Result<DiffusionMethod> {
    let method = preference_model::prepare(recipe, config, dataset, reporter)?;
    Ok(DiffusionMethod::PreferenceModel(Box::new(method)))
}

/// Fills the recipe's `[data.cache]`, as a run would before its first step, and gives the number of records. The run that follows
/// needs neither autoencoder nor text encoder for them. Whatever is there already is kept, so that a stopped call can be repeated.
///
/// # Errors
/// As [`prepare`]; [`Error::Recipe`] for a recipe without `[data.cache]`.
pub fn cache_records(recipe: &Recipe<Diffusion>, reporter: &mut Reporter<'_>) -> Result<usize> {
    if recipe.data.cache.is_none() {
        return Err(Error::Recipe {
            key: "data.cache.path".into(),
            problem: "is missing".into(),
            hint: "name the directory that is to hold the cache".into(),
        });
    }
    Ok(prepare(recipe, reporter)?.num_records())
}

/// Where and how the recipe's networks are built.
pub(crate) fn network_options(recipe: &Recipe<Diffusion>) -> Result<NetworkOptions> {
    Ok(NetworkOptions {
        device: recipe.run.device.resolve()?,
        dtype: recipe.run.precision.dtype(),
        seed: recipe.run.seed,
    })
}

pub(super) struct Preparation<'a> {
    pub(super) recipe: &'a Recipe<Diffusion>,
    pub(super) pipeline: &'a PipelineDir,
    pub(super) adapter: AdapterConfig,
    pub(super) options: NetworkOptions,
}

impl Preparation<'_> {
    fn sft(&self, config: &SftConfig, dataset: Dataset, reporter: &mut Reporter<'_>) -> Result<DiffusionMethod> {
        if config.train_text_encoder && DenoiserConfig::read(self.pipeline)?.unet().is_none() {
            return Err(Error::Recipe {
                key: "method.sft.train_text_encoder".into(),
                problem: "is true, and the text encoders of this pipeline are not trained".into(),
                hint: "leave it out: the denoiser alone is trained".into(),
            });
        }
        let text = if config.train_text_encoder {
            TextTraining::Trained
        } else {
            TextTraining::Frozen
        };
        let of_consistency = config.error.consistency();
        let settings = Settings {
            method: "sft",
            prompt_dropout: config.prompt_dropout,
            timesteps: config.timesteps,
            posterior: config.posterior,
            resolution: config.resolution,
            text,
            needs_empty: of_consistency.is_some_and(Consistency::is_guided),
        };
        self.check_consistency(of_consistency)?;
        let encoded = self.encode(&settings, chosen_only(dataset), reporter)?;
        let policy = self.policy(text)?;
        let consistency = of_consistency.map(|section| self.consistency(section, &encoded.records.draws, &policy));
        let consistency = consistency.transpose()?;
        let (records, showcase) = Self::showcase(encoded, &policy, reporter)?;
        Ok(DiffusionMethod::Sft(Box::new(Sft {
            policy,
            objective: self.recipe.objective.clone(),
            records,
            consistency,
            showcase,
        })))
    }

    fn autoencoder(&self, config: AutoencoderConfig, dataset: Dataset) -> Result<DiffusionMethod> {
        let images = match dataset {
            Dataset::Captions(captions) => captions
                .into_iter()
                .map(|caption| (caption.id, caption.image))
                .collect(),
            Dataset::Pairs(pairs) => pairs
                .into_iter()
                .flat_map(|pair| {
                    [
                        (format!("{} (chosen)", pair.id), pair.chosen),
                        (format!("{} (rejected)", pair.id), pair.rejected),
                    ]
                })
                .collect(),
            Dataset::Labels(labels) => labels.into_iter().map(|label| (label.id, label.image)).collect(),
            Dataset::Ranked(lists) => lists
                .into_iter()
                .flat_map(|list| {
                    let id = list.id;
                    let images = list.responses.into_iter().enumerate();
                    images.map(move |(number, response)| (format!("{id} (response {number})"), response.image))
                })
                .collect(),
            other @ (Dataset::LatentPairs(_) | Dataset::Prompts(_)) => {
                return Err(Error::DataKind {
                    method: "autoencoder",
                    found: other.records().name(),
                    expected: "captioned images or image pairs",
                });
            }
        };
        let (mut vae, params) = load_vae(self.pipeline, &self.options, Trainable::All)?;
        vae.gradient_checkpointing = self.checkpointing();
        let size = self.autoencoder_size(config.resolution.or(self.recipe.data.resolution), &vae)?;
        Ok(DiffusionMethod::Autoencoder(Box::new(Autoencoder {
            vae,
            params,
            model: self.pipeline.path().to_path_buf(),
            objective: self.recipe.objective.clone(),
            config,
            images,
            size,
            device: self.options.device.clone(),
        })))
    }

    fn autoencoder_size(&self, resolution: Option<u32>, vae: &AutoencoderKl) -> Result<(u32, u32)> {
        let factor = vae.downscale() as u32;
        match (resolution, vae.config().sample_size) {
            (Some(side), _) if side > 0 && side.is_multiple_of(factor) => Ok((side, side)),
            (Some(side), _) => Err(not_a_multiple("autoencoder", self.recipe.data.resolution, side, factor)),
            (None, Some([height, width])) => Ok((width as u32, height as u32)),
            (None, None) => Err(Error::Config {
                file: self.pipeline.component("vae")?.config(),
                key: "sample_size".into(),
                found: "missing".into(),
                expected: "the images' height and width, or `method.autoencoder.resolution` in the recipe".into(),
            }),
        }
    }

    /// Strength of guidance that the denoiser is told while training.
    ///
    /// # Errors
    /// [`Error::Recipe`] where it is asked for and the denoiser takes none.
    pub(super) fn told_guidance(&self) -> Result<Option<f64>> {
        let guidance = self.recipe.method.told_guidance();
        if guidance.is_some() && !DenoiserConfig::read(self.pipeline)?.takes_guidance() {
            return Err(Error::Recipe {
                key: format!("method.{}.guidance_scale", self.recipe.method.name()),
                problem: "is unused: this denoiser does not take the strength of guidance as an input".into(),
                hint: "leave it out".into(),
            });
        }
        Ok(guidance)
    }

    /// Which blocks recompute their activations.
    pub(super) fn checkpointing(&self) -> CheckpointPolicy {
        match self.recipe.train.gradient_checkpointing {
            GradientCheckpointing::Blocks(policy) => policy,
            // A budget was refused with the recipe: plans of images do not count activations.
            GradientCheckpointing::Memory { .. } => CheckpointPolicy::ALL,
        }
    }

    pub(super) fn policy(&self, text: TextTraining) -> Result<TrainedDenoiser> {
        let checkpointing = self.checkpointing();
        let mut policy = TrainedDenoiser::load(self.pipeline, &self.options, &self.adapter, text, checkpointing)?;
        if let Some(text) = &mut policy.text {
            text.set_gradient_checkpointing(checkpointing);
        }
        Ok(policy)
    }

    pub(super) fn showcase(
        encoded: Encoded,
        policy: &TrainedDenoiser,
        reporter: &mut Reporter<'_>,
    ) -> Result<(DenoisingRecords, Option<Showcase>)> {
        let latent_shape = encoded.sample_shape;
        let showcase = match (encoded.vae, encoded.samples) {
            (Some(vae), Some(samples)) => Some(Showcase::new(
                vae,
                encoded.sample_embeddings,
                samples,
                policy,
                latent_shape,
                reporter,
            )?),
            _ => None,
        };
        Ok((encoded.records, showcase))
    }
}

fn chosen_only(dataset: Dataset) -> Dataset {
    match dataset {
        Dataset::Pairs(pairs) => Dataset::Captions(
            pairs
                .into_iter()
                .map(|pair| diptych_data::ImageCaption::new(pair.id, pair.prompt, pair.chosen))
                .collect(),
        ),
        other => other,
    }
}

/// `of_data` is the size that `[data]` asks for, where it does.
pub(super) fn not_a_multiple(method: &str, of_data: Option<u32>, side: u32, factor: u32) -> Error {
    Error::Recipe {
        key: match of_data {
            Some(_) => "data.resolution".to_owned(),
            None => format!("method.{method}.resolution"),
        },
        problem: format!("is {side}"),
        hint: format!("expected a multiple of {factor}, the autoencoder's factor"),
    }
}

#[cfg(test)]
mod tests {
    use diptych_data::{ImageCaption, ImageSource, write_captions};

    use super::*;
    use crate::shapes_pipeline::{ShapesPipelineConfig, initialize};

    /// The denoiser alone recomputed its activations; the text encoder trained beside it kept all of its own.
    #[test]
    fn gradient_checkpointing_reaches_every_trained_network() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = ShapesPipelineConfig::smallest();
        initialize(&directory.path().join("model"), &sizes, &["red"], 0).unwrap();
        let image = ImageSource::from_image(&image::RgbImage::new(16, 16)).unwrap();
        let captions = [ImageCaption::new("0", "red", image)];
        write_captions(&directory.path().join("captions.jsonl"), &captions).unwrap();
        let path = directory.path().join("recipe.toml");
        for enabled in [true, false] {
            let text = format!(
                "modality = \"diffusion\"\nmodel.path = \"model\"\ndata.path = \"captions.jsonl\"\nobjective.sft = {{}}\n\
                 adapter.full = {{}}\nmethod.sft.train_text_encoder = true\n[train]\nsteps = 1\nsample_every = 0\n\
                 gradient_checkpointing = {enabled}\n"
            );
            std::fs::write(&path, text).unwrap();
            let recipe = Recipe::read(&path, &["run.device=cpu".into()]).unwrap();
            let DiffusionMethod::Sft(sft) = prepare(&recipe, &mut Reporter::silent()).unwrap() else {
                panic!("another method");
            };
            let policy = if enabled {
                CheckpointPolicy::ALL
            } else {
                CheckpointPolicy::Off
            };
            assert_eq!(sft.policy.denoiser.network().gradient_checkpointing(), policy);
            let text = sft.policy.text.as_ref().unwrap();
            for (_, encoder) in text.encoders() {
                assert_eq!(encoder.gradient_checkpointing, policy);
            }
        }
    }
}
