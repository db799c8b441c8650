//! Configurations: what is read, what is refused, what is written back.

use diptych_models::flux::{FluxConditions, FluxPositions, FluxTransformer2DConfig};
use diptych_models::mmdit::SD3Transformer2DConfig;
use diptych_models::pixart::{PixArtConditions, PixArtTransformer2DConfig};
use diptych_models::t5::T5Config;
use diptych_models::{Builder, BuilderConfig, Error};
use diptych_tensor::DType;
use serde_json::{Value, json};

use super::{Denoiser, golden, vectors, weights};
use crate::support::{randn, read};

/// `transformer/config.json` of Stable Diffusion 3.5 medium, as published.
fn sd35_medium() -> Value {
    json!({
        "_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.31.0.dev0", "attention_head_dim": 64,
        "caption_projection_dim": 1536, "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], "in_channels": 16,
        "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24, "out_channels": 16, "patch_size": 2,
        "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "qk_norm": "rms_norm", "sample_size": 128
    })
}

/// `transformer/config.json` of Flux dev, as published.
fn flux_dev() -> Value {
    json!({
        "_class_name": "FluxTransformer2DModel", "_diffusers_version": "0.30.0.dev0", "_name_or_path": "../checkpoints/flux-dev/transformer",
        "attention_head_dim": 128, "guidance_embeds": true, "in_channels": 64, "joint_attention_dim": 4096,
        "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1, "pooled_projection_dim": 768
    })
}

/// `transformer/config.json` of `PixArt`-sigma, as published.
fn pixart_sigma() -> Value {
    json!({
        "_class_name": "Transformer2DModel", "_diffusers_version": "0.28.0.dev0", "activation_fn": "gelu-approximate", "attention_bias": true,
        "attention_head_dim": 72, "attention_type": "default", "caption_channels": 4096, "cross_attention_dim": 1152,
        "double_self_attention": false, "dropout": 0.0, "in_channels": 4, "interpolation_scale": 2, "norm_elementwise_affine": false,
        "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single", "num_attention_heads": 16,
        "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": null, "only_cross_attention": false, "out_channels": 8,
        "patch_size": 2, "sample_size": 128, "upcast_attention": false, "use_additional_conditions": false,
        "use_linear_projection": false
    })
}

/// `text_encoder_3/config.json` of Stable Diffusion 3, as published.
fn t5_xxl() -> Value {
    json!({
        "_name_or_path": "google/t5-v1_1-xxl", "architectures": ["T5EncoderModel"], "classifier_dropout": 0.0, "d_ff": 10240, "d_kv": 64,
        "d_model": 4096, "decoder_start_token_id": 0, "dense_act_fn": "gelu_new", "dropout_rate": 0.1, "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu", "initializer_factor": 1.0, "is_encoder_decoder": true, "is_gated_act": true,
        "layer_norm_epsilon": 1e-06, "model_type": "t5", "num_decoder_layers": 24, "num_heads": 64, "num_layers": 24,
        "output_past": true, "pad_token_id": 0, "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "tie_word_embeddings": false, "torch_dtype": "float16", "transformers_version": "4.41.2", "use_cache": true, "vocab_size": 32128
    })
}

#[test]
fn published_configurations_are_read_and_written_back() {
    let sd3 = SD3Transformer2DConfig::from_json(sd35_medium(), "config.json").unwrap();
    assert_eq!(
        (sd3.dim(), sd3.dual_attention_layers.len(), sd3.has_qk_norm),
        (1536, 13, true)
    );
    let flux = FluxTransformer2DConfig::from_json(flux_dev(), "config.json").unwrap();
    assert_eq!(
        (flux.dim(), flux.axes_dims_rope, flux.out_channels),
        (3072, [16, 56, 56], 64)
    );
    let pixart = PixArtTransformer2DConfig::from_json(pixart_sigma(), "config.json").unwrap();
    assert_eq!((pixart.dim(), pixart.use_additional_conditions), (1152, false));
    for name in ["pixart_alpha", "pixart_sigma"] {
        let config = PixArtTransformer2DConfig::from_file(golden(name).join("config.json")).unwrap();
        for config in [&config, &pixart] {
            assert_eq!(
                &PixArtTransformer2DConfig::from_json(config.to_json(), "config.json").unwrap(),
                config
            );
        }
    }
    let t5 = T5Config::from_json(t5_xxl(), "config.json").unwrap();
    assert_eq!(
        (t5.d_model, t5.num_heads, t5.relative_attention_num_buckets),
        (4096, 64, 32)
    );
    assert_eq!(T5Config::from_json(t5.to_json(), "config.json").unwrap(), t5);
    for name in ["sd3", "sd35"] {
        let config = SD3Transformer2DConfig::from_file(golden(name).join("config.json")).unwrap();
        for config in [&config, &sd3] {
            assert_eq!(
                &SD3Transformer2DConfig::from_json(config.to_json(), "config.json").unwrap(),
                config
            );
        }
    }
    for name in ["flux_dev", "flux_schnell"] {
        let config = FluxTransformer2DConfig::from_file(golden(name).join("config.json")).unwrap();
        for config in [&config, &flux] {
            assert_eq!(
                &FluxTransformer2DConfig::from_json(config.to_json(), "config.json").unwrap(),
                config
            );
        }
    }
}

/// Checks that each change of a configuration is refused by its key.
fn refused<T>(read: fn(Value) -> Result<T, Error>, config: &Value, cases: &[(&str, Value)]) {
    for (key, value) in cases {
        let mut config = config.clone();
        config.as_object_mut().unwrap().insert((*key).to_owned(), value.clone());
        let error = read(config).err().unwrap();
        assert!(
            matches!(&error, Error::Config { key: found, .. } | Error::UnknownConfigKey { key: found, .. } if found == key),
            "{key} = {value}: {error}"
        );
    }
}

