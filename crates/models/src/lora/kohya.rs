//! The single file of kohya's sd-scripts, which most image generation front ends read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use diptych_tensor::{Device, Tensor, save_tensors};

use super::LoraAdapter;
use crate::{Error, Result};

/// Writes the adapters of a Stable Diffusion 1.x pipeline under kohya's names: `lora_unet_` or `lora_te_`, the layer with underscores
/// for dots, then `lora_down`, `lora_up` and `alpha`.
///
/// # Errors
/// [`Error::AdapterSetting`] for a network other than `unet` and `text_encoder`, or when the file cannot be written.
pub fn save_kohya(file: impl AsRef<Path>, adapters: &[(&str, &LoraAdapter)]) -> Result<()> {
    let file = file.as_ref();
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent).map_err(Error::io(parent))?;
    }
    let mut tensors = BTreeMap::new();
    for (component, adapter) in adapters {
        adapter.refuse_magnitudes("kohya")?;
        let prefix = match *component {
            "unet" => "lora_unet_",
            "text_encoder" => "lora_te_",
            other => {
                let (found, expected) = (other.to_owned(), "unet or text_encoder");
                return Err(Error::AdapterSetting {
                    key: "component",
                    found,
                    expected,
                });
            }
        };
        for (name, module) in &adapter.modules {
            let place = format!("{prefix}{}", name.replace('.', "_"));
            tensors.insert(format!("{place}.alpha"), scalar(module.alpha())?);
            tensors.insert(format!("{place}.lora_down.weight"), module.down.clone());
            tensors.insert(format!("{place}.lora_up.weight"), module.up.clone());
        }
    }
    Ok(save_tensors(
        file,
        &tensors,
        &BTreeMap::from([("format".into(), "pt".into())]),
    )?)
}

fn scalar(value: f64) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::new(value as f32, &Device::Cpu)?)
}
