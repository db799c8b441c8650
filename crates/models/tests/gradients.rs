//! Every trainable parameter gets its gradient, and the gradient is right: against finite differences in f64, with and without
//! gradient checkpointing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use diptych_models::{BuilderConfig, LoraConfig, Targets, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Gradients, Tensor, backward};
use support::{
    check_gradients, randn, relative_error, same_gradients, shake, tiny_text, tiny_unet, tiny_vae, unet_inputs, values,
};

fn f64_builder(trainable: Trainable<'_>) -> BuilderConfig<'_> {
    BuilderConfig {
        dtype: DType::F64,
        trainable,
        ..BuilderConfig::new(None)
    }
}

fn unet_gradients(trainable: Trainable<'_>) -> usize {
    let (mut unet, params) = tiny_unet(f64_builder(trainable));
    shake(&params, 50);
    let (sample, timesteps, text) = unet_inputs(DType::F64);
    let weight = randn(3, sample.dims(), DType::F64);
    let mut results = Vec::new();
    for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
        unet.gradient_checkpointing = checkpointing;
        let loss = || {
            (unet.forward(&sample, &timesteps, &text).unwrap() * &weight)
                .unwrap()
                .sum_all()
                .unwrap()
        };
        let value = values(&loss())[0];
        results.push((value, check_gradients(&params, loss)));
    }
    for other in &results[1..] {
        assert_eq!(results[0].0, other.0, "checkpointing changed the loss");
        same_gradients(&results[0].1, &other.1);
    }
    params.len()
}

#[test]
fn denoiser() {
    // diffusers' network of the same configuration has as many parameters.
    assert_eq!(unet_gradients(Trainable::All), 208);
}

#[test]
fn denoiser_with_adapters_on_linear_layers_and_convolutions() {
    let targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "conv1",
        "conv_shortcut",
        "proj_in",
        "downsamplers.0.conv",
        "ff.net.2",
    ];
    let lora = LoraConfig {
        rank: 2,
        alpha: 3.0,
        targets: Targets::Suffixes(targets.map(str::to_owned).to_vec()),
        ..Default::default()
    };
    assert!(unet_gradients(Trainable::Lora(&lora)) > 60);
}

#[test]
fn autoencoder() {
    let (mut vae, params) = tiny_vae(f64_builder(Trainable::All));
    shake(&params, 70);
    let image = randn(4, &[2, 3, 4, 6], DType::F64);
    let noise = randn(5, &[2, 2, 2, 3], DType::F64);
    let mut results = Vec::new();
    for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
        vae.gradient_checkpointing = checkpointing;
        let loss = || {
            let posterior = vae.encode(&image).unwrap();
            let decoded = vae.decode(&posterior.sample(&noise).unwrap()).unwrap();
            let error = (decoded - &image).unwrap().sqr().unwrap().mean_all().unwrap();
            (error + (posterior.kl().unwrap().mean_all().unwrap() * 0.1).unwrap()).unwrap()
        };
        results.push((values(&loss())[0], check_gradients(&params, loss)));
    }
    for other in &results[1..] {
        assert_eq!(results[0].0, other.0, "checkpointing changed the loss");
        same_gradients(&results[0].1, &other.1);
    }
}

#[test]
fn text_encoder() {
    let lora = LoraConfig {
        targets: Targets::Pattern(r".*\.(q_proj|fc1)".into()),
        rank: 2,
        ..Default::default()
    };
    for (trainable, expected) in [(Trainable::All, 2 + 2 * 16 + 2), (Trainable::Lora(&lora), 2 * 2 * 2)] {
        let (mut text, params) = tiny_text(f64_builder(trainable));
        assert_eq!(params.len(), expected);
        shake(&params, 80);
        let ids = Tensor::new(&[[0u32, 1, 2, 3, 4, 11], [5, 6, 7, 11, 9, 10]], &Device::Cpu).unwrap();
        let weight = randn(6, &[2, 6, 8], DType::F64);
        let mut results = Vec::new();
        for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
            text.gradient_checkpointing = checkpointing;
            let loss = || {
                let output = text.forward(&ids).unwrap();
                let pooled = output.pooler_output.sqr().unwrap().sum_all().unwrap();
                ((output.last_hidden_state * &weight).unwrap().sum_all().unwrap() + pooled).unwrap()
            };
            results.push((values(&loss())[0], check_gradients(&params, loss)));
        }
        for other in &results[1..] {
            assert_eq!(results[0].0, other.0, "checkpointing changed the loss");
            same_gradients(&results[0].1, &other.1);
        }
    }
}

