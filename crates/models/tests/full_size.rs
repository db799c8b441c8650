//! Stable Diffusion 1.5 at its full size, with random weights.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use diptych_models::diffusers::{Library, PipelineDir, save_component, save_model_index};
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel};
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig, Trainable};
use diptych_tensor::{DType, Device, Tensor};
use serde_json::{Value, json};
use support::{randn, values};

/// The sizes of the published checkpoint, in parameters.
const PARAMETERS: [(&str, usize); 3] = [
    ("unet", 859_520_964),
    ("vae", 83_653_863),
    ("text_encoder", 123_060_480),
];

fn unet() -> Value {
    json!({
        "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768,
        "attention_head_dim": 8,
    })
}

fn vae() -> Value {
    json!({
        "block_out_channels": [128, 256, 512, 512], "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4], "layers_per_block": 2, "sample_size": 512,
    })
}

fn text() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu", "eos_token_id": 2,
    })
}

/// Writes one network with random weights in f16, and counts its parameters.
fn write<C>(
    dir: &Path,
    library: Library,
    config: &Value,
    load: impl Fn(&Builder<'_>) -> diptych_models::Result<C>,
) -> usize {
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    })
    .unwrap();
    drop(load(&builder).unwrap());
    let params = builder.finish().unwrap();
    let tensors: BTreeMap<String, Tensor> = params
        .iter()
        .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()))
        .collect();
    save_component(dir, library, config, (&tensors, DType::F16)).unwrap();
    params.num_elements()
}

/// Needs 6 GB of memory and 2.2 GB of disk, and takes about two minutes on two cores:
/// `cargo test --release -p diptych-models --test full_size -- --ignored`
#[test]
#[ignore = "large"]
fn stable_diffusion_15() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let unet_config = UNet2DConditionConfig::from_json(unet(), "unet").unwrap();
    let vae_config = AutoencoderKlConfig::from_json(vae(), "vae").unwrap();
    let text_config = ClipTextConfig::from_json(text(), "text").unwrap();
    let counts = [
        write(&path.join("unet"), Library::Diffusers, &unet_config.to_json(), |b| {
            UNet2DConditionModel::load(b, &unet_config)
        }),
        write(&path.join("vae"), Library::Diffusers, &vae_config.to_json(), |b| {
            AutoencoderKl::load(b, &vae_config)
        }),
        write(
            &path.join("text_encoder"),
            Library::Transformers,
            &text_config.to_json(),
            |b| ClipTextModel::load(b, &text_config),
        ),
    ];
    for ((name, expected), found) in PARAMETERS.into_iter().zip(counts) {
        assert_eq!(found, expected, "{name}");
    }
    let components = [
        ("unet", "diffusers", "UNet2DConditionModel"),
        ("vae", "diffusers", "AutoencoderKL"),
        ("text_encoder", "transformers", "CLIPTextModel"),
    ];
    save_model_index(path, "StableDiffusionPipeline", &components).unwrap();

    let pipeline = PipelineDir::open(path).unwrap();
    let states = {
        let component = pipeline.component("text_encoder").unwrap();
        let weights = component.weights().unwrap();
        let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
        let text = ClipTextModel::load(&builder, &ClipTextConfig::from_file(component.config()).unwrap()).unwrap();
        builder.finish().unwrap();
        let ids: Vec<u32> = (0..77).map(|i| if i < 5 { i } else { 49407 }).collect();
        text.forward(&Tensor::from_vec(ids, (1, 77), &Device::Cpu).unwrap())
            .unwrap()
            .last_hidden_state
    };
    let prediction = {
        let component = pipeline.component("unet").unwrap();
        let weights = component.weights().unwrap();
        let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
        let unet = UNet2DConditionModel::load(&builder, &UNet2DConditionConfig::from_file(component.config()).unwrap())
            .unwrap();
        builder.finish().unwrap();
        let timesteps = Tensor::new(&[500f32], &Device::Cpu).unwrap();
        unet.forward(&randn(1, &[1, 4, 16, 16], DType::F32), &timesteps, &states)
            .unwrap()
    };
    let component = pipeline.component("vae").unwrap();
    let weights = component.weights().unwrap();
    let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
    let vae = AutoencoderKl::load(&builder, &AutoencoderKlConfig::from_file(component.config()).unwrap()).unwrap();
    builder.finish().unwrap();
    let image = vae.decode(&vae.unscale(&prediction).unwrap()).unwrap();
    assert_eq!(image.dims(), [1, 3, 128, 128]);
    assert!(values(&image).iter().all(|v| v.is_finite()));
    assert_eq!(vae.encode(&image).unwrap().mean.dims(), [1, 4, 16, 16]);
}
