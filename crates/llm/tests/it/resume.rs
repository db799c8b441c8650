//! A run that was interrupted is the run it continues, bit for bit, whatever it is compared with.

use diptych_llm::prepare;
use diptych_train::{LoopConfig, Reporter, Silent, VerifyConfig, verify_resume};
use serde_json::{Value, json};

use crate::bench::{Bench, fresh_adapter, golden};

struct Case {
    name: &'static str,
    changes: Value,
    /// Whether the method keeps something beside its parameters, such as what it has seen of pairs.
    has_state: bool,
}

fn of(name: &'static str, has_state: bool, changes: Value) -> Case {
    Case {
        name,
        changes,
        has_state,
    }
}

fn with_magnitudes(mut changes: Value) -> Value {
    changes["adapter"]["lora"]["use_dora"] = json!(true);
    changes
}

fn cases() -> Vec<Case> {
    let qwen2 = golden().join("qwen2");
    let judged = golden().join("data/unpaired.jsonl");
    let lora =
        |reference: Value| json!({ "model": { "path": qwen2 }, "adapter": fresh_adapter(), "reference": reference });
    let moving = json!({ "ema": { "mixup_alpha": 0.6, "sync_steps": 1 } });
    vec![
        of(
            "none",
            true,
            json!({ "objective": { "simpo": { "beta": 2.0, "gamma": 1.0 } } }),
        ),
        of(
            "nothing watched",
            false,
            json!({ "method": { "offline_pairs": { "watch": { "action": "ignore" } } } }),
        ),
        of("frozen", true, json!({ "reference": { "frozen": {} } })),
        of("adapter_off", true, lora(json!({ "adapter_off": {} }))),
        of(
            "magnitudes of an adapter",
            true,
            with_magnitudes(lora(json!({ "adapter_off": {} }))),
        ),
        of("cached", true, json!({ "reference": { "cached": {} } })),
        of("ema", true, json!({ "reference": moving })),
        of("ema of an adapter", true, lora(moving.clone())),
        of(
            "checkpoint",
            true,
            lora(json!({ "checkpoint": { "path": golden().join("qwen2_lora") } })),
        ),
        of("averages of the policy", true, json!({ "train": { "ema_decay": 0.9 } })),
        of(
            "running shift",
            true,
            json!({
                "objective": { "bco": { "beta": 0.1, "running_shift": true } },
                "method": { "unpaired": {} },
                "data": { "path": judged },
            }),
        ),
        of(
            "running shift of pairs",
            true,
            json!({ "objective": { "bco_pair": { "beta": 0.1, "running_shift": true } } }),
        ),
        of(
            "kto",
            false,
            json!({
                "objective": { "kto": { "beta": 0.1 } },
                "method": { "unpaired": {} },
                "data": { "path": judged },
            }),
        ),
        of("bf16", true, json!({ "run": { "precision": "bf16" } })),
    ]
}

/// `SimPO` with the divergence on the policy's own answers beside it.
fn answering() -> Case {
    Case {
        name: "answers of the policy",
        has_state: true,
        changes: json!({
            "model": { "path": golden().join("qwen2") },
            "adapter": fresh_adapter(),
            "reference": { "adapter_off": {} },
            "objective": { "simpo": { "beta": 2.0, "gamma": 1.0 } },
            "method": { "offline_pairs": { "online_kl": { "weight": 0.2, "max_new_tokens": 5 } } },
        }),
    }
}

#[test]
fn resumed_runs_are_uninterrupted_ones_bit_for_bit() {
    let mut num = 0;
    for case in cases().into_iter().chain([answering()]) {
        let bench = Bench::new();
        let mut changes = case.changes;
        let train = changes.as_object_mut().unwrap().entry("train").or_insert(json!({}));
        train["micro_batch"] = json!(2);
        train["accumulation"] = json!(2);
        changes.as_object_mut().unwrap().entry("data").or_insert(json!({}))["shuffle"] = json!(true);
        let recipe = bench.recipe(&changes);
        let report = verify_resume(
            || prepare(&recipe, &mut Reporter::silent()),
            &LoopConfig::from_recipe(&recipe).unwrap(),
            &VerifyConfig {
                steps: 4,
                stop_after: 2,
                directory: bench.path("verify"),
            },
            &mut Silent,
        )
        .unwrap_or_else(|error| panic!("{}: {error}", case.name));
        assert!(report.is_exact(), "{}: {report:#?}", case.name);
        let has_state = report
            .comparisons
            .iter()
            .any(|comparison| comparison.what == "state of the method");
        assert_eq!(has_state, case.has_state, "{}", case.name);
        assert!(report.comparisons.len() >= 14, "{}", report.comparisons.len());
        num += 1;
    }
    assert_eq!(num, 15);
}
