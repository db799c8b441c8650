//! The language model against transformers and PEFT, on the golden vectors of `tests/golden/generate_lm.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use diptych_models::lm::{CausalLm, LmConfig, LmDir, LmInput, RopeScaling};
use diptych_models::lora::LoraAdapter;
use diptych_models::{Builder, BuilderConfig, LoraConfig, Targets, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Gradients, Params, Tensor, Weights, backward};
use serde_json::Value;
use support::{assert_close, golden, golden_lm_input, read, values};

const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;
const CHECKPOINTS: [&str; 9] = [
    "lm_llama",
    "lm_llama3",
    "lm_mistral",
    "lm_qwen2",
    "lm_qwen3",
    "lm_smollm",
    "lm_smollm3",
    "lm_gemma",
    "lm_gemma2",
];

fn vectors(name: &str) -> Weights {
    Weights::open(&golden(name).join("vectors.safetensors")).unwrap()
}

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden(path)).unwrap()).unwrap()
}

fn load(name: &str, trainable: Trainable<'_>, adapter: Option<&LoraAdapter>) -> (CausalLm, Params) {
    let dir = LmDir::open(golden(name)).unwrap();
    let weights = dir.weights().unwrap();
    let config = BuilderConfig {
        trainable,
        adapter,
        ..BuilderConfig::new(Some(&weights))
    };
    let builder = Builder::new(config).unwrap();
    let lm = CausalLm::load(&builder, dir.config()).unwrap();
    (lm, builder.finish().unwrap())
}

/// The logits of tokens; zero for padding, as in the files.
fn logits(lm: &CausalLm, input: &LmInput, mask: &Tensor) -> Tensor {
    let logits = lm.logits(&lm.forward(input).unwrap()).unwrap();
    logits.broadcast_mul(&mask.unsqueeze(2).unwrap()).unwrap()
}

/// Log-probability of each token given those before it, (B, T); zero for the first and for padding.
fn token_logps(lm: &CausalLm, input: &LmInput, mask: &Tensor) -> Tensor {
    let hidden = lm.forward(input).unwrap();
    let (batch, tokens, width) = hidden.dims3().unwrap();
    let rows = hidden.narrow(1, 0, tokens - 1).unwrap().reshape(((), width)).unwrap();
    let targets = input
        .input_ids()
        .narrow(1, 1, tokens - 1)
        .unwrap()
        .flatten_all()
        .unwrap();
    let logps = lm.token_logps(&rows, &targets, lm.token_logps_config()).unwrap();
    let logps = logps
        .reshape((batch, tokens - 1))
        .unwrap()
        .pad_with_zeros(1, 1, 0)
        .unwrap();
    (logps * mask).unwrap()
}

fn loss(lm: &CausalLm, vectors: &Weights, base: &Weights) -> Tensor {
    let (input, mask) = golden_lm_input(base);
    let logps = token_logps(lm, &input, &mask);
    assert_close("log-probabilities", &logps, &read(vectors, "token_logps"), FORWARD);
    (logps * read(base, "loss_weight")).unwrap().sum_all().unwrap()
}

/// Compares the gradient of every parameter with the file's, element by element, relative to the largest of the tensor.
fn check_gradients(name: &str, gradients: &Gradients, params: &Params, vectors: &Weights) {
    gradients.ensure_complete(params).unwrap();
    let expected: Vec<&str> = vectors.names().filter_map(|name| name.strip_prefix("grad.")).collect();
    assert_eq!(params.names().collect::<Vec<_>>(), expected, "{name}");
    let norm = |x: &Tensor| values(x).iter().map(|v| v * v).sum::<f64>().sqrt();
    let of_file = |parameter: &str| read(vectors, &format!("grad.{parameter}"));
    let largest = expected
        .iter()
        .map(|parameter| norm(&of_file(parameter)))
        .fold(0.0, f64::max);
    for parameter in expected {
        let (found, expected) = (gradients.get(parameter).unwrap(), of_file(parameter));
        let error = norm(&(found - &expected).unwrap()) / norm(&expected).max(1e-4 * largest);
        assert!(
            error < GRADIENT,
            "{name}: gradient of {parameter}: relative error {error:.1e}"
        );
    }
}

#[test]
fn logits_and_gradients_of_every_family() {
    for name in CHECKPOINTS {
        let vectors = vectors(name);
        let (mut lm, params) = load(name, Trainable::All, None);
        let (input, mask) = golden_lm_input(&vectors);
        assert_close(name, &logits(&lm, &input, &mask), &read(&vectors, "logits"), FORWARD);
        for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
            lm.gradient_checkpointing = checkpointing;
            let gradients = backward(&loss(&lm, &vectors, &vectors), &params).unwrap();
            check_gradients(name, &gradients, &params, &vectors);
        }
    }
}

