//! Writes a tiny pipeline with random weights, an adapter in every layout, and what the networks compute with them.
//!
//! `cargo run -p diptych-models --example write_pipeline -- DIR`, then `python tests/golden/check_interop.py DIR` loads all of it in
//! diffusers, transformers and PEFT and compares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use diptych_models::diffusers::{Library, save_component, save_model_index};
use diptych_models::lora::{LoraAdapter, merge, save_diffusers, save_kohya};
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel, ClipTokenizer, ClipTokenizerConfig};
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig, LoraConfig, Targets, Trainable};
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{DType, Device, Params, Tensor, Weights, save_tensors};
use serde_json::json;

const TEXTS: [&str; 3] = ["a red circle", "two blue squares left of a circle", ""];

type Tensors = BTreeMap<String, Tensor>;

fn main() -> Result<()> {
    let dir = PathBuf::from(std::env::args().nth(1).context("usage: write_pipeline DIR")?);
    let mut outputs = Tensors::new();
    let tokenizer = ClipTokenizer::learn(
        TEXTS,
        40,
        ClipTokenizerConfig {
            model_max_length: 8,
            ..Default::default()
        },
    )?;
    tokenizer.save(dir.join("tokenizer"))?;
    write_text_encoder(&dir, &tokenizer, &mut outputs)?;
    write_autoencoder(&dir, &mut outputs)?;
    write_denoiser(&dir, &mut outputs)?;
    write_scheduler(&dir)?;
    let components = [
        ("scheduler", "diffusers", "DDIMScheduler"),
        ("text_encoder", "transformers", "CLIPTextModel"),
        ("tokenizer", "transformers", "CLIPTokenizer"),
        ("unet", "diffusers", "UNet2DConditionModel"),
        ("vae", "diffusers", "AutoencoderKL"),
    ];
    save_model_index(&dir, "StableDiffusionPipeline", &components)?;
    save_tensors(&dir.join("outputs.safetensors"), &outputs, &BTreeMap::new())?;
    Ok(())
}

fn write_text_encoder(dir: &Path, tokenizer: &ClipTokenizer, outputs: &mut Tensors) -> Result<()> {
    let eos = tokenizer.token_id("<|endoftext|>").context("no end token")?;
    let config = json!({
        "vocab_size": tokenizer.vocab_size(), "hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 8, "eos_token_id": eos, "pad_token_id": eos, "bos_token_id": eos - 1,
    });
    let config = ClipTextConfig::from_json(config, "text_encoder")?;
    // diffusers recognizes a kohya file by its out_proj.
    let lora = lora(&["q_proj", "out_proj", "fc1"]);
    let weights = new_weights(|builder| ClipTextModel::load(builder, &config))?;
    save_component(
        dir.join("text_encoder"),
        Library::Transformers,
        &config.to_json(),
        (&weights, DType::F32),
    )?;
    let weights = Weights::from_tensors("text encoder", weights);
    let (text, params) = adapted(&weights, &lora, |builder| ClipTextModel::load(builder, &config))?;
    let ids = tokenizer.encode_batch(&TEXTS, &Device::Cpu)?;
    outputs.insert("text_adapted".into(), text.forward(&ids)?.last_hidden_state);
    let _off = text.adapter_switch().disable();
    let plain = text.forward(&ids)?;
    outputs.insert("text".into(), plain.last_hidden_state);
    outputs.insert("pooled".into(), plain.pooler_output);
    outputs.insert("input_ids".into(), ids);
    LoraAdapter::from_params(&params, &lora, "")?.save_peft(dir.join("adapters/text_encoder"), None)?;
    Ok(())
}

fn write_autoencoder(dir: &Path, outputs: &mut Tensors) -> Result<()> {
    let config = json!({
        "block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"], "norm_num_groups": 4,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "layers_per_block": 1, "sample_size": 16,
    });
    let config = AutoencoderKlConfig::from_json(config, "vae")?;
    let weights = new_weights(|builder| AutoencoderKl::load(builder, &config))?;
    save_component(
        dir.join("vae"),
        Library::Diffusers,
        &config.to_json(),
        (&weights, DType::F32),
    )?;
    let weights = Weights::from_tensors("autoencoder", weights);
    let builder = Builder::new(BuilderConfig::new(Some(&weights)))?;
    let vae = AutoencoderKl::load(&builder, &config)?;
    builder.finish()?;
    let image = randn(2, &[1, 3, 16, 16])?;
    let posterior = vae.encode(&image)?;
    outputs.insert("decoded".into(), vae.decode(&posterior.mean)?);
    outputs.insert("image".into(), image);
    outputs.insert("latent_mean".into(), posterior.mean);
    outputs.insert("latent_logvar".into(), posterior.logvar);
    Ok(())
}

