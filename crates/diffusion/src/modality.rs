//! The diffusion sections of a recipe, and which of their combinations make sense.

use std::path::PathBuf;

use diptych_core::ScoreKind;
use diptych_eval::{EvaluationConfig, TrainedRole, WinRateConfig};
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_tensor::Precision;
use diptych_train::{GradientCheckpointing, Modality, Recipe, ReferenceConfig};
use serde::{Deserialize, Serialize};

use crate::method::{
    CHECKPOINT, ConsistencyConfig, ConsistencyTarget, EMBEDDINGS, INIT, MethodConfig, PIPELINE, judge_files,
    pipeline_of, teacher_key, validate_data, validate_method,
};
use crate::pipeline::SampleConfig;
use crate::rounds::{RoundsConfig, round_inputs, validate_rounds};
use crate::sampler::SamplerKind;
use crate::{Error, Result};

/// Prompts sampled while training when the recipe does not say how many.
const NUM_PROMPTS: usize = 4;

/// `modality = "diffusion"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diffusion;

/// `[adapter.*]`: LoRA with its defaults where the recipe has no such section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Adapter(pub AdapterConfig);

impl Default for Adapter {
    fn default() -> Self {
        Self(AdapterConfig::Lora(LoraConfig::default()))
    }
}

/// `[samples]`: what is sampled while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// The prompts; by default the first different ones of the data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// How many prompts of the data; 4 by default. Contradicts `prompts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_prompts: Option<usize>,
    /// The sampler, also of the evaluation.
    pub sampler: SamplerKind,
    /// Denoising steps.
    pub steps: usize,
    /// Strength of classifier-free guidance; up to 1: none.
    pub guidance_scale: f64,
    /// Fresh noise in every step, for samplers that leave a choice: `ddim`, from 0 to 1, and `flow_euler`.
    pub eta: f64,
    /// Height of the images, pixels; by default that of the images that are trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Width of the images, pixels; by default that of the images that are trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
    /// Source of the initial noise.
    pub seed: u64,
    /// Images computed together. It changes them by rounding only.
    pub batch_size: usize,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        let SampleConfig {
            sampler,
            steps,
            guidance_scale,
            eta,
            height,
            width,
            seed,
            batch_size,
        } = SampleConfig::default();
        Self {
            prompts: Vec::new(),
            num_prompts: None,
            sampler,
            steps,
            guidance_scale,
            eta,
            height,
            width,
            seed,
            batch_size,
        }
    }
}

impl SamplesConfig {
    /// How images are sampled.
    pub fn sampling(&self) -> SampleConfig {
        SampleConfig {
            sampler: self.sampler,
            steps: self.steps,
            guidance_scale: self.guidance_scale,
            eta: self.eta,
            height: self.height,
            width: self.width,
            seed: self.seed,
            batch_size: self.batch_size,
        }
    }

    /// The prompts to sample, from those of the data where none are given.
    pub(crate) fn choose(&self, of_data: &[String]) -> Result<Vec<String>> {
        if !self.prompts.is_empty() {
            return Ok(self.prompts.clone());
        }
        let mut chosen: Vec<String> = Vec::new();
        for prompt in of_data {
            if chosen.len() == self.num_prompts.unwrap_or(NUM_PROMPTS) {
                break;
            }
            if !chosen.contains(prompt) {
                chosen.push(prompt.clone());
            }
        }
        if chosen.is_empty() {
            return Err(Error::Recipe {
                key: "samples.prompts".into(),
                problem: "is missing, and this data has no prompts".into(),
                hint: "give some, or set `train.sample_every = 0`".into(),
            });
        }
        Ok(chosen)
    }
}

impl Modality for Diffusion {
    const NAME: &'static str = "diffusion";
    const SCORES: ScoreKind = ScoreKind::DenoisingError;
    type Adapter = Adapter;
    type Method = MethodConfig;
    type Samples = SamplesConfig;
    type Evaluation = EvaluationConfig;
    type Rounds = RoundsConfig;

