//! Outputs and gradients.

use std::collections::BTreeMap;

use diptych_models::flux::{FluxPositions, pack_latents, unpack_latents};
use diptych_models::lora::LoraAdapter;
use diptych_models::t5::{T5Config, T5EncoderModel};
use diptych_models::{Builder, BuilderConfig, LoraConfig, Trainable};
use diptych_tensor::{DType, Device, Gradients, Params, Tensor, Weights, backward};

use super::{Denoiser, golden, positions, vectors, weights};
use crate::support::{assert_close, read, relative_error, values};

const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;
const DENOISERS: [&str; 6] = [
    "sd3",
    "sd35",
    "flux_dev",
    "flux_schnell",
    "pixart_alpha",
    "pixart_sigma",
];

fn trainable(weights: &Weights) -> Builder<'_> {
    Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(Some(weights))
    })
    .unwrap()
}

/// Compares the norm of every parameter's gradient with the file's.
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
        let squares = values(gradients.get(name).unwrap()).iter().map(|g| g * g).sum::<f64>();
        let error = (squares.sqrt() - expected).abs() / expected.max(1e-3 * largest);
        assert!(
            error < GRADIENT,
            "norm of the gradient of {name}: {}, expected {expected}",
            squares.sqrt()
        );
        // What the text asks in the last block of Stable Diffusion 3 is answered to nobody.
        let is_unread = expected == 0.0;
        assert!(
            !is_unread || name.contains("transformer_blocks.1.attn.") && name.contains("add"),
            "{name} has no gradient"
        );
    }
}

fn weighted_sum(output: &Tensor, vectors: &Weights) -> Tensor {
    (output * read(vectors, "loss_weight")).unwrap().sum_all().unwrap()
}

#[test]
fn denoisers() {
    for name in DENOISERS {
        let (weights, vectors) = (weights(name), vectors(name));
        let builder = trainable(&weights);
        let denoiser = Denoiser::load(name, &builder);
        let params = builder.finish().unwrap();
        let output = denoiser.predict(&vectors, DType::F32).unwrap();
        assert_close(name, &output, &read(&vectors, "output"), FORWARD);
        let gradients = backward(&weighted_sum(&output, &vectors), &params).unwrap();
        check_norms(&gradients, &params, &vectors);
    }
}

/// A PEFT directory, and a file of diffusers whose layers begin with `transformer.`: attached, switched off, and trained on.
#[test]
fn adapters_of_denoisers() {
    for (name, component) in [("sd35", "transformer"), ("flux_dev", "transformer")] {
        let (weights, base, vectors) = (weights(name), vectors(name), vectors(&format!("{name}_lora")));
        let adapter = LoraAdapter::load(golden(&format!("{name}_lora")), component).unwrap();
        let lora = LoraConfig {
            rank: 2,
            alpha: 3.0,
            targets: adapter.targets.clone().unwrap(),
            ..Default::default()
        };
        let builder = Builder::new(BuilderConfig {
            adapter: Some(&adapter),
            trainable: Trainable::Lora(&lora),
            ..BuilderConfig::new(Some(&weights))
        })
        .unwrap();
        let denoiser = Denoiser::load(name, &builder);
        let params = builder.finish().unwrap();
        let output = denoiser.predict(&base, DType::F32).unwrap();
        assert_close(name, &output, &read(&vectors, "output"), FORWARD);
        let gradients = backward(&weighted_sum(&output, &base), &params).unwrap();
        gradients.ensure_complete(&params).unwrap();
        let mut compared = 0;
        for (module, gradient) in gradients.iter() {
            let expected = read(&vectors, &format!("grad.{module}"));
            assert_close(module, gradient, &expected, GRADIENT);
            compared += 1;
        }
        assert_eq!(compared, 2 * adapter.modules.len());
        assert!(compared >= 2 * 11, "{name}: {compared}");
        let _off = denoiser.switch().disable();
        let output = denoiser.predict(&base, DType::F32).unwrap();
        assert_close("adapter off", &output, &read(&base, "output"), FORWARD);
    }
}

/// In half precision outputs stay near those of f32.
#[test]
fn half_precision_is_near() {
    for name in DENOISERS {
        let (weights, vectors) = (weights(name), vectors(name));
        for (dtype, tolerance) in [(DType::BF16, 0.05), (DType::F16, 0.006)] {
            let builder = Builder::new(BuilderConfig {
                dtype,
                ..BuilderConfig::new(Some(&weights))
            })
            .unwrap();
            let output = Denoiser::load(name, &builder).predict(&vectors, dtype).unwrap();
            assert_eq!(output.dtype(), dtype);
            let error = relative_error(&output, &read(&vectors, "output"));
            assert!(error < tolerance && error > 0.0, "{name} in {dtype:?}: {error}");
        }
    }
}

