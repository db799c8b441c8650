//! Whole runs: what they leave, and that it is what another program computed.

use diptych_train::read_scalars;
use serde_json::Value;

use crate::place::{Place, golden};

/// Relative to the expected number.
const TOLERANCE: f64 = 1e-3;

/// The keys of `metrics.jsonl`, as users' programs read them.
const KEYS: [&str; 15] = [
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "learning_rate",
    "logps/chosen",
    "logps/rejected",
    "mse/chosen",
    "mse/reference_chosen",
    "mse/reference_rejected",
    "mse/rejected",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/margins",
    "rewards/rejected",
];

#[test]
fn a_run_equals_pytorch_and_leaves_the_files_it_promises() {
    let place = Place::with_replay();
    let stdout = place.run(&["train", "recipe.toml"]).success();
    assert!(
        stdout.contains("20 steps in") && stdout.contains("report: run/report.html"),
        "{stdout}"
    );

    let names = place.names("run");
    let (events, others): (Vec<String>, Vec<String>) = names
        .into_iter()
        .partition(|name| name.starts_with("events.out.tfevents."));
    assert_eq!(events.len(), 1);
    assert_eq!(
        others,
        [
            "checkpoints",
            "final",
            "metrics.jsonl",
            "plan.toml",
            "recipe.toml",
            "report.html",
            "summary.json"
        ]
    );
    assert_eq!(place.names("run/checkpoints"), ["step-000015", "step-000020"]);
    assert_eq!(
        place.names("run/checkpoints/step-000020"),
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "optimizer.safetensors",
            "pytorch_lora_weights.safetensors",
            "state.json"
        ]
    );
    assert_eq!(
        place.names("run/final"),
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "pytorch_lora_weights.safetensors"
        ]
    );
    assert!(
        place.bytes("run/final/adapter_model.safetensors")
            == place.bytes("run/checkpoints/step-000020/adapter_model.safetensors")
    );
    assert_eq!(place.read("run/recipe.toml"), place.read("recipe.toml"));

    let rows = rows(&place, "run");
    compare_with_pytorch(&rows);
    compare_with_events(&place, &format!("run/{}", events[0]), &rows);

    let summary = place.json("run/summary.json");
    assert_eq!(summary["step"], 20);
    assert_eq!(summary["stopped"], false);
    assert_eq!(summary["metrics"], rows[19]);
    assert!(
        summary["wall_time_secs"].as_f64().unwrap() > 0.0 && summary["examples_per_second"].as_f64().unwrap() > 0.0
    );

    let report = place.read("run/report.html");
    assert!(report.contains("<svg"), "the report has no curves");
    for address in ["src=\"http", "href=\"http", "url(http", "@import"] {
        assert!(!report.contains(address), "the report needs a network: {address}");
    }
}

