//! The sections of a recipe for text, and which of their combinations make sense.

use std::path::PathBuf;

use diptych_core::{Kind, ScoreKind};
use diptych_data::{Truncation, TurnMask};
use diptych_models::{AdapterConfig, FullConfig, LoraConfig, LoraInit, Targets};
use diptych_tensor::{DeviceChoice, Precision};
use diptych_train::{Modality, NoSection, Recipe, ReferenceConfig};
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::evaluation::TextEvaluationConfig;
use crate::method::{LossOn, MethodConfig, WatchConfig};
use crate::samples::SamplesConfig;

/// `modality = "llm"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Language;

/// `[adapter.*]`: LoRA where the recipe has no such section, on the projections of attention where it names no targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "GivenAdapter", into = "GivenAdapter")]
pub struct LanguageAdapter(pub AdapterConfig);

impl Default for LanguageAdapter {
    fn default() -> Self {
        Self(AdapterConfig::Lora(GivenLora::default().into()))
    }
}

impl From<LanguageAdapter> for GivenAdapter {
    fn from(adapter: LanguageAdapter) -> Self {
        match adapter.0 {
            AdapterConfig::Lora(lora) => Self::Lora(lora.into()),
            AdapterConfig::Full(full) => Self::Full(full),
        }
    }
}

/// [`AdapterConfig`] as recipes for text give it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GivenAdapter {
    Lora(GivenLora),
    Full(FullConfig),
}

/// [`LoraConfig`] whose targets are known to be given or not: those that it fills in itself are layers of a denoiser. `use_dora` is a
/// key of recipes for text alone.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct GivenLora {
    rank: usize,
    alpha: f64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    use_rslora: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    use_dora: bool,
    targets: Option<Targets>,
    init_weights: LoraInit,
    #[serde(skip_serializing_if = "Option::is_none")]
    init: Option<PathBuf>,
}

impl Default for GivenLora {
    fn default() -> Self {
        let mut given = Self::from(LoraConfig::default());
        given.targets = None;
        given
    }
}

impl From<LoraConfig> for GivenLora {
    fn from(lora: LoraConfig) -> Self {
        let LoraConfig {
            rank,
            alpha,
            use_rslora,
            use_dora,
            targets,
            init_weights,
            init,
        } = lora;
        Self {
            rank,
            alpha,
            use_rslora,
            use_dora,
            targets: Some(targets),
            init_weights,
            init,
        }
    }
}

impl From<GivenLora> for LoraConfig {
    fn from(given: GivenLora) -> Self {
        Self {
            rank: given.rank,
            alpha: given.alpha,
            use_rslora: given.use_rslora,
            use_dora: given.use_dora,
            targets: given.targets.unwrap_or_else(own_targets),
            init_weights: given.init_weights,
            init: given.init,
        }
    }
}

impl From<GivenAdapter> for LanguageAdapter {
    fn from(given: GivenAdapter) -> Self {
        Self(match given {
            GivenAdapter::Lora(lora) => AdapterConfig::Lora(lora.into()),
            GivenAdapter::Full(full) => AdapterConfig::Full(full),
        })
    }
}

/// The layers that get an adapter where none are named: transformers' names of the projections.
pub fn own_targets() -> Targets {
    Targets::Suffixes(["q_proj", "k_proj", "v_proj", "o_proj"].map(str::to_owned).to_vec())
}

/// The recipe key of an adapter to start from.
const ADAPTER_INIT: &str = "adapter.lora.init";

/// The recipe key of the prompts of an evaluation.
pub(crate) const TRUTH_PROMPTS: &str = "eval.truth.prompts";

impl Modality for Language {
    const NAME: &'static str = "llm";
    const SCORES: ScoreKind = ScoreKind::LogProbability;
    type Adapter = LanguageAdapter;
    type Method = MethodConfig;
    type Samples = SamplesConfig;
    type Evaluation = TextEvaluationConfig;
    type Rounds = NoSection;

    fn can_switch_off(adapter: &LanguageAdapter) -> bool {
        // With an adapter to start from, the network it started from is the one with that adapter.
        matches!(&adapter.0, AdapterConfig::Lora(LoraConfig { init: None, .. }))
    }

