//! Ranges and combinations of a recipe's values.

use diptych_core::ScoreKind;
use diptych_tensor::optim::{AdafactorConfig, AdamWConfig, MomentFormat, OptimizerConfig};
use toml::Table;

use super::diagnose::{nearest, one_of};
use super::{Recipe, RecipeSource, ReferenceConfig};
use crate::Result;
use crate::modality::Modality;

/// Sections of which a recipe has exactly one kind, as `[section.kind]`.
const CHOICES: [&str; 6] = ["adapter", "reference", "method", "objective", "optimizer", "schedule"];

/// The recipe's modality must be the one this program reads it for.
pub(super) fn ensure_modality<M: Modality>(table: &Table, source: &RecipeSource) -> Result<()> {
    let expected = format!("`{}`", M::NAME);
    let found = modality(table, source, &expected)?;
    if found == M::NAME {
        return Ok(());
    }
    let near = nearest(&found, &[M::NAME]);
    Err(Box::new(source.error("modality", format!("`{found}`"), expected, near)).into())
}

/// The recipe's modality.
pub(super) fn modality(table: &Table, source: &RecipeSource, expected: &str) -> Result<String> {
    match table.get("modality") {
        Some(toml::Value::String(name)) => Ok(name.clone()),
        Some(other) => Err(source.invalid("modality", type_of(other), expected)),
        None => Err(source.invalid("modality", "nothing", expected)),
    }
}

/// `a table`, `an integer`.
pub(super) fn type_of(value: &toml::Value) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Two kinds of one section contradict each other.
pub(super) fn ensure_one_choice(table: &Table, source: &RecipeSource) -> Result<()> {
    for section in CHOICES {
        let Some(value) = table.get(section) else { continue };
        let Some(kinds) = value.as_table() else {
            let expected = format!("a section `[{section}.KIND]`");
            return Err(source.invalid(section, type_of(value), expected));
        };
        let names: Vec<_> = kinds.keys().map(String::as_str).collect();
        match names.as_slice() {
            [_] => {}
            [] => return Err(source.invalid(section, "an empty section", format!("one section `[{section}.KIND]`"))),
            [.., last] => {
                let found = names
                    .iter()
                    .map(|name| format!("`[{section}.{name}]`"))
                    .collect::<Vec<_>>()
                    .join(" and ");
                let expected = format!("exactly one (to replace it: --set '{section}={{{last}={{...}}}}')");
                return Err(source.invalid(section, found, expected));
            }
        }
    }
    Ok(())
}

/// Everything that does not depend on the modality.
pub(super) fn validate<M: Modality>(recipe: &Recipe<M>) -> Result<()> {
    reference(recipe)?;
    objective(recipe)?;
    optimizer(recipe)?;
    train(recipe)?;
    match (recipe.data.path.as_slice().is_empty(), M::needs_data(recipe)) {
        (true, true) => return Err(recipe.invalid("data.path", "an empty list", "at least one path")),
        (false, false) => {
            let found = "a path that is unused: nothing of this recipe reads data";
            return Err(recipe.invalid("data.path", found, "an empty list, `path = []`"));
        }
        (true, false) | (false, true) => {}
    }
    if recipe.run.output.as_os_str().is_empty() {
        return Err(recipe.invalid("run.output", "an empty path", "a directory"));
    }
    Ok(())
}

fn reference<M: Modality>(recipe: &Recipe<M>) -> Result<()> {
    let name = recipe.objective.name();
    let key = format!("reference.{}", recipe.reference.name());
    let supported = M::references();
    if !supported.contains(&recipe.reference.name()) {
        let found = format!("`{}`", recipe.reference.name());
        return Err(recipe.invalid(&key, found, format!("{} for `{}`", one_of(supported), M::NAME)));
    }
    let user = M::needs_reference(recipe);
    match &recipe.reference {
        ReferenceConfig::Ema { mixup_alpha, .. } if !(*mixup_alpha > 0.0 && *mixup_alpha <= 1.0) => {
            Err(recipe.invalid("reference.ema.mixup_alpha", mixup_alpha, "a number above 0, at most 1"))
        }
        ReferenceConfig::Ema { sync_steps: 0, .. } => {
            Err(recipe.invalid("reference.ema.sync_steps", "0", "a number, at least 1"))
        }
        ReferenceConfig::None {} if let Some(user) = &user => {
            let expected = format!(
                "{}: {user} needs a reference",
                one_of(
                    &supported
                        .iter()
                        .copied()
                        .filter(|name| *name != "none")
                        .collect::<Vec<_>>()
                )
            );
            Err(recipe.invalid(&key, "`none`", expected))
        }
        ReferenceConfig::Frozen {}
        | ReferenceConfig::AdapterOff {}
        | ReferenceConfig::Cached { .. }
        | ReferenceConfig::Ema { .. }
        | ReferenceConfig::Checkpoint { .. }
            if user.is_none() =>
        {
            let found = format!(
                "`{}`, which is unused: objective `{name}` needs no reference",
                recipe.reference.name()
            );
            Err(recipe.invalid(&key, found, "`none`, or no such section"))
        }
        ReferenceConfig::AdapterOff {} if !M::can_switch_off(&recipe.adapter) => Err(recipe.invalid(
            &key,
            "`adapter_off` with an adapter that cannot be switched off",
            "`frozen`",
        )),
        _ => Ok(()),
    }
}

