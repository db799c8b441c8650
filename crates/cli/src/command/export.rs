//! `diptych export`: an adapter in another format, or merged into its pipeline.

use diptych_diffusion::pipeline::export;
use diptych_models::lora::{self, LoraAdapter};
use diptych_tensor::{DType, files};

use crate::arguments::{ExportArguments, ExportFormat, StoredDtype};
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
    let dtype = arguments.dtype.map(|dtype| match dtype {
        StoredDtype::F32 => DType::F32,
        StoredDtype::F16 => DType::F16,
        StoredDtype::Bf16 => DType::BF16,
    });
    Ok(export(model, arguments.adapter.as_deref(), &arguments.out, dtype)?)
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
