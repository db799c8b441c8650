//! From a recipe to the method: the CLIP that is trained, the records, and for a model that knows the step, the frozen pipeline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_core::{Kind, Requirements};
use diptych_data::{Dataset, ImageCaption, ImagePair, ImageSource};
use diptych_models::clip::ClipConfig;
use diptych_models::diffusers::PipelineDir;
use diptych_models::text_encoder::ClipTokenizer;
use diptych_models::vision::ImageProcessor;
use diptych_models::{AdapterConfig, Trainable};
use diptych_train::{GradientCheckpointing, Recipe, Reporter};
use image::RgbImage;

use super::network::{Network, Time};
use super::promises::Promises;
use super::{
    Images, Negatives, PreferenceModel, PreferenceModelConfig, RecordWeights, Records, StepAwareTrainingConfig,
};
use crate::method::encode::Settings;
use crate::method::prepare::{Preparation, network_options};
use crate::method::trained::TextTraining;
use crate::modality::{Diffusion, adapter_of};
use crate::pipeline::{Denoiser, NetworkOptions, PromptEmbeddings, TextConditioner, load_vae};
use crate::{Error, Result};

const METHOD: &str = "preference_model";
/// The recipe key of the pipeline that promises images.
pub(crate) const PIPELINE: &str = "method.preference_model.step_aware.pipeline";

/// Refuses what this method has no use for.
pub(in crate::method) fn validate(
    recipe: &Recipe<Diffusion>,
    config: &PreferenceModelConfig,
) -> diptych_train::Result<()> {
    if !matches!(recipe.adapter.0, AdapterConfig::Full(_)) {
        let found = "`lora` with `[method.preference_model]`";
        return Err(recipe.invalid("adapter.lora", found, "`[adapter.full]`"));
    }
    if recipe.train.gradient_checkpointing != GradientCheckpointing::default() {
        let found = format!(
            "{} with `[method.preference_model]`",
            recipe.train.gradient_checkpointing.name()
        );
        return Err(recipe.invalid("train.gradient_checkpointing", found, "false: it keeps its activations"));
    }
    if recipe.train.sample_every > 0 && recipe.source.says("train.sample_every") {
        let found = format!("{} with `[method.preference_model]`", recipe.train.sample_every);
        return Err(recipe.invalid(
            "train.sample_every",
            found,
            "0, or no such key: a judge has nothing to show",
        ));
    }
    let (fits, expected) = match config.negatives {
        Negatives::Rejected => (
            recipe.objective.requirements() == Requirements::PAIRS,
            "an objective that compares two scores and needs nothing else, such as `[objective.cpo]` with `sft_weight = 0`",
        ),
        Negatives::InBatch => (
            recipe.objective.requirements().kind == Kind::Chosen,
            "`[objective.sft]`: the log-probability of the right prompt and image is what there is",
        ),
    };
    if !fits {
        let name = recipe.objective.name();
        let found = format!("`{name}` with `[method.preference_model]`");
        return Err(recipe.invalid(&format!("objective.{name}"), found, expected));
    }
    let Some(step_aware) = &config.step_aware else {
        let unused = [
            ("data.flip", recipe.data.flip.is_some()),
            ("data.cache", recipe.data.cache.is_some()),
            ("data.resolution", recipe.data.resolution.is_some()),
        ];
        return match unused.iter().find(|(_, is_given)| *is_given) {
            Some((key, _)) => {
                let found = "a value that is unused: images are read as the model's preprocessing says";
                Err(recipe.invalid(key, found, "no such key"))
            }
            None => Ok(()),
        };
    };
    let scale = step_aware.guidance_scale;
    if !(scale.is_finite() && scale >= 0.0) {
        let key = "method.preference_model.step_aware.guidance_scale";
        return Err(recipe.invalid(key, scale, "a finite number, at least 0"));
    }
    if step_aware.resolution.is_some() && recipe.data.resolution.is_some() {
        let found = "given beside `method.preference_model.step_aware.resolution`";
        return Err(recipe.invalid("data.resolution", found, "one of them"));
    }
    Ok(())
}

