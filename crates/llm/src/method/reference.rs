//! What the recipe says a policy is compared with: networks that are loaded, and scores that are kept.

use std::path::Path;

use diptych_models::lm::LmDir;
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_train::{Recipe, ReferenceConfig, Reporter};

use super::checks::{CHECKPOINT, warn_of_cut_sums};
use super::engine::{Engine, start_logps};
use crate::cached_logps::{CachedLogps, Origin, hash_images, hash_network, hash_records};
use crate::modality::{Language, adapter_of};
use crate::network::Network;
use crate::policy::{NetworkOptions, TrainedLm, load_checkpoint, load_frozen, start_adapter};
use crate::reference::Reference;
use crate::{Error, Result};

/// The reference that computes scores when it is asked. `cached` needs none: its scores are the policy's before its first step.
pub(super) fn live_reference(
    recipe: &Recipe<Language>,
    directory: &LmDir,
    adapter: &AdapterConfig,
    options: &NetworkOptions,
) -> Result<Reference> {
    let start = || -> Result<Reference> {
        let network = load_frozen(directory, start_adapter(adapter)?.as_ref(), options)?;
        Ok(Reference::Frozen(Box::new(network.into())))
    };
    match &recipe.reference {
        ReferenceConfig::None {} | ReferenceConfig::Cached { .. } => Ok(Reference::None),
        ReferenceConfig::AdapterOff {} => Ok(Reference::AdapterOff),
        ReferenceConfig::Frozen {} => start(),
        ReferenceConfig::Ema {
            mixup_alpha,
            sync_steps,
        } => {
            let copy = TrainedLm::load(directory, adapter, options)?;
            Ok(Reference::moving(copy.into(), *mixup_alpha, *sync_steps))
        }
        ReferenceConfig::Checkpoint { path } => {
            let path = recipe.resolve_path(CHECKPOINT, path)?;
            let network = load_checkpoint(&path, directory, options)?;
            Ok(Reference::Frozen(Box::new(network.into())))
        }
    }
}

/// Scores of the start: from the data, from a file, or computed now.
pub(super) fn cached(
    recipe: &Recipe<Language>,
    engine: &Engine,
    path: Option<&Path>,
    reporter: &mut Reporter<'_>,
) -> Result<CachedLogps> {
    let records = &engine.records;
    let given = records
        .iter()
        .flat_map(|record| &record.responses)
        .filter(|response| response.reference_logps.is_some());
    let (num_given, num) = (
        given.count(),
        records.iter().map(|record| record.responses.len()).sum::<usize>(),
    );
    if num_given > 0 && num_given < num {
        return Err(Error::PartlyScored {
            found: num_given,
            expected: num,
        });
    }
    if num_given == num {
        if recipe.objective.requirements().reference_tokens {
            return Err(Error::Recipe {
                key: "reference.cached".into(),
                problem: "has only the summed scores of the data, and the objective needs those of single tokens"
                    .into(),
                hint: "remove the columns `ref_chosen_logps`, `ref_rejected_logps`".into(),
            });
        }
        if path.is_some() {
            return Err(Error::Recipe {
                key: "reference.cached.path".into(),
                problem:
                    "is unused: the data has the scores itself (`ref_chosen_logps`, `ref_rejected_logps`, `ref_logps`)"
                        .into(),
                hint: "remove the key, or the columns".into(),
            });
        }
        if recipe.method.token_weights().is_some() {
            return Err(Error::Recipe {
                key: "method.offline_pairs.token_weights".into(),
                problem: "weighs the policy's tokens, while the data brings sums of the reference's that were not weighed"
                    .into(),
                hint: "remove the columns `ref_chosen_logps`, `ref_rejected_logps` (`logps` of RLAIF-V), or take `[reference.adapter_off]`"
                    .into(),
            });
        }
        warn_of_cut_sums(records);
        return Ok(CachedLogps::of_sums(records));
    }
    let origin = origin(recipe, engine)?;
    if let Some(path) = path
        && let Some(found) = CachedLogps::read(path, records, &origin)?
    {
        return Ok(found);
    }
    let total = num as u64;
    let logps = start_logps(engine, 2 * recipe.train.micro_batch, |done| {
        Ok(reporter.advance("scores of the reference", done as u64, total)?)
    })?;
    let computed = CachedLogps::try_new(logps, records, Path::new("the computed scores"))?;
    if let Some(path) = path {
        computed.save(path, &origin)?;
    }
    Ok(computed)
}

/// What the scores depend on.
fn origin(recipe: &Recipe<Language>, engine: &Engine) -> Result<Origin> {
    let records = &engine.records;
    let adapter = match adapter_of(recipe)? {
        AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) => hash_network(&path)?,
        AdapterConfig::Lora(_) | AdapterConfig::Full(_) => "none".to_owned(),
    };
    let mut precision = format!("{:?}", recipe.run.precision.dtype());
    if let Some(quantization) = recipe.model.quantization {
        precision = format!("{precision}, {}", quantization.name());
    }
    let mut origin = Origin::from([
        ("model".to_owned(), hash_network(&recipe.model_path()?)?),
        ("adapter".to_owned(), adapter),
        ("rows or tokenization".to_owned(), hash_records(records)),
        ("precision".to_owned(), precision),
    ]);
    if let Network::Vision(network) = &engine.policy.model {
        origin.insert("images".to_owned(), hash_images(records, network.images()));
    }
    Ok(origin)
}