fn objective<M: Modality>(recipe: &Recipe<M>) -> Result<()> {
    let needed = recipe.objective.requirements().score;
    if needed != ScoreKind::Any && needed != M::SCORES {
        let name = recipe.objective.name();
        let found = format!("`{name}`, which is defined for {}", needed.description());
        let expected = format!(
            "an objective for {}, the scores of `{}`",
            M::SCORES.description(),
            M::NAME
        );
        return Err(recipe.invalid(&format!("objective.{name}"), found, expected));
    }
    let Err(error) = recipe.objective.validate() else {
        return Ok(());
    };
    let section = format!("objective.{}", recipe.objective.name());
    match error {
        diptych_core::Error::OutOfRange {
            parameter,
            found,
            expected,
            ..
        } => Err(recipe.invalid(&format!("{section}.{parameter}"), found, expected)),
        other => Err(recipe.invalid(&section, other, "parameters in their ranges")),
    }
}

fn optimizer<M: Modality>(recipe: &Recipe<M>) -> Result<()> {
    match &recipe.optimizer {
        OptimizerConfig::Adamw(config) => adamw(recipe, config),
        OptimizerConfig::Adafactor(config) => adafactor(recipe, config),
    }
}

const AT_LEAST_ZERO: &str = "a finite number, at least 0";
const NORM: &str = "a finite number, at least 0 (0: no clipping)";
const DECAY: &str = "numbers from 0 to below 1";

fn adamw<M: Modality>(recipe: &Recipe<M>, config: &AdamWConfig) -> Result<()> {
    let is_decay = |beta: f64| (0.0..1.0).contains(&beta);
    let ranges = [
        ("lr", config.lr, config.lr >= 0.0, AT_LEAST_ZERO),
        ("betas", config.betas[0], is_decay(config.betas[0]), DECAY),
        ("betas", config.betas[1], is_decay(config.betas[1]), DECAY),
        ("eps", config.eps, config.eps > 0.0, "a finite number above 0"),
        (
            "weight_decay",
            config.weight_decay,
            config.weight_decay >= 0.0,
            AT_LEAST_ZERO,
        ),
        ("max_grad_norm", config.max_grad_norm, config.max_grad_norm >= 0.0, NORM),
    ];
    in_ranges(recipe, "optimizer.adamw", &ranges)?;
    match config.state {
        MomentFormat::Int8 { block } if !(256..=2048).contains(&block) || !block.is_power_of_two() => {
            Err(recipe.invalid("optimizer.adamw.state.int8.block", block, "256, 512, 1024 or 2048"))
        }
        MomentFormat::Full | MomentFormat::Bf16 | MomentFormat::Int8 { .. } => Ok(()),
    }
}

fn adafactor<M: Modality>(recipe: &Recipe<M>, config: &AdafactorConfig) -> Result<()> {
    let beta1 = config.beta1.unwrap_or(0.0);
    let ranges = [
        ("lr", config.lr, config.lr >= 0.0, AT_LEAST_ZERO),
        (
            "eps",
            config.eps[0],
            config.eps[0] >= f64::from(f32::MIN_POSITIVE),
            "a finite number above 0 first: gradients may be 0",
        ),
        ("eps", config.eps[1], config.eps[1] >= 0.0, "finite numbers, at least 0"),
        (
            "clip_threshold",
            config.clip_threshold,
            config.clip_threshold > 0.0,
            "a finite number above 0",
        ),
        (
            "decay_rate",
            config.decay_rate,
            config.decay_rate < 0.0,
            "a finite number below 0",
        ),
        (
            "beta1",
            beta1,
            (0.0..1.0).contains(&beta1),
            "a number from 0 to below 1",
        ),
        (
            "weight_decay",
            config.weight_decay,
            config.weight_decay >= 0.0,
            AT_LEAST_ZERO,
        ),
        ("max_grad_norm", config.max_grad_norm, config.max_grad_norm >= 0.0, NORM),
    ];
    in_ranges(recipe, "optimizer.adafactor", &ranges)
}

/// Names, values, whether they hold, and what holds, of keys of one section.
fn in_ranges<M: Modality>(recipe: &Recipe<M>, section: &str, ranges: &[(&str, f64, bool, &str)]) -> Result<()> {
    for (name, value, holds, expected) in ranges {
        if !(*holds && value.is_finite()) {
            return Err(recipe.invalid(&format!("{section}.{name}"), value, *expected));
        }
    }
    Ok(())
}

fn train<M: Modality>(recipe: &Recipe<M>) -> Result<()> {
    let warmup = recipe.schedule.warmup_steps();
    if let Some(steps) = recipe.train.steps
        && warmup >= steps
    {
        // Two steps that try a recipe out are meant to be so.
        tracing::warn!(
            "the schedule has {warmup} warm-up steps, but the run has {steps}: the learning rate of the recipe is never reached"
        );
    }
    match recipe.train.problem() {
        None => Ok(()),
        Some((key, found, expected)) => Err(recipe.invalid(&format!("train.{key}"), found, expected)),
    }
}
