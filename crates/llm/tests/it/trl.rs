//! Whole training runs equal those of TRL, step by step. The logs are `tests/golden/trl/runs`, made by `generate_trl.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diptych_llm::{Language, run};
use diptych_train::{MetricsRow, Recipe, ResumeMode, RunDirectory, read_metrics};
use serde::Deserialize;
use serde_json::{Map, Value, json};

#[derive(Deserialize)]
struct Run {
    name: String,
    trainer: String,
    model: String,
    adapter: Option<String>,
    reference: Option<String>,
    data: String,
    arguments: Map<String, Value>,
    resolved: Map<String, Value>,
    metrics: BTreeMap<String, Vec<Option<f64>>>,
    final_weights: BTreeMap<String, Value>,
    #[serde(default)]
    reference_scores: BTreeMap<String, Vec<f64>>,
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/trl")
}

impl Run {
    fn read(name: &str) -> Self {
        let path = golden().join("runs").join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn option(&self, key: &str) -> Option<&Value> {
        self.arguments
            .get(key)
            .or(self.resolved.get(key))
            .filter(|value| !value.is_null())
    }

    fn number(&self, key: &str) -> f64 {
        self.option(key)
            .and_then(Value::as_f64)
            .unwrap_or_else(|| panic!("{}: no number `{key}`", self.name))
    }

    fn word(&self, key: &str) -> &str {
        self.option(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The objective of one of the trainer's loss types.
    fn objective(&self, loss_type: &str) -> Value {
        let beta = || self.number("beta");
        let smoothing = || self.number("label_smoothing");
        match (self.trainer.as_str(), loss_type) {
            // TRL's `sigmoid` reads no label smoothing.
            ("DPOTrainer", "sigmoid") => self.sigmoid(),
            ("DPOTrainer", "hinge") => json!({ "hinge": { "beta": beta() } }),
            ("DPOTrainer", "ipo") => json!({ "ipo": { "beta": beta(), "normalization": "length" } }),
            ("DPOTrainer", "exo_pair") => json!({ "exo_pair": { "beta": beta(), "label_smoothing": smoothing() } }),
            ("DPOTrainer", "nca_pair") => json!({ "nca_pair": { "beta": beta() } }),
            ("DPOTrainer", "robust") => json!({ "robust_dpo": { "beta": beta(), "label_smoothing": smoothing() } }),
            ("DPOTrainer", "bco_pair") => json!({ "bco_pair": { "beta": beta() } }),
            ("DPOTrainer", "sppo_hard") => json!({ "sppo_hard": { "beta": beta() } }),
            ("DPOTrainer", "aot") => json!({ "aot": { "beta": beta(), "label_smoothing": smoothing() } }),
            ("DPOTrainer", "aot_unpaired") => {
                json!({ "aot_unpaired": { "beta": beta(), "label_smoothing": smoothing() } })
            }
            ("DPOTrainer", "apo_zero") => json!({ "apo_zero": { "beta": beta() } }),
            ("DPOTrainer", "apo_down") => json!({ "apo_down": { "beta": beta() } }),
            ("DPOTrainer", "discopop") => json!({ "discopop": { "beta": beta(), "tau": self.number("discopop_tau") } }),
            ("DPOTrainer", "sigmoid_norm") => json!({ "sigmoid_norm": { "beta": beta() } }),
            ("SFTTrainer", "dft") => json!({ "dft": { "normalization": "batch_tokens" } }),
            ("DPOTrainer", "sft") | ("SFTTrainer", _) => json!({ "sft": { "normalization": "batch_tokens" } }),
            ("KTOTrainer", "apo_zero_unpaired") => json!({ "apo_zero_unpaired": { "beta": beta() } }),
            ("KTOTrainer", _) => json!({ "kto": {
                "beta": beta(),
                "desirable_weight": self.number("desirable_weight"),
                "undesirable_weight": self.number("undesirable_weight"),
            } }),
            ("CPOTrainer", "simpo" | "alphapo") => self.simpo(loss_type),
            ("CPOTrainer", "sigmoid") => json!({ "cpo": {
                "beta": beta(),
                "label_smoothing": smoothing(),
                "sft_weight": self.number("cpo_alpha"),
                "sft_normalization": "batch_tokens",
            } }),
            // TRL's hinge is that of `slic` with the margin 1 / beta, times beta.
            ("CPOTrainer", "hinge") => json!({ "weighted_sum": { "terms": [
                { "weight": beta(), "objective": { "slic": { "delta": 1.0 / beta(), "lambda": 0.0 } } },
                { "weight": self.number("cpo_alpha"), "objective": { "sft": { "normalization": "batch_tokens" } } },
            ] } }),
            ("ORPOTrainer", _) => json!({ "orpo": {
                "beta": beta(),
                "sft_normalization": "batch_tokens",
                "likelihood_of": "text",
            } }),
            (trainer, loss_type) => panic!("{}: {trainer} {loss_type} has no objective here", self.name),
        }
    }

    /// `sigmoid` with one of its options.
    fn sigmoid(&self) -> Value {
        let beta = self.number("beta");
        if let Some(alpha) = self.option("ld_alpha") {
            return json!({ "ld_dpo": { "beta": beta, "alpha": alpha } });
        }
        if self.option("use_weighting") == Some(&Value::Bool(true)) {
            return json!({ "wpo": { "objective": { "dpo": { "beta": beta } } } });
        }
        let divergence = match self.word("f_divergence_type") {
            "reverse_kl" => return json!({ "dpo": { "beta": beta } }),
            "forward_kl" => json!("forward_kl"),
            "js_divergence" => json!("js"),
            // TRL's coefficient is one minus the paper's alpha.
            "alpha_divergence" => json!({ "alpha": 1.0 - self.number("f_alpha_divergence_coef") }),
            other => panic!("{}: divergence {other}", self.name),
        };
        json!({ "f_dpo": { "beta": beta, "divergence": divergence } })
    }

    /// TRL adds the likelihood of the chosen answer to SimPO and AlphaPO.
    fn simpo(&self, loss_type: &str) -> Value {
        let (beta, gamma) = (self.number("beta"), self.number("simpo_gamma"));
        let objective = if loss_type == "alphapo" {
            json!({ "alpha_po": { "beta": beta, "gamma": gamma, "alpha": self.number("alpha") } })
        } else {
            json!({ "simpo": { "beta": beta, "gamma": gamma } })
        };
        let weight = if loss_type == "alphapo" {
            0.0
        } else {
            self.number("cpo_alpha")
        };
        if weight == 0.0 {
            return objective;
        }
        let likelihood = json!({ "sft": { "normalization": "batch_tokens" } });
        json!({ "weighted_sum": { "terms": [
            { "weight": 1.0, "objective": objective },
            { "weight": weight, "objective": likelihood },
        ] } })
    }

    fn objectives(&self) -> Value {
        match self.option("loss_type") {
            Some(Value::Array(types)) => {
                let weights = self.option("loss_weights").and_then(Value::as_array);
                let term = |(at, name): (usize, &Value)| {
                    let weight = weights.map_or(1.0, |weights| weights[at].as_f64().unwrap());
                    json!({ "weight": weight, "objective": self.objective(name.as_str().unwrap()) })
                };
                match types.as_slice() {
                    [only] => self.objective(only.as_str().unwrap()),
                    several => {
                        json!({ "weighted_sum": { "terms": several.iter().enumerate().map(term).collect::<Vec<_>>() } })
                    }
                }
            }
            Some(Value::String(name)) => self.objective(name),
            _ => self.objective("sigmoid"),
        }
    }

    fn reference(&self, objective: &Value) -> Option<Value> {
        let path = golden().join(&self.model).display().to_string();
        if self.option("precompute_ref_log_probs") == Some(&Value::Bool(true)) {
            return Some(json!({ "cached": {} }));
        }
        if self.option("sync_ref_model") == Some(&Value::Bool(true)) {
            return Some(json!({ "ema": {
                "mixup_alpha": self.number("ref_model_mixup_alpha"),
                "sync_steps": self.number("ref_model_sync_steps") as u64,
            } }));
        }
        // TRL loads a reference for `sft` too and does not use it.
        let is_unused = objective.get("sft").is_some();
        match self.reference.as_deref() {
            Some("base") => Some(json!({ "checkpoint": { "path": path } })),
            Some("initial") if !is_unused => Some(json!({ "frozen": {} })),
            _ => None,
        }
    }

    /// The file of `pairs.jsonl, the first 45 rows`, and how many rows.
    fn first_rows(&self) -> Option<(&str, usize)> {
        let (file, rest) = self.data.split_once(", the first ")?;
        Some((file, rest.split(' ').next()?.parse().unwrap()))
    }

    fn method(&self) -> Value {
        match self.trainer.as_str() {
            "KTOTrainer" => json!({ "unpaired": {} }),
            "SFTTrainer" => {
                let everything = self.option("completion_only_loss") == Some(&Value::Bool(false));
                json!({ "sft": { "loss_on": if everything { "everything" } else { "completion" } } })
            }
            _ => json!({ "offline_pairs": {} }),
        }
    }

    fn data(&self) -> Value {
        let mut data = json!({ "path": golden().join("data").join(&self.data), "shuffle": false });
        if let Some(max_len) = self.option("max_length") {
            data["max_len"] = max_len.clone();
        }
        if self.word("truncation_mode") == "keep_end" {
            data["encoding"] = json!({ "truncation": "keep-end" });
        }
        if matches!(self.trainer.as_str(), "CPOTrainer" | "ORPOTrainer") {
            data["encoding"] = json!({ "convention": "cpo" });
        }
        data
    }

    fn recipe(&self, output: &Path) -> Value {
        let objective = self.objectives();
        let adapter = match &self.adapter {
            None => json!({ "full": {} }),
            Some(adapter) => json!({ "lora": {
                "rank": 4,
                "alpha": 8.0,
                "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                "init": golden().join(adapter),
            } }),
        };
        let schedule = match self.word("lr_scheduler_type") {
            "" => "constant",
            word => word,
        };
        let warmup_steps = self.option("warmup_steps").and_then(Value::as_f64).unwrap_or(0.0) as u64;
        let mut recipe = json!({
            "modality": "llm",
            "run": { "output": output },
            "model": { "path": golden().join(&self.model) },
            "adapter": adapter,
            "data": self.data(),
            "method": self.method(),
            "objective": objective,
            "optimizer": { "adamw": {
                "lr": self.number("learning_rate"),
                "betas": [self.number("adam_beta1"), self.number("adam_beta2")],
                "eps": self.number("adam_epsilon"),
                "weight_decay": self.number("weight_decay"),
                "decayed": "matrices",
                "max_grad_norm": self.number("max_grad_norm"),
            } },
            "schedule": { schedule: { "warmup_steps": warmup_steps } },
            "train": {
                "steps": self.number("max_steps") as u64,
                "micro_batch": self.number("per_device_train_batch_size") as u64,
                "accumulation": self.number("gradient_accumulation_steps") as u64,
                "checkpoint_every": 0,
                "sample_every": 0,
            },
        });
        if let Some(reference) = self.reference(&recipe["objective"]) {
            recipe["reference"] = reference;
        }
        recipe
    }
}

/// Runs the recipe and returns its rows.
fn rows(run_of: &Run) -> Vec<MetricsRow> {
    let directory = tempfile::tempdir().unwrap();
    let mut recipe = run_of.recipe(&directory.path().join("run"));
    if let Some((file, num)) = run_of.first_rows() {
        let text = std::fs::read_to_string(golden().join("data").join(file)).unwrap();
        let rows: Vec<&str> = text.lines().take(num).collect();
        let path = directory.path().join(file);
        std::fs::write(&path, rows.join("\n")).unwrap();
        recipe["data"]["path"] = json!(path);
    }
    let text = toml::to_string(&recipe).unwrap();
    let recipe =
        Recipe::<Language>::parse(&text, &[]).unwrap_or_else(|error| panic!("{}: {error}\n{text}", run_of.name));
    let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh)
        .unwrap_or_else(|error| panic!("{}: {error}", run_of.name));
    read_metrics(&RunDirectory::new(&outcome.output).metrics()).unwrap()
}

/// The number of a row under TRL's key.
fn found(row: &MetricsRow, key: &str) -> Option<f64> {
    match key {
        "loss" => Some(row.loss),
        "grad_norm" => Some(row.grad_norm),
        "learning_rate" => Some(row.learning_rate),
        key => row.metrics.get(key).copied(),
    }
}

/// Compares the keys of a run at every step, and returns how many numbers were compared.
fn compare(name: &str, keys: &[&str]) -> usize {
    compare_until(name, keys, usize::MAX)
}

/// Compares the keys of the first steps of a run.
fn compare_until(name: &str, keys: &[&str], num_steps: usize) -> usize {
    let run = Run::read(name);
    let rows = rows(&run);
    let mut num = 0;
    for key in keys {
        let expected = run
            .metrics
            .get(*key)
            .unwrap_or_else(|| panic!("{name}: TRL logs no `{key}`"));
        assert_eq!(rows.len(), expected.len(), "{name}: steps");
        for (step, (row, expected)) in rows.iter().zip(expected).enumerate().take(num_steps) {
            let Some(expected) = *expected else { continue };
            let found = found(row, key).unwrap_or_else(|| panic!("{name}: no `{key}` at step {}", step + 1));
            // DiscoPOP's loss bends so sharply that the last digits of a step are the fifth of the fourteenth.
            let least = if name == "lora_dpo_discopop" { 2e-5 } else { 1e-5 };
            let bound = (1e-3 * expected.abs()).max(least);
            assert!(
                (found - expected).abs() <= bound,
                "{name}: `{key}` at step {} is {found}, TRL's is {expected}",
                step + 1
            );
            num += 1;
        }
    }
    num
}

const LOSS: [&str; 3] = ["loss", "grad_norm", "learning_rate"];
const SCORES: [&str; 2] = ["logps/chosen", "logps/rejected"];
const REWARDS: [&str; 4] = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
];

fn compare_all(names: &[&str], keys: &[&[&str]], expected: usize) {
    let keys = keys.concat();
    let num: usize = names.iter().map(|name| compare(name, &keys)).sum();
    assert_eq!(num, expected, "numbers compared");
}

#[test]
fn dpo_trainer_on_a_whole_llama() {
    let names = [
        "dpo_sigmoid",
        "dpo_hinge",
        "dpo_ipo",
        "dpo_exo_pair",
        "dpo_nca_pair",
        "dpo_robust",
        "dpo_bco_pair",
        "dpo_sppo_hard",
        "dpo_aot",
        "dpo_aot_label_smoothing",
        "dpo_aot_unpaired",
        "dpo_apo_zero",
        "dpo_apo_down",
        "dpo_discopop",
        "dpo_sigmoid_norm",
        "dpo_weighted_sum",
    ];
    let more = ["num_tokens"];
    compare_all(&names, &[&LOSS, &SCORES, &REWARDS, &more], names.len() * 20 * 10);
}

#[test]
fn options_of_the_dpo_trainer() {
    // TRL logs the weighted scores of LD-DPO as `logps`; ours are what they are called.
    compare_all(&["dpo_ld_alpha"], &[&LOSS, &REWARDS], 20 * 7);
    let names = [
        "dpo_use_weighting",
        "dpo_forward_kl",
        "dpo_js_divergence",
        "dpo_alpha_divergence",
        "dpo_sigmoid_label_smoothing",
        "dpo_sigmoid_wide",
        "dpo_aot_wide",
        "dpo_aot_unpaired_wide",
        "dpo_sigmoid_cosine",
        "dpo_sigmoid_linear",
        "dpo_sigmoid_weight_decay",
        "dpo_sigmoid_keep_start",
        "dpo_sigmoid_keep_end",
        "dpo_precompute_ref_log_probs",
        "dpo_sync_ref_model",
        "qwen2_dpo_sigmoid",
        "qwen2_dpo_conversations",
    ];
    let names: Vec<&str> = names.to_vec();
    compare_all(&names, &[&LOSS, &REWARDS, &SCORES], names.len() * 20 * 9);
}

#[test]
fn dpo_trainer_on_an_adapter_of_qwen2() {
    let names = [
        "lora_dpo_sigmoid",
        "lora_dpo_sigmoid_base_reference",
        "lora_dpo_hinge",
        "lora_dpo_ipo",
        "lora_dpo_exo_pair",
        "lora_dpo_nca_pair",
        "lora_dpo_robust",
        "lora_dpo_bco_pair",
        "lora_dpo_sppo_hard",
        "lora_dpo_aot",
        "lora_dpo_aot_unpaired",
        "lora_dpo_apo_zero",
        "lora_dpo_apo_down",
        "lora_dpo_discopop",
        "lora_dpo_sigmoid_norm",
        "lora_dpo_weighted_sum",
        "lora_dpo_precompute_ref_log_probs",
    ];
    compare_all(&names, &[&LOSS, &SCORES, &REWARDS], names.len() * 20 * 9);
}

#[test]
fn likelihood_alone() {
    let names = ["dpo_sft", "lora_dpo_sft"];
    compare_all(&names, &[&LOSS, &SCORES], names.len() * 20 * 5);
    // SFT's mean is over the tokens of the whole step.
    let names = ["sft_completions", "sft_all_tokens", "lora_sft_completions", "sft_dft"];
    compare_all(&names, &[&LOSS, &["num_tokens"]], names.len() * 20 * 4);
}

#[test]
fn kto_trainer() {
    let names = [
        "kto",
        "kto_weights",
        "kto_apo_zero_unpaired",
        "lora_kto",
        "lora_kto_base_reference",
    ];
    compare_all(&names, &[&LOSS, &["num_tokens"]], names.len() * 20 * 4);
    // With one micro batch a step, TRL's means of means are means over rows.
    let num = compare(
        "kto_wide",
        &[
            "loss",
            "grad_norm",
            "kl",
            "rewards/chosen",
            "rewards/rejected",
            "logps/chosen",
            "logps/rejected",
        ],
    );
    assert!(num >= 120, "{num}");
}

#[test]
fn cpo_trainer() {
    let names = ["cpo_sigmoid", "cpo_sigmoid_label_smoothing"];
    compare_all(&names, &[&LOSS, &SCORES, &REWARDS], names.len() * 20 * 9);
    // TRL logs mean scores for these.
    let names = ["cpo_simpo", "cpo_simpo_nll", "cpo_alphapo", "lora_cpo_simpo"];
    compare_all(&names, &[&LOSS], names.len() * 20 * 3);
    // `slic` reports the scores themselves as rewards, without TRL's beta.
    compare_all(&["cpo_hinge"], &[&LOSS, &SCORES], 20 * 5);
    // `cpo_ipo` is a squared loss of mean scores without a reference, from no paper: IPO's target belongs to log-ratios, and no
    // objective here makes it one of scores.
}

#[test]
fn orpo_trainer() {
    let names = ["orpo", "lora_orpo"];
    // TRL's `logps` are means a token here; so are the rewards, in both.
    compare_all(&names, &[&LOSS, &REWARDS], names.len() * 20 * 7);
}

#[test]
fn what_a_step_says_beside_its_loss() {
    // TRL's means over accumulated micro batches are means of means; with one micro batch a step they are means over tokens.
    let names = ["dpo_sigmoid_wide", "dpo_aot_wide", "dpo_aot_unpaired_wide"];
    let keys = ["entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"];
    compare_all(&names, &[&keys], names.len() * 20 * keys.len());
}

#[test]
fn an_epoch_that_ends_within_a_step() {
    // TRL ends the epoch of 45 rows with a step of one row, in the middle of an accumulation; here every step is whole and reaches
    // into the next epoch. Before that, all is the same.
    let keys = [&LOSS[..], &SCORES, &REWARDS].concat();
    assert_eq!(compare_until("dpo_sigmoid_partial_epoch", &keys, 11), 11 * 9);
}

#[test]
fn every_recorded_run_is_repeated_or_explained() {
    // See `cpo_trainer`.
    let explained = ["cpo_ipo"];
    let source = include_str!("trl.rs");
    let mut num = 0;
    for entry in std::fs::read_dir(golden().join("runs")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(source.contains(&format!("\"{name}\"")), "{name} is not repeated");
        num += usize::from(!explained.contains(&name.as_str()));
    }
    assert_eq!(num, 73);
}

/// What training made of the parameters, as `generate_trl.py` sums it up.
#[derive(Deserialize)]
struct FinalTensor {
    sum: f64,
    norm: f64,
    places: Vec<usize>,
    values: Vec<f64>,
}

#[test]
fn weights_after_the_last_step() {
    let mut num = 0;
    for name in ["dpo_sigmoid", "lora_dpo_sigmoid", "kto_wide", "sft_completions", "orpo"] {
        let run_of = Run::read(name);
        let directory = tempfile::tempdir().unwrap();
        let text = toml::to_string(&run_of.recipe(&directory.path().join("run"))).unwrap();
        let recipe = Recipe::<Language>::parse(&text, &[]).unwrap();
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
        let folder = RunDirectory::new(&outcome.output).final_weights();
        let file = if run_of.adapter.is_some() {
            "adapter_model.safetensors"
        } else {
            "model.safetensors"
        };
        let weights = diptych_tensor::Weights::open(&folder.join(file)).unwrap();
        for (tensor, expected) in &run_of.final_weights {
            let expected: FinalTensor = serde_json::from_value(expected.clone()).unwrap();
            let found = weights
                .read(tensor, diptych_tensor::DType::F64, &diptych_tensor::Device::Cpu)
                .unwrap();
            let found: Vec<f64> = found.flatten_all().unwrap().to_vec1().unwrap();
            let norm = found.iter().map(|value| value * value).sum::<f64>().sqrt();
            let close = |found: f64, expected: f64, bound: f64| {
                assert!(
                    (found - expected).abs() <= bound,
                    "{name}: {tensor}: {found}, TRL's is {expected}"
                );
            };
            // AdamW divides by the size of a gradient: one near 0 moves as far as any, in a direction that rounding decides.
            close(norm, expected.norm, 1e-4 * expected.norm);
            close(
                found.iter().sum(),
                expected.sum,
                1e-3 * norm * (found.len() as f64).sqrt(),
            );
            for (place, value) in expected.places.iter().zip(&expected.values) {
                close(found[*place], *value, 2e-4);
            }
            num += 1;
        }
    }
    assert_eq!(num, 4 * 20 + 28);
}

#[test]
fn reference_scores_of_every_row() {
    let mut num = 0;
    for name in ["dpo_precompute_ref_log_probs", "lora_dpo_precompute_ref_log_probs"] {
        let run_of = Run::read(name);
        let directory = tempfile::tempdir().unwrap();
        let text = toml::to_string(&run_of.recipe(&directory.path().join("run"))).unwrap();
        let recipe = Recipe::<Language>::parse(&text, &[]).unwrap();
        let method = diptych_llm::prepare(&recipe, &mut diptych_train::Reporter::silent()).unwrap();
        // Before the first step the policy is its reference.
        let output = crate::bench::compute(&method, 48, 48).outputs.remove(0);
        for (key, column) in [
            ("logps/chosen", "ref_chosen_logps"),
            ("logps/rejected", "ref_rejected_logps"),
        ] {
            for (found, expected) in output.metrics[key].iter().zip(&run_of.reference_scores[column]) {
                assert!(
                    (found - expected).abs() <= 1e-5 * expected.abs(),
                    "{name}: {found} {expected}"
                );
                num += 1;
            }
        }
    }
    assert_eq!(num, 2 * 2 * 48);
}
