//! PEFT's `LoraConfig` as JSON: the content of `adapter_config.json`, and what diffusers puts into a file's metadata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value, json};

use super::{LoraAdapter, short_name};
use crate::{Error, LoraInit, Result, Targets};

/// What an adapter's configuration says about the factor of each layer.
#[derive(Debug)]
pub(super) struct Scales {
    file: PathBuf,
    /// The rank of layers that no pattern names; absent in files by others than PEFT.
    rank: Option<usize>,
    rank_pattern: Vec<(Regex, usize)>,
    alpha: f64,
    alpha_pattern: Vec<(Regex, f64)>,
    /// Whether the factor is `alpha / sqrt(rank)`.
    pub(super) use_rslora: bool,
    /// Whether layers have magnitudes.
    pub(super) use_dora: bool,
    pub(super) targets: Option<Targets>,
    pub(super) init_weights: LoraInit,
}

impl Scales {
    /// Reads PEFT's configuration, refusing kinds of adapters that are not implemented. `file` is for messages.
    pub(super) fn from_json(config: &Map<String, Value>, file: &Path) -> Result<Self> {
        refuse_variants(config, file)?;
        let error = |key: &str, expected: &str| wrong(config, file, key, expected);
        let alpha = config
            .get("lora_alpha")
            .and_then(Value::as_f64)
            .ok_or_else(|| error("lora_alpha", "a number"))?;
        let rank = match config.get("r") {
            None | Some(Value::Null) => None,
            Some(value) => Some(as_rank(value).ok_or_else(|| error("r", "a whole number, at least 1"))?),
        };
        let targets = match config.get("target_modules") {
            Some(Value::String(pattern)) => Some(Targets::Pattern(pattern.clone())),
            Some(Value::Array(names)) => Some(Targets::Suffixes(
                names
                    .iter()
                    .filter_map(|name| name.as_str().map(str::to_owned))
                    .collect(),
            )),
            _ => None,
        };
        let gaussian = config.get("init_lora_weights").and_then(Value::as_str) == Some("gaussian");
        Ok(Self {
            file: file.to_owned(),
            rank,
            rank_pattern: patterns(config, "rank_pattern", |value| {
                as_rank(value).ok_or_else(|| error("rank_pattern", "whole numbers, at least 1"))
            })?,
            alpha,
            alpha_pattern: patterns(config, "alpha_pattern", |value| {
                value.as_f64().ok_or_else(|| error("alpha_pattern", "numbers"))
            })?,
            use_rslora: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            use_dora: config.get("use_dora").and_then(Value::as_bool).unwrap_or(false),
            targets,
            init_weights: if gaussian {
                LoraInit::Gaussian
            } else {
                LoraInit::Kaiming
            },
        })
    }

    /// The factor of a layer whose matrices have this rank.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration says another rank: then it belongs to other matrices.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<f64> {
        let (key, expected) = match matching(&self.rank_pattern, module) {
            Some(rank) => ("rank_pattern", Some(rank)),
            None => ("r", self.rank),
        };
        if let Some(found) = expected.filter(|expected| *expected != rank) {
            return Err(Error::Config {
                file: self.file.clone(),
                key: key.to_owned(),
                found: found.to_string(),
                expected: format!("{rank}, the rank of the matrices of `{module}`"),
            });
        }
        let alpha = matching(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = rank as f64;
        Ok(alpha / if self.use_rslora { rank.sqrt() } else { rank })
    }
}

fn as_rank(value: &Value) -> Option<usize> {
    value.as_u64().filter(|rank| *rank > 0).map(|rank| rank as usize)
}

/// The entries of `rank_pattern` or `alpha_pattern`: a regular expression of the end of a layer's name, and its value.
fn patterns<T>(config: &Map<String, Value>, key: &str, read: impl Fn(&Value) -> Result<T>) -> Result<Vec<(Regex, T)>> {
    let entries = config.get(key).and_then(Value::as_object).into_iter().flatten();
    entries
        .map(|(pattern, value)| {
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$"));
            let regex = regex.map_err(|source| Error::TargetPattern {
                target: pattern.clone(),
                source: Box::new(source),
            })?;
            Ok((regex, read(value)?))
        })
        .collect()
}

/// The value of the first pattern that a layer's name matches. PEFT matches the names of the network in memory, where the text
/// encoder's may lack a prefix.
fn matching<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    let short = short_name(module);
    patterns
        .iter()
        .find(|(regex, _)| regex.is_match(module) || regex.is_match(short))
        .map(|(_, value)| *value)
}