fn write_denoiser(dir: &Path, outputs: &mut Tensors) -> Result<()> {
    let config = json!({
        "sample_size": 8, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 12,
        "attention_head_dim": 2, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    let config = UNet2DConditionConfig::from_json(config, "unet")?;
    let lora = lora(&["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1"]);
    let weights = new_weights(|builder| UNet2DConditionModel::load(builder, &config))?;
    save_component(
        dir.join("unet"),
        Library::Diffusers,
        &config.to_json(),
        (&weights, DType::F32),
    )?;
    let weights = Weights::from_tensors("denoiser", weights);
    let (unet, params) = adapted(&weights, &lora, |builder| UNet2DConditionModel::load(builder, &config))?;
    let (sample, text) = (randn(3, &[2, 4, 8, 8])?, randn(4, &[2, 8, 12])?);
    let timesteps = Tensor::from_vec(vec![7f32, 640.0], 2, &Device::Cpu).map_err(diptych_tensor::Error::from)?;
    outputs.insert("unet_adapted".into(), unet.forward(&sample, &timesteps, &text)?);
    {
        let _off = unet.adapter_switch().disable();
        outputs.insert("unet".into(), unet.forward(&sample, &timesteps, &text)?);
    }
    outputs.extend([
        ("sample".into(), sample),
        ("timesteps".into(), timesteps),
        ("encoder_hidden_states".into(), text),
    ]);

    let adapter = LoraAdapter::from_params(&params, &lora, "")?;
    let text_adapter = LoraAdapter::load(dir.join("adapters/text_encoder"), "text_encoder")?;
    let both = [("unet", &adapter), ("text_encoder", &text_adapter)];
    adapter.save_peft(dir.join("adapters/unet"), Some("tiny"))?;
    save_diffusers(dir.join("adapters/diffusers"), &both)?;
    save_kohya(dir.join("adapters/kohya/kohya.safetensors"), &both)?;
    let merged = merge(&weights, &adapter, DType::F32)?;
    save_component(
        dir.join("adapters/merged"),
        Library::Diffusers,
        &config.to_json(),
        (&merged, DType::F32),
    )?;
    Ok(())
}

fn write_scheduler(dir: &Path) -> Result<()> {
    let config = json!({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1, "num_train_timesteps": 1000,
    });
    std::fs::create_dir_all(dir.join("scheduler"))?;
    std::fs::write(dir.join("scheduler/scheduler_config.json"), config.to_string())?;
    Ok(())
}

fn lora(targets: &[&str]) -> LoraConfig {
    let targets = Targets::Suffixes(targets.iter().map(|&target| target.to_owned()).collect());
    LoraConfig {
        rank: 4,
        alpha: 6.0,
        targets,
        ..Default::default()
    }
}

/// Seeded weights of a network.
fn new_weights<M>(load: impl Fn(&Builder<'_>) -> diptych_models::Result<M>) -> Result<Tensors> {
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        seed: 1,
        ..BuilderConfig::new(None)
    })?;
    load(&builder)?;
    Ok(builder.finish()?.snapshot()?)
}

/// The network with an adapter whose matrices are all random.
fn adapted<M>(
    weights: &Weights,
    lora: &LoraConfig,
    load: impl Fn(&Builder<'_>) -> diptych_models::Result<M>,
) -> Result<(M, Params)> {
    let config = BuilderConfig {
        trainable: Trainable::Lora(lora),
        ..BuilderConfig::new(Some(weights))
    };
    let builder = Builder::new(config)?;
    let model = load(&builder)?;
    let params = builder.finish()?;
    let random: Result<Tensors> = params
        .iter()
        .zip(10..)
        .map(|((name, var), seed)| Ok((name.to_owned(), randn(seed, var.dims())?)))
        .collect();
    params.load(&random?)?;
    Ok((model, params))
}

fn randn(seed: u64, shape: &[usize]) -> diptych_tensor::Result<Tensor> {
    let values = normal_vec(&mut generator(seed, Stream::Noise, 0, 0), shape.iter().product());
    Ok((Tensor::from_vec(values, shape, &Device::Cpu)? * 0.3)?)
}
