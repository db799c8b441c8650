//! How much better the aligned model follows prompts than its base: the same held-out prompts and the same noise for both.

use std::path::Path;

use diptych_eval::{ImageRole, JudgeOptions, TrainedRole, WinRate, WinRateConfig, mean_per_prompt};
use diptych_models::diffusers::PipelineDir;
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{AdapterConfig, LoraConfig, Trainable};
use diptych_train::{EvaluationTable, Recipe, Reporter};
use image::RgbImage;

use crate::method::{DiffusionMethod, TrainedDenoiser, load_frozen, network_options, shown};
use crate::modality::{Diffusion, NEGATIVE_ADAPTER, WIN_RATE_JUDGE, WIN_RATE_PROMPTS, adapter_of};
use crate::pipeline::{
    Denoiser, DenoiserConfig, ImageSampler, NoiseSet, SampleConfig, SampleSizes, TextConditioner, denoiser_component,
    load_adapter, load_vae,
};
use crate::schedule::NoiseSchedule;
use crate::stage::Stage;
use crate::{Error, Result};

/// Which of the two models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The model before training.
    Base,
    /// The model after it.
    Aligned,
}

/// One model's images and their scores.
#[derive(Debug, Clone)]
pub struct Judged {
    /// One for each of [`Contest::prompts`].
    pub images: Vec<RgbImage>,
    /// One for each image.
    pub scores: Vec<f64>,
}

/// Two models' images of the same prompts, judged.
#[derive(Debug, Clone)]
pub struct Contest {
    /// The prompt of each image: with several images a prompt, it stands there as often.
    pub prompts: Vec<String>,
    /// Of the model before training.
    pub base: Judged,
    /// Of the model after it.
    pub aligned: Judged,
    /// How they compare.
    pub win_rate: WinRate,
}

