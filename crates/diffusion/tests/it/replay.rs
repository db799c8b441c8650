//! Training runs of a plain PyTorch loop (`tests/golden/replay`), repeated step by step from their recipes.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diptych_diffusion::{Diffusion, run};
use diptych_train::{Recipe, ResumeMode, RunDirectory, read_metrics};
use serde_json::Value;

/// Relative to the expected number.
const TOLERANCE: f64 = 1e-3;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/replay")
}

/// Copies the model, with another scheduler for the v-prediction run.
fn model(golden: &Path, directory: &Path, prediction_type: &str) -> PathBuf {
    let model = directory.join("model");
    for (from, to) in [
        ("model/model_index.json", "model_index.json"),
        ("model/unet/config.json", "unet/config.json"),
        (
            "model/unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.safetensors",
        ),
        (
            if prediction_type == "v_prediction" {
                "scheduler_v_prediction/scheduler_config.json"
            } else {
                "model/scheduler/scheduler_config.json"
            },
            "scheduler/scheduler_config.json",
        ),
    ] {
        std::fs::create_dir_all(model.join(to).parent().unwrap()).unwrap();
        std::fs::copy(golden.join(from), model.join(to)).unwrap();
    }
    model
}

/// The recipe of a golden run: its objective and optimizer as they stand in `expected.json`.
fn recipe(golden: &Path, directory: &Path, case: &Value) -> Recipe<Diffusion> {
    let model = model(golden, directory, case["prediction_type"].as_str().unwrap());
    let (objective_name, objective) = case["objective"].as_object().unwrap().iter().next().unwrap();
    let table = |value: &Value| -> String {
        let rows: Vec<String> = value
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        rows.join("\n")
    };
    let text = format!(
        r#"
modality = "diffusion"
[run]
device = "cpu"
output = '{output}'
[model]
path = '{model}'
[adapter.lora]
rank = 4
alpha = 8.0
init = '{adapter}'
[data]
path = '{data}'
layout = "latent-pairs"
shuffle = false
[objective.{objective_name}]
{objective}
{sections}
[optimizer.adamw]
{optimizer}
[train]
steps = {steps}
micro_batch = {micro_batch}
checkpoint_every = 0
sample_every = 0
"#,
        model = model.display(),
        output = directory.join("run").display(),
        adapter = golden.join("adapter").display(),
        data = golden.join("data").display(),
        objective = table(objective),
        sections = sections(case),
        optimizer = table(&case["optimizer"]["adamw"]),
        steps = case["steps"],
        micro_batch = images_or_pairs(case),
    );
    Recipe::parse(&text, &[]).unwrap()
}

/// `[method.NAME]` and `[reference.NAME]`, where a run has them.
fn sections(case: &Value) -> String {
    ["method", "reference"]
        .iter()
        .filter_map(|section| {
            let (name, keys) = case[section].as_object()?.iter().next()?;
            let rows: Vec<String> = keys
                .as_object()
                .unwrap()
                .iter()
                .map(|(key, value)| format!("{key} = {value}"))
                .collect();
            Some(format!("[{section}.{name}]\n{}\n", rows.join("\n")))
        })
        .collect()
}

/// Records of a step: a pair is two for a method that takes pairs apart.
fn images_or_pairs(case: &Value) -> u64 {
    let pairs = case["micro_batch"].as_u64().unwrap();
    if case["method"]["unpaired"].is_object() {
        2 * pairs
    } else {
        pairs
    }
}

fn assert_close(found: f64, expected: f64, scale: f64, what: &str) {
    let error = (found - expected).abs() / expected.abs().max(scale);
    assert!(
        error <= TOLERANCE,
        "{what}: {found}, expected {expected} (relative error {error:.2e})"
    );
}

