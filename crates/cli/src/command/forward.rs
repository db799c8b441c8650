//! `diptych forward`: one network, given tensors in, its tensors out.

mod transformer;

use std::collections::BTreeMap;

use diptych_llm::logits::padded_logits;
use diptych_llm::policy::{NetworkOptions, load_adapter, load_frozen};
use diptych_models::diffusers::{ComponentDir, PipelineDir};
use diptych_models::lm::LmDir;
use diptych_models::lora::LoraAdapter;
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel};
use diptych_models::unet::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig};
use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};

use crate::arguments::{Component, ForwardArguments};
use crate::command::model_kind::ModelKind;
use crate::failure::usage;
use crate::output::{create_parent, print};

type Tensors = BTreeMap<String, Tensor>;

pub(crate) fn run(arguments: &ForwardArguments) -> anyhow::Result<()> {
    let device = arguments.device.resolve()?;
    let outputs = match (ModelKind::of(&arguments.model)?, arguments.component) {
        (ModelKind::Pipeline, component) => pipeline(arguments, component.unwrap_or(Component::Unet), &device)?,
        (ModelKind::Language, None) => language_model(arguments, &device)?,
        (kind, Some(_)) => {
            return Err(usage(format!(
                "--component is a part of a pipeline; --model {} is {}",
                arguments.model.display(),
                kind.name()
            )));
        }
        (ModelKind::VisionLanguage, None) => {
            return Err(usage(format!(
                "--model {} is a vision-language model; forward is for pipelines and language models",
                arguments.model.display()
            )));
        }
    };
    create_parent(&arguments.out)?;
    save_tensors(&arguments.out, &outputs, &BTreeMap::new())?;
    for (name, tensor) in &outputs {
        print(format!("{name} {:?}", tensor.dims()))?;
    }
    Ok(())
}

fn pipeline(arguments: &ForwardArguments, component: Component, device: &Device) -> anyhow::Result<Tensors> {
    if component == Component::Vae && arguments.adapter.is_some() {
        return Err(usage(
            "--adapter adapts the denoiser or the text encoder, not --component vae",
        ));
    }
    let name = match component {
        Component::Unet => "unet",
        Component::Transformer => "transformer",
        Component::Vae => "vae",
        Component::TextEncoder => "text_encoder",
        Component::TextEncoder2 => "text_encoder_2",
    };
    let directory = PipelineDir::open(&arguments.model)?.component(name)?;
    let adapter = arguments
        .adapter
        .as_ref()
        .map(|path| LoraAdapter::load(path, name))
        .transpose()?;
    match component {
        Component::Transformer => transformer::transformer(arguments, &directory, adapter.as_ref(), device),
        Component::Unet => unet(arguments, &directory, adapter.as_ref(), device),
        Component::Vae => vae(&directory, &read_inputs(arguments, &["sample"], device)?, device),
        Component::TextEncoder | Component::TextEncoder2 => {
            let inputs = read_inputs(arguments, &["input_ids"], device)?;
            text_encoder(&directory, adapter.as_ref(), &inputs, device)
        }
    }
}

fn language_model(arguments: &ForwardArguments, device: &Device) -> anyhow::Result<Tensors> {
    let inputs = read_inputs(arguments, &["input_ids", "attention_mask"], &Device::Cpu)?;
    let options = NetworkOptions {
        device: device.clone(),
        dtype: DType::F32,
        seed: 0,
        quantization: None,
    };
    let adapter = arguments.adapter.as_deref().map(load_adapter).transpose()?;
    let model = load_frozen(&LmDir::open(&arguments.model)?, adapter.as_ref(), &options)?;
    let logits = padded_logits(&model, &inputs["input_ids"], &inputs["attention_mask"])?;
    Ok(Tensors::from([("logits".into(), logits)]))
}

/// The inputs: all that are expected and no others, floats as f32.
fn read_inputs(arguments: &ForwardArguments, expected: &[&str], device: &Device) -> anyhow::Result<Tensors> {
    let file = Weights::open(&arguments.inputs)?;
    if let Some(unknown) = file.names().find(|name| !expected.contains(name)) {
        return Err(usage(format!(
            "{}: found tensor `{unknown}`, expected {}",
            arguments.inputs.display(),
            expected.join(", ")
        )));
    }
    expected
        .iter()
        .map(|&name| {
            let dtype = if name == "input_ids" { DType::U32 } else { DType::F32 };
            Ok((name.to_owned(), file.read(name, dtype, device)?))
        })
        .collect()
}

fn config<'a>(weights: &'a Weights, adapter: Option<&'a LoraAdapter>, device: &Device) -> BuilderConfig<'a> {
    BuilderConfig {
        device: device.clone(),
        adapter,
        ..BuilderConfig::new(Some(weights))
    }
}

/// A denoiser; SDXL's takes `text_embeds` and `time_ids` too.
fn unet(
    arguments: &ForwardArguments,
    component: &ComponentDir,
    adapter: Option<&LoraAdapter>,
    device: &Device,
) -> anyhow::Result<Tensors> {
    let network = UNet2DConditionConfig::from_file(component.config())?;
    let names = ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"];
    let num_inputs = if network.addition_embed.is_some() { 5 } else { 3 };
    let inputs = read_inputs(arguments, &names[..num_inputs], device)?;
    let weights = component.weights()?;
    let builder = Builder::new(config(&weights, adapter, device))?;
    let model = UNet2DConditionModel::load(&builder, &network)?;
    builder.finish()?;
    let [sample, timestep, text] = ["sample", "timestep", "encoder_hidden_states"].map(|name| &inputs[name]);
    let sample = if network.addition_embed.is_some() {
        let added = AddedConditions {
            text_embeds: inputs["text_embeds"].clone(),
            time_ids: inputs["time_ids"].clone(),
        };
        model.forward_added(sample, timestep, text, &added)?
    } else {
        model.forward(sample, timestep, text)?
    };
    Ok(Tensors::from([("sample".into(), sample)]))
}

fn vae(component: &ComponentDir, inputs: &Tensors, device: &Device) -> anyhow::Result<Tensors> {
    let weights = component.weights()?;
    let builder = Builder::new(config(&weights, None, device))?;
    let model = AutoencoderKl::load(&builder, &AutoencoderKlConfig::from_file(component.config())?)?;
    builder.finish()?;
    let posterior = model.encode(&inputs["sample"])?;
    let decoded = model.decode(&posterior.mean)?;
    Ok(Tensors::from([
        ("latent_mean".into(), posterior.mean),
        ("latent_logvar".into(), posterior.logvar),
        ("decoded".into(), decoded),
    ]))
}

fn text_encoder(
    component: &ComponentDir,
    adapter: Option<&LoraAdapter>,
    inputs: &Tensors,
    device: &Device,
) -> anyhow::Result<Tensors> {
    let weights = component.weights()?;
    let builder = Builder::new(config(&weights, adapter, device))?;
    let model = ClipTextModel::load(&builder, &ClipTextConfig::from_file(component.config())?)?;
    builder.finish()?;
    let output = model.forward(&inputs["input_ids"])?;
    let mut outputs = Tensors::from([
        ("last_hidden_state".into(), output.last_hidden_state),
        ("penultimate_hidden_state".into(), output.penultimate_hidden_state),
        ("pooler_output".into(), output.pooler_output),
    ]);
    outputs.extend(
        output
            .text_embeds
            .map(|text_embeds| ("text_embeds".into(), text_embeds)),
    );
    Ok(outputs)
}
