//! PEFT's directory: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diptych_tensor::{Weights, files, save_tensors};
use serde_json::{Value, json};

use super::metadata::{Scales, to_json};
use super::{Halves, LoraAdapter, MAGNITUDE, read, short_name};
use crate::config_json::read_json;
use crate::{Error, Result};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts before every name: its own wrapper and the wrapped network.
const PREFIX: &str = "base_model.model.";

/// How the copy of an adapted head's own weight ends.
const BASE: &str = ".base_layer.weight";

pub(super) fn load(dir: &Path) -> Result<LoraAdapter> {
    let config_path = dir.join(CONFIG);
    let config = read_json(&config_path)?;
    let Some(config) = config.as_object() else {
        let (key, found, expected) = (".".into(), config.to_string(), "an object".into());
        return Err(Error::Config {
            file: config_path,
            key,
            found,
            expected,
        });
    };
    let scales = Scales::from_json(config, &config_path)?;
    let weights_path = weights_of(dir)?;
    let weights = Weights::open(&weights_path)?;
    let (mut halves, mut base) = (Halves::default(), BTreeMap::new());
    for name in weights.names() {
        let plain = name.strip_prefix(PREFIX).unwrap_or(name);
        if let Some(module) = plain.strip_suffix(BASE) {
            base.insert(module.to_owned(), read(&weights, name)?);
            continue;
        }
        if !halves.insert(plain, read(&weights, name)?) {
            return Err(Error::UnknownAdapterTensor {
                path: weights_path,
                name: name.to_owned(),
            });
        }
    }
    let mut adapter = halves.pair(&weights_path, |module, rank| scales.scale(module, rank))?;
    for (module, parts) in &adapter.modules {
        if parts.magnitude.is_some() != scales.use_dora {
            let (found, missing) = if scales.use_dora {
                ("use_dora", MAGNITUDE)
            } else {
                (MAGNITUDE, "use_dora")
            };
            return Err(super::missing(&weights_path, module.clone(), found, missing));
        }
    }
    adapter.targets = scales.targets;
    adapter.init_weights = scales.init_weights;
    adapter.use_rslora = scales.use_rslora;
    adapter.base = base;
    Ok(adapter)
}

/// The network of a directory: a text encoder's layers have names of their own.
pub(super) fn component(dir: &Path) -> Result<&'static str> {
    let weights = Weights::open(&weights_of(dir)?)?;
    let names: Vec<&str> = weights
        .names()
        .map(|name| name.strip_prefix(PREFIX).unwrap_or(name))
        .collect();
    let all = |is_one: fn(&str) -> bool| !names.is_empty() && names.iter().all(|name| is_one(name));
    Ok(
        if all(|name| name.starts_with("text_model.") || name.starts_with("encoder.layers.")) {
            "text_encoder"
        } else if all(|name| is_language_model(name) || is_vision_language_model(name)) {
            super::LANGUAGE_MODEL
        } else {
            "unet"
        },
    )
}

/// Whether a layer or tensor is one of a causal language model.
fn is_language_model(name: &str) -> bool {
    name.starts_with("model.layers.") || name.starts_with("lm_head")
}

/// Whether a layer or tensor is one of a language model that reads images, by the names of any version of transformers.
fn is_vision_language_model(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    ["language_model.", "vision_tower.", "multi_modal_projector.", "visual."]
        .iter()
        .any(|part| name.starts_with(part))
}

fn weights_of(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(WEIGHTS);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::MissingFile {
        path: dir.to_owned(),
        expected: vec![WEIGHTS.to_owned()],
    })
}

pub(super) fn save(adapter: &LoraAdapter, dir: &Path, base_model: Option<&str>) -> Result<()> {
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let mut config = to_json(adapter);
    config.insert("auto_mapping".into(), Value::Null);
    config.insert("base_model_name_or_path".into(), json!(base_model));
    config.insert("inference_mode".into(), json!(true));
    config.insert("peft_type".into(), json!("LORA"));
    config.insert("revision".into(), Value::Null);
    let is_language_model = !adapter.modules.is_empty() && adapter.modules.keys().all(|name| is_language_model(name));
    config.insert(
        "task_type".into(),
        if is_language_model {
            json!("CAUSAL_LM")
        } else {
            Value::Null
        },
    );
    let mut tensors = BTreeMap::new();
    for (name, weight) in &adapter.base {
        tensors.insert(format!("{PREFIX}{name}{BASE}"), weight.clone());
    }
    for (name, module) in &adapter.modules {
        let name = short_name(name);
        tensors.insert(format!("{PREFIX}{name}.lora_A.weight"), module.down.clone());
        tensors.insert(format!("{PREFIX}{name}.lora_B.weight"), module.up.clone());
        if let Some(magnitude) = &module.magnitude {
            tensors.insert(format!("{PREFIX}{name}.{MAGNITUDE}"), magnitude.clone());
        }
    }
    save_tensors(
        &dir.join(WEIGHTS),
        &tensors,
        &BTreeMap::from([("format".into(), "pt".into())]),
    )?;
    // Python's json.dumps(sort_keys=True), as PEFT writes it.
    let sorted: BTreeMap<String, Value> = config.into_iter().collect();
    Ok(files::write_file(
        &dir.join(CONFIG),
        format!("{:#}\n", json!(sorted)).as_bytes(),
    )?)
}