#[test]
fn packed_latents_and_their_places() {
    let vectors = vectors("flux_dev");
    let (latents, packed) = (read(&vectors, "latents"), read(&vectors, "hidden_states"));
    assert_eq!(values(&pack_latents(&latents).unwrap()), values(&packed));
    let unpacked = unpack_latents(&packed, (4, 6)).unwrap();
    assert_eq!(unpacked.dims(), latents.dims());
    assert_eq!(values(&unpacked), values(&latents));
    assert_eq!(FluxPositions::text_and_image(5, (2, 3)), positions(&vectors));
}

fn t5(builder: &Builder<'_>) -> T5EncoderModel {
    let config = T5Config::from_file(golden("t5").join("config.json")).unwrap();
    T5EncoderModel::load(builder, &config).unwrap()
}

fn t5_inputs(vectors: &Weights) -> (Tensor, Tensor) {
    let ids = vectors.read("input_ids", DType::U32, &Device::Cpu).unwrap();
    (ids, read(vectors, "attention_mask"))
}

#[test]
fn text_encoder() {
    let (weights, vectors) = (weights("t5"), vectors("t5"));
    let builder = trainable(&weights);
    let model = t5(&builder);
    let params = builder.finish().unwrap();
    let (ids, mask) = t5_inputs(&vectors);
    let (masked, whole) = (
        model.forward(&ids, Some(&mask)).unwrap(),
        model.forward(&ids, None).unwrap(),
    );
    assert_close("masked", &masked, &read(&vectors, "masked"), FORWARD);
    assert_close("whole", &whole, &read(&vectors, "whole"), FORWARD);
    let weight = read(&vectors, "loss_weight");
    let reversed = Tensor::new(&[2u32, 1, 0], &Device::Cpu).unwrap();
    let flipped = weight.index_select(&reversed, 0).unwrap();
    let loss = (weighted_sum(&masked, &vectors) + (whole * flipped).unwrap().sum_all().unwrap()).unwrap();
    check_norms(&backward(&loss, &params).unwrap(), &params, &vectors);
}

/// In half precision we stay nearer to f32 than transformers does, because sums and scores are in f32.
#[test]
fn text_encoder_in_half_precision() {
    let (weights, vectors) = (weights("t5"), vectors("t5"));
    let (ids, mask) = t5_inputs(&vectors);
    let expected = read(&vectors, "masked");
    let theirs = relative_error(&read(&vectors, "masked_bf16"), &expected);
    for (dtype, tolerance) in [(DType::BF16, theirs), (DType::F16, 0.006)] {
        let builder = Builder::new(BuilderConfig {
            dtype,
            ..BuilderConfig::new(Some(&weights))
        })
        .unwrap();
        let output = t5(&builder).forward(&ids, Some(&mask)).unwrap();
        assert_eq!(output.dtype(), dtype);
        let error = relative_error(&output, &expected);
        assert!(
            error < tolerance && error > 0.0,
            "{dtype:?}: {error}, transformers {theirs}"
        );
    }
}

/// A file may have the embedding under its other name, and a whole T5 its decoder beside the encoder.
#[test]
fn a_file_of_a_whole_text_network() {
    let (weights, vectors) = (weights("t5"), vectors("t5"));
    let mut tensors: BTreeMap<String, Tensor> = weights
        .names()
        .map(|name| (name.to_owned(), read(&weights, name)))
        .collect();
    let embedding = tensors.remove("shared.weight").unwrap();
    tensors.insert("decoder.final_layer_norm.weight".into(), embedding.get(0).unwrap());
    tensors.insert("lm_head.weight".into(), embedding.clone());
    tensors.insert("encoder.embed_tokens.weight".into(), embedding);
    let whole = Weights::from_tensors("whole", tensors);
    let builder = trainable(&whole);
    let model = t5(&builder);
    assert!(builder.finish().unwrap().get("shared.weight").is_some());
    let output = model.forward(&t5_inputs(&vectors).0, None).unwrap();
    assert_close("whole", &output, &read(&vectors, "whole"), FORWARD);
}
