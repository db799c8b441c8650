//! Networks with weights in few bits: each is the network whose weights are the numbers that the codes stand for.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "checkpoints are made from lists of names here")]
#[path = "support/named.rs"]
mod named;
mod support;
#[path = "vlm/tiny.rs"]
mod tiny;

use std::collections::BTreeMap;

use diptych_models::lm::{CausalLm, LmConfig, LmInput};
use diptych_models::vlm::{TowerTraining, VisionLanguageModel};
use diptych_models::{Builder, BuilderConfig, Error, LoraConfig, Targets, Trainable};
use diptych_tensor::{DType, Device, Nf4Config, Params, Quantization, QuantizedMatrix, Tensor, Weights, backward};
use serde_json::json;
use support::{relative_error, shake, values};
use tiny::{Batch, Generation};

const FORMATS: [Quantization; 3] = [
    Quantization::Nf4(Nf4Config { double: false }),
    Quantization::Nf4(Nf4Config { double: true }),
    Quantization::Int8,
];

/// A layer of a decoder.
const LAYERS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// Every tensor, with those of the decoder's layers replaced by what they stand for when they are quantized, and how many these are.
fn replaced(weights: &Weights, decoder: &str, quantization: Quantization, dtype: DType) -> (Weights, usize) {
    let mut num = 0;
    let mut tensors = BTreeMap::new();
    for name in weights.names() {
        let tensor = weights.read(name, DType::F32, &Device::Cpu).unwrap();
        let layer = name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
        let is_quantized = name.starts_with(decoder) && layer.is_some_and(|layer| LAYERS.contains(&layer));
        let tensor = if is_quantized {
            num += 1;
            let stored = tensor.to_dtype(dtype).unwrap();
            QuantizedMatrix::quantize(&stored, quantization)
                .unwrap()
                .dequantize()
                .unwrap()
        } else {
            tensor
        };
        tensors.insert(name.to_owned(), tensor);
    }
    (Weights::from_tensors("replaced", tensors), num)
}

fn lm_config() -> LmConfig {
    let config = json!({
        "model_type": "qwen2", "vocab_size": 23, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 32, "eos_token_id": 2,
    });
    LmConfig::from_json(config, "config.json").unwrap()
}

fn lm(builder: BuilderConfig<'_>) -> (CausalLm, Params) {
    let builder = Builder::new(builder).unwrap();
    let lm = CausalLm::load(&builder, &lm_config()).unwrap();
    (lm, builder.finish().unwrap())
}

/// The weights of a network of ordinary numbers, in the type that files have.
fn lm_weights(dtype: DType) -> Weights {
    let (_, params) = lm(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    });
    shake(&params, 60);
    let tensors = params.snapshot().unwrap().into_iter();
    let stored = tensors.map(|(name, tensor)| (name, tensor.to_dtype(dtype).unwrap()));
    Weights::from_tensors("lm", stored.collect())
}

fn lora(targets: &str, use_dora: bool) -> LoraConfig {
    LoraConfig {
        rank: 2,
        use_dora,
        targets: Targets::Pattern(targets.into()),
        ..LoraConfig::default()
    }
}

/// Logits, and gradients of a sum over them.
fn results(lm: &CausalLm, params: &Params) -> (Tensor, Vec<(String, Tensor)>) {
    let input = LmInput::padded(&[&[1, 4, 20, 3, 3, 9], &[7, 2, 9, 5]], 0, &Device::Cpu).unwrap();
    let logits = lm.logits(&lm.forward(&input).unwrap()).unwrap();
    let logits = logits.to_dtype(DType::F32).unwrap();
    let gradients = if params.is_empty() {
        Vec::new()
    } else {
        let found = backward(&logits.sin().unwrap().sum_all().unwrap(), params).unwrap();
        found.ensure_complete(params).unwrap();
        found
            .iter()
            .map(|(name, gradient)| (name.to_owned(), gradient.clone()))
            .collect()
    };
    (logits.detach(), gradients)
}

