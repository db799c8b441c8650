//! `diptych export`: an adapter in another format, or merged into its model.

use std::path::Path;

use diptych_models::lora::{self, LoraAdapter};
use diptych_tensor::{DType, files};

use crate::arguments::{ExportArguments, ExportFormat};
use crate::command::model_kind::ModelKind;
use crate::failure::usage;
use crate::output::{create_parent, print};

pub(crate) fn run(arguments: &ExportArguments) -> anyhow::Result<()> {
    if arguments.out.exists() {
        return Err(usage(format!("--out {} exists already", arguments.out.display())));
    }
    create_parent(&arguments.out)?;
    if arguments.format == ExportFormat::Merged {
        merge(arguments)?;
    } else {
        convert(arguments)?;
    }
    print(format!("wrote {}", arguments.out.display()))
}

fn merge(arguments: &ExportArguments) -> anyhow::Result<()> {
    let Some(model) = &arguments.model else {
        return Err(usage("--format merged needs --model"));
    };
    let adapter = arguments.adapter.as_deref();
    let dtype = arguments.dtype.map(DType::from);
    if is_clip(model) {
        if let Some(adapter) = adapter {
            let adapter = adapter.display();
            return Err(usage(format!(
                "--model is a CLIP, which --adapter {adapter} is not for"
            )));
        }
        diptych_diffusion::pipeline::export_network(model, &arguments.out, dtype)?;
        return Ok(());
    }
    match ModelKind::of(model)? {
        ModelKind::Pipeline => diptych_diffusion::pipeline::export(model, adapter, &arguments.out, dtype)?,
        ModelKind::Language => diptych_llm::export(model, adapter, &arguments.out, dtype)?,
        ModelKind::VisionLanguage => diptych_vlm::export(model, adapter, &arguments.out, dtype)?,
    }
    Ok(())
}

/// Whether a directory holds a CLIP, with a time in its image half or without: a judge's network.
fn is_clip(model: &Path) -> bool {
    let config = std::fs::read_to_string(model.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap_or_default();
    config.get("model_type").and_then(serde_json::Value::as_str) == Some("clip")
}

fn convert(arguments: &ExportArguments) -> anyhow::Result<()> {
    let Some(path) = &arguments.adapter else {
        return Err(usage("--adapter is missing"));
    };
    if arguments.dtype.is_some() || arguments.model.is_some() {
        return Err(usage("--model and --dtype are only for --format merged"));
    }
    let adapters = LoraAdapter::load_all(path)?;
    let parts: Vec<(&str, &LoraAdapter)> = adapters.iter().map(|(name, part)| (name.as_str(), part)).collect();
    let is_language = adapters.contains_key(lora::LANGUAGE_MODEL);
    if is_language && matches!(arguments.format, ExportFormat::Diffusers | ExportFormat::Kohya) {
        return Err(usage(format!(
            "{} adapts a language model, which --format diffusers and kohya have no names for: use peft or merged",
            path.display()
        )));
    }
    match arguments.format {
        ExportFormat::Diffusers if arguments.out.extension().is_some_and(|end| end == "safetensors") => {
            lora::save_diffusers(&arguments.out, &parts)?;
        }
        ExportFormat::Diffusers => {
            files::write_directory::<anyhow::Error>(&arguments.out, |dir| Ok(lora::save_diffusers(dir, &parts)?))?;
        }
        ExportFormat::Kohya => lora::save_kohya(&arguments.out, &parts)?,
        ExportFormat::Peft | ExportFormat::Merged => {
            let [(_, adapter)] = parts.as_slice() else {
                let names: Vec<&str> = parts.iter().map(|(name, _)| *name).collect();
                return Err(usage(format!(
                    "{} adapts {}; a PEFT directory holds the adapter of one network: use --format diffusers",
                    path.display(),
                    names.join(" and ")
                )));
            };
            files::write_directory::<anyhow::Error>(&arguments.out, |dir| Ok(adapter.save_peft(dir, None)?))?;
        }
    }
    Ok(())
}
