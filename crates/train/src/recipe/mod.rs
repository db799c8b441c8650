//! A run as one TOML file: typed sections, strict keys, overrides, and errors that name the place.

mod checkpointing;
mod diagnose;
mod overrides;
mod sections;
mod source;
mod validate;

use std::path::{Path, PathBuf};

use diptych_core::Objective;
use diptych_tensor::optim::{LrSchedule, OptimizerConfig};
use serde::{Deserialize, Serialize};

pub use self::checkpointing::GradientCheckpointing;
pub use self::overrides::string_override;
pub use self::sections::{
    BucketsConfig, CacheConfig, DataConfig, ModelConfig, OneOrMany, ReferenceConfig, RunConfig, TrainConfig,
};
pub use self::source::RecipeSource;
use crate::modality::Modality;
use crate::{Error, RecipeError, Result};

/// A run, as its TOML file says it, with every default filled in.
///
/// An unknown, unused or contradictory key is an error. The type parameter brings the modality's own sections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct Recipe<M: Modality> {
    /// The modality's name.
    pub modality: String,
    /// Seed, device, precision, run directory.
    #[serde(default)]
    pub run: RunConfig,
    /// What is trained.
    pub model: ModelConfig,
    /// Which parameters are trained.
    #[serde(default)]
    pub adapter: M::Adapter,
    /// On which records.
    pub data: DataConfig,
    /// Compared with what. [`Recipe::read`] has replaced an absent section by what the objective and the adapter imply.
    #[serde(default)]
    pub reference: ReferenceConfig,
    /// How the objective's numbers are obtained.
    #[serde(default)]
    pub method: M::Method,
    /// What the scores should satisfy.
    pub objective: Objective,
    /// How parameters are updated.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate changes.
    #[serde(default = "constant_schedule")]
    pub schedule: LrSchedule,
    /// The loop.
    #[serde(default)]
    pub train: TrainConfig,
    /// What is sampled while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<M::Samples>,
    /// What is measured after training.
    #[serde(default, rename = "eval", skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<M::Evaluation>,
    /// How records are made anew, round after round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<M::Rounds>,
    /// Where the recipe came from.
    #[serde(skip)]
    pub source: RecipeSource,
}

fn constant_schedule() -> LrSchedule {
    LrSchedule::Constant { warmup_steps: 0 }
}

impl<M: Modality> Recipe<M> {
    /// Reads a recipe file; each override is `section.key=value`, with the value in TOML, or a bare string.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read, else [`Error::Recipe`] for the first wrong place.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self> {
        Self::from_source(RecipeSource::read(path, overrides)?)
    }

    /// As [`Recipe::read`], from text that is in no file. Relative paths are then looked for in the working directory.
    ///
    /// # Errors
    /// [`Error::Recipe`] for the first wrong place.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        Self::from_source(RecipeSource::new(None, text.to_owned(), overrides.to_vec()))
    }

    fn from_source(source: RecipeSource) -> Result<Self> {
        let table = source.table()?;
        validate::ensure_modality::<M>(&table, &source)?;
        validate::ensure_one_choice(&table, &source)?;
        let has_reference = table.contains_key("reference");
        let mut recipe: Self = serde_path_to_error::deserialize(toml::Value::Table(table))
            .map_err(|error| diagnose::diagnose(&error, &source))?;
        recipe.source = source;
        if !has_reference {
            recipe.reference = recipe.default_reference();
        }
        recipe.validate()?;
        Ok(recipe)
    }

    /// Checks ranges and combinations, the modality's included. [`Recipe::read`] has done so; call it again after changing
    /// a recipe in code.
    ///
    /// # Errors
    /// [`Error::Recipe`] for the first wrong place.
    pub fn validate(&self) -> Result<()> {
        validate::validate(self)?;
        M::validate(self)
    }

    fn default_reference(&self) -> ReferenceConfig {
        if M::needs_reference(self).is_none() {
            ReferenceConfig::None {}
        } else if M::can_switch_off(&self.adapter) {
            ReferenceConfig::AdapterOff {}
        } else {
            ReferenceConfig::Frozen {}
        }
    }

    /// An error about one key of this recipe; file and line are filled in.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers and sentences read alike where it is called"
    )]
    pub fn invalid(&self, key: &str, found: impl ToString, expected: impl ToString) -> Error {
        self.source.invalid(key, found.to_string(), expected.to_string())
    }

    /// A path of the recipe as one that exists: beside the recipe, or else in the working directory. `hf://` addresses are
    /// returned as they are.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming `key` and the two places that were tried.
    pub fn resolve_path(&self, key: &str, path: &Path) -> Result<PathBuf> {
        self.source.resolve_path(key, path)
    }

    /// Where the model is.
    ///
    /// # Errors
    /// As [`Recipe::resolve_path`].
    pub fn model_path(&self) -> Result<PathBuf> {
        self.resolve_path("model.path", &self.model.path)
    }

    /// Where the records are.
    ///
    /// # Errors
    /// As [`Recipe::resolve_path`]; also when the list is empty.
    pub fn data_paths(&self) -> Result<Vec<PathBuf>> {
        self.data
            .path
            .as_slice()
            .iter()
            .map(|path| self.resolve_path("data.path", path))
            .collect()
    }

    /// The resolved recipe as a table: every default is in it.
    ///
    /// # Errors
    /// [`Error::Recipe`] when a value set in code has no TOML form (a seed above 2⁶³).
    pub fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).map_err(|error| {
            let error = RecipeError {
                origin: self.source.name(),
                line: None,
                key: String::new(),
                found: error.to_string(),
                expected: "values that TOML can express".into(),
                nearest: None,
            };
            Box::new(error).into()
        })
    }
}

/// The value of a recipe's `modality` key, for programs that know several.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::Recipe`] when it is not TOML or has no `modality`.
pub fn modality_of(path: &Path, overrides: &[String]) -> Result<String> {
    let source = RecipeSource::read(path, overrides)?;
    let table = source.table()?;
    validate::modality(&table, &source, "the name of a modality")
}

/// As [`modality_of`], of a program that knows these modalities.
///
/// # Errors
/// As [`modality_of`]; [`Error::Recipe`] for another modality, with the nearest of `known`.
pub fn known_modality_of(path: &Path, overrides: &[String], known: &[&str]) -> Result<String> {
    let source = RecipeSource::read(path, overrides)?;
    let expected = diagnose::one_of(known);
    let found = validate::modality(&source.table()?, &source, &expected)?;
    if known.contains(&found.as_str()) {
        return Ok(found);
    }
    let near = diagnose::nearest(&found, known);
    Err(Box::new(source.error("modality", format!("`{found}`"), expected, near)).into())
}
