//! Stable Diffusion 1.5 and SDXL at their full size, with random weights.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use diptych_models::diffusers::{Library, PipelineDir, save_component, save_model_index};
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel};
use diptych_models::unet::{AddedConditions, UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig, LoraConfig, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Tensor, Weights, backward, save_tensors};
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

/// The parts of SDXL base 1.0, in parameters.
const SDXL_PARAMETERS: [(&str, usize); 4] = [
    ("unet", 2_567_463_684),
    ("vae", 83_653_863),
    ("text_encoder", 123_060_480),
    ("text_encoder_2", 694_659_840),
];

fn sdxl_unet() -> Value {
    json!({
        "sample_size": 128, "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    })
}

fn bigg() -> Value {
    json!({
        "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280,
        "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu", "eos_token_id": 2,
    })
}

/// Writes a network's random weights in bf16, in shards as large checkpoints have them, and counts its parameters.
fn write_shards<C>(dir: &Path, config: &Value, load: impl Fn(&Builder<'_>) -> diptych_models::Result<C>) -> usize {
    const SHARD: usize = 200_000_000;
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    })
    .unwrap();
    drop(load(&builder).unwrap());
    let params = builder.finish().unwrap();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut shards: Vec<Vec<&str>> = vec![vec![]];
    let mut size = 0;
    for (name, var) in params.iter() {
        size += var.elem_count();
        if size > SHARD {
            (size, shards) = (var.elem_count(), [shards, vec![vec![]]].concat());
        }
        shards.last_mut().unwrap().push(name);
    }
    let mut places = serde_json::Map::new();
    for (number, names) in shards.iter().enumerate() {
        let file = format!(
            "diffusion_pytorch_model-{:05}-of-{:05}.safetensors",
            number + 1,
            shards.len()
        );
        let tensors: BTreeMap<String, Tensor> = names
            .iter()
            .map(|&name| {
                let tensor = params.get(name).unwrap().as_detached_tensor();
                (name.to_owned(), tensor.to_dtype(DType::BF16).unwrap())
            })
            .collect();
        save_tensors(&dir.join(&file), &tensors, &BTreeMap::new()).unwrap();
        places.extend(names.iter().map(|&name| (name.to_owned(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": places});
    std::fs::write(
        dir.join("diffusion_pytorch_model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    params.num_elements()
}

fn network<'a>(weights: &'a Weights, trainable: Trainable<'a>) -> Builder<'a> {
    Builder::new(BuilderConfig {
        dtype: DType::BF16,
        trainable,
        ..BuilderConfig::new(Some(weights))
    })
    .unwrap()
}

/// What the two text encoders of `path` tell the denoiser: states of 768 and 1280 values side by side, and a vector.
fn sdxl_text(pipeline: &PipelineDir) -> (Tensor, Tensor) {
    let (mut states, mut pooled) = (Vec::new(), None);
    for name in ["text_encoder", "text_encoder_2"] {
        let component = pipeline.component(name).unwrap();
        let weights = component.weights().unwrap();
        let builder = network(&weights, Trainable::None);
        let text = ClipTextModel::load(&builder, &ClipTextConfig::from_file(component.config()).unwrap()).unwrap();
        builder.finish().unwrap();
        let ids: Vec<u32> = (0..77).map(|i| if i < 5 { i } else { 49407 }).collect();
        let output = text
            .forward(&Tensor::from_vec(ids, (1, 77), &Device::Cpu).unwrap())
            .unwrap();
        states.push(output.penultimate_hidden_state);
        pooled = output.text_embeds;
    }
    (Tensor::cat(&states, 2).unwrap(), pooled.unwrap())
}

/// Memory held now and at most, in GB; 0 where the system does not say.
fn resident() -> [f64; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["VmRSS:", "VmHWM:"].map(|key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0 / 1e9
    })
}

/// Writes SDXL's networks and checks how large they are.
fn write_sdxl(path: &Path) {
    let unet_config = UNet2DConditionConfig::from_json(sdxl_unet(), "unet").unwrap();
    let vae_config = AutoencoderKlConfig::from_json(vae(), "vae").unwrap();
    let [first, second] = [text(), bigg()].map(|json| ClipTextConfig::from_json(json, "text").unwrap());
    let text = |config: &ClipTextConfig, name: &str| {
        write_shards(&path.join(name), &config.to_json(), |b| ClipTextModel::load(b, config))
    };
    let counts = [
        write_shards(&path.join("unet"), &unet_config.to_json(), |b| {
            UNet2DConditionModel::load(b, &unet_config)
        }),
        write_shards(&path.join("vae"), &vae_config.to_json(), |b| {
            AutoencoderKl::load(b, &vae_config)
        }),
        text(&first, "text_encoder"),
        text(&second, "text_encoder_2"),
    ];
    for ((name, expected), found) in SDXL_PARAMETERS.into_iter().zip(counts) {
        assert_eq!(found, expected, "{name}");
    }
    let components = [
        ("unet", "diffusers", "UNet2DConditionModel"),
        ("vae", "diffusers", "AutoencoderKL"),
        ("text_encoder", "transformers", "CLIPTextModel"),
        ("text_encoder_2", "transformers", "CLIPTextModelWithProjection"),
    ];
    save_model_index(path, "StableDiffusionXLPipeline", &components).unwrap();
}

fn decode(pipeline: &PipelineDir, prediction: &Tensor) {
    let component = pipeline.component("vae").unwrap();
    let weights = component.weights().unwrap();
    let builder = network(&weights, Trainable::None);
    let vae = AutoencoderKl::load(&builder, &AutoencoderKlConfig::from_file(component.config()).unwrap()).unwrap();
    builder.finish().unwrap();
    let image = vae.decode(&vae.unscale(prediction).unwrap()).unwrap();
    assert_eq!(image.dims(), [1, 3, 128, 128]);
    assert!(values(&image).iter().all(|v| v.is_finite()));
}

/// Needs 12 GB of memory (to draw the weights; 6 GB to use them), 7 GB of disk, and several minutes on two cores:
/// `cargo test --release -p diptych-models --test full_size -- --ignored sdxl --nocapture`
#[test]
#[ignore = "large"]
fn sdxl() {
    let start = std::time::Instant::now();
    let say = |what: &str| {
        let [now, peak] = resident();
        eprintln!(
            "{what}: {:.0} s, {now:.1} GB, at most {peak:.1} GB",
            start.elapsed().as_secs_f64()
        );
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write_sdxl(path);
    say("written");

    let pipeline = PipelineDir::open(path).unwrap();
    let (states, pooled) = sdxl_text(&pipeline);
    assert_eq!((states.dims(), pooled.dims()), (&[1, 77, 2048][..], &[1, 1280][..]));
    say("texts encoded");

    let component = pipeline.component("unet").unwrap();
    let weights = component.weights().unwrap();
    let lora = LoraConfig {
        rank: 4,
        ..LoraConfig::default()
    };
    let builder = network(&weights, Trainable::Lora(&lora));
    let unet_config = UNet2DConditionConfig::from_file(component.config()).unwrap();
    let mut unet = UNet2DConditionModel::load(&builder, &unet_config).unwrap();
    let params = builder.finish().unwrap();
    unet.gradient_checkpointing = CheckpointPolicy::ALL;
    say("denoiser loaded");
    let sample = randn(1, &[1, 4, 16, 16], DType::BF16);
    let timesteps = Tensor::new(&[500f32], &Device::Cpu).unwrap();
    let added = AddedConditions {
        text_embeds: pooled,
        time_ids: Tensor::new(&[[128f32, 128.0, 0.0, 0.0, 128.0, 128.0]], &Device::Cpu).unwrap(),
    };
    let predict = || unet.forward_added(&sample, &timesteps, &states, &added).unwrap();
    let loss = predict()
        .to_dtype(DType::F32)
        .unwrap()
        .sqr()
        .unwrap()
        .mean_all()
        .unwrap();
    let gradients = backward(&loss, &params).unwrap();
    gradients.ensure_complete(&params).unwrap();
    assert!(
        gradients
            .iter()
            .all(|(_, gradient)| values(gradient).iter().all(|v| v.is_finite()))
    );
    say("one step of an adapter");
    let prediction = predict().detach();
    drop((gradients, loss, unet));

    decode(&pipeline, &prediction);
    say("decoded");
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
