//! The networks against diffusers, transformers and PEFT, on the golden vectors of `tests/golden/generate_models.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use diptych_models::lora::LoraAdapter;
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig, LoraConfig, Trainable};
use diptych_tensor::{DType, Gradients, Params, Tensor, Weights, backward};
use support::{assert_close, golden, read, values};

const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;

fn vectors(name: &str) -> Weights {
    Weights::open(&golden(name).join("vectors.safetensors")).unwrap()
}

fn trainable(weights: &Weights) -> Builder<'_> {
    Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(Some(weights))
    })
    .unwrap()
}

fn weighted_sum(output: &Tensor, vectors: &Weights) -> Tensor {
    (output * read(vectors, "loss_weight")).unwrap().sum_all().unwrap()
}

/// Compares the norm of every parameter's gradient with the file's, and counts them.
fn check_norms(gradients: &Gradients, params: &Params, vectors: &Weights) {
    gradients.ensure_complete(params).unwrap();
    let expected: BTreeMap<&str, f64> = vectors
        .names()
        .filter_map(|name| Some((name.strip_prefix("gradnorm.")?, values(&read(vectors, name))[0])))
        .collect();
    assert_eq!(
        params.names().collect::<Vec<_>>(),
        expected.keys().copied().collect::<Vec<_>>()
    );
    let largest = expected.values().fold(0.0, |max: f64, norm| max.max(*norm));
    for (name, expected) in expected {
        let norm = values(gradients.get(name).unwrap())
            .iter()
            .map(|g| g * g)
            .sum::<f64>()
            .sqrt();
        // Gradients that are zero but for rounding (a key's bias) have no relative error.
        let error = (norm - expected).abs() / expected.max(1e-3 * largest);
        assert!(
            error < GRADIENT,
            "norm of the gradient of {name}: {norm}, expected {expected}"
        );
    }
}

fn unet(name: &str, builder: &Builder<'_>) -> UNet2DConditionModel {
    let config = UNet2DConditionConfig::from_file(golden(name).join("config.json")).unwrap();
    UNet2DConditionModel::load(builder, &config).unwrap()
}

fn weights(name: &str, file: &str) -> Weights {
    Weights::open(&golden(name).join(file)).unwrap()
}

fn predict(unet: &UNet2DConditionModel, vectors: &Weights) -> Tensor {
    let [sample, timesteps, text] = ["sample", "timesteps", "encoder_hidden_states"].map(|name| read(vectors, name));
    unet.forward(&sample, &timesteps, &text).unwrap()
}

#[test]
fn denoisers() {
    let name = "unet_sd1";
    let (weights, vectors) = (weights(name, "diffusion_pytorch_model.safetensors"), vectors(name));
    let builder = trainable(&weights);
    let unet = unet(name, &builder);
    let params = builder.finish().unwrap();
    let output = predict(&unet, &vectors);
    assert_close(name, &output, &read(&vectors, "output"), FORWARD);
    check_norms(
        &backward(&weighted_sum(&output, &vectors), &params).unwrap(),
        &params,
        &vectors,
    );
}

#[test]
fn a_denoisers_adapter() {
    let (weights, base) = (
        weights("unet_sd1", "diffusion_pytorch_model.safetensors"),
        vectors("unet_sd1"),
    );
    let vectors = vectors("unet_sd1_lora");
    for layout in ["unet_sd1_lora", "unet_sd1_lora_diffusers"] {
        let adapter = LoraAdapter::load(golden(layout), "unet").unwrap();
        let builder = Builder::new(BuilderConfig {
            adapter: Some(&adapter),
            ..BuilderConfig::new(Some(&weights))
        })
        .unwrap();
        let unet = unet("unet_sd1", &builder);
        assert!(builder.finish().unwrap().is_empty());
        assert_close(layout, &predict(&unet, &base), &read(&vectors, "output"), FORWARD);
        let _off = unet.adapter_switch().disable();
        assert_close("adapter off", &predict(&unet, &base), &read(&base, "output"), FORWARD);
    }
}

#[test]
fn gradients_of_a_denoisers_adapter() {
    let (weights, base) = (
        weights("unet_sd1", "diffusion_pytorch_model.safetensors"),
        vectors("unet_sd1"),
    );
    let vectors = vectors("unet_sd1_lora");
    let mut adapter = LoraAdapter::load(golden("unet_sd1_lora"), "unet").unwrap();
    // One rank and one alpha can be trained; the others of the file are attached in a second pass.
    let is_plain = |module: &str| !(module.ends_with("proj_in") || module.ends_with("conv1"));
    let mut merged = adapter.clone();
    adapter.modules.retain(|name, _| is_plain(name));
    merged.modules.retain(|name, _| !is_plain(name));
    let base_weights = diptych_models::lora::merge(&weights, &merged, DType::F32).unwrap();
    let base_weights = Weights::from_tensors("merged", base_weights);
    let targets = diptych_models::Targets::Pattern(
        r".*\.(to_q|to_k|to_v|to_out\.0|conv_shortcut|ff\.net\.2|downsamplers\.0\.conv)".into(),
    );
    let lora = LoraConfig {
        rank: 2,
        alpha: 3.0,
        targets,
        ..Default::default()
    };
    let config = BuilderConfig {
        adapter: Some(&adapter),
        trainable: Trainable::Lora(&lora),
        ..BuilderConfig::new(Some(&base_weights))
    };
    let builder = Builder::new(config).unwrap();
    let unet = unet("unet_sd1", &builder);
    let params = builder.finish().unwrap();
    let output = predict(&unet, &base);
    assert_close(
        "adapter and merged adapter",
        &output,
        &read(&vectors, "output"),
        FORWARD,
    );
    let gradients = backward(&weighted_sum(&output, &base), &params).unwrap();
    gradients.ensure_complete(&params).unwrap();
    let mut compared = 0;
    for (name, gradient) in gradients.iter() {
        assert_close(name, gradient, &read(&vectors, &format!("grad.{name}")), GRADIENT);
        compared += 1;
    }
    assert_eq!(compared, 2 * adapter.modules.len());
    assert!(compared >= 60, "{compared}");
}

