//! What must hold for the language model whatever the numbers: gradients, masks, adapters, files, refusals.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use diptych_models::lm::{CausalLm, LmConfig, LmDir, LmInput, LmSequence, save};
use diptych_models::lora::{LANGUAGE_MODEL, LoraAdapter, merge, parts};
use diptych_models::{Builder, BuilderConfig, Error, LoraConfig, Targets, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Params, Tensor, Weights, backward};
use serde_json::{Value, json};
use support::{assert_close, check_gradients, golden, randn, same_gradients, shake, values};

/// A tiny network of a family, with more of what is special about it.
fn config(family: &str, more: &Value) -> LmConfig {
    let mut config = json!({
        "model_type": family, "vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 32, "sliding_window": 3,
        "eos_token_id": 2,
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    LmConfig::from_json(config, "config.json").unwrap()
}

fn families() -> Vec<(LmConfig, usize)> {
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8});
    let plain = 2 * 9 + 2;
    vec![
        (config("llama", &json!({})), plain + 1),
        (
            config(
                "llama",
                &json!({"attention_bias": true, "mlp_bias": true, "rope_scaling": llama3, "tie_word_embeddings": true}),
            ),
            plain + 2 * 7,
        ),
        (config("mistral", &json!({})), plain + 1),
        (
            config("qwen2", &json!({"use_sliding_window": true, "max_window_layers": 1})),
            plain + 1 + 2 * 3,
        ),
        (config("qwen3", &json!({})), plain + 1 + 2 * 2),
        (config("smollm3", &json!({"no_rope_layers": [0, 1]})), plain),
        (config("gemma", &json!({})), plain),
        (
            config(
                "gemma2",
                &json!({"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
            ),
            plain + 2 * 2,
        ),
    ]
}

fn build(config: &LmConfig, builder: BuilderConfig<'_>) -> (CausalLm, Params) {
    let builder = Builder::new(builder).unwrap();
    let lm = CausalLm::load(&builder, config).unwrap();
    (lm, builder.finish().unwrap())
}

/// A network whose numbers are of ordinary size.
fn shaken(config: &LmConfig, dtype: DType) -> (CausalLm, Params) {
    let (lm, params) = build(
        config,
        BuilderConfig {
            dtype,
            trainable: Trainable::All,
            ..BuilderConfig::new(None)
        },
    );
    shake(&params, 60);
    (lm, params)
}

const PROMPT: [u32; 5] = [1, 4, 10, 3, 3];
const ANSWERS: [&[u32]; 2] = [&[7, 2, 9, 5], &[6, 8]];

/// A weighted sum of all hidden states and of the log-probabilities of some tokens.
fn loss(lm: &CausalLm, input: &LmInput, dtype: DType) -> Tensor {
    let hidden = lm.forward(input).unwrap();
    let weighted = (&hidden * randn(6, hidden.dims(), dtype)).unwrap().sum_all().unwrap();
    let rows = hidden.flatten(0, 1).unwrap().narrow(0, 0, 6).unwrap();
    let targets = Tensor::new(&[3u32, 1, 0, 10, 7, 7], &Device::Cpu).unwrap();
    let logps = lm.token_logps(&rows, &targets, lm.token_logps_config()).unwrap();
    let logps = (logps * randn(7, &[6], dtype)).unwrap().sum_all().unwrap();
    let logits = lm.logits(&rows).unwrap().sqr().unwrap().mean_all().unwrap();
    ((weighted + logps).unwrap() + logits).unwrap()
}

fn packed() -> LmInput {
    let rows = [
        vec![LmSequence {
            prefix: &PROMPT,
            branches: &ANSWERS,
        }],
        vec![LmSequence::plain(&[2, 2, 7]), LmSequence::plain(&[9, 1, 4, 4])],
    ];
    LmInput::packed(&rows, 0, &Device::Cpu).unwrap()
}

#[test]
fn every_parameter_gets_its_gradient() {
    for (config, num_parameters) in families() {
        let (mut lm, params) = shaken(&config, DType::F64);
        assert_eq!(params.len(), num_parameters, "{:?}", config.family);
        assert_eq!(params.num_elements(), config.num_parameters(), "{:?}", config.family);
        let mut results = Vec::new();
        for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::every(2)] {
            lm.gradient_checkpointing = checkpointing;
            results.push(check_gradients(&params, || loss(&lm, &packed(), DType::F64)));
        }
        same_gradients(&results[0], &results[1]);
    }
}

#[test]
fn every_adapter_gets_its_gradient() {
    for (config, _) in families() {
        let lora = LoraConfig {
            rank: 2,
            alpha: 3.0,
            use_rslora: true,
            targets: Targets::Pattern(r"lm_head|.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)".into()),
            ..LoraConfig::default()
        };
        let builder = BuilderConfig {
            dtype: DType::F64,
            trainable: Trainable::Lora(&lora),
            ..BuilderConfig::new(None)
        };
        let (lm, params) = build(&config, builder);
        assert_eq!(params.len(), 2 * (2 * 7 + 1));
        shake(&params, 80);
        check_gradients(&params, || loss(&lm, &packed(), DType::F64));
    }
}

/// In half precision masters and their gradients are f32, and near those of single precision.
#[test]
fn gradients_in_half_precision_are_near() {
    for (config, _) in families() {
        let gradients = |dtype| {
            let builder = BuilderConfig {
                dtype,
                trainable: Trainable::All,
                ..BuilderConfig::new(None)
            };
            let (lm, params) = build(&config, builder);
            shake(&params, 60);
            let hidden = lm.forward(&packed()).unwrap();
            assert_eq!(hidden.dtype(), dtype);
            let rows = hidden.flatten(0, 1).unwrap().narrow(0, 0, 6).unwrap();
            let targets = Tensor::new(&[3u32, 1, 0, 10, 7, 7], &Device::Cpu).unwrap();
            let logps = lm.token_logps(&rows, &targets, lm.token_logps_config()).unwrap();
            assert_eq!(logps.dtype(), DType::F32);
            let gradients = backward(&logps.sum_all().unwrap(), &params).unwrap();
            assert!(gradients.iter().all(|(_, gradient)| gradient.dtype() == DType::F32));
            gradients
                .iter()
                .flat_map(|(_, gradient)| values(gradient))
                .collect::<Vec<f64>>()
        };
        let expected = gradients(DType::F32);
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        for (dtype, alignment) in [(DType::BF16, 0.99), (DType::F16, 0.9999)] {
            let found = gradients(dtype);
            let cosine = dot(&found, &expected) / (dot(&found, &found) * dot(&expected, &expected)).sqrt();
            assert!(cosine > alignment, "{:?} {dtype:?}: {cosine}", config.family);
        }
    }
}

/// Rows of hidden states of a packed row, from `start` on.
fn part(hidden: &Tensor, row: usize, start: usize, len: usize) -> Tensor {
    hidden.get(row).unwrap().narrow(0, start, len).unwrap()
}

#[test]
fn padding_packing_and_shared_prefixes_change_nothing() {
    for (config, _) in families() {
        let (lm, _) = shaken(&config, DType::F32);
        let alone = |ids: &[u32]| {
            lm.forward(&LmInput::padded(&[ids], 0, &Device::Cpu).unwrap())
                .unwrap()
                .get(0)
                .unwrap()
        };
        let check = |what: &str, found: Tensor, expected: &Tensor| {
            assert_close(&format!("{:?} {what}", config.family), &found, expected, 1e-5);
        };
        let (long, short): (&[u32], &[u32]) = (&[2, 2, 7, 9, 1, 4, 4], &[9, 1, 4, 4]);
        let padded = lm
            .forward(&LmInput::padded(&[long, short], 3, &Device::Cpu).unwrap())
            .unwrap();
        check("padded", part(&padded, 1, 0, 4), &alone(short));

        let hidden = lm.forward(&packed()).unwrap();
        check("packed first", part(&hidden, 1, 0, 3), &alone(&[2, 2, 7]));
        check("packed second", part(&hidden, 1, 3, 4), &alone(short));
        let mut at = PROMPT.len();
        for answer in ANSWERS {
            let whole = alone(&[&PROMPT[..], answer].concat());
            check("prefix", part(&hidden, 0, 0, 5), &whole.narrow(0, 0, 5).unwrap());
            check(
                "branch",
                part(&hidden, 0, at, answer.len()),
                &whole.narrow(0, 5, answer.len()).unwrap(),
            );
            at += answer.len();
        }
    }
}

#[test]
fn a_prefix_computed_once_has_the_gradients_of_two_passes() {
    for (config, _) in families() {
        let (lm, params) = shaken(&config, DType::F64);
        // Every answer token after the first, from the state before it; each answer's first from the end of the prompt.
        let logps = |hidden: &Tensor, rows: &[u32], answer: &[u32]| {
            let rows = hidden
                .index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0)
                .unwrap();
            let targets = Tensor::new(answer, &Device::Cpu).unwrap();
            lm.token_logps(&rows, &targets, lm.token_logps_config())
                .unwrap()
                .sum_all()
                .unwrap()
        };
        let row = [LmSequence {
            prefix: &PROMPT,
            branches: &ANSWERS,
        }];
        let hidden = lm
            .forward(&LmInput::packed(&[row.to_vec()], 0, &Device::Cpu).unwrap())
            .unwrap()
            .get(0)
            .unwrap();
        let once = (logps(&hidden, &[4, 5, 6, 7], ANSWERS[0]) - logps(&hidden, &[4, 9], ANSWERS[1])).unwrap();
        let pass = |answer: &[u32]| {
            let ids = [&PROMPT[..], answer].concat();
            let hidden = lm
                .forward(&LmInput::padded(&[&ids], 0, &Device::Cpu).unwrap())
                .unwrap()
                .get(0)
                .unwrap();
            let rows: Vec<u32> = (4..4 + answer.len() as u32).collect();
            logps(&hidden, &rows, answer)
        };
        let twice = (pass(ANSWERS[0]) - pass(ANSWERS[1])).unwrap();
        assert_close("log-probabilities", &once, &twice, 1e-12);
        let (once, twice) = (backward(&once, &params).unwrap(), backward(&twice, &params).unwrap());
        for (name, expected) in twice.iter() {
            assert_close(name, once.get(name).unwrap(), expected, 1e-9);
        }
    }
}