    fn references() -> &'static [&'static str] {
        &["none", "frozen", "adapter_off", "cached", "ema", "checkpoint"]
    }

    fn needs_reference(recipe: &Recipe<Self>) -> Option<String> {
        if recipe.objective.requirements().reference {
            Some(format!("objective `{}`", recipe.objective.name()))
        } else {
            let term = recipe.method.online_kl().map(|_| "online_kl");
            let term = term.or(recipe.method.token_divergence().map(|_| "token_divergence"));
            let term = term.or(recipe.method.frequency().map(|_| "frequency"));
            term.map(|term| format!("`method.offline_pairs.{term}`"))
        }
    }

    fn inputs(recipe: &Recipe<Self>) -> diptych_train::Result<Vec<(String, PathBuf)>> {
        let init = match &recipe.adapter.0 {
            AdapterConfig::Lora(lora) => lora.init.as_ref(),
            AdapterConfig::Full(_) => None,
        };
        let truth = recipe
            .evaluation
            .as_ref()
            .and_then(|evaluation| evaluation.truth.as_ref());
        [
            (ADAPTER_INIT, init),
            (TRUTH_PROMPTS, truth.and_then(|config| config.prompts.as_ref())),
        ]
        .into_iter()
        .filter_map(|(key, path)| Some((key, path?)))
        .map(|(key, path)| Ok((key.to_owned(), recipe.resolve_path(key, path)?)))
        .collect()
    }

    fn validate(recipe: &Recipe<Self>) -> diptych_train::Result<()> {
        if recipe.run.precision == Precision::F16 {
            let expected = "f32 or bf16: gradients of a mean underflow in f16";
            return Err(recipe.invalid("run.precision", "f16", expected));
        }
        if let Some(key) = recipe.data.key_of_images() {
            return Err(recipe.invalid(key, "a value that is unused: this data is text", "no such key"));
        }
        validate_adapter(recipe)?;
        validate_quantization(recipe)?;
        validate_method(recipe)?;
        validate_reference(recipe)?;
        validate_batch(recipe)?;
        validate_samples(recipe)?;
        if let Some((key, found, expected)) = recipe.evaluation.as_ref().and_then(TextEvaluationConfig::problem) {
            return Err(recipe.invalid(&format!("eval.{key}"), found, expected));
        }
        Ok(())
    }
}

/// The recipe's adapter with the path of its start resolved.
pub fn adapter_of(recipe: &Recipe<Language>) -> Result<AdapterConfig> {
    let mut adapter = recipe.adapter.0.clone();
    if let AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) = &mut adapter {
        *path = recipe.resolve_path(ADAPTER_INIT, path)?;
    }
    Ok(adapter)
}

fn validate_adapter(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let AdapterConfig::Lora(lora) = &recipe.adapter.0 else {
        return Ok(());
    };
    match lora.validate() {
        Ok(()) => Ok(()),
        Err(diptych_models::Error::AdapterSetting { key, found, expected }) => {
            Err(recipe.invalid(&format!("adapter.lora.{key}"), found, expected))
        }
        Err(other) => Err(recipe.invalid("adapter.lora", other, "settings in their ranges")),
    }
}

/// What is trained must be beside the quantized weights, and these on the CPU.
fn validate_quantization(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let Some(quantization) = recipe.model.quantization else {
        return Ok(());
    };
    let (found, expected) = match (&recipe.adapter.0, recipe.run.device) {
        (AdapterConfig::Full(_), _) => (
            "`[adapter.full]`, which trains the weights themselves".to_owned(),
            "`[adapter.lora]`, or no such key",
        ),
        (AdapterConfig::Lora(_), DeviceChoice::Cuda(_) | DeviceChoice::Metal) => (
            format!("`run.device = \"{}\"`", recipe.run.device),
            "`run.device = \"cpu\"`: there is no kernel for a GPU yet",
        ),
        (AdapterConfig::Lora(_), DeviceChoice::Auto | DeviceChoice::Cpu) => return Ok(()),
    };
    let found = format!("{} with {found}", quantization.name());
    Err(recipe.invalid("model.quantization", found, expected))
}

/// The objective must compare what the method gives it.
fn validate_method(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let needs = recipe.objective.requirements();
    if needs.own_samples {
        let name = recipe.objective.name();
        let found = format!("`{name}`, whose responses must be the policy's own samples, which no data has");
        let expected = "an objective of stored responses, with `[method.offline_pairs.online_kl]` beside it";
        return Err(recipe.invalid(&format!("objective.{name}"), found, expected));
    }
    let (given, fits) = match (&recipe.method, needs.kind) {
        // A pair is a list of two, and its chosen side a response alone.
        (MethodConfig::OfflinePairs(_), Kind::Pairs | Kind::Lists | Kind::Chosen) => return validate_pairs(recipe),
        (MethodConfig::Unpaired(_), Kind::Unpaired)
        | (MethodConfig::Ranked(_), Kind::Lists)
        | (MethodConfig::Sft(_), Kind::Chosen) => return Ok(()),
        (MethodConfig::OfflinePairs(_), Kind::Unpaired) => ("pairs", "`pairs` or `lists`"),
        (MethodConfig::Unpaired(_), _) => ("responses judged good or bad", "`unpaired`"),
        (MethodConfig::Ranked(_), _) => ("ranked lists", "`lists`"),
        (MethodConfig::Sft(_), _) => ("responses alone", "`chosen`"),
    };
    let (objective, method) = (recipe.objective.name(), recipe.method.name());
    let found = format!(
        "`{objective}` (of kind `{}`) with `[method.{method}]`, which has {given}",
        needs.kind.name()
    );
    let expected = format!("an objective of kind {fits}; `diptych list objectives` names them");
    Err(recipe.invalid(&format!("objective.{objective}"), found, expected))
}