#[test]
fn an_adapter_with_ranks_and_alphas_of_its_own() {
    let adapter = LoraAdapter::load(golden("lm_llama_lora"), "language_model").unwrap();
    let (vectors, base) = (vectors("lm_llama_lora"), vectors("lm_llama"));
    let (lm, params) = load("lm_llama", Trainable::None, Some(&adapter));
    assert!(params.is_empty());
    let (input, mask) = golden_lm_input(&base);
    assert_close(
        "adapted",
        &logits(&lm, &input, &mask),
        &read(&vectors, "logits"),
        FORWARD,
    );
    loss(&lm, &vectors, &base);
    let _off = lm.adapter_switch().disable();
    assert_close(
        "adapter off",
        &logits(&lm, &input, &mask),
        &read(&base, "logits"),
        FORWARD,
    );
    loss(&lm, &base, &base);
}

#[test]
fn gradients_of_a_rank_stabilized_adapter_on_a_shared_head() {
    let adapter = LoraAdapter::load(golden("lm_smollm_lora"), "language_model").unwrap();
    let (vectors, base) = (vectors("lm_smollm_lora"), vectors("lm_smollm"));
    let lora = LoraConfig {
        rank: 3,
        alpha: 4.0,
        use_rslora: true,
        targets: adapter.targets.clone().unwrap(),
        ..LoraConfig::default()
    };
    let (lm, params) = load("lm_smollm", Trainable::Lora(&lora), Some(&adapter));
    let (input, mask) = golden_lm_input(&base);
    assert_close(
        "adapted",
        &logits(&lm, &input, &mask),
        &read(&vectors, "logits"),
        FORWARD,
    );
    let gradients = backward(&loss(&lm, &vectors, &base), &params).unwrap();
    check_gradients("lm_smollm_lora", &gradients, &params, &vectors);
}

#[test]
fn rows_with_magnitudes_of_their_own() {
    let cases = [
        ("lm_llama3_dora", "lm_llama3", 2, 3.0),
        ("lm_llama_dora", "lm_llama", 3, 6.0),
    ];
    for (name, network, rank, alpha) in cases {
        let adapter = LoraAdapter::load(golden(name), "language_model").unwrap();
        assert!(adapter.is_dora());
        let (vectors, base) = (vectors(name), vectors(network));
        let lora = LoraConfig {
            rank,
            alpha,
            use_dora: true,
            targets: adapter.targets.clone().unwrap(),
            ..LoraConfig::default()
        };
        let (lm, params) = load(network, Trainable::Lora(&lora), Some(&adapter));
        assert!(params.names().any(|name| name.ends_with(".lora_magnitude_vector")));
        let (input, mask) = golden_lm_input(&base);
        let expected = read(&vectors, "logits");
        assert_close(name, &logits(&lm, &input, &mask), &expected, FORWARD);
        let gradients = backward(&loss(&lm, &vectors, &base), &params).unwrap();
        check_gradients(name, &gradients, &params, &vectors);
        {
            let _off = lm.adapter_switch().disable();
            let unadapted = read(&base, "logits");
            assert_close("adapter off", &logits(&lm, &input, &mask), &unadapted, FORWARD);
        }
        // Frozen beside the network, merged into it, and written and read again: the same numbers.
        let (frozen, _) = load(network, Trainable::None, Some(&adapter));
        assert_close("frozen", &logits(&frozen, &input, &mask), &expected, FORWARD);
        let directory = tempfile::tempdir().unwrap();
        adapter.save_peft(directory.path().join("adapter"), None).unwrap();
        let again = LoraAdapter::load(directory.path().join("adapter"), "language_model").unwrap();
        let (loaded, _) = load(network, Trainable::None, Some(&again));
        assert_close("saved", &logits(&loaded, &input, &mask), &expected, FORWARD);
        let source = LmDir::open(golden(network)).unwrap();
        let (config, tensors) = source.merged(&adapter, DType::F32).unwrap();
        let merged = directory.path().join("merged");
        diptych_models::lm::save(&merged, &config, (&tensors, DType::F32)).unwrap();
        let (merged, _) = load(merged.to_str().unwrap(), Trainable::None, None);
        assert_close("merged", &logits(&merged, &input, &mask), &expected, FORWARD);
    }
}

