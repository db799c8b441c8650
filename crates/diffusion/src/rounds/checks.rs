//! What a recipe with `[rounds]` may not say.

use std::path::PathBuf;

use diptych_eval::{Judge, PromptSource};
use diptych_models::AdapterConfig;
use diptych_train::{Recipe, ReferenceConfig, Result};

use super::config::{CandidatesConfig, CuratedConfig, RoundRecords, RoundStart, RoundsConfig};
use crate::method::MethodConfig;
use crate::modality::Diffusion;

/// The recipe key of the file of prompts.
pub(super) const PROMPTS: &str = "rounds.prompts.file.path";

/// The recipe key of the judge, under which its files stand.
pub(crate) fn judge_key(records: &RoundRecords) -> String {
    format!("rounds.records.{}.judge", records.name())
}

/// Files that rounds read besides the model and the data, with the keys that name them.
pub(crate) fn round_inputs(recipe: &Recipe<Diffusion>) -> Result<Vec<(String, PathBuf)>> {
    let Some(rounds) = &recipe.rounds else {
        return Ok(Vec::new());
    };
    let mut named: Vec<(String, &PathBuf)> = Vec::new();
    if let PromptSource::File { path } = &rounds.prompts {
        named.push((PROMPTS.to_owned(), path));
    }
    let paths = rounds.records.judge().map(Judge::paths).unwrap_or_default();
    named.extend(paths.into_iter().map(|path| (judge_key(&rounds.records), path)));
    named
        .into_iter()
        .map(|(key, path)| {
            let path = recipe.resolve_path(&key, path)?;
            Ok((key, path))
        })
        .collect()
}

/// Refuses settings that are out of their range, that nothing would use, or that contradict the method.
pub(crate) fn validate_rounds(recipe: &Recipe<Diffusion>) -> Result<()> {
    let Some(rounds) = &recipe.rounds else { return Ok(()) };
    validate_counts(recipe, rounds)?;
    if recipe.method.consistency().is_some() {
        let key = format!("method.{}.error", recipe.method.name());
        let found = "`consistency` with `[rounds]`, whose references and teachers rounds do not hand on";
        return Err(recipe.invalid(&key, found, "`denoising`"));
    }
    validate_method(recipe, &rounds.records)?;
    validate_prompts(recipe, rounds)?;
    validate_data(recipe, rounds)?;
    validate_policies(recipe, rounds)?;
    match &rounds.records {
        RoundRecords::Candidates(config) => validate_candidates(recipe, config)?,
        RoundRecords::SelfPlay(_) => {}
        RoundRecords::Curated(config) => validate_curated(recipe, config)?,
    }
    validate_judges(recipe, rounds)
}

