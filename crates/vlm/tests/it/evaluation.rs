//! `[eval.hallucination]`: what a run says about pictures before and after.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diptych_shapes::{Color, Shape};
use diptych_train::ResumeMode;
use diptych_vlm::evaluation::check_evaluation;
use diptych_vlm::{Outcome, run};
use serde_json::{Value, json};

use crate::bench::Bench;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A run on the checkpoint of the embedded world, whose captions have objects to be counted.
fn changes(bench: &Bench, lr: f64, adapter: &Value) -> Value {
    json!({
        "run": { "output": bench.path("shapes") },
        "model": { "path": repository("models/shapes-vlm") },
        "adapter": adapter,
        "data": { "path": repository("datasets/shapes-vlm-pairs/pairs.jsonl") },
        "reference": { "frozen": {} },
        "optimizer": { "adamw": { "lr": lr } },
        "train": { "steps": 2, "micro_batch": 4 },
        "eval": { "hallucination": {
            "num_scenes": 24, "seed": 3, "batch_size": 7, "bootstrap_samples": 50, "num_shown": 3,
            "scenes": { "min_objects": 2, "max_objects": 3, "colors": ["red", "blue", "green"] },
        } },
    })
}

fn outcome(bench: &Bench, changes: &Value) -> Outcome {
    let recipe = bench.try_recipe(changes).unwrap();
    check_evaluation(&recipe).unwrap();
    run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Of the captions of a side: the share with an object that is not in their scene, counted here word by word.
fn hallucinating(folder: &Path, side: &str) -> f64 {
    let scenes = lines(&folder.join("scenes.jsonl"));
    let captions = lines(&folder.join(format!("{side}_captions.jsonl")));
    assert_eq!(captions.len(), scenes.len());
    let mut num = 0;
    for (row, scene) in captions.iter().zip(&scenes) {
        assert_eq!(row["image"], scene["image"]);
        let objects = scene["scene"]["objects"].as_array().unwrap();
        let caption = row["caption"].as_str().unwrap();
        let words: Vec<&str> = caption
            .split(|letter: char| !letter.is_alphabetic())
            .filter(|word| !word.is_empty())
            .collect();
        let is_wrong = |(place, word): (usize, &&str)| {
            let shape = Shape::ALL
                .iter()
                .find(|shape| [shape.name(), shape.plural()].contains(word));
            let color = place.checked_sub(1).map(|before| words[before]);
            let color = color.filter(|word| Color::from_name(word).is_some());
            let is_known = |object: &Value| {
                shape.is_none_or(|shape| object["shape"] == shape.name())
                    && color.is_none_or(|color| object["color"] == color)
            };
            (shape.is_some() || word.starts_with("object")) && !objects.iter().any(is_known)
        };
        num += usize::from(words.iter().enumerate().any(is_wrong));
    }
    num as f64 / captions.len() as f64
}

#[test]
fn base_and_aligned_answers_are_compared_and_shown() {
    let bench = Bench::new("llava");
    let changes = changes(&bench, 0.05, &json!({ "lora": { "rank": 2 } }));
    let outcome = outcome(&bench, &changes);
    let metrics = &outcome.summary.metrics.as_ref().unwrap().metrics;
    let folder = outcome.output.join("hallucination");
    for side in ["base", "aligned"] {
        let found = metrics[&format!("eval_chair_s/{side}")];
        let counted = hallucinating(&folder, side);
        assert!((found - counted).abs() < 1e-12, "{side}: {found}, expected {counted}");
        assert_eq!(lines(&folder.join(format!("{side}_answers.jsonl"))).len(), 48);
    }
    for name in [
        "chair_i",
        "recall",
        "pope_adversarial_accuracy",
        "pope_adversarial_false_yes",
    ] {
        let value = |part: &str| metrics[&format!("eval_{name}/{part}")];
        assert!((0.0..=1.0).contains(&value("base")), "{name}");
        let difference = value("aligned") - value("base");
        assert!((value("difference") - difference).abs() < 1e-12, "{name}");
        assert!(value("base_low") <= value("base") && value("base") <= value("base_high"));
        assert!((0.0..=1.0).contains(&value("p_value")), "{name}");
    }
    let summary = std::fs::read_to_string(outcome.output.join("summary.json")).unwrap();
    assert!(summary.contains("eval_chair_s/aligned"), "{summary}");
    let report = std::fs::read_to_string(outcome.output.join("report.html")).unwrap();
    assert!(report.contains("hallucination about 24 held-out pictures"), "{report}");
    assert_eq!(report.matches("<img src=\"data:image/png;base64,").count(), 3);
    let examples = std::fs::read_to_string(outcome.output.join("eval-examples.json")).unwrap();
    assert_eq!(
        report.matches("<mark>").count(),
        examples.matches("\"is_wrong\":true").count()
    );
    assert!(report.contains("<mark>"), "nothing is marked");
    assert!(outcome.hallucination.unwrap().to_string().contains("CHAIRs"));
}

#[test]
fn a_model_that_learned_nothing_answers_as_before() {
    let bench = Bench::new("llava");
    for adapter in [json!({ "lora": { "rank": 2 } }), json!({ "full": {} })] {
        let _ = std::fs::remove_dir_all(bench.path("shapes"));
        let outcome = outcome(&bench, &changes(&bench, 0.0, &adapter));
        let metrics = &outcome.summary.metrics.as_ref().unwrap().metrics;
        for name in ["chair_s", "chair_i", "recall", "pope_adversarial_accuracy"] {
            assert_eq!(metrics[&format!("eval_{name}/difference")], 0.0, "{adapter}: {name}");
            assert_eq!(metrics[&format!("eval_{name}/p_value")], 1.0, "{adapter}: {name}");
        }
    }
}

#[test]
fn settings_out_of_range_are_refused_by_key() {
    let bench = Bench::new("llava");
    for (section, key) in [
        (json!({ "num_scenes": 0 }), "eval.hallucination.num_scenes"),
        (json!({ "size": 16 }), "eval.hallucination.size"),
        (
            json!({ "sampling": { "temperature": -1.0 } }),
            "eval.hallucination.sampling.temperature",
        ),
        (json!({ "scenes": { "max_objects": 0 } }), "eval.hallucination.scenes"),
        (json!({ "pictures": 3 }), "pictures"),
    ] {
        let changes = json!({ "eval": { "hallucination": section } });
        let error = bench.try_recipe(&changes).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    // Of two kinds of objects, both are in nearly every picture of four: nothing is left to ask about that is not there.
    let scenes = json!({ "min_objects": 4, "max_objects": 4, "shapes": ["circle", "square"] });
    let changes = json!({ "eval": { "hallucination": { "naming": "shape", "scenes": scenes } } });
    let recipe = bench.try_recipe(&changes).unwrap();
    let error = check_evaluation(&recipe).unwrap_err().to_string();
    assert!(error.contains("image"), "{error}");
}
