//! Whole training runs with images equal those of TRL, step by step. The logs are `tests/golden/vlm_trl/runs`.

use std::collections::BTreeMap;

use diptych_train::MetricsRow;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::{Bench, golden};

#[derive(Deserialize)]
struct Run {
    model: String,
    adapter: Option<String>,
    trains_tower: bool,
    arguments: Value,
    metrics: BTreeMap<String, Vec<f64>>,
}

fn found(row: &MetricsRow, key: &str) -> Option<f64> {
    match key {
        "loss" => Some(row.loss),
        "grad_norm" => Some(row.grad_norm),
        "learning_rate" => Some(row.learning_rate),
        key => row.metrics.get(key).copied(),
    }
}

/// Repeats a run and returns how many numbers were compared.
fn compare(name: &str, arrangement: &str) -> usize {
    let text = std::fs::read_to_string(golden(&format!("vlm_trl/runs/{name}.json"))).unwrap();
    let run: Run = serde_json::from_str(&text).unwrap();
    let tower = if run.trains_tower { "trained" } else { "frozen" };
    let adapter = match &run.adapter {
        None => json!({ "full": { "tower": tower } }),
        Some(adapter) => {
            let path = golden(&format!("vlm/{adapter}"));
            let text = std::fs::read_to_string(path.join("adapter_config.json")).unwrap();
            let config: Value = serde_json::from_str(&text).unwrap();
            json!({ "lora": {
                "rank": config["r"], "alpha": config["lora_alpha"], "targets": config["target_modules"], "init": path, "tower": tower,
            } })
        }
    };
    let of = |key: &str| run.arguments[key].clone();
    let rows = Bench::new(&run.model).run(&json!({
        "adapter": adapter,
        "reference": { "frozen": {} },
        "method": { "offline_pairs": { "arrangement": arrangement } },
        "objective": { "dpo": { "beta": of("beta") } },
        "optimizer": { "adamw": { "lr": of("learning_rate"), "weight_decay": 0.0, "max_grad_norm": of("max_grad_norm") } },
        "train": {
            "steps": of("max_steps"),
            "micro_batch": of("per_device_train_batch_size"),
            "accumulation": of("gradient_accumulation_steps"),
        },
    }));
    let mut num = 0;
    let keys = [
        "loss",
        "grad_norm",
        "learning_rate",
        "logps/chosen",
        "logps/rejected",
        "rewards/chosen",
        "rewards/rejected",
    ];
    for key in keys {
        let expected = &run.metrics[key];
        assert_eq!(rows.len(), expected.len(), "{name}: steps");
        for (step, (row, expected)) in rows.iter().zip(expected).enumerate() {
            let found = found(row, key).unwrap();
            let bound = (1e-3 * expected.abs()).max(1e-5);
            assert!(
                (found - expected).abs() <= bound,
                "{name}, {arrangement}: `{key}` at step {} is {found}, TRL's is {expected}",
                step + 1
            );
            num += 1;
        }
    }
    num
}

#[test]
fn a_llava_with_shared_prompts_and_padded() {
    let mut num = 0;
    for name in ["llava_lora", "llava_full"] {
        for arrangement in ["shared_prefix", "padded"] {
            num += compare(name, arrangement);
        }
    }
    assert_eq!(num, 4 * 7 * 10);
}

#[test]
fn a_qwen2_5_vl_with_shared_prompts_and_padded() {
    let mut num = 0;
    for name in ["qwen2_5_vl_lora", "qwen2_5_vl_full"] {
        for arrangement in ["shared_prefix", "padded"] {
            num += compare(name, arrangement);
        }
    }
    assert_eq!(num, 4 * 7 * 10);
}
