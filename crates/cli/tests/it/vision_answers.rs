//! Vision-language models: answers, benchmarks that a model answers, and runs that say how much is hallucinated.

use std::path::Path;

use diptych_shapes::{Example, SceneConfig, Split, render};
use serde_json::{Value, json};

use crate::place::{Place, copy};

fn repository(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    path.display().to_string()
}

/// Pictures `0.png`, `1.png`, `2.png` of the embedded world.
fn with_pictures() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("pictures")).unwrap();
    for index in 0..3 {
        let example = Example::generate(0, index, Split::HeldOut, &SceneConfig::default()).unwrap();
        render(&example.scene, 32)
            .save(place.path(&format!("pictures/{index}.png")))
            .unwrap();
    }
    place
}

/// The model under `plain`, without its chat template.
fn without_template(place: &Place) {
    copy(Path::new(&repository("models/shapes-vlm")), &place.path("plain"));
    let mut config = place.json("plain/tokenizer_config.json");
    assert!(config.as_object_mut().unwrap().remove("chat_template").is_some());
    place.write("plain/tokenizer_config.json", config.to_string());
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn prompts_about_images_are_answered() {
    let place = with_pictures();
    let model = repository("models/shapes-vlm");
    let rows = [1, 2].map(|index| {
        json!({"prompt": "<image> describe the picture:", "images": [format!("pictures/{index}.png")]}).to_string()
    });
    place.write("rows.jsonl", rows.join("\n"));
    let generate = |more: &[&str], out: &str| {
        let mut words = vec![
            "generate",
            "--model",
            &model,
            "--temperature",
            "0",
            "--max-new-tokens",
            "30",
            "--out",
            out,
        ];
        words.extend(more);
        place.run(&words)
    };
    let asked = ["--prompt", "<image> describe the picture:", "--image", "pictures/0.png"];
    let said = generate(&[&asked[..], &["--prompts", "rows.jsonl"]].concat(), "all").success();
    assert!(said.contains("wrote 3 answers about 3 images"), "{said}");
    let all = lines(&place.read("all/answers.jsonl"));
    assert_eq!(all[0]["images"], json!(["pictures/0.png"]));
    assert!(all[2]["images"][0].as_str().unwrap().ends_with("pictures/2.png"));
    assert!(
        all.iter().all(|row| row["answer"].as_str().unwrap().contains("a ")),
        "{all:?}"
    );
    // What is computed together changes no answer.
    generate(&["--prompts", "rows.jsonl", "--batch-size", "1"], "single").success();
    let single = lines(&place.read("single/answers.jsonl"));
    assert_eq!(single[1]["tokens"], all[2]["tokens"]);

    let row = |file: &str| json!({"prompt": "<image> is there", "images": [file]}).to_string();
    place.write(
        "lost.jsonl",
        [row("pictures/0.png"), row("pictures/lost.png")].join("\n"),
    );
    generate(&["--prompts", "lost.jsonl"], "out").failure(1, &["lost.jsonl", "row 2", "pictures/lost.png"]);
    let twice = [&asked[..], &["--image", "pictures/1.png"]].concat();
    generate(&twice, "out").failure(1, &["--prompt 1", "1", "2 images"]);
    // Words without a place for their image are what a user says, where there is a template for it.
    let words = ["--prompt", "describe the picture", "--image", "pictures/0.png"];
    generate(&words, "said").success();
    let said = lines(&place.read("said/answers.jsonl"));
    assert_eq!(said[0]["tokens"], all[0]["tokens"]);
    without_template(&place);
    place
        .run(&[&["generate", "--model", "plain", "--out", "out"], &words[..]].concat())
        .failure(2, &["--prompt 1", "no `<image>`", "chat template"]);
    generate(&["--prompt", "<image> what", "--image", "none.png"], "out").failure(1, &["--prompt 1", "none.png"]);
    generate(&["--prompt", "what", "--steps", "3"], "out")
        .failure(2, &["--steps is nothing", "a vision-language model"]);
    assert!(!place.path("out").exists());
    let texts = Place::with_language();
    texts
        .run(&[
            "generate", "--model", "lm", "--prompt", "a", "--image", "a.png", "--out", "out",
        ])
        .failure(2, &["--image is nothing", "a language model"]);
}

/// A short run that is evaluated.
fn recipe() -> String {
    format!(
        r#"modality = "vlm"
[run]
device = "cpu"
output = "run"
[model]
path = "{}"
[adapter.lora]
rank = 2
[data]
path = "{}"
[objective.dpo]
beta = 0.1
[optimizer.adamw]
lr = 0.03
[train]
steps = 2
micro_batch = 4
checkpoint_every = 0
sample_every = 0
[eval.hallucination]
num_scenes = 16
seed = 1
bootstrap_samples = 50
scenes = {{ min_objects = 2, max_objects = 3 }}
"#,
        repository("models/shapes-vlm"),
        repository("datasets/shapes-vlm-pairs/pairs.jsonl")
    )
}

#[test]
fn a_run_and_the_benchmarks_say_the_same() {
    let place = Place::new();
    place.write("recipe.toml", recipe());
    let said = place.run(&["train", "recipe.toml"]).success();
    assert!(
        said.contains("(CHAIRs)") && said.contains("16 held-out pictures"),
        "{said}"
    );
    let summary = place.json("run/summary.json");
    let of_run = |name: &str| summary["metrics"][name].as_f64().unwrap();
    let model = repository("models/shapes-vlm");
    let ask = |command: &str| {
        let words: Vec<&str> = command.split_whitespace().collect();
        let more = [
            "--model",
            &model,
            "--adapter",
            "run/final",
            "--base",
            "--max-new-tokens",
            "40",
            "--batch-size",
            "5",
        ];
        place.run(
            &[
                &["eval"],
                &words[..],
                &more[..],
                &["--bootstrap-samples", "50", "--seed", "1"],
            ]
            .concat(),
        )
    };
    let said = ask(
        "pope --annotations run/hallucination/pope_adversarial.jsonl --scenes run/hallucination/scenes.jsonl --out pope",
    )
    .success();
    assert!(said.contains("adversarial/false_yes"), "{said}");
    ask("chair --scenes run/hallucination/scenes.jsonl --out chair").success();
    let cases = [
        ("pope", "adversarial/accuracy", "eval_pope_adversarial_accuracy"),
        ("chair", "chair_s", "eval_chair_s"),
        ("chair", "recall", "eval_recall"),
    ];
    for (out, name, metric) in cases {
        let report = place.json(&format!("{out}/report.json"));
        for (part, side) in [("metrics", "aligned"), ("base", "base")] {
            let numbers = report[part].as_array().unwrap();
            let found = numbers.iter().find(|number| number["name"] == name).unwrap();
            let expected = of_run(&format!("{metric}/{side}"));
            assert_eq!(found["value"].as_f64(), Some(expected), "{name} of {side}");
        }
    }
    // The files of answers are the benchmarks' own: scored from them, they come to the same.
    let again = "eval pope --annotations run/hallucination/pope_adversarial.jsonl --answers pope/answers/pope_adversarial.jsonl \
                 --base-answers pope/base-answers/pope_adversarial.jsonl --bootstrap-samples 50 --seed 1 --out again";
    place.run(&again.split_whitespace().collect::<Vec<_>>()).success();
    assert_eq!(place.json("again/report.json"), place.json("pope/report.json"));
    assert_eq!(lines(&place.read("chair/answers/captions.jsonl")).len(), 16);
}

#[test]
fn a_model_answers_benchmarks_about_files() {
    let place = with_pictures();
    let model = repository("models/shapes-vlm");
    let pope = |index: usize| {
        json!({"question_id": index + 1, "image": format!("{index}.png"), "text": "is there a red circle", "label": "no"})
            .to_string()
    };
    place.write("pope.jsonl", [0, 1, 2].map(pope).join("\n"));
    place.write(
        "mmhal.json",
        json!([{"question": "what color", "image_src": "x/1.png", "model_answer": ""}]).to_string(),
    );
    place.write(
        "amber.json",
        json!([{"id": 7, "image": "2.png", "query": "is there a star?"}]).to_string(),
    );
    place.write(
        "annotations.json",
        json!([{"id": 7, "type": "discriminative-hallucination", "truth": "no"}]).to_string(),
    );
    place.write("relation.json", "{}");
    place.write("safe.txt", "light\n");
    let run = |command: &str, format: &[&str]| {
        let words: Vec<&str> = command.split_whitespace().collect();
        let model = ["--model", &model, "--max-new-tokens", "4"];
        place.run(&[&["eval"], &words[..], &model[..], format].concat())
    };
    let format = ["--prompt-format", "<image> {}:"];
    run(
        "pope --questions pope.jsonl --images pictures --bootstrap-samples 10 --out pope",
        &format,
    )
    .success();
    let answers = lines(&place.read("pope/answers/pope.jsonl"));
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[1]["question"], "is there a red circle");
    let said = run("mmhal --questions mmhal.json --images pictures --out mmhal", &format).success();
    assert!(said.contains("--judgments"), "{said}");
    assert_ne!(place.json("mmhal/answers/mmhal.json")[0]["model_answer"], "");
    let amber = "amber --queries amber.json --images pictures --annotations annotations.json --associations relation.json \
                 --safe-words safe.txt --dimension d --bootstrap-samples 10 --out amber";
    run(amber, &format).success();
    let response = place.json("amber/answers/amber.json")[0]["response"].clone();
    assert!(
        response.as_str().is_some_and(|response| !response.is_empty()),
        "{response}"
    );

    let cases: [(&str, &[&str], i32, &[&str]); 7] = [
        ("pope --questions pope.jsonl --images nowhere", &format, 1, &["nowhere"]),
        (
            "pope --questions pope.jsonl",
            &format,
            1,
            &["pope.jsonl, row 1", "0.png", "folder"],
        ),
        ("mmhal --images pictures", &format, 2, &["--questions is missing"]),
        (
            "pope --questions pope.jsonl --images pictures",
            &["--prompt-format", "{}"],
            2,
            &["<image>"],
        ),
        (
            "pope --questions pope.jsonl --images pictures --base",
            &format,
            2,
            &["--adapter"],
        ),
        (
            "pope --questions pope.jsonl --images pictures --answers a.jsonl",
            &format,
            2,
            &["--answers"],
        ),
        (
            "amber --queries amber.json --images pictures --annotations annotations.json --associations relation.json --safe-words safe.txt",
            &format,
            2,
            &["--nouns every-word"],
        ),
    ];
    for (command, format, code, said) in cases {
        run(&format!("{command} --out out"), format).failure(code, said);
    }
    without_template(&place);
    let plain = "eval pope --model plain --questions pope.jsonl --images pictures --out out";
    place
        .run(&plain.split_whitespace().collect::<Vec<_>>())
        .failure(2, &["no chat template", "--prompt-format"]);
    std::fs::remove_file(place.path("pictures/2.png")).unwrap();
    run("pope --questions pope.jsonl --images pictures --out out", &format).failure(1, &["pope.jsonl, row 3", "2.png"]);
    assert!(!place.path("out").exists());
}
