//! What the policy is compared with: one network, however its scores are come by.

use diptych_llm::arrangement::{Arrangement, Sequence};
use diptych_llm::policy::{NetworkOptions, TrainedLm};
use diptych_llm::scoring::{Statistics, score, score_detached};
use diptych_models::lm::LmDir;
use diptych_tensor::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::bench::{Bench, assert_same_rows, compute, fresh_adapter, golden, message, rows_of};

/// Five steps, which take the policy away from its start.
fn changes(reference: &Value) -> Value {
    json!({ "reference": reference, "train": { "steps": 5, "micro_batch": 2, "accumulation": 2 } })
}

/// The golden pairs with the scores of the start, read off a run.
fn with_columns(bench: &Bench) -> std::path::PathBuf {
    let method = bench.method(&json!({}));
    let mut rows = rows_of("pairs.jsonl");
    let num = rows.len();
    let outputs = compute(&method, num, num).outputs;
    for (at, row) in rows.iter_mut().enumerate() {
        row["ref_chosen_logps"] = json!(outputs[0].metrics["logps/chosen"][at]);
        row["ref_rejected_logps"] = json!(outputs[0].metrics["logps/rejected"][at]);
    }
    bench.rows("columns.jsonl", &rows)
}

#[test]
fn cached_scores_are_live_ones() {
    let bench = Bench::new();
    let live = bench.run(&changes(&json!({ "frozen": {} })));
    let path = bench.path("scores.safetensors");
    let on_disk = changes(&json!({ "cached": { "path": path } }));
    let mut columns = changes(&json!({ "cached": {} }));
    columns["data"] = json!({ "path": with_columns(&bench) });
    let mut num = 0;
    for (what, cached) in [
        ("in memory", bench.run(&changes(&json!({ "cached": {} })))),
        ("written", bench.run(&on_disk)),
        ("read", bench.run(&on_disk)),
        ("of the data", bench.run(&columns)),
    ] {
        // A text is summed in another company: a few of the last digits of sums of some tens.
        num += assert_same_rows(&cached, &live, 5e-5, what);
    }
    assert!(path.is_file());
    assert!(live[4].metrics["rewards/margins"].abs() > 1e-3, "the policy has moved");
    assert!(num >= 4 * 5 * 15, "{num}");
}

#[test]
fn sums_of_the_data_say_nothing_about_tokens() {
    let bench = Bench::new();
    let path = with_columns(&bench);
    let of =
        |objective: Value| json!({ "data": { "path": path }, "reference": { "cached": {} }, "objective": objective });
    let rows = bench.run(&of(json!({ "dpo": { "beta": 0.1 } })));
    assert!(!rows[0].metrics.contains_key("kl_per_token"));
    let error = message(bench.try_method(&of(json!({ "ld_dpo": { "beta": 0.1, "alpha": 0.5 } }))));
    assert!(error.contains("ref_chosen_logps") && error.contains("token"), "{error}");
    // The weights of WPO are the policy's alone.
    let wpo = |data: Value, reference: Value| {
        let mut changes = of(json!({ "wpo": { "objective": { "dpo": { "beta": 0.1 } } } }));
        changes["data"] = data;
        changes["reference"] = reference;
        bench.run(&changes)
    };
    let live = wpo(
        json!({ "path": golden().join("data/pairs.jsonl") }),
        json!({ "frozen": {} }),
    );
    let num = assert_same_rows(
        &wpo(json!({ "path": path }), json!({ "cached": {} })),
        &live,
        1e-4,
        "wpo",
    );
    assert!(num >= 3 * 10, "{num}");
    let mut with_path = of(json!({ "dpo": { "beta": 0.1 } }));
    with_path["reference"] = json!({ "cached": { "path": bench.path("unused") } });
    let error = message(bench.try_method(&with_path));
    assert!(error.contains("reference.cached.path"), "{error}");
}

#[test]
fn an_adapter_that_is_switched_off_is_a_frozen_copy() {
    let bench = Bench::new();
    let mut num = 0;
    for objective in [
        json!({ "dpo": { "beta": 0.1 } }),
        json!({ "ld_dpo": { "beta": 0.1, "alpha": 0.5 } }),
    ] {
        let run = |reference: Value| {
            let mut changes = changes(&reference);
            changes["model"] = json!({ "path": golden().join("qwen2") });
            changes["adapter"] = fresh_adapter();
            changes["objective"] = objective.clone();
            bench.run(&changes)
        };
        let off = run(json!({ "adapter_off": {} }));
        num += assert_same_rows(&off, &run(json!({ "frozen": {} })), 1e-6, "frozen");
        num += assert_same_rows(&off, &run(json!({ "cached": {} })), 1e-5, "cached");
        assert!((off[0].loss - 2f64.ln()).abs() < 1e-6);
    }
    assert!(num >= 4 * 5 * 15, "{num}");
}

