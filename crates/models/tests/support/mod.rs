//! Tiny networks and comparisons for the tests of this crate.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::path::{Path, PathBuf};

use diptych_models::lm::LmInput;
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel};
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel};
use diptych_models::vae::{AutoencoderKl, AutoencoderKlConfig};
use diptych_models::{Builder, BuilderConfig};
use diptych_tensor::random::{Stream, generator, normal_vec};
use diptych_tensor::{DType, Device, Gradients, Params, Tensor, Weights, backward};
use serde_json::json;

/// A file or directory of the golden vectors.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/models")
        .join(name)
}

/// A tensor of a golden file, in f32.
pub(crate) fn read(weights: &Weights, name: &str) -> Tensor {
    weights.read(name, DType::F32, &Device::Cpu).unwrap()
}

/// Normal numbers that depend on `seed` alone.
pub(crate) fn randn(seed: u64, shape: &[usize], dtype: DType) -> Tensor {
    let values = normal_vec(&mut generator(seed, Stream::Noise, 0, 0), shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// All values, in f64.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Largest difference, relative to the largest expected value.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(1e-12, |max: f64, v| max.max(v.abs()));
    found.iter().zip(&expected).fold(0.0, |max: f64, (a, b)| {
        if (a - b).is_nan() {
            f64::NAN
        } else {
            max.max((a - b).abs())
        }
    }) / scale
}

/// Panics unless the tensors agree to `tolerance`, relative to the largest value.
#[track_caller]
pub(crate) fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    let error = relative_error(found, expected);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:.2e} is above {tolerance:.0e}"
    );
}

/// Gives every parameter new values of ordinary size, so that nothing is zero or one by initialization.
pub(crate) fn shake(params: &Params, seed: u64) {
    for (i, (_, var)) in params.iter().enumerate() {
        let noise = randn(seed + i as u64, var.dims(), var.dtype());
        let fan_in: usize = var.dims().iter().skip(1).product();
        let noise = (noise * (0.5 / (fan_in as f64).sqrt())).unwrap();
        var.set(&(var.as_detached_tensor() + noise).unwrap()).unwrap();
    }
}

/// A denoiser with all four kinds of blocks and two levels.
pub(crate) fn tiny_unet_config() -> UNet2DConditionConfig {
    let config = json!({
        "sample_size": 4, "block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "cross_attention_dim": 6,
        "attention_head_dim": 2, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "in_channels": 2, "out_channels": 2,
    });
    UNet2DConditionConfig::from_json(config, "config.json").unwrap()
}

/// Sample, timesteps and text for [`tiny_unet_config`].
pub(crate) fn unet_inputs(dtype: DType) -> (Tensor, Tensor, Tensor) {
    let timesteps = Tensor::new(&[3f32, 817.0], &Device::Cpu).unwrap();
    (randn(1, &[2, 2, 4, 4], dtype), timesteps, randn(2, &[2, 3, 6], dtype))
}

/// A tiny denoiser and its trainable parameters.
pub(crate) fn tiny_unet(config: BuilderConfig<'_>) -> (UNet2DConditionModel, Params) {
    let builder = Builder::new(config).unwrap();
    let unet = UNet2DConditionModel::load(&builder, &tiny_unet_config()).unwrap();
    (unet, builder.finish().unwrap())
}

/// A tiny autoencoder and its trainable parameters.
pub(crate) fn tiny_vae(config: BuilderConfig<'_>) -> (AutoencoderKl, Params) {
    let options = json!({
        "block_out_channels": [4, 4], "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"], "layers_per_block": 1, "norm_num_groups": 2,
        "latent_channels": 2, "sample_size": 8,
    });
    let builder = Builder::new(config).unwrap();
    let vae = AutoencoderKl::load(
        &builder,
        &AutoencoderKlConfig::from_json(options, "config.json").unwrap(),
    )
    .unwrap();
    (vae, builder.finish().unwrap())
}