/// Refuses every setting that changes what the adapter computes in a way that is not implemented.
fn refuse_variants(config: &Map<String, Value>, file: &Path) -> Result<()> {
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let variants = [
        "fan_in_fan_out",
        "lora_bias",
        "modules_to_save",
        "layer_replication",
        "use_qalora",
    ];
    let more = [
        "trainable_token_indices",
        "use_bdlora",
        "arrow_config",
        "alora_invocation_tokens",
        "target_parameters",
    ];
    for key in variants.into_iter().chain(more) {
        if !config.get(key).is_none_or(is_off) {
            return Err(wrong(
                config,
                file,
                key,
                "nothing: this kind of adapter is not implemented",
            ));
        }
    }
    for (key, only) in [("peft_type", "LORA"), ("bias", "none")] {
        if config.get(key).is_some_and(|value| !value.is_null() && value != only) {
            return Err(wrong(config, file, key, &format!("\"{only}\"")));
        }
    }
    // These begin from other weights of the network, which PEFT makes again when it loads the adapter.
    let changes_base = |name: &str| {
        let name = name.to_lowercase();
        ["pissa", "olora", "corda", "loftq", "lora_ga"]
            .iter()
            .any(|kind| name.starts_with(kind))
    };
    if config
        .get("init_lora_weights")
        .and_then(Value::as_str)
        .is_some_and(changes_base)
    {
        let expected = "true, false, \"gaussian\" or another that leaves the network's weights alone";
        return Err(wrong(config, file, "init_lora_weights", expected));
    }
    Ok(())
}

fn wrong(config: &Map<String, Value>, file: &Path, key: &str, expected: &str) -> Error {
    Error::Config {
        file: file.to_owned(),
        key: key.to_owned(),
        found: config.get(key).map_or_else(|| "missing".to_owned(), Value::to_string),
        expected: expected.to_owned(),
    }
}

/// The keyword arguments of PEFT's `LoraConfig` that describe `adapter`.
pub(super) fn to_json(adapter: &LoraAdapter) -> Map<String, Value> {
    let ranks = || adapter.modules.values().map(super::LoraModule::rank);
    let alpha_of = |module: &super::LoraModule| {
        let rank = module.rank() as f64;
        module.alpha_over(if adapter.use_rslora { rank.sqrt() } else { rank })
    };
    let alphas = || adapter.modules.values().map(alpha_of);
    let rank = most_common(ranks().map(|rank| rank as f64)) as usize;
    let alpha = most_common(alphas());
    let differing = |value: &dyn Fn(&super::LoraModule) -> Option<Value>| -> Map<String, Value> {
        let entries = adapter.modules.iter();
        entries
            .filter_map(|(name, module)| Some((format!("^{}", short_name(name)), value(module)?)))
            .collect()
    };
    let targets = match &adapter.targets {
        Some(Targets::Pattern(pattern)) => json!(pattern),
        Some(Targets::Suffixes(names)) => json!(names),
        None => json!(adapter.modules.keys().map(|name| short_name(name)).collect::<Vec<_>>()),
    };
    let init = match adapter.init_weights {
        LoraInit::Kaiming => json!(true),
        LoraInit::Gaussian => json!("gaussian"),
    };
    let fields = [
        (
            "alpha_pattern",
            Value::Object(differing(&|m| (alpha_of(m) != alpha).then(|| number(alpha_of(m))))),
        ),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("init_lora_weights", init),
        ("lora_alpha", number(alpha)),
        ("lora_dropout", json!(0.0)),
        ("modules_to_save", Value::Null),
        ("r", json!(rank)),
        (
            "rank_pattern",
            Value::Object(differing(&|m| (m.rank() != rank).then(|| json!(m.rank())))),
        ),
        ("target_modules", targets),
        ("use_dora", json!(adapter.is_dora())),
        ("use_rslora", json!(adapter.use_rslora)),
    ];
    fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

/// Whole numbers without a decimal point, as PEFT writes them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        json!(value as i64)
    } else {
        json!(value)
    }
}

/// The most common value, the smallest of them in a tie; 1 if there is none.
fn most_common(values: impl Iterator<Item = f64>) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for value in values {
        // Bits of positive numbers are ordered as the numbers are.
        *counts.entry(value.to_bits()).or_default() += 1;
    }
    counts
        .into_iter()
        .rev()
        .max_by_key(|(_, count)| *count)
        .map_or(1.0, |(bits, _)| f64::from_bits(bits))
}
