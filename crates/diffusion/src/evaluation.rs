//! How much better the aligned model follows prompts than its base: the same held-out prompts and the same noise for both.

use diptych_eval::{WinRate, WinRateConfig, mean_per_prompt};
use diptych_models::diffusers::PipelineDir;
use diptych_models::vae::AutoencoderKl;
use diptych_models::{AdapterConfig, Trainable};
use diptych_train::{EvaluationTable, Recipe};
use image::RgbImage;

use crate::Result;
use crate::method::{DiffusionMethod, TrainedDenoiser, network_options, texts};
use crate::modality::Diffusion;
use crate::pipeline::{Denoiser, ImageSampler, PromptEmbeddings, SampleConfig, TextConditioner, load_vae};
use crate::progress::{Reporter, Stage};

/// Samples both models and compares their scores.
///
/// # Errors
/// Prompts that cannot be read or judged, networks that cannot be loaded, [`crate::Error::Stopped`].
pub(crate) fn win_rate(
    recipe: &Recipe<Diffusion>,
    method: &DiffusionMethod,
    config: &WinRateConfig,
    reporter: &mut Reporter<'_>,
) -> Result<Option<WinRate>> {
    let Some(policy) = method.policy() else { return Ok(None) };
    let config = resolved(recipe, config)?;
    let prompts = repeated(&config.prompts()?, config.images_per_prompt);
    let contest = Contest::new(recipe, &config, &prompts)?;
    let base = contest.base(policy, &prompts, reporter)?;
    let aligned = contest.aligned(policy, &prompts, reporter)?;
    let score = |images: &[RgbImage]| -> Result<Vec<f64>> {
        Ok(mean_per_prompt(
            &config.judge.score(&prompts, images)?,
            config.images_per_prompt,
        )?)
    };
    let base = score(&base)?;
    reporter.advance(Stage::Judging, 1, 2)?;
    let aligned = score(&aligned)?;
    reporter.advance(Stage::Judging, 2, 2)?;
    Ok(Some(WinRate::compare(
        &base,
        &aligned,
        config.seed,
        config.bootstrap_samples,
    )?))
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
            "The same prompts and the same initial noise (seed {}) for both; {} steps, guidance {}; paired bootstrap.",
            config.seed, config.steps, config.guidance_scale
        ),
    }
}

/// The section with its file resolved as the recipe's other paths are.
fn resolved(recipe: &Recipe<Diffusion>, config: &WinRateConfig) -> Result<WinRateConfig> {
    let prompts = config
        .prompts
        .as_ref()
        .map(|path| recipe.resolve_path("eval.win_rate.prompts", path))
        .transpose()?;
    Ok(WinRateConfig {
        prompts,
        ..config.clone()
    })
}

fn repeated(prompts: &[String], times: usize) -> Vec<String> {
    prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt.clone(), times))
        .collect()
}

/// What the two models share.
struct Contest<'a> {
    recipe: &'a Recipe<Diffusion>,
    directory: PipelineDir,
    vae: AutoencoderKl,
    /// Of the base model's text encoder.
    embeddings: PromptEmbeddings,
    sampling: SampleConfig,
}

impl<'a> Contest<'a> {
    fn new(recipe: &'a Recipe<Diffusion>, config: &WinRateConfig, prompts: &[String]) -> Result<Self> {
        let directory = PipelineDir::open(recipe.model_path()?)?;
        let options = network_options(recipe)?;
        let sampling = SampleConfig {
            steps: config.steps,
            guidance_scale: config.guidance_scale,
            seed: config.seed,
            ..recipe.samples.clone().unwrap_or_default().sampling()
        };
        let (text, _) = TextConditioner::load(&directory, &options, Trainable::None, None)?;
        let embeddings = PromptEmbeddings::encode(&text, texts(prompts, &sampling), &mut Reporter::silent())?;
        let (vae, _) = load_vae(&directory, &options, Trainable::None)?;
        Ok(Self {
            recipe,
            directory,
            vae,
            embeddings,
            sampling,
        })
    }

    /// The model as it was before any training.
    fn base(&self, policy: &TrainedDenoiser, prompts: &[String], reporter: &mut Reporter<'_>) -> Result<Vec<RgbImage>> {
        match self.recipe.adapter.0 {
            AdapterConfig::Lora(_) => {
                let _off = policy.denoiser.unet().adapter_switch().disable();
                self.sample(
                    &policy.denoiser,
                    &self.embeddings,
                    prompts,
                    (Stage::BaseImages, reporter),
                )
            }
            AdapterConfig::Full(_) => {
                let options = network_options(self.recipe)?;
                let (denoiser, _) = Denoiser::load(&self.directory, &options, Trainable::None, None)?;
                self.sample(&denoiser, &self.embeddings, prompts, (Stage::BaseImages, reporter))
            }
        }
    }

    fn aligned(
        &self,
        policy: &TrainedDenoiser,
        prompts: &[String],
        reporter: &mut Reporter<'_>,
    ) -> Result<Vec<RgbImage>> {
        let trained = policy
            .text
            .as_ref()
            .map(|text| PromptEmbeddings::encode(text, texts(prompts, &self.sampling), &mut Reporter::silent()))
            .transpose()?;
        let embeddings = trained.as_ref().unwrap_or(&self.embeddings);
        self.sample(&policy.denoiser, embeddings, prompts, (Stage::AlignedImages, reporter))
    }

    fn sample(
        &self,
        denoiser: &Denoiser,
        embeddings: &PromptEmbeddings,
        prompts: &[String],
        (stage, reporter): (Stage, &mut Reporter<'_>),
    ) -> Result<Vec<RgbImage>> {
        let sampler = ImageSampler {
            denoiser,
            vae: &self.vae,
            embeddings,
            latent_shape: denoiser.latent_shape()?,
            config: &self.sampling,
        };
        sampler.sample(prompts, stage, reporter)
    }
}