/// A tiny text encoder and its trainable parameters.
pub(crate) fn tiny_text(config: BuilderConfig<'_>) -> (ClipTextModel, Params) {
    let options = json!({
        "vocab_size": 12, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 6, "eos_token_id": 11,
    });
    let builder = Builder::new(config).unwrap();
    let text = ClipTextModel::load(&builder, &ClipTextConfig::from_json(options, "config.json").unwrap()).unwrap();
    (text, builder.finish().unwrap())
}

/// The batch of a language model's golden vectors, and its mask (B, T) in f32.
pub(crate) fn golden_lm_input(vectors: &Weights) -> (LmInput, Tensor) {
    let ids = vectors.read("input_ids", DType::U32, &Device::Cpu).unwrap();
    let mask = read(vectors, "attention_mask");
    let rows: Vec<Vec<u32>> = ids.to_vec2().unwrap();
    let lengths = mask.sum(1).unwrap().to_vec1::<f32>().unwrap();
    let rows: Vec<&[u32]> = rows
        .iter()
        .zip(lengths)
        .map(|(row, len)| &row[..len as usize])
        .collect();
    // Another filling than the file's: it must not matter.
    (LmInput::padded(&rows, 5, &Device::Cpu).unwrap(), mask)
}

/// [`check_gradients_except`] for the networks of one stream.
pub(crate) fn check_gradients(params: &Params, loss: impl Fn() -> Tensor) -> Gradients {
    let has_none = |name: &str| {
        // A key's bias adds the same to every score of a query, which the softmax takes out again. Not if it is rotated by the
        // key's position.
        let is_rotated = !name.starts_with("text_model.");
        name.ends_with("to_k.bias") || name.ends_with("k_proj.bias") && !is_rotated
    };
    check_gradients_except(params, has_none, loss)
}

/// Checks that every gradient is there and not zero where it can be, and that along a random direction `v` over all parameters
/// `(L(p + e v) - L(p - e v)) / 2e = <g, v>`, up to the fourth order in `e`.
pub(crate) fn check_gradients_except(
    params: &Params,
    has_none: impl Fn(&str) -> bool,
    loss: impl Fn() -> Tensor,
) -> Gradients {
    let gradients = backward(&loss(), params).unwrap();
    gradients.ensure_complete(params).unwrap();
    for (name, gradient) in gradients.iter() {
        let largest = values(gradient).iter().fold(0.0, |max: f64, g| max.max(g.abs()));
        if has_none(name) {
            assert!(
                largest < 1e-12,
                "the gradient of {name} is {largest}, but the loss cannot depend on it"
            );
        } else {
            assert!(largest > 1e-12, "the gradient of {name} is zero");
        }
    }
    let step = 1e-5;
    let start = params.snapshot().unwrap();
    let directions: Vec<Tensor> = params
        .iter()
        .zip(0..)
        .map(|((_, var), i)| randn(900 + i, var.dims(), DType::F64))
        .collect();
    let at = |factor: f64| {
        for ((name, var), direction) in params.iter().zip(&directions) {
            var.set(&(&start[name] + (direction * factor).unwrap()).unwrap())
                .unwrap();
        }
        values(&loss())[0]
    };
    let slope = |step: f64| (at(step) - at(-step)) / (2.0 * step);
    let numeric = (4.0 * slope(step) - slope(2.0 * step)) / 3.0;
    params.load(&start).unwrap();
    let product: f64 = params
        .names()
        .zip(&directions)
        .map(|(name, v)| values(&(gradients.get(name).unwrap() * v).unwrap()).iter().sum::<f64>())
        .sum();
    let error = (numeric - product).abs() / numeric.abs().max(product.abs());
    assert!(
        error < 1e-6,
        "directional derivative {numeric} against {product}: relative error {error:.1e}"
    );
    gradients
}

/// Panics unless two sets of gradients agree but for rounding.
pub(crate) fn same_gradients(a: &Gradients, b: &Gradients) {
    for ((name, a), (other, b)) in a.iter().zip(b.iter()) {
        assert_eq!(name, other);
        let error = relative_error(a, b);
        assert!(error < 1e-12, "{name}: {error:.1e}");
    }
    assert_eq!(a.iter().count(), b.iter().count());
}