fn assert_same(
    found: &(Tensor, Vec<(String, Tensor)>),
    expected: &(Tensor, Vec<(String, Tensor)>),
    tolerance: f64,
    what: &str,
) {
    let error = relative_error(&found.0, &expected.0);
    assert!(error < tolerance, "{what}: logits, {error}");
    assert_eq!(found.1.len(), expected.1.len());
    for ((name, found), (_, expected)) in found.1.iter().zip(&expected.1) {
        let error = relative_error(found, expected);
        assert!(error < tolerance, "{what}: {name}, {error}");
    }
}

#[test]
fn decoders_are_those_of_the_dequantized_weights() {
    let mut num = 0;
    for stored in [DType::F32, DType::BF16, DType::F16] {
        let weights = lm_weights(stored);
        for quantization in FORMATS {
            let (replaced, num_replaced) = replaced(&weights, "model.layers.", quantization, stored);
            assert_eq!(num_replaced, 2 * 7);
            for (use_dora, dtype, tolerance) in [
                (false, DType::F64, 1e-9),
                (true, DType::F64, 1e-6),
                (false, DType::F32, 1e-5),
                (false, DType::BF16, 0.05),
            ] {
                let lora = lora(r".*\.(q_proj|o_proj|up_proj|down_proj)|lm_head", use_dora);
                let builder = |weights, quantization| BuilderConfig {
                    dtype,
                    trainable: Trainable::Lora(&lora),
                    quantization,
                    ..BuilderConfig::new(Some(weights))
                };
                let [found, expected] =
                    [(&weights, Some(quantization)), (&replaced, None)].map(|(weights, quantization)| {
                        let (lm, params) = lm(builder(weights, quantization));
                        assert_eq!(params.len(), (2 * 4 + 1) * if use_dora { 3 } else { 2 });
                        for (name, var) in params.iter().filter(|(name, _)| name.contains("lora_")) {
                            let fill = support::randn(name.len() as u64, var.dims(), var.dtype());
                            if !name.contains("magnitude") {
                                var.set(&(fill * 0.1).unwrap()).unwrap();
                            }
                        }
                        results(&lm, &params)
                    });
                assert_same(
                    &found,
                    &expected,
                    tolerance,
                    &format!("{stored:?} {quantization:?} {dtype:?}"),
                );
                num += found.1.len();
            }
        }
    }
    assert_eq!(num, 3 * 3 * (3 * 18 + 27));
}

/// The tower and the projector of a vision-language model are as they were.
#[test]
fn towers_are_not_quantized() {
    let mut num = 0;
    for (name, layers) in [("llava", 2), ("qwen2_5_vl", 2)] {
        let weights = tiny::weights(name, Generation::Memory);
        let batch = Batch::of(name);
        let run = |weights: &Weights, quantization| -> (Tensor, Tensor) {
            let builder = BuilderConfig {
                quantization,
                ..BuilderConfig::new(Some(weights))
            };
            let (vlm, _): (VisionLanguageModel, _) = tiny::load(name, builder, TowerTraining::Frozen);
            let images = vlm.encode(&batch.processed()).unwrap();
            let features: Vec<&Tensor> = images.iter().map(|image| &image.embeddings).collect();
            let hidden = vlm.forward(&batch.input, &images.iter().collect::<Vec<_>>()).unwrap();
            (Tensor::cat(&features, 0).unwrap(), hidden)
        };
        let plain = run(&weights, None);
        for quantization in FORMATS {
            let (replaced, num_replaced) = replaced(&weights, "model.language_model.", quantization, DType::F32);
            assert_eq!(num_replaced, layers * 7, "{name}");
            let (found, expected) = (run(&weights, Some(quantization)), run(&replaced, None));
            assert_eq!(
                values(&found.0),
                values(&plain.0),
                "{name}: what the decoder reads of images"
            );
            let error = relative_error(&found.1, &expected.1);
            assert!(error < 1e-5, "{name} {quantization:?}: {error}");
            let change = relative_error(&found.1, &plain.1);
            assert!(change > 1e-3, "{name} {quantization:?}: {change}");
            num += 1;
        }
    }
    assert_eq!(num, 6);
}

#[test]
fn weights_that_are_trained_are_not_quantized() {
    let weights = lm_weights(DType::F32);
    let refused = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        quantization: Some(Quantization::Int8),
        ..BuilderConfig::new(Some(&weights))
    });
    match refused {
        Err(error @ Error::Quantization { .. }) => assert!(error.is_configuration()),
        other => panic!("{other:?}"),
    }
}
