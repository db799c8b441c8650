//! What a trained adapter comes to: the verifier's scores of its images, on the prompts and noise that all share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use diptych::diffusion::{Diffusion, NetworkOptions, Pipeline, SampleConfig, generate, sampling_of};
use diptych::eval::{TrainedRole, WinRateConfig};
use diptych::tensor::{DType, Device, thread};
use diptych::train::Recipe;

/// Prompts, and the base model's scores on them.
#[derive(Debug)]
pub(crate) struct Evaluation {
    pub(crate) config: WinRateConfig,
    sampling: SampleConfig,
    model: PathBuf,
    prompts: Vec<String>,
    pub(crate) base: Vec<f64>,
}

impl Evaluation {
    /// Scores a model as it is. `recipe` says how everything else is sampled: `[eval.win_rate]`.
    pub(crate) fn begin(recipe: &Recipe<Diffusion>, model: &Path, seed: u64) -> anyhow::Result<Self> {
        let config = recipe
            .evaluation
            .as_ref()
            .and_then(|sections| sections.win_rate.clone());
        let config = WinRateConfig {
            seed,
            ..config.context("the recipe has no [eval.win_rate]")?
        };
        if config.images_per_prompt != 1 || config.trained_as != TrainedRole::Policy {
            bail!("[eval.win_rate] of the recipe must have one image a prompt, and the trained network as the policy");
        }
        let samples = recipe.samples.clone().unwrap_or_default().sampling();
        let mut evaluation = Self {
            prompts: config.prompts()?,
            sampling: sampling_of(&config, samples),
            config,
            model: model.to_owned(),
            base: Vec::new(),
        };
        evaluation.base = evaluation.scores(None)?;
        Ok(evaluation)
    }

    /// One score a prompt.
    pub(crate) fn scores(&self, adapter: Option<&Path>) -> anyhow::Result<Vec<f64>> {
        thread::on_large_stack(|| {
            let options = NetworkOptions {
                device: Device::Cpu,
                dtype: DType::F32,
                seed: 0,
            };
            let pipeline = Pipeline::load(&self.model, adapter, &options)?;
            let images = generate(&pipeline, &self.prompts, &self.sampling)?;
            Ok(self.config.judge.score(&self.prompts, &images)?)
        })?
    }
}
