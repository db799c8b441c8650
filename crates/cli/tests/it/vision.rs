//! Commands on a vision-language model: a whole run, what it needs, whether it resumes exactly, and what becomes of its adapter.

use std::collections::BTreeMap;

use diptych_tensor::save_tensors;

use crate::named_values;
use crate::place::{Place, golden};

const RECIPE: &str = r#"modality = "vlm"

[run]
device = "cpu"
output = "run"

[model]
path = "vlm"

[adapter.lora]
rank = 2
targets = ["q_proj", "v_proj", "linear_1"]

[data]
path = "rows/pairs.jsonl"
on_error = "fail"

[method.offline_pairs.image_preference]
beta = 0.1
anchor = {}
corruption.crop = {}

[objective.dpo]
beta = 0.1

[optimizer.adamw]
lr = 0.01

[samples]
num_prompts = 2
max_new_tokens = 4

[train]
steps = 4
micro_batch = 2
sample_every = 4
"#;

/// `recipe.toml`, the tiny `LLaVA` of the golden files as `vlm`, and `rows` with their images.
fn place() -> Place {
    let place = Place::new();
    let to = place.path("vlm");
    std::fs::create_dir(&to).unwrap();
    for folder in ["vlm/llava", "vlm_trl/llava"] {
        for entry in std::fs::read_dir(golden(folder)).unwrap() {
            let from = entry.unwrap().path();
            let name = from.file_name().unwrap().to_str().unwrap().to_owned();
            if name.contains("config.json") || name.contains("token") || name.contains("template") {
                std::fs::copy(&from, to.join(name)).unwrap();
            }
        }
    }
    let names = std::fs::read_to_string(golden("vlm/llava/names.json")).unwrap();
    let table: Vec<(String, String, Vec<usize>)> = serde_json::from_str(&names).unwrap();
    let tensors: BTreeMap<_, _> = table
        .into_iter()
        .map(|(memory, saved, shape)| (saved, named_values::named(&memory, &shape)))
        .collect();
    save_tensors(&to.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    std::fs::create_dir_all(place.path("rows/images")).unwrap();
    std::fs::copy(golden("vlm_trl/pairs.jsonl"), place.path("rows/pairs.jsonl")).unwrap();
    for name in ["a.png", "b.png", "c.png", "d.png"] {
        let from = golden("vlm_trl/images").join(name);
        std::fs::copy(from, place.path("rows/images").join(name)).unwrap();
    }
    place.write("recipe.toml", RECIPE);
    place
}

#[test]
fn a_run_with_images_leaves_an_adapter_that_is_merged() {
    let place = place();
    let plan = place.run(&["train", "recipe.toml", "--dry-run"]).success();
    assert!(
        plan.contains("modality = \"vlm\"") && plan.contains("[recipe.reference.adapter_off]"),
        "{plan}"
    );
    let needed = place.run(&["plan", "recipe.toml"]).success();
    assert!(
        needed.contains("parameters, trained") && needed.contains("activations  "),
        "{needed}"
    );
    let stdout = place.run(&["train", "recipe.toml"]).success();
    assert!(
        stdout.contains("4 steps in") && stdout.contains("report: run/report.html"),
        "{stdout}"
    );
    let metrics = place.read("run/metrics.jsonl");
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    for key in [
        "loss",
        "image_preference/loss",
        "image_preference/anchor",
        "logps/other_images",
        "rewards/margins",
    ] {
        assert!(last[key].is_number(), "{key}: {last}");
    }
    let samples = place.read("run/samples/step-000004.jsonl");
    assert!(
        samples.lines().count() == 2 && samples.contains("rows/images/"),
        "{samples}"
    );
    let merge = [
        "export",
        "--format",
        "merged",
        "--model",
        "vlm",
        "--adapter",
        "run/final",
        "--out",
        "merged",
    ];
    place.run(&merge).success();
    let names = place.names("merged");
    for file in [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ] {
        assert!(names.contains(&file.to_owned()), "{names:?}");
    }
    let of_merged = [
        "train",
        "recipe.toml",
        "--set",
        "model.path=\"merged\"",
        "--set",
        "train.steps=1",
        "--out",
        "again",
    ];
    place.run(&of_merged).success();
}

#[test]
fn a_run_with_images_resumes_exactly() {
    let found = place().run(&["verify-resume", "recipe.toml", "--steps", "4"]);
    assert!(
        found.stdout.contains("bit for bit") && !found.stdout.contains("DIFFERENT"),
        "{}",
        found.stdout
    );
}

#[test]
fn what_is_wrong_with_rows_and_images_is_said() {
    let place = place();
    place.write("rows/images/b.png", b"no picture");
    place
        .run(&["train", "recipe.toml"])
        .failure(1, &["b.png", "record", "`images[0]`"]);
    let skipped = place.run(&["train", "recipe.toml", "--set", "data.on_error=\"skip\""]);
    assert!(skipped.stderr.contains("left out"), "{}", skipped.stderr);
    skipped.success();
    for (set, key) in [
        (
            "method.offline_pairs.image_preference.corruption={ crops = {} }",
            "crops",
        ),
        ("data.crops=2", "data.crops"),
        ("adapter.lora.tower=\"thawed\"", "tower"),
        ("eval.truth={}", "eval"),
    ] {
        place
            .run(&["train", "recipe.toml", "--dry-run", "--set", set])
            .failure(2, &[key]);
    }
    let generate = [
        "score",
        "--model",
        "vlm",
        "--data",
        "rows/pairs.jsonl",
        "--out",
        "scores.jsonl",
    ];
    place.run(&generate).failure(2, &["vision-language model"]);
}
