//! Which methods, objectives and adapters go together.

use diptych_core::Kind;
use diptych_models::AdapterConfig;
use diptych_train::{Recipe, ReferenceConfig, Result};

use super::config::{
    Baseline, CurriculumConfig, MethodConfig, OfflinePairsConfig, PairLabels, PairNoise, SftConfig, UnpairedConfig,
    UsersConfig,
};
use super::consistency::{ConsistencyConfig, ConsistencyTarget, section};
use crate::modality::Diffusion;

/// The recipe key of another network as reference.
pub(crate) const CHECKPOINT: &str = "reference.checkpoint.path";

/// The recipe key of the share of desirable images.
const POSITIVE_RATIO: &str = "method.unpaired.positive_ratio";

/// Refuses a method's settings that are out of their range or that nothing would use, and objectives that compare something else than the
/// method has.
pub(crate) fn validate_method(recipe: &Recipe<Diffusion>) -> Result<()> {
    validate_kind(recipe)?;
    if let Some(consistency) = recipe.method.consistency() {
        validate_consistency(recipe, consistency)?;
    }
    let dropout = match &recipe.method {
        MethodConfig::OfflinePairs(config) => {
            validate_pairs(recipe, config)?;
            config.prompt_dropout
        }
        MethodConfig::Unpaired(config) => {
            validate_unpaired(recipe, config)?;
            config.prompt_dropout
        }
        MethodConfig::Ranked(config) => config.prompt_dropout,
        MethodConfig::Sft(config) => {
            validate_sft(recipe, config)?;
            config.prompt_dropout
        }
        MethodConfig::Autoencoder(config) => {
            if !is_full(recipe) {
                return Err(recipe.invalid("adapter.lora", "`lora` with `[method.autoencoder]`", "`[adapter.full]`"));
            }
            let kl_weight = config.kl_weight;
            if !(kl_weight.is_finite() && kl_weight >= 0.0) {
                let key = "method.autoencoder.kl_weight";
                return Err(recipe.invalid(key, kl_weight, "a finite number, at least 0"));
            }
            0.0
        }
        MethodConfig::TrajectoryPairs(_)
        | MethodConfig::StepAware(_)
        | MethodConfig::PolicyGradient(_)
        | MethodConfig::DirectReward(_) => return super::online::validate(recipe),
        MethodConfig::PreferenceModel(config) => return super::preference_model::validate(recipe, config),
    };
    if let Some(guidance) = recipe.method.told_guidance()
        && !(guidance.is_finite() && guidance >= 0.0)
    {
        let key = format!("method.{}.guidance_scale", recipe.method.name());
        return Err(recipe.invalid(&key, guidance, "a finite number, at least 0"));
    }
    if !(0.0..=1.0).contains(&dropout) {
        let key = format!("method.{}.prompt_dropout", recipe.method.name());
        return Err(recipe.invalid(&key, dropout, "a number from 0 to 1"));
    }
    Ok(())
}

fn is_full(recipe: &Recipe<Diffusion>) -> bool {
    matches!(recipe.adapter.0, AdapterConfig::Full(_))
}

/// The objective must compare what the method gives it.
fn validate_kind(recipe: &Recipe<Diffusion>) -> Result<()> {
    let kind = recipe.objective.requirements().kind;
    let (given, expected) = match (&recipe.method, kind) {
        // A pair is a list of two.
        (MethodConfig::OfflinePairs(_), Kind::Pairs | Kind::Lists)
        | (MethodConfig::Unpaired(_), Kind::Unpaired)
        | (MethodConfig::Ranked(_), Kind::Lists)
        | (MethodConfig::Sft(_) | MethodConfig::Autoencoder(_), Kind::Chosen) => return Ok(()),
        // They say more about what they take than the kind.
        (method, _) if method.is_online() || matches!(method, MethodConfig::PreferenceModel(_)) => return Ok(()),
        (MethodConfig::OfflinePairs(_), Kind::Chosen) => (
            "pairs",
            "an objective that compares two images; `[method.sft]` trains on one",
        ),
        (MethodConfig::OfflinePairs(_), Kind::Unpaired) => (
            "pairs",
            "an objective of kind `pairs` or `lists`; `[method.unpaired]` takes pairs apart",
        ),
        (MethodConfig::Unpaired(_), _) => ("images judged good or bad", "an objective of kind `unpaired`"),
        (MethodConfig::Ranked(_), _) => ("ranked lists", "an objective of kind `lists`"),
        _ => ("images alone", "`[objective.sft]`: this method sees no pairs"),
    };
    let (objective, method) = (recipe.objective.name(), recipe.method.name());
    let kind = kind.name();
    let found = format!("`{objective}` (of kind `{kind}`) with `[method.{method}]`, which has {given}");
    Err(recipe.invalid(&format!("objective.{objective}"), found, expected))
}