/// A recomputed block runs in the state that the switch had in its forward pass, whatever it is by then.
#[test]
fn a_recomputed_pass_remembers_the_switch() {
    let lora = LoraConfig {
        rank: 2,
        ..Default::default()
    };
    let (mut unet, params) = tiny_unet(f64_builder(Trainable::Lora(&lora)));
    shake(&params, 50);
    let (sample, timesteps, text) = unet_inputs(DType::F64);
    let loss = |unet: &diptych_models::unet::UNet2DConditionModel| {
        unet.forward(&sample, &timesteps, &text)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
    };
    let plain = backward(&loss(&unet), &params).unwrap();
    unet.gradient_checkpointing = CheckpointPolicy::ALL;
    let value = loss(&unet);
    let _off = unet.adapter_switch().disable();
    same_gradients(&plain, &backward(&value, &params).unwrap());
}

/// With adapters off the network is the one without adapters, bit for bit, and no gradient reaches the adapters.
#[test]
fn adapters_off_is_the_network_without_them() {
    let lora = LoraConfig {
        rank: 2,
        ..Default::default()
    };
    let frozen = BuilderConfig {
        seed: 5,
        ..BuilderConfig::new(None)
    };
    let (plain, none) = tiny_unet(frozen.clone());
    assert!(none.is_empty());
    let (adapted, params) = tiny_unet(BuilderConfig {
        trainable: Trainable::Lora(&lora),
        ..frozen
    });
    let (sample, timesteps, text) = unet_inputs(DType::F32);
    let run = |unet: &diptych_models::unet::UNet2DConditionModel| unet.forward(&sample, &timesteps, &text).unwrap();
    let expected = values(&run(&plain));
    assert_eq!(values(&run(&adapted)), expected, "B is zero at the start");
    shake(&params, 9);
    assert_ne!(values(&run(&adapted)), expected);
    let _off = adapted.adapter_switch().disable();
    let output = run(&adapted);
    assert_eq!(values(&output), expected);
    assert!(!output.track_op(), "the reference pass keeps a graph");
}

/// In half precision the frozen network is half, the adapters are f32 masters, and both outputs and gradients stay near those of f32.
#[test]
fn half_precision_is_near() {
    let lora = LoraConfig {
        rank: 2,
        ..Default::default()
    };
    let (sample, timesteps, text) = unet_inputs(DType::F32);
    let run = |dtype| {
        let config = BuilderConfig {
            dtype,
            trainable: Trainable::Lora(&lora),
            ..BuilderConfig::new(None)
        };
        let (unet, params) = tiny_unet(config);
        shake(&params, 50);
        let cast = |x: &Tensor| x.to_dtype(dtype).unwrap();
        let output = unet.forward(&cast(&sample), &timesteps, &cast(&text)).unwrap();
        assert_eq!(output.dtype(), dtype);
        let loss = output.to_dtype(DType::F32).unwrap().sqr().unwrap().sum_all().unwrap();
        (output, backward(&loss, &params).unwrap())
    };
    let (output, gradients) = run(DType::F32);
    for (dtype, tolerance, alignment) in [(DType::BF16, 0.05, 0.98), (DType::F16, 0.01, 0.999)] {
        let (half, half_gradients) = run(dtype);
        let error = relative_error(&half, &output);
        assert!(error < tolerance && error > 0.0, "{dtype:?}: {error}");
        let flat = |gradients: &Gradients| gradients.iter().flat_map(|(_, g)| values(g)).collect::<Vec<f64>>();
        assert!(
            half_gradients
                .iter()
                .all(|(_, gradient)| gradient.dtype() == DType::F32)
        );
        let (a, b) = (flat(&gradients), flat(&half_gradients));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let cosine = dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt();
        assert!(cosine > alignment, "{dtype:?}: {cosine}");
    }
}