fn validate_counts(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<()> {
    let least = match &rounds.records {
        RoundRecords::Candidates(_) => 2,
        RoundRecords::SelfPlay(_) | RoundRecords::Curated(_) => 1,
    };
    let images = match &rounds.records {
        RoundRecords::SelfPlay(_) => "images_per_prompt",
        RoundRecords::Candidates(_) | RoundRecords::Curated(_) => "num_candidates",
    };
    let images = format!("records.{}.{images}", rounds.records.name());
    let counts = [
        ("num_rounds", rounds.num_rounds, 1),
        ("prompts_per_round", rounds.prompts_per_round.unwrap_or(1), 1),
        ("num_past", rounds.num_past.unwrap_or(1), 1),
        ("sampling.steps", rounds.sampling.steps, 1),
        ("sampling.batch_size", rounds.sampling.batch_size, 1),
        (&images, rounds.records.images_per_prompt(), least),
    ];
    for (key, found, least) in counts {
        if found < least {
            let expected = format!("a number, at least {least}");
            return Err(recipe.invalid(&format!("rounds.{key}"), found, expected));
        }
    }
    let guidance = rounds.sampling.guidance_scale;
    if !(guidance.is_finite() && guidance >= 0.0) {
        let key = "rounds.sampling.guidance_scale";
        return Err(recipe.invalid(key, guidance, "a finite number, at least 0"));
    }
    let eta = rounds.sampling.eta;
    if !(eta.is_finite() && eta >= 0.0) {
        return Err(recipe.invalid("rounds.sampling.eta", eta, "a finite number, at least 0"));
    }
    Ok(())
}

/// The method must train on what the rounds make.
fn validate_method(recipe: &Recipe<Diffusion>, records: &RoundRecords) -> Result<()> {
    // `unpaired` takes pairs apart.
    let serves = match records {
        RoundRecords::Candidates(_) | RoundRecords::SelfPlay(_) => {
            matches!(recipe.method, MethodConfig::OfflinePairs(_) | MethodConfig::Unpaired(_))
        }
        RoundRecords::Curated(_) => matches!(recipe.method, MethodConfig::Sft(_)),
    };
    let (name, method) = (records.name(), recipe.method.name());
    if !serves {
        let (made, expected) = match records {
            RoundRecords::Curated(_) => ("images", "`[method.sft]`"),
            RoundRecords::Candidates(_) | RoundRecords::SelfPlay(_) => {
                ("pairs", "`[method.offline_pairs]` or `[method.unpaired]`")
            }
        };
        let found = format!("`{method}` with `[rounds.records.{name}]`, which makes {made}");
        return Err(recipe.invalid(&format!("method.{method}"), found, expected));
    }
    let has_curriculum = matches!(&recipe.method, MethodConfig::OfflinePairs(config) if config.curriculum.is_some());
    if records.judge().is_none() && has_curriculum {
        let found =
            format!("a curriculum, which needs a judge's scores, with `[rounds.records.{name}]`, which has none");
        let expected = "no such section, or `[rounds.records.candidates]`";
        return Err(recipe.invalid("method.offline_pairs.curriculum", found, expected));
    }
    if records.judge().is_none() && recipe.objective.requirements().judge_scores {
        let found = format!(
            "`{}`, which needs a judge's scores, with `[rounds.records.{name}]`, which has none",
            recipe.objective.name()
        );
        let key = format!("objective.{}", recipe.objective.name());
        return Err(recipe.invalid(
            &key,
            found,
            "an objective without them, or `[rounds.records.candidates]`",
        ));
    }
    Ok(())
}

fn validate_prompts(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<()> {
    if let Err(error) = rounds.prompts.validate() {
        return Err(recipe.invalid("rounds.prompts.scenes", error, "scenes that can be drawn"));
    }
    let is_of_data = matches!(rounds.prompts, PromptSource::Data {});
    if matches!(rounds.records, RoundRecords::SelfPlay(_)) && !is_of_data {
        let found = "a source of prompts that is unused: `[rounds.records.self_play]` has the images of the data";
        return Err(recipe.invalid("rounds.prompts", found, "no such section"));
    }
    if matches!(rounds.prompts, PromptSource::Scenes(_)) && rounds.prompts_per_round.is_none() {
        let key = "rounds.prompts_per_round";
        return Err(recipe.invalid(key, "nothing", "a number: scenes have no end"));
    }
    Ok(())
}

/// Keys of `[data]` must say something about data that is read, or about the images of every round.
fn validate_data(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<()> {
    let data = &recipe.data;
    if data.cache.is_some() {
        let found = "a section that rounds cannot use: each of them trains on other records";
        return Err(recipe.invalid("data.cache", found, "no such section"));
    }
    let of_reading = [
        ("data.ties", data.ties.is_some()),
        ("data.on_error", data.on_error.is_some()),
        ("data.pairs", data.pairs.is_some()),
        ("data.min_margin", data.min_margin.is_some()),
    ];
    match of_reading.into_iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) if !rounds.needs_data() => {
            let found = "a value that is unused: nothing of this recipe reads data";
            Err(recipe.invalid(key, found, "no such key"))
        }
        Some(_) | None => Ok(()),
    }
}

fn validate_policies(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<()> {
    let needs_reference = recipe.objective.requirements().reference;
    if recipe.source.says("reference") && !matches!(recipe.reference, ReferenceConfig::None {}) {
        let found = "a section that is unused: each round has a reference of its own";
        return Err(recipe.invalid("reference", found, "no such section, and `rounds.reference`"));
    }
    if rounds.reference.is_some() && !needs_reference {
        let name = recipe.objective.name();
        let found = format!("a value that is unused: objective `{name}` needs no reference");
        return Err(recipe.invalid("rounds.reference", found, "no such key"));
    }
    if rounds.num_past.is_some() && !rounds.draws_past() {
        let found = "a value that is unused: nothing is drawn from past policies";
        return Err(recipe.invalid("rounds.num_past", found, "no such key"));
    }
    if rounds.extrapolates()
        && rounds.start == RoundStart::Initial
        && matches!(recipe.adapter.0, AdapterConfig::Lora(_))
    {
        let found =
            "`initial` with a policy that is `extrapolated`: each round then begins with other factors of its adapter";
        return Err(recipe.invalid(
            "rounds.start",
            found,
            "`previous`, which makes rounds comparable factor by factor",
        ));
    }
    match (rounds.extrapolation, rounds.extrapolates()) {
        (None, true) => Err(recipe.invalid("rounds.extrapolation", "nothing", "a number above 0")),
        (Some(_), false) => {
            let found = "a value that is unused: no policy is `extrapolated`";
            Err(recipe.invalid("rounds.extrapolation", found, "no such key"))
        }
        (Some(step), true) if !(step.is_finite() && step > 0.0) => {
            Err(recipe.invalid("rounds.extrapolation", step, "a finite number above 0"))
        }
        (Some(_), true) | (None, false) => Ok(()),
    }
}

fn validate_candidates(recipe: &Recipe<Diffusion>, config: &CandidatesConfig) -> Result<()> {
    const SECTION: &str = "rounds.records.candidates";
    if !(config.min_margin.is_finite() && config.min_margin >= 0.0) {
        let key = format!("{SECTION}.min_margin");
        return Err(recipe.invalid(&key, config.min_margin, "a finite number, at least 0"));
    }
    match config.min_chosen {
        Some(least) if !least.is_finite() => {
            Err(recipe.invalid(&format!("{SECTION}.min_chosen"), least, "a finite number"))
        }
        Some(_) | None => Ok(()),
    }
}

fn validate_curated(recipe: &Recipe<Diffusion>, config: &CuratedConfig) -> Result<()> {
    const SECTION: &str = "rounds.records.curated";
    if !(config.temperature.is_finite() && config.temperature > 0.0) {
        let key = format!("{SECTION}.temperature");
        return Err(recipe.invalid(&key, config.temperature, "a finite number above 0"));
    }
    if !(0.0..1.0).contains(&config.real_share) {
        let key = format!("{SECTION}.real_share");
        return Err(recipe.invalid(&key, config.real_share, "a number from 0 to below 1"));
    }
    Ok(())
}

/// Images are made anew, so nobody can have stored their scores.
fn validate_judges(recipe: &Recipe<Diffusion>, rounds: &RoundsConfig) -> Result<()> {
    let win_rate = recipe.evaluation.as_ref().and_then(|section| section.win_rate.as_ref());
    let judges = [
        (judge_key(&rounds.records), rounds.records.judge()),
        (
            crate::modality::WIN_RATE_JUDGE.to_owned(),
            win_rate.map(|config| &config.judge),
        ),
    ];
    for (key, judge) in judges {
        if judge.is_some_and(Judge::is_stored) {
            let found = "`stored`, which has no scores of images that are yet to be made";
            return Err(recipe.invalid(&key, found, "a judge that looks at images"));
        }
    }
    Ok(())
}