/// The files that the method reads besides `model.path`.
pub(crate) fn pipeline_of(config: &PreferenceModelConfig) -> Option<&PathBuf> {
    config.step_aware.as_ref().map(|step_aware| &step_aware.pipeline)
}

/// Loads the network and the records.
pub(in crate::method) fn prepare(
    recipe: &Recipe<Diffusion>,
    config: &PreferenceModelConfig,
    dataset: Dataset,
    reporter: &mut Reporter<'_>,
) -> Result<PreferenceModel> {
    let model = recipe.model_path()?;
    let options = network_options(recipe)?;
    let time = match config.step_aware {
        Some(_) => Time::Known,
        None => Time::Unknown,
    };
    let tokenizer = ClipTokenizer::from_dir(&model)?;
    let (network, params) = Network::load(&model, time, &options)?;
    check_tokenizer(&tokenizer, network.config(), &model)?;
    let side = network.config().vision.image_size;
    let processor = match time {
        Time::Unknown => ImageProcessor::from_dir(&model)?,
        Time::Known => ImageProcessor::step_aware(side),
    };
    check_processor(&processor, side, &model)?;
    let source = Source::new(dataset, config.negatives)?;
    let records = Records {
        weights: weights(&source.prompts, config.weights),
        ids: source.ids.clone(),
        prompts: source.prompts.clone(),
    };
    let images = match &config.step_aware {
        None => Images::Stored(source.sides),
        Some(step_aware) => {
            let promises = promises(recipe, step_aware, source.into_dataset(), &options, reporter)?;
            Images::Promised(Box::new(promises))
        }
    };
    Ok(PreferenceModel {
        network,
        params,
        tokenizer,
        processor,
        objective: recipe.objective.clone(),
        negatives: config.negatives,
        records,
        images,
        model,
        device: options.device,
    })
}

/// Records with one or two images each.
struct Source {
    ids: Vec<String>,
    prompts: Vec<String>,
    sides: Vec<Vec<ImageSource>>,
}

impl Source {
    fn new(dataset: Dataset, negatives: Negatives) -> Result<Self> {
        match (dataset, negatives) {
            (Dataset::Pairs(pairs), _) => {
                let mut source = Self::empty(2);
                for pair in pairs {
                    source.ids.push(pair.id);
                    source.prompts.push(pair.prompt);
                    source.sides[0].push(pair.chosen);
                    source.sides[1].push(pair.rejected);
                }
                Ok(source)
            }
            (Dataset::Captions(captions), Negatives::InBatch) => {
                let mut source = Self::empty(1);
                for caption in captions {
                    source.ids.push(caption.id);
                    source.prompts.push(caption.prompt);
                    source.sides[0].push(caption.image);
                }
                Ok(source)
            }
            (other, Negatives::InBatch) => Err(Error::DataKind {
                method: METHOD,
                found: other.records().name(),
                expected: "image pairs, or captioned images",
            }),
            (other, Negatives::Rejected) => Err(Error::DataKind {
                method: METHOD,
                found: other.records().name(),
                expected: "image pairs; captioned images serve with `negatives = \"in_batch\"`",
            }),
        }
    }

    fn empty(num_sides: usize) -> Self {
        Self {
            ids: Vec::new(),
            prompts: Vec::new(),
            sides: vec![Vec::new(); num_sides],
        }
    }

    fn into_dataset(self) -> Dataset {
        let mut sides = self.sides.into_iter();
        let chosen = sides.next().unwrap_or_default();
        let records = self.ids.into_iter().zip(self.prompts).zip(chosen);
        if let Some(rejected) = sides.next() {
            let pairs = records
                .zip(rejected)
                .map(|(((id, prompt), chosen), rejected)| ImagePair::new(id, prompt, chosen, rejected));
            Dataset::Pairs(pairs.collect())
        } else {
            let captions = records.map(|((id, prompt), image)| ImageCaption::new(id, prompt, image));
            Dataset::Captions(captions.collect())
        }
    }
}

