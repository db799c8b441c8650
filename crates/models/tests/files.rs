//! Configurations, pipeline directories and tokenizer directories: what is read, what is refused and what is written.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use diptych_models::diffusers::{ComponentDir, Library, PipelineDir, find_weights, save_component, save_model_index};
use diptych_models::text_encoder::{ClipTextConfig, ClipTokenizer, ClipTokenizerConfig};
use diptych_models::unet::{BlockDepth, UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::AutoencoderKlConfig;
use diptych_models::{Builder, BuilderConfig, Error, Trainable};
use diptych_tensor::{DType, Device, Tensor, Weights};
use serde_json::{Value, json};
use support::{golden, randn, tiny_text, tiny_unet, tiny_unet_config, tiny_vae, unet_inputs, values};

fn edited(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config.as_object_mut().unwrap().insert(key.to_owned(), value);
    config
}

/// `unet/config.json` of Stable Diffusion 1.5, as published.
fn sd15_unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
    })
}

/// `text_encoder/config.json` of Stable Diffusion 1.5, as published.
fn sd15_text() -> Value {
    json!({
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
        "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
        "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12,
        "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408
    })
}

/// `unet/config.json` of SDXL base 1.0, as published.
fn sdxl_unet() -> Value {
    let text = r#"{
        "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn": "silu",
        "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "center_input_sample": false,
        "class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "cross_attention_dim": 2048, "cross_attention_norm": null,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
        "dual_cross_attention": false, "encoder_hid_dim": null, "encoder_hid_dim_type": null, "flip_sin_to_cos": true,
        "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_only_cross_attention": null,
        "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-05, "norm_num_groups": 32,
        "num_attention_heads": null, "num_class_embeds": null, "only_cross_attention": false, "out_channels": 4,
        "projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": false,
        "resnet_time_scale_shift": "default", "sample_size": 128, "time_cond_proj_dim": null, "time_embedding_act_fn": null,
        "time_embedding_dim": null, "time_embedding_type": "positional", "timestep_post_act": null,
        "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
        "use_linear_projection": true
    }"#;
    serde_json::from_str(text).unwrap()
}

/// What added conditions need is demanded by name, and depths that differ on the two ways are both needed.
#[test]
fn settings_that_need_each_other_are_demanded() {
    for key in ["addition_time_embed_dim", "projection_class_embeddings_input_dim"] {
        let config = edited(&sdxl_unet(), key, Value::Null);
        let error = UNet2DConditionConfig::from_json(config, "config.json").unwrap_err();
        assert!(
            matches!(&error, Error::Config { key: found, .. } if found == key),
            "{error}"
        );
    }
    let uneven = edited(&sdxl_unet(), "transformer_layers_per_block", json!([0, [2, 1], [1, 3]]));
    let error = UNet2DConditionConfig::from_json(uneven, "config.json").unwrap_err();
    assert!(
        error.to_string().contains("reverse_transformer_layers_per_block"),
        "{error}"
    );
}

#[test]
fn published_configurations_are_read_and_written_back() {
    let unet = UNet2DConditionConfig::from_json(sd15_unet(), "config.json").unwrap();
    assert_eq!(
        (
            unet.attention_head_dim[0],
            unet.cross_attention_dim[0],
            unet.time_embedding_dim
        ),
        (8, 768, 1280)
    );
    assert_eq!(
        UNet2DConditionConfig::from_json(unet.to_json(), "config.json").unwrap(),
        unet
    );
    let unet = UNet2DConditionConfig::from_json(sdxl_unet(), "config.json").unwrap();
    assert_eq!(unet.transformer_layers_per_block[2], BlockDepth::Same(10));
    assert_eq!(
        UNet2DConditionConfig::from_json(unet.to_json(), "config.json").unwrap(),
        unet
    );
    let text = ClipTextConfig::from_json(sd15_text(), "config.json").unwrap();
    assert_eq!(ClipTextConfig::from_json(text.to_json(), "config.json").unwrap(), text);
    for name in ["text_bigg", "text_openclip_h"] {
        let config = ClipTextConfig::from_file(golden(name).join("config.json")).unwrap();
        assert_eq!(
            ClipTextConfig::from_json(config.to_json(), "config.json").unwrap(),
            config
        );
    }
    for name in [
        "unet_sd1",
        "unet_sd2",
        "unet_sdxl",
        "unet_refiner",
        "unet_uneven",
        "unet_no_middle",
    ] {
        let config = UNet2DConditionConfig::from_file(golden(name).join("config.json")).unwrap();
        assert_eq!(
            UNet2DConditionConfig::from_json(config.to_json(), "config.json").unwrap(),
            config
        );
    }
    for name in ["vae", "vae_bare", "vae_sdxl", "vae_sd3", "vae_flux"] {
        let config = AutoencoderKlConfig::from_file(golden(name).join("config.json")).unwrap();
        assert_eq!(
            AutoencoderKlConfig::from_json(config.to_json(), "config.json").unwrap(),
            config
        );
    }
}