fn rows(place: &Place, run: &str) -> Vec<Value> {
    place
        .read(&format!("{run}/metrics.jsonl"))
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn compare_with_pytorch(rows: &[Value]) {
    let expected = std::fs::read_to_string(golden("replay/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let run = &expected["runs"][0];
    assert_eq!(run["name"], "dpo");
    let records = run["records"].as_array().unwrap();
    assert_eq!((rows.len(), records.len()), (20, 20));
    for (row, record) in rows.iter().zip(records) {
        let step = &record["step"];
        assert_eq!(&row["step"], step);
        for key in KEYS {
            assert!(row[key].is_number(), "step {step} has no {key}: {row}");
        }
        assert!(
            row["timesteps/mean"].is_number(),
            "step {step} has no timesteps/mean: {row}"
        );
        for key in [
            "loss",
            "grad_norm",
            "mse/chosen",
            "mse/rejected",
            "mse/reference_chosen",
            "mse/reference_rejected",
        ] {
            let (found, expected) = (row[key].as_f64().unwrap(), record[key].as_f64().unwrap());
            let error = (found - expected).abs() / expected.abs();
            assert!(error <= TOLERANCE, "step {step} {key}: {found}, expected {expected}");
        }
    }
}

fn compare_with_events(place: &Place, events: &str, rows: &[Value]) {
    let scalars = read_scalars(&place.path(events)).unwrap();
    let losses: Vec<(u64, f32)> = scalars
        .iter()
        .filter(|scalar| scalar.tag.ends_with("loss"))
        .map(|scalar| (scalar.step, scalar.value))
        .collect();
    let expected: Vec<(u64, f32)> = rows
        .iter()
        .map(|row| (row["step"].as_u64().unwrap(), row["loss"].as_f64().unwrap() as f32))
        .collect();
    assert_eq!(losses, expected);
}

#[test]
fn the_plan_has_every_default_and_a_dry_run_prints_it() {
    let place = Place::with_replay();
    let before = place.tree();
    let plan = place.run(&["train", "recipe.toml", "--dry-run"]).success();
    assert_eq!(place.tree(), before);
    let plan: toml::Table = plan.parse().unwrap();
    let recipe = &plan["recipe"];
    assert_eq!(recipe["reference"]["adapter_off"].as_table().unwrap().len(), 0);
    assert_eq!(recipe["train"]["accumulation"].as_integer(), Some(1));
    assert_eq!(recipe["schedule"]["constant"]["warmup_steps"].as_integer(), Some(0));
    let inputs: Vec<&str> = plan["inputs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|input| input["name"].as_str().unwrap())
        .collect();
    for name in ["data.path", "model.path/unet/diffusion_pytorch_model.safetensors"] {
        assert!(inputs.contains(&name), "{name} is not in {inputs:?}");
    }
    place.run(&["train", "recipe.toml", "--set", "train.steps=1"]).success();
    let mut written: toml::Table = place.read("run/plan.toml").parse().unwrap();
    assert_eq!(written["recipe"]["train"]["steps"].as_integer(), Some(1));
    written["recipe"]["train"]
        .as_table_mut()
        .unwrap()
        .insert("steps".into(), 20.into());
    assert_eq!(written, plan);
}

#[test]
fn arguments_change_the_recipe() {
    let place = Place::with_replay();
    let arguments = [
        "train",
        "recipe.toml",
        "--out",
        "else where/7",
        "--device",
        "cpu",
        "--set",
        "train.steps=2",
        "--set",
        "optimizer.adamw.lr=1e-3",
    ];
    place.run(&arguments).success();
    assert_eq!(place.names("run"), Vec::<String>::new());
    let rows = rows(&place, "else where/7");
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["learning_rate"], 1e-3);
    let recipe = place.read("else where/7/recipe.toml");
    assert!(
        recipe.contains("--set optimizer.adamw.lr=1e-3") && recipe.contains("lr = 0.002"),
        "{recipe}"
    );

    // A recipe is found from anywhere, and what it names beside it.
    let elsewhere = Place::new();
    let recipe = place.path("recipe.toml");
    elsewhere
        .run(&[
            "train",
            recipe.to_str().unwrap(),
            "--set",
            "train.steps=1",
            "--out",
            "here",
        ])
        .success();
    assert_eq!(elsewhere.names("here/final").len(), 3);
}

#[test]
fn another_objective_runs_without_a_reference() {
    let place = Place::with_replay();
    place.replace("recipe.toml", "[objective.dpo]\nbeta = 500.0", "[objective.mapo]");
    place.run(&["train", "recipe.toml", "--set", "train.steps=3"]).success();
    let rows = rows(&place, "run");
    assert_eq!(rows.len(), 3);
    assert!(rows[0].get("mse/reference_chosen").is_none(), "{}", rows[0]);
}

#[test]
fn verify_resume_says_what_is_equal() {
    let place = Place::with_replay();
    let before = place.tree();
    let stdout = place.run(&["verify-resume", "recipe.toml", "--steps", "4"]).success();
    assert_eq!(place.tree(), before);
    assert!(
        stdout.ends_with("a resumed run equals the uninterrupted one, bit for bit\n"),
        "{stdout}"
    );
    for what in ["weights", "optimizer state", "data position", "randomness"] {
        for scenario in ["stopped", "killed while writing a checkpoint"] {
            let line = format!("equal     {scenario}: {what}");
            assert!(stdout.contains(&line), "no {line:?} in: {stdout}");
        }
    }
    assert!(!stdout.contains("DIFFERENT"));
}
