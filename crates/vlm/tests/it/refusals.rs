//! Bad input is named, or left out and counted, as the recipe says.

use diptych_llm::network::Network;
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
    let error = refused(&bench, other, &json!({}));
    assert!(
        error.contains("rows.jsonl, row 2") && error.contains("places for 2 images") && error.contains("row has 1"),
        "{error}"
    );
}

#[test]
fn image_tokens_that_only_the_template_shows_are_counted_too() {
    let bench = Bench::new("llava");
    // The words of the second row hold the template's own token of an image, beside the one that its image has.
    let mut odd = row("odd", &json!(["images/a.png"]));
    odd["prompt"] = json!([{ "role": "user", "content": [
        { "type": "image" }, { "type": "text", "text": "what do you see <image>" },
    ] }]);
    let error = refused(&bench, odd, &json!({}));
    assert!(
        error.contains("odd") && error.contains("1 images, but 2 tokens"),
        "{error}"
    );
    let path = bench.rows("rows.jsonl", &[good()]);
    assert!(
        bench
            .try_method(&json!({ "data": { "path": path, "on_error": "skip" } }))
            .is_ok()
    );
    // Of rows none of which can be used, it is said how many there are.
    let mut odd = row("odd", &json!(["images/a.png"]));
    odd["prompt"] = json!([{ "role": "user", "content": [
        { "type": "image" }, { "type": "text", "text": "what do you see <image>" },
    ] }]);
    std::fs::write(bench.path("torn.jpg"), b"no picture").unwrap();
    let rows = [odd.clone(), odd, row("torn", &json!(["torn.jpg"]))];
    let path = bench.rows("rows.jsonl", &rows);
    let error = bench
        .try_method(&json!({ "data": { "path": path, "on_error": "skip" } }))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("none of the 3 records is left: of 3 the images"),
        "{error}"
    );
}

#[test]
fn records_that_are_left_out_take_no_memory_of_images() {
    let bench = Bench::new("llava");
    std::fs::write(bench.path("torn.jpg"), b"no picture").unwrap();
    // The other image of a record that is left out, one with a text that is too long, and one that is seen again.
    let mut long = row("long", &json!(["images/c.png"]));
    long["prompt"][0]["content"] = json!("what do you see ".repeat(12));
    let two = |id: &str, images: &Value| {
        let mut row = row(id, images);
        row["prompt"][0]["content"] =
            json!([{ "type": "image" }, { "type": "image" }, { "type": "text", "text": "what" }]);
        row
    };
    let rows = [
        two("torn", &json!(["images/b.png", "torn.jpg"])),
        long,
        good(),
        row("again", &json!(["images/b.png"])),
    ];
    let path = bench.rows("rows.jsonl", &rows);
    let data = json!({ "path": path, "on_error": "skip", "max_len": 60 });
    let method = bench.method(&json!({ "data": data, "adapter": { "lora": { "rank": 2, "tower": "trained" } } }));
    assert_eq!(diptych_train::Method::num_records(&method), 2);
    let Network::Vision(network) = &method.policy().model else {
        panic!("the network reads no images");
    };
    let images = network.images();
    let names: Vec<String> = (0..images.len())
        .map(|index| images.source(index).to_string())
        .collect();
    assert!(
        names.len() == 2 && names[0].ends_with("a.png") && names[1].ends_with("b.png"),
        "{names:?}"
    );
    let bytes = (0..2).map(|index| 4 * images.num_elements(index) as u64).sum::<u64>();
    assert_eq!(images.memory_used(), bytes);
}

#[test]
fn an_image_that_cannot_be_read_is_named_with_its_list() {
    let bench = Bench::new("llava");
    std::fs::write(bench.path("torn.jpg"), b"no picture").unwrap();
    for key in ["images", "rejected_images", "other_images"] {
        let mut torn = good();
        torn[key] = json!(["torn.jpg"]);
        let path = bench.rows("rows.jsonl", &[torn]);
        let error = bench.try_method(&json!({ "data": { "path": path } })).unwrap_err();
        assert!(
            error.to_string().contains(&format!("record good: `{key}[0]`, ")),
            "{error}"
        );
    }
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