#[test]
fn what_is_not_implemented_is_named() {
    let cases = [
        ("class_embed_type", json!("timestep")),
        ("addition_embed_type", json!("image")),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("transformer_layers_per_block", json!([1, 2])),
        ("transformer_layers_per_block", json!([1, [1, 2, 3], 1, 1])),
        ("transformer_layers_per_block", json!("two")),
        ("time_cond_proj_dim", json!(256)),
        (
            "down_block_types",
            json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"]),
        ),
        ("down_block_types", json!(["DownBlock2D"])),
        ("only_cross_attention", json!(true)),
        ("dropout", json!(0.1)),
        ("act_fn", json!("gelu")),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("time_embedding_type", json!("fourier")),
        ("attention_head_dim", json!(7)),
        ("attention_head_dim", json!([5, 10])),
        ("norm_num_groups", json!(48)),
        ("in_channels", json!("four")),
        ("in_channels", json!(0)),
        ("conv_in_kernel", json!(2)),
        ("num_attention_heads", json!(4)),
    ];
    for (key, value) in cases {
        let error =
            UNet2DConditionConfig::from_json(edited(&sd15_unet(), key, value.clone()), "a/config.json").unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(&error, Error::Config { key: found, .. } if found == key),
            "{key} = {value}: {text}"
        );
        assert!(
            text.contains("a/config.json") && text.contains(key) && text.contains("expected"),
            "{text}"
        );
    }
}

#[test]
fn unknown_keys_are_named() {
    let unknown = edited(&sd15_unet(), "norm_num_group", json!(16));
    let error = UNet2DConditionConfig::from_json(unknown, "config.json").unwrap_err();
    assert!(
        matches!(&error, Error::UnknownConfigKey { nearest, .. } if nearest[0] == "norm_num_groups"),
        "{error}"
    );
    assert!(
        UNet2DConditionConfig::from_json(edited(&sd15_unet(), "something_new", Value::Null), "config.json").is_ok()
    );
}

#[test]
fn what_is_not_implemented_elsewhere_is_named() {
    for (key, value) in [
        ("hidden_act", json!("relu")),
        ("model_type", json!("t5")),
        ("architectures", json!(["T5EncoderModel"])),
        ("num_attention_heads", json!(7)),
    ] {
        let error = ClipTextConfig::from_json(edited(&sd15_text(), key, value), "config.json").unwrap_err();
        assert!(
            matches!(&error, Error::Config { key: found, .. } if found == key),
            "{error}"
        );
    }
    let vae = AutoencoderKlConfig::from_file(golden("vae/config.json"))
        .unwrap()
        .to_json();
    for (key, value) in [
        ("act_fn", json!("relu")),
        ("latents_mean", json!([0.0])),
        ("up_block_types", json!(["UpBlock2D", "UpBlock2D"])),
    ] {
        let error = AutoencoderKlConfig::from_json(edited(&vae, key, value), "config.json").unwrap_err();
        assert!(
            matches!(&error, Error::Config { key: found, .. } if found == key),
            "{error}"
        );
    }
}

#[test]
fn weights_must_fit_the_configuration() {
    let (_, params) = tiny_unet(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    });
    let mut tensors = params.snapshot().unwrap();
    let build = |tensors: BTreeMap<String, Tensor>| {
        let weights = Weights::from_tensors("test", tensors);
        let builder = Builder::new(BuilderConfig::new(Some(&weights)))?;
        UNet2DConditionModel::load(&builder, &tiny_unet_config())?;
        builder.finish()
    };
    assert!(build(tensors.clone()).unwrap().is_empty());
    tensors.insert(
        "down_blocks.0.resnets.1.conv1.weight".into(),
        randn(1, &[4, 4, 3, 3], DType::F32),
    );
    let error = build(tensors.clone()).unwrap_err();
    assert!(
        matches!(&error, Error::UnusedTensors { names } if *names == ["down_blocks.0.resnets.1.conv1.weight"]),
        "{error}"
    );
    tensors.remove("conv_in.weight");
    let error = build(tensors).unwrap_err().to_string();
    assert!(error.contains("conv_in.weight"), "{error}");
}