fn validate_pairs(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let MethodConfig::OfflinePairs(config) = &recipe.method else {
        return Ok(());
    };
    if let Some((key, found, expected)) = config.problem(recipe.objective.requirements()) {
        return Err(recipe.invalid(&format!("method.offline_pairs.{key}"), found, expected));
    }
    let refuse = |key: &str, found: String, expected: &str| {
        Err(recipe.invalid(&format!("method.offline_pairs.watch.{key}"), found, expected))
    };
    let is_default = (config.watch.max_displacement - WatchConfig::default().max_displacement).abs() < f64::EPSILON;
    match config.watch.problem() {
        Some((key, found, expected)) => refuse(key, found, expected),
        None if !is_default && !recipe.objective.requirements().reference => {
            let found = format!(
                "a limit that is unused: objective `{}` has no reference",
                recipe.objective.name()
            );
            refuse("max_displacement", found, "no such key")
        }
        None => Ok(()),
    }
}

/// What the objective or the method cannot make of the records.
fn validate_batch(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let (name, needs) = (recipe.objective.name(), recipe.objective.requirements());
    if needs.prompt_distances {
        let found = format!(
            "`{name}`, which weighs by how far apart the prompts of a batch are in the space of a sentence encoder"
        );
        let expected = "an objective without distances of prompts: `llm` has no sentence encoder";
        return Err(recipe.invalid(&format!("objective.{name}"), found, expected));
    }
    if needs.mismatched && recipe.train.micro_batch == 1 {
        let found =
            format!("1 with objective `{name}`, which compares with the responses to other prompts of the micro batch");
        return Err(recipe.invalid("train.micro_batch", found, "at least 2"));
    }
    let truncation = recipe.data.encoding.unwrap_or_default().truncation;
    if truncation == Truncation::KeepEnd && recipe.method.online_kl().is_some() {
        let found = "`keep-end`, which cuts the prompts that `method.offline_pairs.online_kl` answers";
        return Err(recipe.invalid("data.encoding.truncation", found, "`keep-start`"));
    }
    let turns = recipe.data.encoding.unwrap_or_default().turns;
    if let MethodConfig::Sft(config) = &recipe.method
        && config.loss_on == LossOn::Everything
        && turns != TurnMask::All
    {
        let found = "some turns alone, which `method.sft.loss_on = \"everything\"` would not look at";
        return Err(recipe.invalid("data.encoding.turns", found, "`all`, or `loss_on = \"completion\"`"));
    }
    Ok(())
}

fn validate_reference(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let needs = recipe.objective.requirements();
    let objective = || format!("objective `{}`", recipe.objective.name());
    let (user, reason) = if needs.mismatched {
        (objective(), "compares responses to other prompts of the batch")
    } else if needs.whole_texts {
        (objective(), "scores prompts too")
    } else if recipe.method.online_kl().is_some() {
        let user = "`method.offline_pairs.online_kl`".to_owned();
        (user, "compares answers that the policy gives while it is trained")
    } else if recipe.method.frequency().is_some() {
        let user = "`method.offline_pairs.frequency`".to_owned();
        (user, "compares states, of which no cache keeps any")
    } else if recipe.method.token_divergence().is_some() {
        let user = "`method.offline_pairs.token_divergence`".to_owned();
        (
            user,
            "compares whole distributions, of which no cache keeps more than one number",
        )
    } else {
        return Ok(());
    };
    match recipe.reference {
        ReferenceConfig::Cached { .. } => {
            let found = format!("`cached` with {user}, which {reason}");
            Err(recipe.invalid("reference.cached", found, "`adapter_off` or `frozen`"))
        }
        _ => Ok(()),
    }
}

fn validate_samples(recipe: &Recipe<Language>) -> diptych_train::Result<()> {
    let Some(samples) = &recipe.samples else { return Ok(()) };
    if recipe.train.sample_every == 0 && !recipe.source.is_overridden("train.sample_every") {
        let found = "a section that is unused: `train.sample_every` is 0";
        return Err(recipe.invalid(
            "samples",
            found,
            "no such section, or `train.sample_every` of at least 1",
        ));
    }
    match samples.problem() {
        None => Ok(()),
        Some((key, found, expected)) => Err(recipe.invalid(&format!("samples.{key}"), found, expected)),
    }
}