/// Factors of the losses, of mean 1.
pub(super) fn weights(prompts: &[String], kind: RecordWeights) -> Vec<f32> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for prompt in prompts {
        *counts.entry(prompt).or_default() += 1;
    }
    let of_prompt = prompts.len() as f64 / counts.len().max(1) as f64;
    let weight = |prompt: &String| match kind {
        RecordWeights::Prompts => (of_prompt / counts[prompt.as_str()] as f64) as f32,
        RecordWeights::Records => 1.0,
    };
    prompts.iter().map(weight).collect()
}

/// Encodes the records with the frozen pipeline.
fn promises(
    recipe: &Recipe<Diffusion>,
    config: &StepAwareTrainingConfig,
    dataset: Dataset,
    options: &NetworkOptions,
    reporter: &mut Reporter<'_>,
) -> Result<Promises> {
    let pipeline = PipelineDir::open(recipe.resolve_path(PIPELINE, &config.pipeline)?)?;
    let preparation = Preparation {
        recipe,
        pipeline: &pipeline,
        adapter: adapter_of(recipe)?,
        options: options.clone(),
    };
    let settings = Settings {
        method: "preference_model.step_aware",
        prompt_dropout: 0.0,
        timesteps: config.timesteps,
        posterior: config.posterior,
        resolution: config.resolution,
        text: TextTraining::Frozen,
        needs_empty: false,
    };
    let encoded = preparation.encode(&settings, dataset, reporter)?;
    let (denoiser, _) = Denoiser::load(&pipeline, options, Trainable::None, None)?;
    let empty = if denoiser.is_doubled(config.guidance_scale) {
        let (text, _) = TextConditioner::load(&pipeline, options, Trainable::None, None)?;
        Some(PromptEmbeddings::encode(&text, [""], &mut Reporter::silent())?)
    } else {
        None
    };
    Ok(Promises {
        denoiser,
        vae: load_vae(&pipeline, options, Trainable::None)?.0,
        records: encoded.records,
        rejected: encoded.rejected,
        empty,
        guidance_scale: config.guidance_scale,
    })
}

fn check_tokenizer(tokenizer: &ClipTokenizer, config: &ClipConfig, model: &Path) -> Result<()> {
    let (vocabulary, len) = (tokenizer.vocab_size(), tokenizer.config().model_max_length);
    let (known, positions) = (config.text.vocab_size, config.text.max_position_embeddings);
    if vocabulary <= known && len <= positions {
        return Ok(());
    }
    Err(Error::Config {
        file: model.join("tokenizer_config.json"),
        key: "model_max_length".into(),
        found: format!("{len}, and there are {vocabulary} tokens"),
        expected: format!("at most {positions}, and {known} tokens, which the network knows"),
    })
}

fn check_processor(processor: &ImageProcessor, side: usize, model: &Path) -> Result<()> {
    let probe = RgbImage::new(side as u32 + 3, side as u32 + 1);
    let found = processor.images(&[probe], &diptych_tensor::Device::Cpu)?;
    if found.dims()[2..] == [side, side] {
        return Ok(());
    }
    Err(Error::Config {
        file: model.join("preprocessor_config.json"),
        key: "crop_size".into(),
        found: format!("what makes images of {:?}", &found.dims()[2..]),
        expected: format!("[{side}, {side}], what the network reads"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_weighs_alike_and_the_mean_is_1() {
        let prompts: Vec<String> = ["a", "b", "a", "a"].map(str::to_owned).to_vec();
        let found = weights(&prompts, RecordWeights::Prompts);
        assert_eq!(found, [2.0 / 3.0, 2.0, 2.0 / 3.0, 2.0 / 3.0]);
        assert!((found.iter().sum::<f32>() - 4.0).abs() < 1e-6);
        assert_eq!(weights(&prompts, RecordWeights::Records), [1.0; 4]);
    }
}