    fn can_switch_off(adapter: &Adapter) -> bool {
        // Also where the adapter starts from another one: the published script of Diffusion-DPO compares with the network without
        // any. `frozen` is the network that training starts from.
        matches!(adapter.0, AdapterConfig::Lora(_))
    }

    fn references() -> &'static [&'static str] {
        &["none", "frozen", "adapter_off", "cached", "ema", "checkpoint"]
    }

    fn needs_data(recipe: &Recipe<Self>) -> bool {
        recipe.rounds.as_ref().is_none_or(RoundsConfig::needs_data)
    }

    fn needs_reference(recipe: &Recipe<Self>) -> Option<String> {
        if let MethodConfig::DirectReward(config) = &recipe.method {
            if config.regularization > 0.0 {
                return Some("`method.direct_reward.regularization`".to_owned());
            }
            if config.divergence.is_some() {
                return Some("`method.direct_reward.divergence`".to_owned());
            }
        }
        let consistency = recipe.method.consistency();
        // `[method.sft]` refuses it and has no reference.
        let is_offline = matches!(recipe.method, MethodConfig::OfflinePairs(_));
        if is_offline && consistency.is_some_and(|section| section.target == ConsistencyTarget::Reference) {
            return Some("`method.offline_pairs.error.consistency.target`".to_owned());
        }
        let objective = &recipe.objective;
        let needs = objective.requirements().reference;
        needs.then(|| format!("objective `{}`", objective.name()))
    }

    fn inputs(recipe: &Recipe<Self>) -> diptych_train::Result<Vec<(String, PathBuf)>> {
        let init = match &recipe.adapter.0 {
            AdapterConfig::Lora(lora) => lora.init.as_ref(),
            AdapterConfig::Full(_) => None,
        };
        let win_rate = recipe
            .evaluation
            .as_ref()
            .and_then(|evaluation| evaluation.win_rate.as_ref());
        let judge = win_rate.map(|config| config.judge.paths()).unwrap_or_default();
        let checkpoint = match &recipe.reference {
            ReferenceConfig::Checkpoint { path } => Some(path),
            _ => None,
        };
        let teacher = recipe.method.consistency().and_then(ConsistencyConfig::teacher);
        let teacher_key = teacher_key(recipe.method.name());
        let of_users = recipe.method.users();
        let embeddings = of_users.map(|users| &users.embeddings);
        let promising = match &recipe.method {
            MethodConfig::PreferenceModel(config) => pipeline_of(config),
            _ => None,
        };
        let named = [
            (PIPELINE, promising),
            (ADAPTER_INIT, init),
            (CHECKPOINT, checkpoint),
            (&teacher_key, teacher.map(|teacher| &teacher.path)),
            (EMBEDDINGS, embeddings),
            (INIT, of_users.and_then(|users| users.init.as_ref())),
            (WIN_RATE_PROMPTS, win_rate.and_then(|config| config.prompts.as_ref())),
            (
                NEGATIVE_ADAPTER,
                win_rate.and_then(|config| config.negative_adapter.as_ref()),
            ),
        ];
        let mut inputs = round_inputs(recipe)?;
        inputs.extend(judge_files(recipe)?);
        for (key, path) in named {
            if let Some(path) = path {
                inputs.push((key.to_owned(), recipe.resolve_path(key, path)?));
            }
        }
        for path in judge {
            inputs.push((WIN_RATE_JUDGE.to_owned(), recipe.resolve_path(WIN_RATE_JUDGE, path)?));
        }
        Ok(inputs)
    }

    fn validate(recipe: &Recipe<Self>) -> diptych_train::Result<()> {
        if recipe.run.precision == Precision::F16 {
            return Err(recipe.invalid(
                "run.precision",
                "f16",
                "f32 or bf16: gradients of a mean underflow in f16",
            ));
        }
        if recipe.model.quantization.is_some() {
            let found = "a value that is unused: decoders of text alone are quantized";
            return Err(recipe.invalid("model.quantization", found, "no such key"));
        }
        if let GradientCheckpointing::Memory { .. } = recipe.train.gradient_checkpointing {
            let found = format!("`{}`", recipe.train.gradient_checkpointing.name());
            let expected = "`true`, `false` or `{ every = BLOCKS }`: plans of images do not count activations";
            return Err(recipe.invalid("train.gradient_checkpointing", found, expected));
        }
        let of_text = [
            ("data.max_len", recipe.data.max_len.is_some()),
            ("data.encoding", recipe.data.encoding.is_some()),
            ("data.max_image_area", recipe.data.max_image_area.is_some()),
            ("data.max_frames", recipe.data.max_frames.is_some()),
            ("data.image_memory", recipe.data.image_memory.is_some()),
        ];
        if let Some((key, _)) = of_text.iter().find(|(_, is_given)| *is_given) {
            return Err(recipe.invalid(key, "a value that is unused: images have no tokens", "no such key"));
        }
        validate_data(recipe)?;
        validate_adapter(recipe)?;
        validate_method(recipe)?;
        validate_samples(recipe)?;
        validate_evaluation(recipe)?;
        validate_rounds(recipe)
    }
}

