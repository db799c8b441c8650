//! What is looked at before the first round: files resolved, what would fail after minutes refused.

use std::path::{Path, PathBuf};

use diptych_eval::JudgeOptions;
use diptych_models::diffusers::PipelineDir;
use diptych_train::{Recipe, RunDirectory};

use super::checks;
use super::config::RoundsConfig;
use super::policies::absolute;
use crate::modality::Diffusion;
use crate::sampler::SamplerConfig;
use crate::schedule::NoiseSchedule;
use crate::{Error, Result, evaluation};

/// The section with the judge's files resolved as the recipe's other paths are.
pub(super) fn resolved(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<RoundsConfig> {
    let mut rounds = rounds.clone();
    let key = checks::judge_key(&rounds.records);
    if let Some(judge) = rounds.records.judge_mut() {
        *judge = judge.map_paths(&mut |path: &Path| -> Result<PathBuf> {
            let path = recipe.resolve_path(&key, path)?;
            absolute(&path)
        })?;
    }
    Ok(rounds)
}

/// Refuses what would fail after minutes: too many denoising steps, a judge that cannot be read.
pub(super) fn check(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<()> {
    let pipeline = PipelineDir::open(recipe.model_path()?)?;
    evaluation::check_inputs(recipe, &pipeline)?;
    let schedule = NoiseSchedule::read(pipeline.component("scheduler")?.path())?;
    SamplerConfig::new(rounds.sampling.sampler, rounds.sampling.steps).check(&schedule)?;
    if let Some(judge) = rounds.records.judge() {
        judge.load(&JudgeOptions::default())?;
    }
    Ok(())
}

/// Rounds that are done would not have been what they are with another length of training.
pub(super) fn refuse_other_length(recipe: &Recipe<Diffusion>, output: &RunDirectory) -> Result<()> {
    let path = output.plan();
    let text = std::fs::read_to_string(&path).map_err(super::place::io("read", &path))?;
    let started: toml::Table = text.parse().map_err(|error: toml::de::Error| Error::Config {
        file: path.clone(),
        key: ".".into(),
        found: error.message().to_owned(),
        expected: "TOML".into(),
    })?;
    let now = recipe.to_table()?;
    let changes: Vec<String> = ["steps", "num_epochs"]
        .into_iter()
        .filter_map(|key| {
            let of = |table: Option<&toml::Value>| Some(table?.get("train")?.get(key)?.to_string());
            let before = of(started.get("recipe"));
            let after = now.get("train").and_then(|train| Some(train.get(key)?.to_string()));
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".into());
            (before != after).then(|| format!("train.{key}: was {}, is {}", shown(&before), shown(&after)))
        })
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    Err(diptych_train::Error::Changed { path, changes }.into())
}
