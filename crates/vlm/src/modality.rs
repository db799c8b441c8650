//! The sections of a recipe for texts with images, and which of their combinations make sense.

use std::path::PathBuf;

use diptych_core::ScoreKind;
use diptych_data::Truncation;
use diptych_llm::{Language, LanguageAdapter, SamplesConfig};
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_train::{Modality, NoSection, Recipe};

use crate::adapter::VisionAdapter;
use crate::method::MethodConfig;

/// `modality = "vlm"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionLanguage;

impl Modality for VisionLanguage {
    const NAME: &'static str = "vlm";
    const SCORES: ScoreKind = ScoreKind::LogProbability;
    type Adapter = VisionAdapter;
    type Method = MethodConfig;
    type Samples = SamplesConfig;
    type Evaluation = NoSection;
    type Rounds = NoSection;

    fn can_switch_off(adapter: &VisionAdapter) -> bool {
        // With an adapter to start from, the network it started from is the one with that adapter.
        matches!(&adapter.adapter, AdapterConfig::Lora(LoraConfig { init: None, .. }))
    }

    fn references() -> &'static [&'static str] {
        Language::references()
    }

    fn needs_reference(recipe: &Recipe<Self>) -> Option<String> {
        Language::needs_reference(&as_text(recipe))
    }

    fn inputs(recipe: &Recipe<Self>) -> diptych_train::Result<Vec<(String, PathBuf)>> {
        Language::inputs(&as_text(recipe))
    }

    fn validate(recipe: &Recipe<Self>) -> diptych_train::Result<()> {
        validate_data(recipe)?;
        Language::validate(&as_text(recipe))?;
        if recipe
            .samples
            .as_ref()
            .is_some_and(|samples| !samples.prompts.is_empty())
        {
            let found = "prompts that show no image";
            return Err(recipe.invalid("samples.prompts", found, "`num_prompts`: the first prompts of the data"));
        }
        Ok(())
    }
}

/// The recipe as one for text: all that does not look at images reads it.
pub(crate) fn as_text(recipe: &Recipe<VisionLanguage>) -> Recipe<Language> {
    let mut data = recipe.data.clone();
    (data.on_error, data.max_image_pixels, data.image_memory) = (None, None, None);
    Recipe {
        modality: Language::NAME.to_owned(),
        run: recipe.run.clone(),
        model: recipe.model.clone(),
        adapter: LanguageAdapter(recipe.adapter.adapter.clone()),
        data,
        reference: recipe.reference.clone(),
        method: recipe.method.as_text(),
        objective: recipe.objective.clone(),
        optimizer: recipe.optimizer.clone(),
        schedule: recipe.schedule.clone(),
        train: recipe.train.clone(),
        samples: recipe.samples.clone(),
        evaluation: None,
        rounds: None,
        source: recipe.source.clone(),
    }
}

fn validate_data(recipe: &Recipe<VisionLanguage>) -> diptych_train::Result<()> {
    let data = as_text(recipe).data;
    if let Some(key) = data.key_of_images() {
        let found = "a value that is unused: it is about images that are generated";
        return Err(recipe.invalid(key, found, "no such key"));
    }
    if recipe.data.max_image_pixels == Some(0) {
        return Err(recipe.invalid("data.max_image_pixels", 0, "a number, at least 1"));
    }
    if data.encoding.unwrap_or_default().truncation == Truncation::KeepEnd {
        let found = "`keep-end`, which cuts the images that a prompt begins with";
        return Err(recipe.invalid("data.encoding.truncation", found, "`keep-start`"));
    }
    Ok(())
}
