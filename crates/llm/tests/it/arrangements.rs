//! However a batch is laid out, and whatever is recomputed, the numbers are the same.

use serde_json::json;

use crate::bench::{Bench, compute, golden};
use crate::catalog::{Rows, Subject, subjects};

/// In f32, of losses and gradients alike.
const TOLERANCE: f64 = 1e-5;

#[test]
fn padded_packed_and_shared_prefix_agree_for_every_objective() {
    let mut num = 0;
    for subject in subjects() {
        let bench = Bench::new();
        let computed = ["padded", "packed", "shared_prefix"].map(|arrangement| {
            let method = bench.method(&subject.arranged(&bench, arrangement));
            compute(&method, 6, 3)
        });
        for (other, name) in computed[1..].iter().zip(["packed", "shared_prefix"]) {
            other.assert_equals(&computed[0], TOLERANCE, &format!("{} {name}", subject.name()));
            num += 1;
        }
    }
    assert_eq!(num, 2 * 55);
}

#[test]
fn metrics_agree_too() {
    let subject = |method, rows, objective| Subject {
        objective,
        method,
        rows,
    };
    let subjects = [
        subject("offline_pairs", Rows::Pairs, json!({ "dpo": { "beta": 0.1 } })),
        subject("unpaired", Rows::Judged, json!({ "kto": { "beta": 0.1 } })),
        subject("ranked", Rows::Ranked, json!({ "plackett_luce": { "beta": 0.1 } })),
        subject("sft", Rows::Pairs, json!({ "sft": {} })),
    ];
    let mut num = 0;
    for subject in subjects {
        let bench = Bench::new();
        let [padded, packed] = ["padded", "packed"].map(|arrangement| {
            let method = bench.method(&subject.arranged(&bench, arrangement));
            compute(&method, 4, 4).outputs.remove(0)
        });
        for (key, expected) in &padded.metrics {
            for (found, expected) in packed.metrics[key].iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{key}");
                num += 1;
            }
        }
        for (key, expected) in &padded.weighted {
            let found = packed.weighted[key];
            assert!((found.weight - expected.weight).abs() < 0.5, "{key}");
            assert!(
                (found.sum - expected.sum).abs() <= 1e-3 * expected.sum.abs().max(1.0),
                "{key}"
            );
            num += 1;
        }
        assert_eq!(padded.totals, packed.totals);
    }
    assert!(num >= 70, "{num}");
}

#[test]
fn masked_tokens_count_nowhere() {
    // `keep-end` leaves a rest of the prompt beside the longer answer, which is not scored.
    let bench = Bench::new();
    let changes = |arrangement: &str| {
        json!({
            "data": { "max_len": 24, "encoding": { "truncation": "keep-end" } },
            "method": { "offline_pairs": { "arrangement": arrangement } },
            "objective": { "simpo": { "beta": 2.0, "gamma": 0.5 } },
        })
    };
    let of = |arrangement: &str| compute(&bench.method(&changes(arrangement)), 6, 6);
    let (padded, shared) = (of("padded"), of("shared_prefix"));
    shared.assert_equals(&padded, TOLERANCE, "keep-end");
    let output = &shared.outputs[0];
    let num_scored: f64 = ["lengths/chosen", "lengths/rejected"]
        .iter()
        .flat_map(|key| &output.metrics[key])
        .sum();
    assert!((output.weighted["entropy"].weight - num_scored).abs() < 0.5);
    let num_chosen: f64 = output.metrics["lengths/chosen"].iter().sum();
    assert!((output.weighted["mean_token_accuracy"].weight - num_chosen).abs() < 0.5);
}

#[test]
fn gradient_checkpointing_changes_nothing() {
    let mut num = 0;
    for (model, adapter) in [
        ("llama", json!({ "full": {} })),
        ("qwen2", crate::bench::fresh_adapter()),
    ] {
        for objective in [
            json!({ "dpo": { "beta": 0.1 } }),
            json!({ "ld_dpo": { "beta": 0.1, "alpha": 0.5 } }),
            json!({ "orpo": { "beta": 0.1 } }),
        ] {
            let bench = Bench::new();
            let of = |gradient_checkpointing: serde_json::Value| {
                let changes = json!({
                    "model": { "path": golden().join(model) },
                    "adapter": adapter,
                    "objective": objective,
                    "train": { "gradient_checkpointing": gradient_checkpointing },
                });
                compute(&bench.method(&changes), 4, 2)
            };
            let kept = of(json!(false));
            for policy in [
                json!(true),
                json!({ "every": 2 }),
                json!({ "every": 5 }),
                json!({ "memory": 1 << 20 }),
            ] {
                of(policy.clone()).assert_equals(&kept, 1e-7, &format!("{model} {objective} {policy}"));
                num += 1;
            }
        }
    }
    assert_eq!(num, 2 * 3 * 4);
}

/// A budget takes as few layers as it allows, and one that nothing fits in is refused by what is needed.
#[test]
fn a_budget_of_memory_is_kept() {
    let bench = Bench::new();
    let changes = |policy: serde_json::Value| {
        json!({
            "model": { "path": golden().join("qwen2") },
            "adapter": crate::bench::fresh_adapter(),
            "train": { "gradient_checkpointing": policy },
        })
    };
    let estimate = |policy: serde_json::Value| diptych_llm::estimate(&bench.recipe(&changes(policy)));
    let said = |mib: u64| {
        let estimate = estimate(json!({ "memory": mib })).unwrap();
        let note = estimate
            .assumptions
            .into_iter()
            .find(|sentence| sentence.starts_with("Within "));
        note.unwrap()
    };
    assert_eq!(said(1 << 20), "Within 1048576 MiB nothing is recomputed.");
    let error = estimate(json!({ "memory": 1 })).unwrap_err().to_string();
    assert!(
        error.contains("train.gradient_checkpointing.memory") && error.contains("is 1 MiB"),
        "{error}"
    );
    let prepared = crate::bench::message(bench.try_method(&changes(json!({ "memory": 1 }))));
    assert!(prepared.contains("is 1 MiB"), "{prepared}");
}

#[test]
fn bf16_is_f32_within_its_precision() {
    let bench = Bench::new();
    let mut num = 0;
    for adapter in [json!({ "full": {} }), crate::bench::fresh_adapter()] {
        let run = |precision: &str| {
            bench.run(&json!({
                "run": { "precision": precision },
                "model": { "path": golden().join("qwen2") },
                "adapter": adapter,
            }))
        };
        for (found, expected) in run("bf16").iter().zip(run("f32")) {
            assert!(
                (found.loss - expected.loss).abs() < 0.02,
                "{} {}",
                found.loss,
                expected.loss
            );
            let (found, expected) = (found.metrics["logps/chosen"], expected.metrics["logps/chosen"]);
            // Eight bits of precision, and sums over about twenty tokens.
            assert!((found - expected).abs() < 0.01 * expected.abs(), "{found} {expected}");
            num += 1;
        }
    }
    assert_eq!(num, 6);
}