/// The recipe key of an adapter to start from.
const ADAPTER_INIT: &str = "adapter.lora.init";

/// The recipe key of the prompts that an evaluation samples.
pub(crate) const WIN_RATE_PROMPTS: &str = "eval.win_rate.prompts";

/// The recipe key of the adapter that an evaluation leads away from.
pub(crate) const NEGATIVE_ADAPTER: &str = "eval.win_rate.negative_adapter";

/// The recipe key of an evaluation's judge, under which its files stand.
pub(crate) const WIN_RATE_JUDGE: &str = "eval.win_rate.judge";

/// The recipe's adapter with the path of its start resolved.
pub(crate) fn adapter_of(recipe: &Recipe<Diffusion>) -> Result<AdapterConfig> {
    let mut adapter = recipe.adapter.0.clone();
    if let AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) = &mut adapter {
        *path = recipe.resolve_path(ADAPTER_INIT, path)?;
    }
    Ok(adapter)
}

fn validate_adapter(recipe: &Recipe<Diffusion>) -> diptych_train::Result<()> {
    match &recipe.adapter.0 {
        AdapterConfig::Full(_) => Ok(()),
        AdapterConfig::Lora(lora) => match lora.validate() {
            Ok(()) => Ok(()),
            Err(diptych_models::Error::AdapterSetting { key, found, expected }) => {
                Err(recipe.invalid(&format!("adapter.lora.{key}"), found, expected))
            }
            Err(other) => Err(recipe.invalid("adapter.lora", other, "settings in their ranges")),
        },
    }
}

fn validate_samples(recipe: &Recipe<Diffusion>) -> diptych_train::Result<()> {
    let Some(samples) = &recipe.samples else { return Ok(()) };
    if !recipe.method.trains_denoiser() {
        let found = format!("a section that `[method.{}]` does not use", recipe.method.name());
        return Err(recipe.invalid("samples", found, "no such section: no image is sampled"));
    }
    refuse_unread_samples(recipe, samples)?;
    if !samples.prompts.is_empty() && samples.num_prompts.is_some() {
        return Err(recipe.invalid("samples.num_prompts", "both `prompts` and `num_prompts`", "one of them"));
    }
    let at_least_1 = "a number, at least 1";
    for (key, value) in [
        ("num_prompts", samples.num_prompts.unwrap_or(1)),
        ("steps", samples.steps),
        ("batch_size", samples.batch_size),
    ] {
        if value == 0 {
            return Err(recipe.invalid(&format!("samples.{key}"), "0", at_least_1));
        }
    }
    if !(samples.guidance_scale.is_finite() && samples.guidance_scale >= 0.0) {
        return Err(recipe.invalid(
            "samples.guidance_scale",
            samples.guidance_scale,
            "a finite number, at least 0",
        ));
    }
    if !(samples.eta.is_finite() && samples.eta >= 0.0) {
        return Err(recipe.invalid("samples.eta", samples.eta, "a finite number, at least 0"));
    }
    Ok(())
}

