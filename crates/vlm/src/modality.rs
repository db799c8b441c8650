//! The sections of a recipe for texts with images, and which of their combinations make sense.

use std::path::PathBuf;

use diptych_core::{Objective, ScoreKind};
use diptych_data::Truncation;
use diptych_llm::method::{Combination, ImageScores, ReferenceDraw};
use diptych_llm::{Language, LanguageAdapter, SamplesConfig};
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_train::{Modality, NoSection, Recipe, ReferenceConfig};

use crate::adapter::{TowerConfig, VisionAdapter};
use crate::corruption::Corruption;
use crate::evaluation::VisionEvaluationConfig;
use crate::method::{Change, MethodConfig};

/// `modality = "vlm"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VisionLanguage;

impl Modality for VisionLanguage {
    const NAME: &'static str = "vlm";
    const SCORES: ScoreKind = ScoreKind::LogProbability;
    type Adapter = VisionAdapter;
    type Method = MethodConfig;
    type Samples = SamplesConfig;
    type Evaluation = VisionEvaluationConfig;
    type Rounds = NoSection;

    fn can_switch_off(adapter: &VisionAdapter) -> bool {
        // With an adapter to start from, the network it started from is the one with that adapter.
        matches!(&adapter.adapter, AdapterConfig::Lora(LoraConfig { init: None, .. }))
    }

    fn references() -> &'static [&'static str] {
        Language::references()
    }

    fn needs_reference(recipe: &Recipe<Self>) -> Option<String> {
        Language::needs_reference(&as_text(recipe)).or_else(|| {
            let compared = recipe.method.image_preference().map(|_| IMAGE_PREFERENCE);
            let own = recipe.method.own_answer().map(|_| OWN_ANSWER);
            compared.or(own).map(|term| format!("`{term}`"))
        })
    }

    fn inputs(recipe: &Recipe<Self>) -> diptych_train::Result<Vec<(String, PathBuf)>> {
        let mut inputs = Language::inputs(&as_text(recipe))?;
        if let Some(config) = recipe.method.token_perturbation() {
            inputs.push((CLIP.to_owned(), recipe.resolve_path(CLIP, &config.clip)?));
        }
        Ok(inputs)
    }

    fn validate(recipe: &Recipe<Self>) -> diptych_train::Result<()> {
        validate_data(recipe)?;
        Language::validate(&as_text(recipe))?;
        validate_image_preference(recipe)?;
        validate_own_answer(recipe)?;
        validate_token_perturbation(recipe)?;
        if let Some((key, found, expected)) = recipe.evaluation.as_ref().and_then(VisionEvaluationConfig::problem) {
            return Err(recipe.invalid(&format!("eval.{key}"), found, &expected));
        }
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
    (data.on_error, data.max_image_area, data.image_memory) = (None, None, None);
    data.max_frames = None;
    data.cache = None;
    Recipe {
        modality: Language::NAME.to_owned(),
        run: recipe.run.clone(),
        model: recipe.model.clone(),
        adapter: LanguageAdapter(recipe.adapter.adapter.clone()),
        data,
        reference: recipe.reference.clone(),
        method: recipe.method.as_text(),
        objective: recipe.objective.clone(),
        optimizer: recipe.optimizer,
        schedule: recipe.schedule,
        train: recipe.train.clone(),
        samples: recipe.samples.clone(),
        evaluation: None,
        rounds: None,
        source: recipe.source.clone(),
    }
}

/// The recipe key of the preference between images.
const IMAGE_PREFERENCE: &str = "method.offline_pairs.image_preference";

fn validate_image_preference(recipe: &Recipe<VisionLanguage>) -> diptych_train::Result<()> {
    let Some(config) = recipe.method.image_preference() else {
        return Ok(());
    };
    if let Some((key, found, expected)) = config.term().problem() {
        return Err(recipe.invalid(&format!("{IMAGE_PREFERENCE}.{key}"), found, expected));
    }
    if let Some(Err(error)) = config.corruption.as_ref().map(Corruption::validate) {
        let key = format!("{IMAGE_PREFERENCE}.corruption");
        return Err(recipe.invalid(&key, error, "settings in their ranges"));
    }
    if config.combination == Combination::Joint && !matches!(recipe.objective, Objective::Dpo(_)) {
        let found = format!("`joint` with objective `{}`", recipe.objective.name());
        let key = format!("{IMAGE_PREFERENCE}.combination");
        return Err(recipe.invalid(&key, found, "objective `dpo`, whose one sigmoid it is, or `separate`"));
    }
    if let (Combination::Joint, Objective::Dpo(dpo)) = (config.combination, &recipe.objective)
        && config.beta.total_cmp(&dpo.beta).is_ne()
    {
        let found = format!(
            "{} with `joint`, while `objective.dpo.beta` is {}",
            config.beta, dpo.beta
        );
        let key = format!("{IMAGE_PREFERENCE}.beta");
        return Err(recipe.invalid(&key, found, "the same: there is one sigmoid"));
    }
    if config.reference_draw == ReferenceDraw::Own && config.corruption.is_none() {
        let found = "`own` without a corruption: the other images are those of the rows";
        let key = format!("{IMAGE_PREFERENCE}.reference_draw");
        return Err(recipe.invalid(&key, found, "`same`"));
    }
    if config.scores == ImageScores::LikeliestOther {
        let needs = recipe.objective.requirements();
        if recipe.method.as_text().token_divergence().is_some() || needs.whole_texts || !needs.reference {
            let key = format!("{IMAGE_PREFERENCE}.scores");
            let found = "`likeliest_other`, in which rejected answers are not scored";
            return Err(recipe.invalid(
                &key,
                found,
                "`dpo` or another objective of log-ratios, without `token_divergence`",
            ));
        }
    }
    refuse_cached(
        recipe,
        IMAGE_PREFERENCE,
        "whose other images have no scores that are kept",
    )
}

