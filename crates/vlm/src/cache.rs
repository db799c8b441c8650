//! `[data.cache]`: features of a frozen tower, kept on disk.

use std::sync::Arc;

use diptych_data::Tokenizer;
use diptych_llm::adapter_of;
use diptych_llm::method::network_options;
use diptych_llm::policy::{NetworkOptions, VisionParts, load_frozen_vision, start_vision_adapter};
use diptych_llm::vision::{CacheCounts, FeatureCache, KeptFeatures};
use diptych_models::AdapterConfig;
use diptych_models::vlm::VlmDir;
use diptych_train::{Recipe, Reporter};

use crate::modality::{VisionLanguage, as_text};
use crate::prepare::run_images;
use crate::progress::advance;
use crate::records::load_records;
use crate::{Error, Result};

/// The recipe key of the directory.
const PATH: &str = "data.cache.path";

/// Fills the recipe's `[data.cache]` with the features of all images that its records show, as a run would on its way, and says how many
/// were there and how many were made. The run that follows encodes no image.
///
/// # Errors
/// As [`prepare`](crate::prepare); [`Error::Setting`] for a recipe without `[data.cache]`.
pub fn cache_images(recipe: &Recipe<VisionLanguage>, reporter: &mut Reporter<'_>) -> Result<CacheCounts> {
    let text = as_text(recipe);
    let directory = VlmDir::open(recipe.model_path()?)?;
    let (adapter, options) = (adapter_of(&text)?, network_options(&text)?);
    let Some(kept) = kept_features(recipe, &directory, &adapter, &options)? else {
        return Err(Error::Setting {
            key: PATH.to_owned(),
            found: "nothing".to_owned(),
            expected: "the directory that is to hold the features".to_owned(),
        });
    };
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let mut images = run_images(recipe, &directory)?;
    load_records(recipe, directory.config(), &tokenizer, &mut images, |done, total| {
        advance(reporter, "images", done, total)
    })?;
    let total = images.len() as u64;
    let parts = VisionParts {
        images: Arc::new(images),
        kept: Some(kept.clone()),
    };
    let start = start_vision_adapter(&directory, &adapter)?;
    let network = load_frozen_vision(&directory, start.as_ref(), &options, parts)?;
    network.fill_cache(|done| Ok(reporter.advance("features", done as u64, total)?))?;
    Ok(kept.cache().map(FeatureCache::counts).unwrap_or_default())
}

/// Where features of the policy's tower are kept on disk, if anywhere.
pub(crate) fn kept_features(
    recipe: &Recipe<VisionLanguage>,
    directory: &VlmDir,
    adapter: &AdapterConfig,
    options: &NetworkOptions,
) -> Result<Option<Arc<KeptFeatures>>> {
    let Some(config) = &recipe.data.cache else {
        return Ok(None);
    };
    let start = start_vision_adapter(directory, adapter)?;
    let cache = FeatureCache::open(&config.path, directory, start.as_ref(), options)?;
    Ok(Some(Arc::new(KeptFeatures::with_cache(cache))))
}