#[test]
fn inputs_must_fit_the_network() {
    let (unet, _) = tiny_unet(BuilderConfig::new(None));
    let (sample, timesteps, text) = unet_inputs(DType::F32);
    let wrong = [
        (
            randn(1, &[2, 3, 4, 4], DType::F32),
            timesteps.clone(),
            text.clone(),
            "sample",
        ),
        (sample.clone(), randn(1, &[1], DType::F32), text.clone(), "timesteps"),
        (
            sample.clone(),
            timesteps.clone(),
            randn(1, &[2, 3, 5], DType::F32),
            "encoder_hidden_states",
        ),
        (
            sample,
            timesteps,
            randn(1, &[1, 3, 6], DType::F32),
            "encoder_hidden_states",
        ),
    ];
    for (sample, timesteps, text, name) in wrong {
        let error = unet.forward(&sample, &timesteps, &text).unwrap_err();
        assert!(matches!(error, Error::Shape { what, .. } if what == name), "{error}");
    }
    let (vae, _) = tiny_vae(BuilderConfig::new(None));
    assert!(matches!(
        vae.encode(&randn(1, &[1, 3, 5, 4], DType::F32)),
        Err(Error::Shape { what: "image", .. })
    ));
    assert!(matches!(
        vae.decode(&randn(1, &[1, 3, 4, 4], DType::F32)),
        Err(Error::Shape { what: "latents", .. })
    ));
    let (text, _) = tiny_text(BuilderConfig::new(None));
    let ids = Tensor::zeros((1, 7), DType::U32, &Device::Cpu).unwrap();
    assert!(matches!(
        text.forward(&ids),
        Err(Error::Shape { what: "input_ids", .. })
    ));
    let ids = Tensor::full(12u32, (1, 3), &Device::Cpu).unwrap();
    assert!(text.forward(&ids).is_err(), "an id outside the vocabulary");
}

#[test]
fn a_pipeline_is_written_and_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let (unet, params) = tiny_unet(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    });
    let tensors = params.snapshot().unwrap();
    save_component(
        path.join("unet"),
        Library::Diffusers,
        &unet.config().to_json(),
        (&tensors, DType::F32),
    )
    .unwrap();
    save_model_index(
        path,
        "StableDiffusionPipeline",
        &[("unet", "diffusers", "UNet2DConditionModel")],
    )
    .unwrap();

    let pipeline = PipelineDir::open(path).unwrap();
    assert_eq!(
        (pipeline.class_name(), pipeline.names().collect::<Vec<_>>()),
        ("StableDiffusionPipeline", vec!["unet"])
    );
    let error = pipeline.component("unett").unwrap_err();
    assert!(
        matches!(&error, Error::MissingComponent { nearest, .. } if *nearest == ["unet"]),
        "{error}"
    );
    let component = pipeline.component("unet").unwrap();
    assert_eq!(component.class_name(), Some("UNet2DConditionModel"));
    let config = UNet2DConditionConfig::from_file(component.config()).unwrap();
    assert_eq!(&config, unet.config());
    let weights = component.weights().unwrap();
    let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
    let loaded = UNet2DConditionModel::load(&builder, &config).unwrap();
    builder.finish().unwrap();
    let (sample, timesteps, text) = unet_inputs(DType::F32);
    let run = |unet: &UNet2DConditionModel| values(&unet.forward(&sample, &timesteps, &text).unwrap());
    assert_eq!(run(&loaded), run(&unet));
}

#[test]
fn weights_are_found_under_every_name() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(find_weights(dir.path()), Err(Error::MissingFile { .. })));
    // Each file is preferred to the ones before it.
    let names = [
        "model.fp16.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "model.safetensors.index.json",
        "model.safetensors",
    ];
    for name in names {
        std::fs::write(dir.path().join(name), b"").unwrap();
        assert_eq!(find_weights(dir.path()).unwrap(), dir.path().join(name));
    }
    assert!(
        ComponentDir::new(dir.path()).weights().is_err(),
        "an empty file is no weights"
    );
    assert!(matches!(PipelineDir::open(dir.path()), Err(Error::MissingFile { .. })));
}

