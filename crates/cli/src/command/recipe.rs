//! Recipes of every modality that the command knows.

use diptych_diffusion::Diffusion;
use diptych_llm::Language;
use diptych_train::{LoopConfig, Modality as _, Plan, Recipe, known_modality_of, string_override};
use diptych_vlm::VisionLanguage;

use crate::arguments::RecipeArguments;

/// A recipe by its modality.
pub(crate) enum AnyRecipe {
    Diffusion(Box<Recipe<Diffusion>>),
    Language(Box<Recipe<Language>>),
    VisionLanguage(Box<Recipe<VisionLanguage>>),
}

impl AnyRecipe {
    /// The recipe with what the arguments change in it.
    pub(crate) fn read(arguments: RecipeArguments) -> anyhow::Result<Self> {
        let path = arguments.recipe;
        let mut overrides = arguments.overrides;
        if let Some(device) = arguments.device {
            overrides.push(string_override("run.device", &device.to_string()));
        }
        if let Some(out) = arguments.out {
            overrides.push(string_override("run.output", &out.display().to_string()));
        }
        let known = [Diffusion::NAME, VisionLanguage::NAME, Language::NAME];
        let modality = known_modality_of(&path, &overrides, &known)?;
        if modality == Language::NAME {
            Ok(Self::Language(Box::new(Recipe::read(&path, &overrides)?)))
        } else if modality == VisionLanguage::NAME {
            Ok(Self::VisionLanguage(Box::new(Recipe::read(&path, &overrides)?)))
        } else {
            Ok(Self::Diffusion(Box::new(Recipe::read(&path, &overrides)?)))
        }
    }

    pub(crate) fn plan(&self) -> anyhow::Result<Plan> {
        Ok(match self {
            Self::Diffusion(recipe) => Plan::resolve(recipe)?,
            Self::Language(recipe) => Plan::resolve(recipe)?,
            Self::VisionLanguage(recipe) => Plan::resolve(recipe)?,
        })
    }

    pub(crate) fn loop_config(&self) -> anyhow::Result<LoopConfig> {
        Ok(match self {
            Self::Diffusion(recipe) => LoopConfig::from_recipe(recipe)?,
            Self::Language(recipe) => LoopConfig::from_recipe(recipe)?,
            Self::VisionLanguage(recipe) => LoopConfig::from_recipe(recipe)?,
        })
    }
}