#[test]
fn an_adapter_is_saved_loaded_merged_and_switched_off() {
    for name in ["lm_llama", "lm_smollm"] {
        let dir = LmDir::open(golden(name)).unwrap();
        let weights = dir.weights().unwrap();
        let lora = LoraConfig {
            rank: 2,
            alpha: 3.0,
            use_rslora: true,
            targets: Targets::Suffixes(["q_proj", "down_proj", "lm_head"].map(str::to_owned).to_vec()),
            ..LoraConfig::default()
        };
        let base = BuilderConfig::new(Some(&weights));
        let (lm, params) = build(
            dir.config(),
            BuilderConfig {
                trainable: Trainable::Lora(&lora),
                ..base.clone()
            },
        );
        let input = LmInput::padded(&[&[1, 5, 60, 3], &[7, 7]], 0, &Device::Cpu).unwrap();
        let logits = |lm: &CausalLm| lm.logits(&lm.forward(&input).unwrap()).unwrap();
        let before = values(&logits(&lm));
        shake(&params, 5);
        let adapted = logits(&lm);
        assert_ne!(values(&adapted), before);
        {
            let _off = lm.adapter_switch().disable();
            assert_eq!(values(&logits(&lm)), before);
        }
        let adapter = LoraAdapter::from_params(&params, &lora, "").unwrap();
        let out = tempfile::tempdir().unwrap();
        let peft = out.path().join("peft");
        adapter.save_peft(&peft, Some(name)).unwrap();
        let record: Value =
            serde_json::from_str(&std::fs::read_to_string(peft.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(
            (&record["task_type"], &record["use_rslora"]),
            (&json!("CAUSAL_LM"), &json!(true))
        );
        assert_eq!((&record["lora_alpha"], &record["r"]), (&json!(3), &json!(2)));
        assert_eq!(parts(&peft).unwrap(), [LANGUAGE_MODEL]);
        let loaded = LoraAdapter::load(&peft, LANGUAGE_MODEL).unwrap();
        assert!(loaded.use_rslora);
        let (frozen, _) = build(
            dir.config(),
            BuilderConfig {
                adapter: Some(&loaded),
                ..base
            },
        );
        assert_close("loaded", &logits(&frozen), &adapted, 1e-6);

        // Merged, saved and opened again it is an ordinary checkpoint.
        let (config, tensors) = dir.merged(&adapter, DType::F32).unwrap();
        assert!(!config.tie_word_embeddings);
        let merged = out.path().join("merged");
        save(&merged, &config, (&tensors, DType::F32)).unwrap();
        let merged = LmDir::open(merged).unwrap();
        assert_eq!(merged.config().eos_token_ids, dir.config().eos_token_ids);
        let (plain, _) = build(merged.config(), BuilderConfig::new(Some(&merged.weights().unwrap())));
        assert_close("merged", &logits(&plain), &adapted, 1e-5);
    }
}

#[test]
fn all_linear_is_every_projection_but_the_head() {
    let lora = LoraConfig {
        targets: Targets::Pattern("all-linear".into()),
        ..LoraConfig::default()
    };
    let config = config("qwen2", &json!({}));
    let builder = BuilderConfig {
        trainable: Trainable::Lora(&lora),
        ..BuilderConfig::new(None)
    };
    let (_, params) = build(&config, builder);
    assert_eq!(params.len(), 2 * 2 * 7);
    let dir = tempfile::tempdir().unwrap();
    let adapter = LoraAdapter::from_params(&params, &lora, "").unwrap();
    adapter.save_peft(dir.path(), None).unwrap();
    let loaded = LoraAdapter::load(dir.path(), LANGUAGE_MODEL).unwrap();
    let expected: Vec<String> = adapter.modules.keys().cloned().collect();
    assert_eq!(loaded.targets, Some(Targets::Suffixes(expected)));
}

/// PEFT writes a copy of an adapted head's weight; an adapter of another network is noticed by it, and the copy is written again.
#[test]
fn an_adapter_knows_its_network() {
    let adapter = LoraAdapter::load(golden("lm_llama_lora"), LANGUAGE_MODEL).unwrap();
    assert_eq!(adapter.base.keys().collect::<Vec<_>>(), ["lm_head"]);
    let weights = |name: &str| LmDir::open(golden(name)).unwrap().weights().unwrap();
    assert!(merge(&weights("lm_llama"), &adapter, DType::F32).is_ok());
    let error = merge(&weights("lm_mistral"), &adapter, DType::F32).unwrap_err();
    assert!(
        matches!(&error, Error::AdapterBase { module } if module == "lm_head"),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    adapter.save_peft(dir.path(), None).unwrap();
    let names = |dir: &std::path::Path| -> Vec<String> {
        let weights = Weights::open(&dir.join("adapter_model.safetensors")).unwrap();
        weights.names().map(str::to_owned).collect()
    };
    assert_eq!(names(dir.path()), names(&golden("lm_llama_lora")));
    let again = LoraAdapter::load(dir.path(), LANGUAGE_MODEL).unwrap();
    for (name, module) in &adapter.modules {
        assert_eq!(
            (module.rank(), module.scale),
            (again.modules[name].rank(), again.modules[name].scale),
            "{name}"
        );
    }
}

#[test]
fn a_trained_network_is_saved_in_every_type() {
    for name in ["lm_qwen3", "lm_gemma"] {
        let dir = LmDir::open(golden(name)).unwrap();
        let (lm, params) = build(
            dir.config(),
            BuilderConfig {
                trainable: Trainable::All,
                ..BuilderConfig::new(Some(&dir.weights().unwrap()))
            },
        );
        let input = LmInput::padded(&[&[1, 5, 60, 3]], 0, &Device::Cpu).unwrap();
        let expected = lm.forward(&input).unwrap();
        for (dtype, written, tolerance) in [
            (DType::F32, "float32", 0.0),
            (DType::BF16, "bfloat16", 0.05),
            (DType::F16, "float16", 0.01),
        ] {
            let out = tempfile::tempdir().unwrap();
            save(out.path(), dir.config(), (&params.snapshot().unwrap(), dtype)).unwrap();
            let json: Value =
                serde_json::from_str(&std::fs::read_to_string(out.path().join("config.json")).unwrap()).unwrap();
            assert_eq!(json["dtype"], written);
            let again = LmDir::open(out.path()).unwrap();
            let weights = again.weights().unwrap();
            let original = dir.weights().unwrap();
            assert_eq!(
                weights.names().collect::<Vec<_>>(),
                original.names().collect::<Vec<_>>()
            );
            assert!(weights.names().all(|name| weights.dtype(name) == Some(dtype)));
            let (lm, _) = build(again.config(), BuilderConfig::new(Some(&weights)));
            assert_close(written, &lm.forward(&input).unwrap(), &expected, tolerance);
        }
    }
}

#[test]
fn positions_that_are_not_defined_are_refused() {
    let config = config(
        "llama",
        &json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4}),
    );
    let (lm, _) = build(&config, BuilderConfig::new(None));
    let input = |ids: &[u32]| LmInput::padded(&[ids], 0, &Device::Cpu).unwrap();
    lm.forward(&input(&[1, 2, 3, 4])).unwrap();
    let error = lm.forward(&input(&[1, 2, 3, 4, 5])).unwrap_err();
    assert!(matches!(error, Error::ContextLength { found: 5, limit: 4 }), "{error}");
    assert!(lm.forward(&input(&[11])).is_err(), "an id outside the vocabulary");
    assert!(matches!(
        LmInput::padded(&[&[]], 0, &Device::Cpu),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(
        LmDir::open("no/such/directory"),
        Err(Error::NoDirectory { .. })
    ));
}
