//! The seam between a recipe and the modality it is for.

use std::fmt::Debug;
use std::path::PathBuf;

use diptych_core::ScoreKind;
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Result;
use crate::recipe::Recipe;

/// A modality's own sections of a recipe, and what it knows about their combinations.
///
/// The implementing type is a name without values (`struct Pictures;`).
pub trait Modality: Debug + Clone + Sized + 'static {
    /// The value of the recipe's `modality` key.
    const NAME: &'static str;
    /// What kind of number its scores are; an objective that needs another kind is refused.
    const SCORES: ScoreKind;
    /// `[adapter.*]`: which parameters are trained.
    type Adapter: Section + Default;
    /// `[method.*]`: how the objective's numbers are obtained.
    type Method: Section + Default;
    /// `[samples]`: what is sampled while training.
    type Samples: Section;
    /// `[eval]`: what is measured after training.
    type Evaluation: Section;
    /// `[rounds]`: how records are made anew, round after round. [`NoSection`] where they are not.
    type Rounds: Section;

    /// Whether the policy without this adapter is the network it started from, so that the reference can be the policy
    /// with its adapter switched off.
    fn can_switch_off(adapter: &Self::Adapter) -> bool;

    /// The `[reference.*]` sections it can serve.
    fn references() -> &'static [&'static str] {
        &["none", "frozen", "adapter_off"]
    }

    /// Whether anything of the data is read; otherwise `data.path` is an empty list.
    fn needs_data(recipe: &Recipe<Self>) -> bool {
        let _ = recipe;
        true
    }

    /// What compares the policy with a reference, as messages name it: the objective, if it does, unless a method does so itself. A
    /// reference that nothing uses is refused, and so is none where one is needed.
    fn needs_reference(recipe: &Recipe<Self>) -> Option<String> {
        let objective = &recipe.objective;
        let needs = objective.requirements().reference;
        needs.then(|| format!("objective `{}`", objective.name()))
    }

    /// Files and directories that a run reads besides `model.path` and `data.path`, with the recipe keys that name them
    /// (an adapter to start from): they are hashed into the plan.
    ///
    /// # Errors
    /// [`Recipe::resolve_path`].
    fn inputs(recipe: &Recipe<Self>) -> Result<Vec<(String, PathBuf)>> {
        let _ = recipe;
        Ok(Vec::new())
    }

    /// Refuses combinations that only the modality can judge.
    ///
    /// # Errors
    /// [`Recipe::invalid`], which names file, line and key.
    fn validate(recipe: &Recipe<Self>) -> Result<()> {
        let _ = recipe;
        Ok(())
    }
}

/// A part of a recipe. Implemented for every type that can be one.
///
/// Use `#[serde(deny_unknown_fields)]`: a key that nobody reads must be an error.
pub trait Section: Debug + Clone + PartialEq + Serialize + DeserializeOwned {}

impl<T: Debug + Clone + PartialEq + Serialize + DeserializeOwned> Section for T {}

/// A section that a modality does not have: whatever stands there is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NoSection {}

impl<'de> Deserialize<'de> for NoSection {
    fn deserialize<D: Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        let found = de::Unexpected::Other("a section that this modality does not have");
        Err(de::Error::invalid_value(found, &"no such section"))
    }
}