#[test]
fn a_stale_file_is_refused_by_what_changed() {
    let bench = Bench::new();
    let path = bench.path("scores.safetensors");
    let model = bench.copy("llama");
    let base = json!({ "model": { "path": model }, "reference": { "cached": { "path": path } } });
    let _written_and_read = [bench.method(&base), bench.method(&base)];
    let with = |section: &str, change: Value| {
        let mut changes = base.clone();
        changes[section] = change;
        message(bench.try_method(&changes))
    };
    let rows = &rows_of("pairs.jsonl")[1..];
    let mut prompted = rows_of("pairs.jsonl");
    prompted[0]["prompt"] = prompted[1]["prompt"].clone();
    let cases = [
        (
            "rows",
            with("data", json!({ "path": bench.rows("fewer.jsonl", rows) })),
            "rows or tokenization",
        ),
        (
            "prompt",
            with("data", json!({ "path": bench.rows("prompted.jsonl", &prompted) })),
            "rows or tokenization",
        ),
        (
            "truncation",
            with("data", json!({ "max_len": 20 })),
            "rows or tokenization",
        ),
        (
            "precision",
            with("run", json!({ "precision": "bf16" })),
            "another precision",
        ),
    ];
    for (what, error, expected) in &cases {
        assert!(
            error.contains(expected) && error.contains("scores.safetensors"),
            "{what}: {error}"
        );
        let others = ["model", "adapter", "precision", "rows"]
            .iter()
            .filter(|word| !expected.contains(*word));
        let named = error
            .split("computed with another ")
            .nth(1)
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned();
        assert!(others.clone().all(|word| !named.contains(word)), "{what}: {named}");
    }
    assert_eq!(cases.len(), 4);
    // One bit of one weight.
    let weights = model.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = message(bench.try_method(&base));
    assert!(error.contains("another model;"), "{error}");
}

#[test]
fn another_model_or_adapter_is_a_reference() {
    // A whole model and the same model as base of the policy score alike.
    let bench = Bench::new();
    let of = |reference: Value| {
        let changes = json!({
            "model": { "path": golden().join("qwen2") },
            "adapter": fresh_adapter(),
            "reference": reference,
        });
        compute(&bench.method(&changes), 4, 4)
    };
    let adapter_off = of(json!({ "adapter_off": {} }));
    let model = of(json!({ "checkpoint": { "path": golden().join("qwen2") } }));
    model.assert_equals(&adapter_off, 1e-6, "the same model");
    // An adapter on it is another reference, and as policy it is its own.
    let adapter = of(json!({ "checkpoint": { "path": golden().join("qwen2_lora") } }));
    assert!(adapter.gradient_difference(&adapter_off) > 1e-4);
    let expected = &adapter.outputs[0].metrics["logratios/chosen"];
    let changes = crate::bench::apart(&json!({ "dpo": { "beta": 0.1 } }));
    let swapped = compute(&bench.method(&changes), 4, 4);
    for (found, expected) in swapped.outputs[0].metrics["logratios/chosen"].iter().zip(expected) {
        assert!(
            (found + expected).abs() < 1e-4 && expected.abs() > 1e-3,
            "{found} {expected}"
        );
    }
}

#[test]
fn a_reference_with_other_tokens_is_refused() {
    let bench = Bench::new();
    let changes = json!({ "reference": { "checkpoint": { "path": golden().join("qwen2") } } });
    let error = message(bench.try_method(&changes));
    assert!(
        error.contains("qwen2") && error.contains("the policy's tokens"),
        "{error}"
    );
}

#[test]
fn a_moving_reference_follows() {
    let bench = Bench::new();
    let run = |reference: Value| {
        let mut changes = changes(&reference);
        changes["train"]["steps"] = json!(4);
        bench.run(&changes)
    };
    let frozen = run(json!({ "frozen": {} }));
    // Updated after step 2, and so equal to the policy at step 3.
    let whole = run(json!({ "ema": { "mixup_alpha": 1.0, "sync_steps": 2 } }));
    assert_same_rows(&whole[..2], &frozen[..2], 1e-6, "before the update");
    assert!((whole[2].loss - 2f64.ln()).abs() < 1e-6, "{}", whole[2].loss);
    assert!((frozen[2].loss - 2f64.ln()).abs() > 1e-3);
    assert!((whole[3].loss - 2f64.ln()).abs() > 1e-4);
    // Half of the way lies between.
    let half = run(json!({ "ema": { "mixup_alpha": 0.5, "sync_steps": 2 } }));
    let margin = |rows: &[diptych_train::MetricsRow]| rows[2].metrics["logratios/chosen"].abs();
    assert!(margin(&whole) < 1e-4 && margin(&half) > 1e-3 && margin(&half) < margin(&frozen));
}

#[test]
fn passes_without_a_backward_pass_hold_no_graph() {
    let directory = LmDir::open(golden().join("llama")).unwrap();
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
        quantization: None,
    };
    let full = diptych_models::AdapterConfig::Full(diptych_models::FullConfig::default());
    let trained = TrainedLm::load(&directory, &full, &options).unwrap();
    let sequence = Sequence {
        id: "one",
        prompt: &[5, 6, 7],
        response: &[8, 9, 10, 11],
        images: &[],
    };
    let mut num = 0;
    for arrangement in [Arrangement::Padded, Arrangement::Packed, Arrangement::SharedPrefix] {
        let arranged = arrangement
            .arrange(&[sequence, sequence], 0, trained.model.device())
            .unwrap();
        let tracked = score(&trained.model, &arranged, Statistics::Skipped)
            .unwrap()
            .per_token_logps;
        let detached = score_detached(&trained.model, &arranged).unwrap().per_token_logps;
        let has_gradients = |logps: &Tensor| {
            let store = logps.sum_all().unwrap().backward().unwrap();
            trained.params.iter().any(|(_, var)| store.get(var).is_some())
        };
        assert!(has_gradients(&tracked) && !has_gradients(&detached));
        let bits =
            |logps: &Tensor| -> Vec<u32> { logps.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect() };
        assert_eq!(bits(&tracked), bits(&detached));
        num += 1;
    }
    assert_eq!(num, 3);
}