/// Parameters depend on the seed and their name, not on the order or company in which they are made.
#[test]
fn initialization_is_seeded() {
    let build = |seed| {
        tiny_unet(BuilderConfig {
            trainable: Trainable::All,
            seed,
            ..BuilderConfig::new(None)
        })
        .1
    };
    let (a, b, c) = (build(1), build(1), build(2));
    let name = "mid_block.resnets.0.conv1.weight";
    assert_eq!(values(a.get(name).unwrap()), values(b.get(name).unwrap()));
    assert_ne!(values(a.get(name).unwrap()), values(c.get(name).unwrap()));
    let bound = 1.0 / (8.0f64 * 9.0).sqrt();
    let largest = values(a.get(name).unwrap())
        .iter()
        .fold(0.0, |max: f64, v| max.max(v.abs()));
    assert!(largest <= bound && largest > 0.9 * bound, "{largest} against {bound}");
    assert!(
        values(a.get("mid_block.resnets.0.norm1.weight").unwrap())
            .iter()
            .all(|&v| v == 1.0)
    );
}

/// Masters stay f32 under half-precision activations; frozen tensors are in the compute type.
#[test]
fn masters_are_f32() {
    for (dtype, master) in [
        (DType::BF16, DType::F32),
        (DType::F16, DType::F32),
        (DType::F32, DType::F32),
        (DType::F64, DType::F64),
    ] {
        let (unet, params) = tiny_unet(BuilderConfig {
            trainable: Trainable::All,
            dtype,
            ..BuilderConfig::new(None)
        });
        assert!(params.iter().all(|(_, var)| var.dtype() == master));
        let (sample, timesteps, text) = unet_inputs(dtype);
        assert_eq!(unet.forward(&sample, &timesteps, &text).unwrap().dtype(), dtype);
    }
}

#[test]
fn a_learned_tokenizer_round_trips() {
    let texts = ["a red circle", "a blue square", "two red circles left of a blue square"];
    let config = ClipTokenizerConfig {
        model_max_length: 8,
        ..Default::default()
    };
    let tokenizer = ClipTokenizer::learn(texts, 200, config).unwrap();
    let ids = tokenizer.encode("A red  SQUARE").unwrap();
    let id = |token: &str| tokenizer.token_id(token).unwrap();
    let (start, end) = (id("<|startoftext|>"), id("<|endoftext|>"));
    assert_eq!(
        ids,
        [start, id("a</w>"), id("red</w>"), id("square</w>"), end, end, end, end]
    );
    assert_eq!(end as usize + 1, tokenizer.vocab_size());
    assert_eq!(tokenizer.encode_batch(&texts, &Device::Cpu).unwrap().dims(), [3, 8]);
    // Nothing is outside the vocabulary, and long texts keep their end.
    let long = tokenizer.encode("日本語 and more than eight tokens").unwrap();
    assert_eq!((long.len(), long[0], long[7]), (8, start, end));

    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let loaded = ClipTokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(loaded.config(), tokenizer.config());
    for text in texts.iter().chain(&["日本語 and more", "", "<|endoftext|>x"]) {
        assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap(), "{text}");
    }
}

#[test]
fn a_damaged_tokenizer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let read = |files: &[(&str, &str)]| {
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        ClipTokenizer::from_dir(dir.path()).unwrap_err()
    };
    assert!(matches!(
        ClipTokenizer::from_dir(Path::new("/nonexistent")),
        Err(Error::MissingFile { .. })
    ));
    let vocab = r#"{"a": 0, "b": 1, "ab": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}"#;
    assert!(matches!(
        read(&[("vocab.json", "{"), ("merges.txt", "")]),
        Error::Json { .. }
    ));
    assert!(matches!(
        read(&[("vocab.json", r#"{"a": 0}"#)]),
        Error::Tokenizer { .. }
    ));
    assert!(matches!(
        read(&[("vocab.json", vocab), ("merges.txt", "a c\n")]),
        Error::Tokenizer { .. }
    ));
    assert!(matches!(read(&[("merges.txt", "ab\n")]), Error::Tokenizer { .. }));
    assert!(matches!(
        read(&[
            ("merges.txt", "a b\n"),
            ("tokenizer_config.json", r#"{"model_max_length": 1}"#)
        ]),
        Error::Config { .. }
    ));
}