/// Compares two models on the prompts, by the judge and with the resampling of `config`. `sample` makes the images of a side, one
/// for each prompt it is given; the base comes first. Denoising steps, guidance and noise are its own affair. The judge runs on the
/// CPU; [`contest_with`] puts it elsewhere.
///
/// # Errors
/// Prompts that cannot be read or judged, what `sample` fails with, [`crate::Error::Stopped`].
pub fn contest(
    config: &WinRateConfig,
    sample: impl FnMut(Side, &[String], &mut Reporter<'_>) -> Result<Vec<RgbImage>>,
    reporter: &mut Reporter<'_>,
) -> Result<Contest> {
    contest_with(config, &JudgeOptions::default(), sample, reporter)
}

/// [`contest`] with the judge's network where `options` say. A judge that looks scores up finds the images of prompt n, counted from 0,
/// under the id n: the aligned model's as `chosen`, the base's as `rejected`.
///
/// # Errors
/// As [`contest`]; a judge that cannot be loaded, before anything is sampled.
pub fn contest_with(
    config: &WinRateConfig,
    options: &JudgeOptions,
    mut sample: impl FnMut(Side, &[String], &mut Reporter<'_>) -> Result<Vec<RgbImage>>,
    reporter: &mut Reporter<'_>,
) -> Result<Contest> {
    let prompts = repeat_each(&config.prompts()?, config.images_per_prompt);
    let loaded = config.judge.load(options)?;
    let base = sample(Side::Base, &prompts, reporter)?;
    let aligned = sample(Side::Aligned, &prompts, reporter)?;
    let mut judge = |images: Vec<RgbImage>, role, done| -> Result<Judged> {
        let scores = loaded.score_as(&prompts, &images, role)?;
        reporter.advance(Stage::Judging, done, 2)?;
        Ok(Judged { images, scores })
    };
    let (base, aligned) = (
        judge(base, ImageRole::Rejected, 1)?,
        judge(aligned, ImageRole::Chosen, 2)?,
    );
    let per_prompt = |judged: &Judged| mean_per_prompt(&judged.scores, config.images_per_prompt);
    let win_rate = WinRate::compare(
        &per_prompt(&base)?,
        &per_prompt(&aligned)?,
        config.seed,
        config.bootstrap_samples,
    )?;
    Ok(Contest {
        prompts,
        base,
        aligned,
        win_rate,
    })
}

/// Samples the model of a run and its base and compares their scores.
///
/// # Errors
/// As [`contest`]; networks that cannot be loaded.
pub(crate) fn win_rate(
    recipe: &Recipe<Diffusion>,
    method: &DiffusionMethod,
    config: &WinRateConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Option<WinRate>> {
    let Some(policy) = method.policy() else { return Ok(None) };
    let config = resolved(recipe, config)?;
    let models = Models::load(recipe, policy, &config)?;
    let sample = |side, prompts: &[String], reporter: &mut Reporter<'_>| models.sample(side, prompts, reporter);
    let options = JudgeOptions {
        device: network_options(recipe)?.device,
        ..JudgeOptions::default()
    };
    Ok(Some(contest_with(&config, &options, sample, reporter)?.win_rate))
}

/// Refuses what an evaluation or the samples would fail at after training, as far as it can be told without loading a network: prompts that
/// cannot be read or judged, too many denoising steps, parts of the pipeline that are not there.
///
/// # Errors
/// The first of these.
pub fn check_evaluation(recipe: &Recipe<Diffusion>) -> Result<()> {
    if !recipe.method.trains_denoiser() && recipe.evaluation.is_none() {
        // Its model need be no pipeline.
        return Ok(());
    }
    let pipeline = PipelineDir::open(recipe.model_path()?)?;
    check_sections(recipe, &pipeline).map(drop)
}

/// [`check_evaluation`], and the judge, which is better known to be readable before training than after it.
pub(crate) fn check_inputs(recipe: &Recipe<Diffusion>, pipeline: &PipelineDir) -> Result<()> {
    if let Some(config) = check_sections(recipe, pipeline)? {
        config.judge.load(&JudgeOptions::default())?;
    }
    Ok(())
}

fn check_sections(recipe: &Recipe<Diffusion>, pipeline: &PipelineDir) -> Result<Option<WinRateConfig>> {
    let win_rate = recipe
        .evaluation
        .as_ref()
        .and_then(|evaluation| evaluation.win_rate.as_ref());
    let is_showing = recipe.train.sample_every > 0 && recipe.method.trains_denoiser();
    if win_rate.is_none() && !is_showing {
        return Ok(None);
    }
    let schedule = NoiseSchedule::read(pipeline.component("scheduler")?.path())?;
    let sampling = recipe.samples.clone().unwrap_or_default().sampling();
    if is_showing {
        check_sampling("samples", &sampling, &schedule, pipeline)?;
    }
    let Some(config) = win_rate else { return Ok(None) };
    check_sampling("eval.win_rate", &sampling_of(config, sampling), &schedule, pipeline)?;
    if config.negative_adapter.is_some() || config.trained_as == TrainedRole::Negative {
        refuse_told_guidance(pipeline)?;
    }
    for (encoder, tokenizer) in TextConditioner::components(pipeline) {
        pipeline.component(encoder)?;
        pipeline.component(tokenizer)?;
    }
    pipeline.component("vae")?;
    let config = resolved(recipe, config)?;
    config.prompts()?;
    Ok(Some(config))
}

/// How an evaluation samples: as its section says, with the sampler of `[samples]`.
pub fn sampling_of(config: &WinRateConfig, samples: SampleConfig) -> SampleConfig {
    SampleConfig {
        steps: config.steps,
        guidance_scale: config.guidance_scale,
        eta: config.eta,
        height: config.height,
        width: config.width,
        seed: config.seed,
        ..samples
    }
}

/// Refuses settings that the pipeline cannot sample with, by their keys.
fn check_sampling(
    section: &str,
    sampling: &SampleConfig,
    schedule: &NoiseSchedule,
    pipeline: &PipelineDir,
) -> Result<()> {
    let check = || {
        sampling.sampler().check(schedule)?;
        if sampling.height.is_none() && sampling.width.is_none() {
            return Ok(());
        }
        let vae = AutoencoderKlConfig::from_file(pipeline.component("vae")?.config())?;
        let sizes = SampleSizes::of(&DenoiserConfig::read(pipeline)?, vae.downscale());
        sampling.latent_shape([0; 3], sizes).map(|_| ())
    };
    check().map_err(|error: Error| error.of_section(section))
}

/// A denoiser that takes the strength of guidance as an input makes no prediction without the prompt that another could replace.
fn refuse_told_guidance(pipeline: &PipelineDir) -> Result<()> {
    if !DenoiserConfig::read(pipeline)?.takes_guidance() {
        return Ok(());
    }
    Err(Error::Recipe {
        key: NEGATIVE_ADAPTER.into(),
        problem: "is for guidance by two predictions, and this denoiser takes the strength of guidance as an input"
            .into(),
        hint: "leave it out".into(),
    })
}

/// The table a report shows.
pub(crate) fn table(win_rate: &WinRate, config: &WinRateConfig) -> EvaluationTable {
    let number = |value: f64| format!("{value:.4}");
    let interval = |low: f64, high: f64| format!("{low:+.4} to {high:+.4}");
    EvaluationTable {
        title: format!("{} score on {} held-out prompts", config.judge, win_rate.n),
        columns: [
            "base",
            "aligned",
            "difference",
            "95 % interval",
            "win/tie/loss",
            "win rate",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: vec![vec![
            number(win_rate.base.mean),
            number(win_rate.aligned.mean),
            format!("{:+.4}", win_rate.difference.mean),
            interval(win_rate.difference.low, win_rate.difference.high),
            format!("{}/{}/{}", win_rate.wins, win_rate.ties, win_rate.losses),
            format!("{:.1} %", 100.0 * win_rate.win_rate),
        ]],
        note: format!(
            "The same prompts and the same initial noise (seed {}) for both; {} steps, guidance {}{}; paired bootstrap.",
            config.seed,
            config.steps,
            config.guidance_scale,
            match (&config.negative_adapter, config.trained_as) {
                (Some(path), _) => format!(", the aligned model led away from {}", path.display()),
                (None, TrainedRole::Negative) => ", aligned: the base model led away from the trained one".to_owned(),
                (None, TrainedRole::Policy) => String::new(),
            }
        ),
    }
}

/// The section with its file resolved as the recipe's other paths are.
pub(crate) fn resolved(recipe: &Recipe<Diffusion>, config: &WinRateConfig) -> Result<WinRateConfig> {
    let prompts = config
        .prompts
        .as_ref()
        .map(|path| recipe.resolve_path(WIN_RATE_PROMPTS, path))
        .transpose()?;
    let negative_adapter = config
        .negative_adapter
        .as_ref()
        .map(|path| recipe.resolve_path(NEGATIVE_ADAPTER, path))
        .transpose()?;
    let judge = config
        .judge
        .map_paths(&mut |path: &Path| recipe.resolve_path(WIN_RATE_JUDGE, path))?;
    Ok(WinRateConfig {
        prompts,
        negative_adapter,
        judge,
        ..config.clone()
    })
}

/// Every prompt `times` times, one after the other.
pub(crate) fn repeat_each(prompts: &[String], times: usize) -> Vec<String> {
    prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), times))
        .collect()
}

/// The trained model, its base, and what they share.
struct Models<'a> {
    recipe: &'a Recipe<Diffusion>,
    policy: &'a TrainedDenoiser,
    directory: PipelineDir,
    vae: AutoencoderKl,
    /// Of the base model.
    text: TextConditioner,
    sampling: SampleConfig,
    trained_as: TrainedRole,
    /// Who answers without the prompt for the aligned model, where that is another network; where the trained network is that, the base model.
    other: Option<Denoiser>,
}