fn validate_pairs(recipe: &Recipe<Diffusion>, config: &OfflinePairsConfig) -> Result<()> {
    if config.labels == PairLabels::Swapped && recipe.objective.requirements().judge_scores {
        let found = format!(
            "`swapped` with `[objective.{}]`, whose scores of a judge say the opposite",
            recipe.objective.name()
        );
        let expected = "`given`, or an objective without a judge's scores";
        return Err(recipe.invalid("method.offline_pairs.labels", found, expected));
    }
    if config.noise == PairNoise::Independent && recipe.objective.requirements().prompt_distances {
        let found = format!(
            "`independent` with `[objective.{}]`, which compares all images of a step under one noise",
            recipe.objective.name()
        );
        return Err(recipe.invalid("method.offline_pairs.noise", found, "`shared`"));
    }
    if config.error.consistency().is_some() && matches!(config.noise, PairNoise::Inverted(_)) {
        let found = "`inverted` with consistency distances, whose timesteps are the solver's";
        return Err(recipe.invalid("method.offline_pairs.noise", found, "`shared` or `independent`"));
    }
    if let Some(users) = &config.users {
        validate_users(recipe, config, users)?;
    }
    match &config.curriculum {
        Some(curriculum) => validate_curriculum(recipe, curriculum),
        None => Ok(()),
    }
}

fn validate_consistency(recipe: &Recipe<Diffusion>, consistency: &ConsistencyConfig) -> Result<()> {
    let key = |name: &str| format!("{}.{name}", section(recipe.method.name()));
    let huber_c = consistency.huber_c;
    if !(huber_c.is_finite() && huber_c > 0.0) {
        return Err(recipe.invalid(&key("huber_c"), huber_c, "a finite number above 0"));
    }
    if consistency.solver_steps == Some(0) {
        return Err(recipe.invalid(&key("solver_steps"), "0", "a number, at least 1"));
    }
    if let Some(teacher) = consistency.teacher()
        && !(teacher.guidance_scale.is_finite() && teacher.guidance_scale >= 0.0)
    {
        let expected = "a finite number, at least 0";
        return Err(recipe.invalid(&key("solver.teacher.guidance_scale"), teacher.guidance_scale, expected));
    }
    if matches!(recipe.method, MethodConfig::Sft(_)) && consistency.target == ConsistencyTarget::Reference {
        let found = "`reference` (the default) with `[method.sft]`, which has none";
        return Err(recipe.invalid(&key("target"), found, "`own`"));
    }
    if matches!(recipe.reference, ReferenceConfig::Cached { .. }) {
        let found = "`cached` errors, where consistency distances need the network itself";
        return Err(recipe.invalid(
            "reference.cached",
            found,
            "`adapter_off`, `frozen`, `ema` or `checkpoint`",
        ));
    }
    Ok(())
}