/// The recipe key of the comparison with the policy's own tokens.
const OWN_ANSWER: &str = "method.offline_pairs.own_answer";

fn validate_own_answer(recipe: &Recipe<VisionLanguage>) -> diptych_train::Result<()> {
    let Some(config) = recipe.method.own_answer() else {
        return Ok(());
    };
    if let Some((key, found, expected)) = config.term().problem() {
        return Err(recipe.invalid(&format!("{OWN_ANSWER}.{key}"), found, expected));
    }
    if let Err(error) = config.corruption.validate() {
        return Err(recipe.invalid(&format!("{OWN_ANSWER}.corruption"), error, "settings in their ranges"));
    }
    let found = if recipe.method.image_preference().is_some() {
        Some("a share of the loss beside `image_preference`, which says nothing of shares")
    } else if recipe.objective.requirements().whole_texts {
        Some("a share of the loss beside an objective that scores prompts too")
    } else {
        None
    };
    if let Some(found) = found {
        return Err(recipe.invalid(OWN_ANSWER, found, "one of the two"));
    }
    refuse_cached(recipe, OWN_ANSWER, "whose tokens have no scores that are kept")
}

/// The recipe key of the CLIP by which tokens are perturbed.
pub(crate) const CLIP: &str = "method.offline_pairs.token_perturbation.clip";

fn validate_token_perturbation(recipe: &Recipe<VisionLanguage>) -> diptych_train::Result<()> {
    const KEY: &str = "method.offline_pairs.token_perturbation";
    let Some(config) = recipe.method.token_perturbation() else {
        return Ok(());
    };
    if let Some((key, found, expected)) = config.tokens.problem() {
        return Err(recipe.invalid(&format!("{KEY}.tokens.{key}"), found, expected));
    }
    if config.change == Change::Replace && config.mask_token.is_some() {
        let found = "a token that is unused: tokens are replaced by drawn ones";
        return Err(recipe.invalid(&format!("{KEY}.mask_token"), found, "no such key"));
    }
    let needs = recipe.objective.requirements();
    if needs.whole_texts {
        let found = format!(
            "perturbed prompts with objective `{}`, which scores prompts too",
            recipe.objective.name()
        );
        return Err(recipe.invalid(KEY, found, "an objective of answers"));
    }
    let is_compared = recipe
        .method
        .image_preference()
        .is_some_and(|config| config.corruption.is_none());
    if is_compared {
        let found = "perturbed prompts beside the other images of the rows, whose prompts are not perturbed";
        return Err(recipe.invalid(KEY, found, "`image_preference.corruption`"));
    }
    refuse_cached(recipe, KEY, "under which no scores are kept")
}

fn refuse_cached(recipe: &Recipe<VisionLanguage>, term: &str, reason: &str) -> diptych_train::Result<()> {
    match recipe.reference {
        ReferenceConfig::Cached { .. } => {
            let found = format!("`cached` with `{term}`, {reason}");
            Err(recipe.invalid("reference.cached", found, "`adapter_off` or `frozen`"))
        }
        _ => Ok(()),
    }
}

fn validate_data(recipe: &Recipe<VisionLanguage>) -> diptych_train::Result<()> {
    let data = as_text(recipe).data;
    if let Some(key) = data.key_of_images() {
        let found = "a value that is unused: it is about images that are generated";
        return Err(recipe.invalid(key, found, "no such key"));
    }
    if recipe.data.cache.is_some() && recipe.adapter.tower == TowerConfig::Trained {
        let found =
            "a cache of what the tower makes of images, which changes with every step where the tower is trained";
        return Err(recipe.invalid("data.cache", found, "no such section, or `tower = \"frozen\"`"));
    }
    if recipe.data.max_image_area == Some(0) {
        return Err(recipe.invalid("data.max_image_area", 0, "a number, at least 1"));
    }
    if recipe.data.max_frames == Some(0) {
        return Err(recipe.invalid("data.max_frames", 0, "a number, at least 1"));
    }
    if data.encoding.unwrap_or_default().truncation == Truncation::KeepEnd {
        let found = "`keep-end`, which cuts the images that a prompt begins with";
        return Err(recipe.invalid("data.encoding.truncation", found, "`keep-start`"));
    }
    Ok(())
}