impl<'a> Models<'a> {
    fn load(recipe: &'a Recipe<Diffusion>, policy: &'a TrainedDenoiser, config: &WinRateConfig) -> Result<Self> {
        let directory = PipelineDir::open(recipe.model_path()?)?;
        let options = network_options(recipe)?;
        let sampling = sampling_of(config, recipe.samples.clone().unwrap_or_default().sampling());
        let other = match (&config.negative_adapter, config.trained_as) {
            (Some(path), _) => {
                let adapter = load_adapter(path, denoiser_component(&directory))?;
                Some(Denoiser::load(&directory, &options, Trainable::None, Some(&adapter))?.0)
            }
            (None, TrainedRole::Negative) => Some(Denoiser::load(&directory, &options, Trainable::None, None)?.0),
            (None, TrainedRole::Policy) => None,
        };
        let (text, _) = TextConditioner::load(&directory, &options, Trainable::None, None)?;
        let (vae, _) = load_vae(&directory, &options, Trainable::None)?;
        Ok(Self {
            recipe,
            policy,
            directory,
            vae,
            text,
            sampling,
            trained_as: config.trained_as,
            other,
        })
    }

    fn sample(&self, side: Side, prompts: &[String], reporter: &mut Reporter<'_>) -> Result<Vec<RgbImage>> {
        match (side, &self.recipe.adapter.0) {
            (Side::Aligned, _) => {
                let text = self.policy.text.as_ref().unwrap_or(&self.text);
                let trained: &Denoiser = &self.policy.denoiser;
                let denoisers = match (self.trained_as, &self.other) {
                    (TrainedRole::Negative, Some(base)) => (base, Some(trained)),
                    (_, other) => (trained, other.as_ref()),
                };
                self.sample_with(denoisers, text, prompts, (Stage::AlignedImages, reporter))
            }
            (Side::Base, AdapterConfig::Lora(LoraConfig { init: None, .. })) => {
                let _off = self.policy.denoiser.adapter_switch().disable();
                self.sample_with(
                    (&self.policy.denoiser, None),
                    &self.text,
                    prompts,
                    (Stage::BaseImages, reporter),
                )
            }
            // What training started from is not what is left when the adapter is off.
            (Side::Base, AdapterConfig::Lora(_) | AdapterConfig::Full(_)) => {
                let options = network_options(self.recipe)?;
                let denoiser = load_frozen(&self.directory, &options, &adapter_of(self.recipe)?)?;
                self.sample_with((&denoiser, None), &self.text, prompts, (Stage::BaseImages, reporter))
            }
        }
    }

    fn sample_with(
        &self,
        (denoiser, negative): (&Denoiser, Option<&Denoiser>),
        text: &TextConditioner,
        prompts: &[String],
        (stage, reporter): (Stage, &mut Reporter<'_>),
    ) -> Result<Vec<RgbImage>> {
        let sizes = SampleSizes::of(denoiser.config(), self.vae.downscale());
        let sampler = ImageSampler {
            user: None,
            denoiser,
            negative,
            vae: &self.vae,
            embeddings: &shown(text, prompts, &self.sampling, &mut Reporter::silent())?,
            latent_shape: self.sampling.latent_shape(denoiser.latent_shape()?, sizes)?,
            noise: NoiseSet::Shown,
            config: &self.sampling,
        };
        sampler.sample(prompts, stage, reporter)
    }
}