#[test]
fn twenty_steps_equal_pytorch() {
    let golden = golden();
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(golden.join("expected.json")).unwrap()).unwrap();
    let runs = expected["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|case| case["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "dpo",
            "mapo",
            "dpo_v_prediction",
            "dpo_research_script",
            "dpo_moving_reference",
            "smpo",
            "kto",
            "kto_mismatched",
            "rank_dpo",
        ]
    );
    for (name, case) in names.iter().zip(runs) {
        let directory = tempfile::tempdir().unwrap();
        let recipe = recipe(&golden, directory.path(), case);
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
        assert_eq!(outcome.summary.step, 20, "{name}");
        let rows = read_metrics(&RunDirectory::new(&outcome.output).metrics()).unwrap();
        let records = case["records"].as_array().unwrap();
        assert_eq!((rows.len(), records.len()), (20, 20), "{name}");
        for (row, record) in rows.iter().zip(records) {
            let mut num_compared = 0;
            for (key, value) in record.as_object().unwrap() {
                let expected = value.as_f64().unwrap();
                let found = match key.as_str() {
                    "step" => row.step as f64,
                    "loss" => row.loss,
                    "grad_norm" => row.grad_norm,
                    key => row.metrics[key],
                };
                // A margin is a small difference of rewards of order 1: it is compared on that scale.
                let scale = if key == "rewards/margins" { 1.0 } else { 0.0 };
                assert_close(found, expected, scale, &format!("{name} step {} {key}", row.step));
                num_compared += 1;
            }
            assert!(
                num_compared >= if *name == "rank_dpo" { 4 } else { 6 },
                "{name}: {num_compared} numbers compared"
            );
        }
    }
}

/// Of records that bring their noise and timesteps along, the reference's errors are what they are in every epoch.
#[test]
fn errors_computed_once_are_those_of_a_frozen_copy() {
    let golden = golden();
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(golden.join("expected.json")).unwrap()).unwrap();
    let rows = |reference: &str| {
        let directory = tempfile::tempdir().unwrap();
        let mut case = expected["runs"][0].clone();
        case["steps"] = 3.into();
        case["reference"] = serde_json::json!({ reference: {} });
        let recipe = recipe(&golden, directory.path(), &case);
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
        read_metrics(&RunDirectory::new(&outcome.output).metrics()).unwrap()
    };
    let (cached, frozen) = (rows("cached"), rows("frozen"));
    for (cached, frozen) in cached.iter().zip(&frozen) {
        assert!(
            (cached.loss - frozen.loss).abs() < 1e-5 * frozen.loss,
            "{cached:?} {frozen:?}"
        );
        for key in ["mse/reference_chosen", "mse/reference_rejected"] {
            let difference = (cached.metrics[key] - frozen.metrics[key]).abs();
            assert!(difference < 1e-5 * frozen.metrics[key], "{key}: {difference}");
        }
    }
    assert_ne!(cached[2].loss, cached[0].loss);
}

/// Five times through the same pairs with the same noise: margins of the fifth are above those of the first.
#[test]
fn margins_grow_from_epoch_to_epoch() {
    let golden = golden();
    let expected: Value =
        serde_json::from_str(&std::fs::read_to_string(golden.join("expected.json")).unwrap()).unwrap();
    let mut num_learned = 0;
    for case in expected["runs"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        // Where the reference follows, margins do not grow.
        if name == "dpo_moving_reference" {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let mut case = case.clone();
        case["steps"] = 100.into();
        let recipe = recipe(&golden, directory.path(), &case);
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
        let rows = read_metrics(&RunDirectory::new(&outcome.output).metrics()).unwrap();
        let margin = |rows: &[diptych_train::MetricsRow]| {
            rows.iter().map(|row| row.metrics["rewards/margins"]).sum::<f64>() / rows.len() as f64
        };
        let (first, fifth) = (margin(&rows[..20]), margin(&rows[80..]));
        assert!(fifth > first, "{name}: {first} to {fifth}");
        num_learned += 1;
    }
    assert_eq!(num_learned, 8);
}
