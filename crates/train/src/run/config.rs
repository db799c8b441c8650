//! What the loop needs to know, with or without a recipe.

use std::path::PathBuf;

use diptych_tensor::optim::{LrSchedule, OptimizerConfig};
use serde::Serialize;

use crate::modality::Modality;
use crate::plan::Plan;
use crate::recipe::{Recipe, TrainConfig};
use crate::{Error, RecipeError, Result};

/// The settings of one run of the loop.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoopConfig {
    /// The only source of randomness.
    pub seed: u64,
    /// The run directory.
    #[serde(skip)]
    pub output: PathBuf,
    /// Whether each epoch has an order of its own.
    pub shuffle: bool,
    /// How parameters are updated.
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    pub schedule: LrSchedule,
    /// Steps, batches, and what is written when.
    pub train: TrainConfig,
    /// What this run is, for `plan.toml` and for the comparison on resume; made from these settings when absent.
    #[serde(skip)]
    pub plan: Option<Plan>,
    /// The recipe as written, for `recipe.toml`.
    #[serde(skip)]
    pub recipe_text: Option<String>,
}

impl LoopConfig {
    /// A run without a recipe: seed 0, shuffled, AdamW and a constant learning rate. Change the fields as needed.
    pub fn new(output: impl Into<PathBuf>, train: TrainConfig) -> Self {
        Self {
            seed: 0,
            output: output.into(),
            shuffle: true,
            optimizer: OptimizerConfig::default(),
            schedule: LrSchedule::default(),
            train,
            plan: None,
            recipe_text: None,
        }
    }

    /// The run a recipe describes. Hashes every file the run reads.
    ///
    /// # Errors
    /// As [`Plan::resolve`].
    pub fn from_recipe<M: Modality>(recipe: &Recipe<M>) -> Result<Self> {
        Ok(Self {
            seed: recipe.run.seed,
            output: recipe.run.output.clone(),
            shuffle: recipe.data.shuffle,
            optimizer: recipe.optimizer,
            schedule: recipe.schedule,
            train: recipe.train.clone(),
            plan: Some(Plan::resolve(recipe)?),
            recipe_text: Some(as_written(recipe)),
        })
    }

    /// An error about one setting.
    pub(crate) fn invalid(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> Error {
        let error = RecipeError {
            origin: self.output.display().to_string(),
            line: None,
            key: key.to_owned(),
            found: found.into(),
            expected: expected.into(),
            nearest: None,
        };
        Box::new(error).into()
    }

    pub(crate) fn validate(&self) -> Result<()> {
        match self.train.problem() {
            None => Ok(()),
            Some((key, found, expected)) => Err(self.invalid(&format!("train.{key}"), found, expected)),
        }
    }

    pub(crate) fn plan(&self) -> Result<Plan> {
        match &self.plan {
            Some(plan) => Ok(plan.clone()),
            None => match toml::Table::try_from(self) {
                Ok(settings) => Ok(Plan::of_settings(settings)),
                Err(error) => Err(Error::damaged("settings", &error)),
            },
        }
    }
}

/// The recipe's text; overrides follow as comments, so that the file says how the run was started.
fn as_written<M: Modality>(recipe: &Recipe<M>) -> String {
    let mut text = recipe.source.text().to_owned();
    if !recipe.source.overrides().is_empty() {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str("\n# Started with these values given over the recipe:\n");
        for given in recipe.source.overrides() {
            text.push_str("#   --set ");
            text.push_str(&given.replace('\n', " "));
            text.push('\n');
        }
    }
    text
}