#[test]
fn magnitudes_without_a_place_or_without_a_word_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let adapter = LoraAdapter::load(golden("lm_llama_dora"), "language_model").unwrap();
    for written in [
        diptych_models::lora::save_diffusers(directory.path().join("a.safetensors"), &[("unet", &adapter)]),
        diptych_models::lora::save_kohya(directory.path().join("b.safetensors"), &[("unet", &adapter)]),
    ] {
        let error = written.unwrap_err().to_string();
        assert!(error.contains("use_dora") && error.contains("PEFT"), "{error}");
    }
    // Of the word in the configuration and the tensors neither comes without the other.
    let (config, tensors) = ("adapter_config.json", "adapter_model.safetensors");
    for (with_word, with_tensors, words) in [
        (
            "lm_llama_dora",
            "lm_llama_lora",
            ["`use_dora`", "not `lora_magnitude_vector`"],
        ),
        (
            "lm_llama_lora",
            "lm_llama_dora",
            ["`lora_magnitude_vector`", "not `use_dora`"],
        ),
    ] {
        let mut json = json(&format!("{with_word}/{config}"));
        for key in ["r", "rank_pattern", "alpha_pattern"] {
            json.as_object_mut().unwrap().remove(key);
        }
        std::fs::write(directory.path().join(config), json.to_string()).unwrap();
        std::fs::copy(golden(with_tensors).join(tensors), directory.path().join(tensors)).unwrap();
        let error = LoraAdapter::load(directory.path(), "language_model")
            .unwrap_err()
            .to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    let adapter = LoraAdapter::load(golden("lm_llama_lora"), "language_model").unwrap();
    assert!(!adapter.is_dora());
}

#[test]
fn fresh_magnitudes_are_the_lengths_of_the_rows_and_change_nothing() {
    let lora = LoraConfig {
        use_dora: true,
        targets: Targets::Pattern(Targets::ALL_LINEAR.into()),
        ..LoraConfig::default()
    };
    let base = vectors("lm_llama3");
    let (lm, params) = load("lm_llama3", Trainable::Lora(&lora), None);
    let (input, mask) = golden_lm_input(&base);
    let expected = read(&base, "logits");
    assert_close("fresh", &logits(&lm, &input, &mask), &expected, FORWARD);
    let gradients = backward(&loss(&lm, &base, &base), &params).unwrap();
    let magnitudes: Vec<&str> = params
        .names()
        .filter(|name| name.ends_with("lora_magnitude_vector"))
        .collect();
    assert_eq!(magnitudes.len(), 14);
    for name in magnitudes {
        let gradient: Vec<f32> = gradients.get(name).unwrap().to_vec1().unwrap();
        assert!(gradient.iter().any(|value| *value != 0.0), "{name}");
    }
}

#[test]
fn rotary_positions_of_every_scaling_in_both_spellings() {
    let cases = json("lm_rope/cases.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let expected: Vec<f64> = case["inv_freq"]
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f.as_f64().unwrap())
            .collect();
        let configs = case["configs"].as_array().unwrap();
        assert_eq!(configs.len(), 2);
        for config in configs {
            let mut config = config.clone();
            config["model_type"] = "llama".into();
            let config = LmConfig::from_json(config, "config.json").unwrap();
            let (found, factor) = config.rope.inverse_frequencies(config.head_dim);
            let (found, expected) = (
                Tensor::new(found, &Device::Cpu),
                Tensor::new(expected.clone(), &Device::Cpu),
            );
            assert_close(&case["name"].to_string(), &found.unwrap(), &expected.unwrap(), 1e-6);
            assert!(
                (factor - case["attention_factor"].as_f64().unwrap()).abs() < 1e-9,
                "{}",
                case["name"]
            );
        }
    }
    let dynamic = &cases[2]["configs"][0];
    let mut config = dynamic.clone();
    config["model_type"] = "llama".into();
    let config = LmConfig::from_json(config, "config.json").unwrap();
    assert_eq!(config.rope.scaling, RopeScaling::Dynamic { limit: 128 });
}

/// In half precision everything stays near the results in single precision.
#[test]
fn half_precision_is_near() {
    for name in ["lm_llama3", "lm_qwen3", "lm_gemma2"] {
        let vectors = vectors(name);
        let dir = LmDir::open(golden(name)).unwrap();
        let weights = dir.weights().unwrap();
        for (dtype, tolerance) in [(DType::BF16, 0.06), (DType::F16, 0.008)] {
            let builder = Builder::new(BuilderConfig {
                dtype,
                ..BuilderConfig::new(Some(&weights))
            })
            .unwrap();
            let lm = CausalLm::load(&builder, dir.config()).unwrap();
            builder.finish().unwrap();
            let (input, mask) = golden_lm_input(&vectors);
            let hidden = lm.forward(&input).unwrap();
            assert_eq!(hidden.dtype(), dtype);
            let logits = lm.logits(&hidden).unwrap().to_dtype(DType::F32).unwrap();
            let logits = logits.broadcast_mul(&mask.unsqueeze(2).unwrap()).unwrap();
            let expected = read(&vectors, "logits");
            let error = support::relative_error(&logits, &expected);
            assert!(error > 0.0 && error < tolerance, "{name} {dtype:?}: {error}");
        }
    }
}
