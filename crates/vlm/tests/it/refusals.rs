//! Bad input is named, or left out and counted, as the recipe says.

use serde_json::{Value, json};

use crate::bench::Bench;

fn row(id: &str, images: &Value) -> Value {
    json!({
        "id": id, "images": images, "prompt": [{ "role": "user", "content": "what do you see" }],
        "chosen": [{ "role": "assistant", "content": "a red star left of the circle" }],
        "rejected": [{ "role": "assistant", "content": "no" }],
    })
}

fn good() -> Value {
    row("good", &json!(["images/a.png"]))
}

/// The message of a row that is wrong, after a good one; and that with `skip` the good one is left.
fn refused(bench: &Bench, bad: Value, more: &Value) -> String {
    let path = bench.rows("rows.jsonl", &[good(), bad]);
    let mut changes = json!({ "data": { "path": path } });
    let data = changes["data"].as_object_mut().unwrap();
    data.extend(more.as_object().unwrap().clone());
    let error = bench.try_method(&changes).unwrap_err().to_string();
    changes["data"]["on_error"] = json!("skip");
    let method = bench.method(&changes);
    assert_eq!(diptych_train::Method::num_records(&method), 1, "{error}");
    assert_eq!(diptych_train::Method::record_id(&method, 0), "good", "{error}");
    error
}

#[test]
fn images_that_cannot_be_read_are_named_with_their_row() {
    let bench = Bench::new("llava");
    let missing = refused(&bench, row("lost", &json!(["nowhere.png"])), &json!({}));
    assert!(
        missing.contains("row 2") && missing.contains("nowhere.png"),
        "{missing}"
    );
    std::fs::write(bench.path("broken.jpg"), b"\xff\xd8\xff\xe0 this is no picture").unwrap();
    let corrupt = refused(&bench, row("torn", &json!(["broken.jpg"])), &json!({}));
    assert!(corrupt.contains("torn") && corrupt.contains("broken.jpg"), "{corrupt}");
    // It has 30 times 29 pixels, the other one 23 times 37.
    let large = refused(
        &bench,
        row("wide", &json!(["images/c.png"])),
        &json!({ "max_image_area": 860 }),
    );
    assert!(large.contains("wide") && large.contains("860"), "{large}");
}

#[test]
fn placeholders_and_images_must_be_as_many() {
    let bench = Bench::new("llava");
    let mut other = row("two", &json!(["images/a.png"]));
    other["prompt"][0]["content"] =
        json!([{ "type": "image" }, { "type": "image" }, { "type": "text", "text": "what" }]);
    let path = bench.rows("rows.jsonl", &[other]);
    let error = bench
        .try_method(&json!({ "data": { "path": path } }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("two") || error.contains("rows.jsonl"), "{error}");
    assert!(error.contains('2') && error.contains('1'), "{error}");
}

#[test]
fn only_completions_are_cut() {
    let bench = Bench::new("llava");
    let rows = bench.rows("rows.jsonl", &[good()]);
    let len = |max_len: usize| {
        let method = bench.try_method(&json!({ "data": { "path": rows, "max_len": max_len } }));
        method.map(|method| crate::bench::compute(&method, 1).0.metrics["lengths/chosen"][0])
    };
    let whole = len(1024).unwrap();
    // 16 tokens of the image, and those of the words around it.
    let prompt = (1..60).find(|max_len| len(*max_len).is_ok()).unwrap() - 1;
    assert!(prompt > 16, "{prompt}");
    assert_eq!(len(prompt + 2).unwrap(), 2.0);
    assert!(whole > 2.0);
    let error = len(prompt).unwrap_err().to_string();
    assert!(error.contains("data.max_len"), "{error}");
}

#[test]
fn settings_that_cut_or_ignore_images_are_refused() {
    let bench = Bench::new("llava");
    for (changes, key) in [
        (
            json!({ "data": { "encoding": { "truncation": "keep-end" } } }),
            "data.encoding.truncation",
        ),
        (json!({ "data": { "resolution": 64 } }), "data.resolution"),
        (json!({ "data": { "max_image_area": 0 } }), "data.max_image_area"),
        (json!({ "data": { "max_frames": 0 } }), "data.max_frames"),
        (
            json!({ "samples": { "prompts": ["what do you see"] }, "train": { "sample_every": 1 } }),
            "samples.prompts",
        ),
        (json!({ "eval": { "truth": {} } }), "eval"),
    ] {
        let error = bench.try_recipe(&changes).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
}