fn validate_users(recipe: &Recipe<Diffusion>, config: &OfflinePairsConfig, users: &UsersConfig) -> Result<()> {
    const SECTION: &str = "method.offline_pairs.users";
    if !(0.0..=1.0).contains(&users.dropout) {
        return Err(recipe.invalid(&format!("{SECTION}.dropout"), users.dropout, "a number from 0 to 1"));
    }
    let refused = [
        (
            "adapter",
            recipe.source.says("adapter"),
            "a section that is unused: the attention to users is all that is trained",
        ),
        (
            "method.offline_pairs.error",
            config.error.consistency().is_some(),
            "`consistency` with users, whom a teacher does not know",
        ),
        (
            "train.sample_every",
            recipe.train.sample_every > 0,
            "above 0, and samples are for nobody, whose images do not change",
        ),
        (
            "eval",
            recipe.evaluation.is_some(),
            "a section whose images would be for nobody, and the same before and after",
        ),
        (
            "rounds",
            recipe.rounds.is_some(),
            "a section whose records name no user",
        ),
    ];
    if let Some((key, _, found)) = refused.into_iter().find(|(_, is_given, _)| *is_given) {
        return Err(recipe.invalid(key, found, format!("no such key, or no `[{SECTION}]`")));
    }
    match recipe.reference {
        ReferenceConfig::None {} | ReferenceConfig::AdapterOff {} => Ok(()),
        ReferenceConfig::Ema { .. }
        | ReferenceConfig::Frozen {}
        | ReferenceConfig::Cached { .. }
        | ReferenceConfig::Checkpoint { .. } => {
            let name = recipe.reference.name();
            let expected = "`adapter_off`, the network that attends to no user";
            Err(recipe.invalid(&format!("reference.{name}"), format!("`{name}` with users"), expected))
        }
    }
}

fn validate_curriculum(recipe: &Recipe<Diffusion>, curriculum: &CurriculumConfig) -> Result<()> {
    const SECTION: &str = "method.offline_pairs.curriculum";
    for (key, value) in [
        ("num_chunks", u64::from(curriculum.num_chunks)),
        ("update_every", curriculum.update_every),
    ] {
        if value == 0 {
            return Err(recipe.invalid(&format!("{SECTION}.{key}"), "0", "a number, at least 1"));
        }
    }
    refuse_order(recipe, SECTION)
}

fn validate_unpaired(recipe: &Recipe<Diffusion>, config: &UnpairedConfig) -> Result<()> {
    let objective = &recipe.objective;
    if config.baseline.is_some() && !objective.requirements().mismatched {
        let found = format!(
            "a value that is unused: `[objective.{}]` subtracts no divergence",
            objective.name()
        );
        return Err(recipe.invalid("method.unpaired.baseline", found, "no such key"));
    }
    let is_mean = config.baseline.unwrap_or_default() == Baseline::BatchMean;
    if objective.requirements().mismatched && is_mean && recipe.train.micro_batch == 1 {
        let found = "1, with a divergence that is the mean of the micro batch: an image is then compared with itself";
        return Err(recipe.invalid("train.micro_batch", found, "at least 2"));
    }
    let Some(ratio) = config.positive_ratio else {
        return Ok(());
    };
    if !(ratio > 0.0 && ratio < 1.0) {
        return Err(recipe.invalid(POSITIVE_RATIO, ratio, "a number above 0 and below 1"));
    }
    refuse_order(recipe, POSITIVE_RATIO)
}

/// A method that draws its records has no use for their order.
fn refuse_order(recipe: &Recipe<Diffusion>, key: &str) -> Result<()> {
    if recipe.data.shuffle {
        return Ok(());
    }
    let found = format!("`false`, which is unused: `{key}` draws the records of every step");
    Err(recipe.invalid("data.shuffle", found, "no such key"))
}

fn validate_sft(recipe: &Recipe<Diffusion>, config: &SftConfig) -> Result<()> {
    if config.train_text_encoder && !is_full(recipe) {
        let key = "method.sft.train_text_encoder";
        return Err(recipe.invalid(key, "true with `[adapter.lora]`", "`[adapter.full]`"));
    }
    if config.train_text_encoder && config.error.consistency().is_some() {
        let found = "true with consistency distances, whose teacher is told what the policy is told";
        return Err(recipe.invalid("method.sft.train_text_encoder", found, "false"));
    }
    Ok(())
}