#[test]
fn merged_weights_are_the_adapted_network() {
    let (weights, base) = (
        weights("unet_sd1", "diffusion_pytorch_model.safetensors"),
        vectors("unet_sd1"),
    );
    let adapter = LoraAdapter::load(golden("unet_sd1_lora"), "unet").unwrap();
    let merged = Weights::from_tensors(
        "merged",
        diptych_models::lora::merge(&weights, &adapter, DType::F32).unwrap(),
    );
    let builder = Builder::new(BuilderConfig::new(Some(&merged))).unwrap();
    let unet = unet("unet_sd1", &builder);
    builder.finish().unwrap();
    assert_close(
        "merged",
        &predict(&unet, &base),
        &read(&vectors("unet_sd1_lora"), "output"),
        FORWARD,
    );
}

#[test]
fn autoencoders() {
    let name = "vae";
    let (weights, vectors) = (weights(name, "diffusion_pytorch_model.safetensors"), vectors(name));
    let config = AutoencoderKlConfig::from_file(golden(name).join("config.json")).unwrap();
    let builder = trainable(&weights);
    let vae = AutoencoderKl::load(&builder, &config).unwrap();
    let params = builder.finish().unwrap();
    let posterior = vae.encode(&read(&vectors, "sample")).unwrap();
    let latents = posterior.sample(&read(&vectors, "noise")).unwrap();
    let decoded = vae.decode(&latents).unwrap();
    let kl = posterior.kl().unwrap();
    let found = [&posterior.mean, &posterior.logvar, &latents, &decoded, &kl];
    for (what, found) in ["latent_mean", "latent_logvar", "latents", "decoded", "kl"]
        .into_iter()
        .zip(found)
    {
        assert_close(&format!("{name} {what}"), found, &read(&vectors, what), FORWARD);
    }
    let loss = (weighted_sum(&decoded, &vectors) + kl.sum_all().unwrap()).unwrap();
    check_norms(&backward(&loss, &params).unwrap(), &params, &vectors);
    let restored = vae.unscale(&vae.scale(&latents).unwrap()).unwrap();
    assert_close("scale and unscale", &restored, &latents, 1e-6);
}

/// The attention of Stable Diffusion 1.5's autoencoder has the names of 2022 in its file.
#[test]
fn an_autoencoder_file_of_2022() {
    let weights = weights("vae", "diffusion_pytorch_model.safetensors");
    let mut renamed = 0;
    let old = weights.names().map(|name| {
        let mut old = name.to_owned();
        for (new, replacement) in [
            ("to_q", "query"),
            ("to_k", "key"),
            ("to_v", "value"),
            ("to_out.0", "proj_attn"),
        ] {
            old = old.replace(&format!("attentions.0.{new}."), &format!("attentions.0.{replacement}."));
        }
        renamed += usize::from(old != name);
        (old, read(&weights, name))
    });
    let old = Weights::from_tensors("old", old.collect());
    assert_eq!(renamed, 2 * 4 * 2);
    let config = AutoencoderKlConfig::from_file(golden("vae").join("config.json")).unwrap();
    let builder = trainable(&old);
    let vae = AutoencoderKl::load(&builder, &config).unwrap();
    let params = builder.finish().unwrap();
    assert!(
        params.get("encoder.mid_block.attentions.0.to_out.0.weight").is_some(),
        "parameters have the names of today"
    );
    let vectors = vectors("vae");
    let decoded = vae.decode(&read(&vectors, "latents")).unwrap();
    assert_close("decoded", &decoded, &read(&vectors, "decoded"), FORWARD);
}

#[test]
fn text_encoders() {
    for name in ["text_quick_gelu", "text_gelu"] {
        let (weights, vectors) = (weights(name, "model.safetensors"), vectors(name));
        let config = ClipTextConfig::from_file(golden(name).join("config.json")).unwrap();
        let builder = trainable(&weights);
        let text = ClipTextModel::load(&builder, &config).unwrap();
        let params = builder.finish().unwrap();
        let ids = vectors
            .read("input_ids", DType::U32, &diptych_tensor::Device::Cpu)
            .unwrap();
        let output = text.forward(&ids).unwrap();
        assert_close(
            name,
            &output.last_hidden_state,
            &read(&vectors, "last_hidden_state"),
            FORWARD,
        );
        assert_close(name, &output.pooler_output, &read(&vectors, "pooler_output"), FORWARD);
        let loss =
            (weighted_sum(&output.last_hidden_state, &vectors) + output.pooler_output.sum_all().unwrap()).unwrap();
        check_norms(&backward(&loss, &params).unwrap(), &params, &vectors);
    }
}

#[test]
fn tokenizers() {
    for name in ["tokenizer_sd1", "tokenizer_sd2", "tokenizer_json"] {
        let tokenizer = ClipTokenizer::from_dir(golden(name)).unwrap();
        let file = std::fs::read_to_string(golden(name).join("cases.json")).unwrap();
        let file: serde_json::Value = serde_json::from_str(&file).unwrap();
        let (pad, length) = (
            file["pad"].as_u64().unwrap() as u32,
            file["length"].as_u64().unwrap() as usize,
        );
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 24, "{name}");
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let mut expected: Vec<u32> = case["ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            expected.resize(length, pad);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name}: {text:?}");
        }
    }
}