#[test]
fn what_is_not_implemented_of_a_denoiser_is_named() {
    refused(
        |config| SD3Transformer2DConfig::from_json(config, "config.json"),
        &sd35_medium(),
        &[
            ("qk_norm", json!("layer_norm")),
            ("pos_embed_max_size", json!(null)),
            ("caption_projection_dim", json!(1152)),
            ("dual_attention_layers", json!([24])),
            ("dual_attention_layers", json!([-1])),
            ("sample_size", json!(1)),
            ("patch_size", json!(0)),
            ("force_zeros_for_pooled_projection", json!(true)),
        ],
    );
    refused(
        |config| FluxTransformer2DConfig::from_json(config, "config.json"),
        &flux_dev(),
        &[
            ("patch_size", json!(2)),
            ("axes_dims_rope", json!([16, 56])),
            ("axes_dims_rope", json!([15, 57, 56])),
            ("axes_dims_rope", json!([16, 56, 58])),
            ("guidance_embeds", json!(3.5)),
            ("num_joint_layers", json!(1)),
        ],
    );
    refused(
        |config| PixArtTransformer2DConfig::from_json(config, "config.json"),
        &pixart_sigma(),
        &[
            ("norm_type", json!("ada_norm_zero")),
            ("activation_fn", json!("geglu")),
            ("cross_attention_dim", json!(null)),
            ("cross_attention_dim", json!(1024)),
            ("upcast_attention", json!(true)),
            ("interpolation_scale", json!(0)),
            ("num_text_tokens", json!(120)),
        ],
    );
}

#[test]
fn what_is_not_implemented_of_the_text_encoder_is_named() {
    refused(
        |config| T5Config::from_json(config, "config.json"),
        &t5_xxl(),
        &[
            ("feed_forward_proj", json!("relu")),
            ("feed_forward_proj", json!(null)),
            ("is_gated_act", json!(false)),
            ("is_decoder", json!(true)),
            ("model_type", json!("umt5")),
            ("relative_attention_num_buckets", json!(30)),
            ("relative_attention_max_distance", json!(8)),
            ("scale_embedding", json!(true)),
        ],
    );
}

fn load(name: &str, weights: &diptych_tensor::Weights) -> Denoiser {
    let builder = Builder::new(BuilderConfig::new(Some(weights))).unwrap();
    Denoiser::load(name, &builder)
}

/// What does not fit a network is an error that says what would.
#[test]
fn inputs_that_do_not_fit_are_refused() {
    let (sd3_weights, inputs) = (weights("sd3"), vectors("sd3"));
    let Denoiser::Sd3(model) = load("sd3", &sd3_weights) else {
        unreachable!()
    };
    let [timestep, text, pooled] =
        ["timestep", "encoder_hidden_states", "pooled_projections"].map(|name| read(&inputs, name));
    for dims in [[2, 3, 6, 7], [2, 3, 14, 8], [2, 4, 6, 8]] {
        let error = model
            .forward(&randn(1, &dims, DType::F32), &timestep, &text, &pooled)
            .unwrap_err();
        assert!(matches!(error, Error::Shape { what: "sample", .. }), "{error}");
    }
    let sample = read(&inputs, "hidden_states");
    let error = model.forward(&sample, &timestep, &text, &text).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pooled_projections has shape [2, 5, 10], expected (2, 6)"
    );

    let (flux_weights, inputs) = (weights("flux_dev"), vectors("flux_dev"));
    let Denoiser::Flux(model) = load("flux_dev", &flux_weights) else {
        unreachable!()
    };
    let [timestep, text, pooled] =
        ["timestep", "encoder_hidden_states", "pooled_projections"].map(|name| read(&inputs, name));
    let conditions = FluxConditions {
        timestep: &timestep,
        guidance: None,
        encoder_hidden_states: &text,
        pooled_projections: &pooled,
    };
    let tokens = read(&inputs, "hidden_states");
    let places = FluxPositions::text_and_image(5, (2, 3));
    let error = model.forward(&tokens, conditions, &places).unwrap_err();
    assert!(matches!(error, Error::Condition { name: "guidance", .. }), "{error}");
    let error = model
        .forward(&tokens, conditions, &FluxPositions::text_and_image(5, (3, 3)))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Shape {
                what: "hidden_states",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn sizes_and_lengths_that_do_not_fit_are_refused() {
    let (pixart_weights, inputs) = (weights("pixart_alpha"), vectors("pixart_alpha"));
    let Denoiser::PixArt(model) = load("pixart_alpha", &pixart_weights) else {
        unreachable!()
    };
    let [timesteps, text, resolution] =
        ["timestep", "encoder_hidden_states", "resolution"].map(|name| read(&inputs, name));
    let ratio = read(&inputs, "aspect_ratio");
    let sample = read(&inputs, "hidden_states");
    let refused = |text_lens: Option<&[usize]>, size| {
        let conditions = PixArtConditions {
            timesteps: &timesteps,
            encoder_hidden_states: &text,
            text_lens,
            size,
        };
        model.forward(&sample, conditions).unwrap_err().to_string()
    };
    assert!(refused(None, None).contains("are missing"));
    assert!(refused(Some(&[3, 6]), Some((&resolution, &ratio))).contains("from 1 to 5"));
    assert!(refused(Some(&[3]), Some((&resolution, &ratio))).contains("from 1 to 5"));
}
