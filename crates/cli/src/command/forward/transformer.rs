//! `diptych forward --component transformer`: the inputs are those of diffusers' forward pass.

use diptych_models::diffusers::ComponentDir;
use diptych_models::flux::{FluxConditions, FluxPositions, FluxTransformer2DConfig, FluxTransformer2DModel};
use diptych_models::lora::LoraAdapter;
use diptych_models::mmdit::{SD3Transformer2DConfig, SD3Transformer2DModel};
use diptych_models::pixart::{PixArtConditions, PixArtTransformer2DConfig, PixArtTransformer2DModel};
use diptych_models::{Builder, Error};
use diptych_tensor::{DType, Device, Tensor};

use super::{Tensors, config, read_inputs};
use crate::arguments::ForwardArguments;

pub(super) fn transformer(
    arguments: &ForwardArguments,
    component: &ComponentDir,
    adapter: Option<&LoraAdapter>,
    device: &Device,
) -> anyhow::Result<Tensors> {
    let class = component.class_name().unwrap_or_default();
    let sample = match class {
        "SD3Transformer2DModel" => sd3(arguments, component, adapter, device)?,
        "FluxTransformer2DModel" => flux(arguments, component, adapter, device)?,
        // Published files have the older name.
        "PixArtTransformer2DModel" | "Transformer2DModel" => pixart(arguments, component, adapter, device)?,
        other => {
            return Err(Error::Config {
                file: arguments.model.join("model_index.json"),
                key: "transformer".into(),
                found: other.to_owned(),
                expected: "SD3Transformer2DModel, FluxTransformer2DModel or PixArtTransformer2DModel".into(),
            }
            .into());
        }
    };
    Ok(Tensors::from([("sample".into(), sample)]))
}

fn sd3(
    arguments: &ForwardArguments,
    component: &ComponentDir,
    adapter: Option<&LoraAdapter>,
    device: &Device,
) -> anyhow::Result<Tensor> {
    let names = [
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "pooled_projections",
    ];
    let inputs = read_inputs(arguments, &names, device)?;
    let weights = component.weights()?;
    let builder = Builder::new(config(&weights, adapter, device))?;
    let model = SD3Transformer2DModel::load(&builder, &SD3Transformer2DConfig::from_file(component.config())?)?;
    builder.finish()?;
    let [sample, timestep, text, pooled] = names.map(|name| &inputs[name]);
    Ok(model.forward(sample, timestep, text, pooled)?)
}

fn flux(
    arguments: &ForwardArguments,
    component: &ComponentDir,
    adapter: Option<&LoraAdapter>,
    device: &Device,
) -> anyhow::Result<Tensor> {
    let network = FluxTransformer2DConfig::from_file(component.config())?;
    let names = [
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "pooled_projections",
        "txt_ids",
        "img_ids",
        "guidance",
    ];
    let num_inputs = if network.guidance_embeds { 7 } else { 6 };
    let inputs = read_inputs(arguments, &names[..num_inputs], device)?;
    let weights = component.weights()?;
    let builder = Builder::new(config(&weights, adapter, device))?;
    let model = FluxTransformer2DModel::load(&builder, &network)?;
    builder.finish()?;
    let conditions = FluxConditions {
        timestep: &inputs["timestep"],
        guidance: inputs.get("guidance"),
        encoder_hidden_states: &inputs["encoder_hidden_states"],
        pooled_projections: &inputs["pooled_projections"],
    };
    let positions = FluxPositions::new(&coordinates(&inputs["txt_ids"])?, &coordinates(&inputs["img_ids"])?);
    Ok(model.forward(&inputs["hidden_states"], conditions, &positions)?)
}

/// Rows of three numbers.
fn coordinates(ids: &Tensor) -> anyhow::Result<Vec<[f64; 3]>> {
    match *ids.dims() {
        [_, 3] => {
            let rows: Vec<Vec<f64>> = ids.to_dtype(DType::F64)?.to_vec2()?;
            Ok(rows.into_iter().map(|row| [row[0], row[1], row[2]]).collect())
        }
        _ => Err(Error::Shape {
            what: "txt_ids or img_ids",
            found: ids.dims().to_vec(),
            expected: "(T, 3)".into(),
        }
        .into()),
    }
}

fn pixart(
    arguments: &ForwardArguments,
    component: &ComponentDir,
    adapter: Option<&LoraAdapter>,
    device: &Device,
) -> anyhow::Result<Tensor> {
    let network = PixArtTransformer2DConfig::from_file(component.config())?;
    let names = [
        "hidden_states",
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "resolution",
        "aspect_ratio",
    ];
    let num_inputs = if network.use_additional_conditions { 6 } else { 4 };
    let inputs = read_inputs(arguments, &names[..num_inputs], device)?;
    let weights = component.weights()?;
    let builder = Builder::new(config(&weights, adapter, device))?;
    let model = PixArtTransformer2DModel::load(&builder, &network)?;
    builder.finish()?;
    let mask = inputs["encoder_attention_mask"].to_dtype(DType::F32)?;
    let text_lens: Vec<usize> = mask
        .sum(1)?
        .to_vec1::<f32>()?
        .into_iter()
        .map(|len| len as usize)
        .collect();
    let conditions = PixArtConditions {
        timesteps: &inputs["timestep"],
        encoder_hidden_states: &inputs["encoder_hidden_states"],
        text_lens: Some(&text_lens),
        size: inputs.get("resolution").zip(inputs.get("aspect_ratio")),
    };
    Ok(model.forward(&inputs["hidden_states"], conditions)?)
}
