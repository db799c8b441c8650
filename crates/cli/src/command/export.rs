//! `diptych export`: an adapter in another format, or merged into its pipeline.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use diptych_models::diffusers::PipelineDir;
use diptych_models::lora::{self, LoraAdapter};
use diptych_tensor::{DType, files, save_tensors};

use crate::arguments::{ExportArguments, ExportFormat};
use crate::failure::usage;
use crate::output::{create_parent, print};

/// The network whose adapter is exported.
const UNET: &str = "unet";

pub(crate) fn run(arguments: &ExportArguments) -> anyhow::Result<()> {
    if arguments.out.exists() {
        return Err(usage(format!("--out {} exists already", arguments.out.display())));
    }
    let adapter = LoraAdapter::load(&arguments.adapter, UNET)?;
    create_parent(&arguments.out)?;
    let base = arguments.model.as_ref().map(|model| model.display().to_string());
    match (arguments.format, &arguments.model) {
        (ExportFormat::Peft, _) => {
            files::write_directory::<anyhow::Error>(&arguments.out, |dir| Ok(adapter.save_peft(dir, base.as_deref())?))?
        }
        (ExportFormat::Diffusers, _) => lora::save_diffusers(&arguments.out, &[(UNET, &adapter)])?,
        (ExportFormat::Kohya, _) => lora::save_kohya(&arguments.out, &[(UNET, &adapter)])?,
        (ExportFormat::Merged, Some(model)) => merge(model, &adapter, &arguments.out)?,
        (ExportFormat::Merged, None) => return Err(usage("--format merged needs --model")),
    }
    print(format!("wrote {}", arguments.out.display()))
}

/// Copies a pipeline and puts the merged weights in the place of the network's own, in the types they are stored in.
fn merge(model: &Path, adapter: &LoraAdapter, out: &Path) -> anyhow::Result<()> {
    let component = PipelineDir::open(model)?.component(UNET)?;
    let weights = component.weights()?;
    let merged = lora::merge(&weights, adapter, stored_dtype(&weights)?)?;
    let format = [("format".to_owned(), "pt".to_owned())].into();
    files::write_directory::<anyhow::Error>(out, |dir| {
        copy_except(model, dir, component.path())?;
        let unet = dir.join(UNET);
        fs::create_dir(&unet)?;
        fs::copy(component.config(), unet.join("config.json"))?;
        Ok(save_tensors(
            &unet.join("diffusion_pytorch_model.safetensors"),
            &merged,
            &format,
        )?)
    })
    .with_context(|| format!("cannot merge into {}", out.display()))
}

fn stored_dtype(weights: &diptych_tensor::Weights) -> anyhow::Result<DType> {
    let name = weights.names().next().context("the network has no weights")?;
    Ok(weights.dtype(name).unwrap_or(DType::F32))
}

/// Copies files and directories below `from`, without the directory `except`.
fn copy_except(from: &Path, to: &Path, except: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let source = entry?.path();
        let Some(name) = source.file_name() else { continue };
        let target = to.join(name);
        if source == except {
            continue;
        }
        if source.is_dir() {
            fs::create_dir(&target)?;
            copy_except(&source, &target, except)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}