/// With `sample_every = 0` nothing is shown, and an evaluation reads only how its images are computed.
fn refuse_unread_samples(recipe: &Recipe<Diffusion>, samples: &SamplesConfig) -> diptych_train::Result<()> {
    // Someone who switches the samples off for one run need not change the recipe as well.
    if recipe.train.sample_every > 0 || recipe.source.is_overridden("train.sample_every") {
        return Ok(());
    }
    let expected = "no such key, or `train.sample_every` of at least 1";
    let is_evaluated = recipe
        .evaluation
        .as_ref()
        .is_some_and(|evaluation| evaluation.win_rate.is_some());
    if !is_evaluated {
        let found = "a section that is unused: `train.sample_every` is 0 and there is no `[eval.win_rate]`";
        return Err(recipe.invalid("samples", found, expected));
    }
    let default = SamplesConfig::default();
    let changed = [
        ("prompts", samples.prompts != default.prompts),
        ("num_prompts", samples.num_prompts != default.num_prompts),
        ("steps", samples.steps != default.steps),
        ("guidance_scale", samples.guidance_scale != default.guidance_scale),
        ("eta", samples.eta != default.eta),
        ("height", samples.height != default.height),
        ("width", samples.width != default.width),
        ("seed", samples.seed != default.seed),
    ];
    for (name, is_changed) in changed {
        let key = format!("samples.{name}");
        if is_changed || recipe.source.says(&key) {
            let found = "a value that is unused: `train.sample_every` is 0, and `[eval.win_rate]` has its own";
            return Err(recipe.invalid(&key, found, expected));
        }
    }
    Ok(())
}

fn validate_evaluation(recipe: &Recipe<Diffusion>) -> diptych_train::Result<()> {
    let Some(evaluation) = &recipe.evaluation else {
        return Ok(());
    };
    if !recipe.method.trains_denoiser() {
        let found = format!("a section that `[method.{}]` does not use", recipe.method.name());
        return Err(recipe.invalid("eval", found, "no such section"));
    }
    if let Some(config) = &evaluation.win_rate {
        validate_negative(recipe, config)?;
    }
    match evaluation.validate() {
        Ok(()) => Ok(()),
        Err(diptych_eval::Error::InvalidConfig { key, found, expected }) => {
            Err(recipe.invalid(&format!("eval.win_rate.{key}"), found, expected))
        }
        Err(other) => Err(recipe.invalid("eval", other, "settings in their ranges")),
    }
}

/// An adapter to lead away from is asked in guidance alone, and a round has none.
fn validate_negative(recipe: &Recipe<Diffusion>, config: &WinRateConfig) -> diptych_train::Result<()> {
    let is_trained = config.trained_as == TrainedRole::Negative;
    let key = match (&config.negative_adapter, is_trained) {
        (Some(_), true) => {
            let found = "another adapter beside the trained one, which `trained_as` makes the negative one";
            return Err(recipe.invalid(NEGATIVE_ADAPTER, found, "one of the two keys"));
        }
        (Some(_), false) => NEGATIVE_ADAPTER,
        (None, true) => "eval.win_rate.trained_as",
        (None, false) => return Ok(()),
    };
    if config.guidance_scale <= 1.0 {
        let found = "a network to lead away from, which is not asked: `eval.win_rate.guidance_scale` is at most 1";
        return Err(recipe.invalid(key, found, "guidance above 1"));
    }
    if recipe.rounds.is_some() {
        let found = "a network to lead away from, which policies of rounds are compared without";
        return Err(recipe.invalid(key, found, "no such key"));
    }
    if is_trained && matches!(&recipe.method, MethodConfig::Sft(config) if config.train_text_encoder) {
        let found = "a denoiser that is used without the text encoder that is trained beside it";
        return Err(recipe.invalid(key, found, "`method.sft.train_text_encoder = false`"));
    }
    Ok(())
}
