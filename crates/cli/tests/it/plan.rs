//! `diptych plan`: what it says a run will need is what the run then needs.

use std::fs;
use std::path::Path;

use diptych_llm::policy::{NetworkOptions, TrainedLm};
use diptych_models::lm::LmDir;
use diptych_tensor::{DType, Device};
use serde_json::{Value, json};

use crate::place::{Place, golden};
use crate::plan_case::{Case, case};

const LORA: &str = r#"[adapter.lora]
rank = 8
alpha = 16.0
targets = ["q_proj", "k_proj", "v_proj", "o_proj"]"#;
const EVERY_LAYER: &str = r#"[adapter.lora]
targets = "all-linear""#;
const FULL: &str = "[adapter.full]";

const CASES: [Case; 17] = [
    case("llama", LORA, "adapter_off", 1, &[]),
    case("llama", FULL, "frozen", 8, &[]),
    case("qwen2", FULL, "cached", 8, &["method.offline_pairs.arrangement=padded"]),
    case("wide", LORA, "adapter_off", 1, &[]),
    case("wide", LORA, "adapter_off", 8, &[]),
    case("wide", LORA, "frozen", 8, &["train.gradient_checkpointing=true"]),
    case(
        "wide",
        EVERY_LAYER,
        "cached",
        4,
        &["method.offline_pairs.arrangement=padded"],
    ),
    case("wide", FULL, "frozen", 1, &["train.checkpoint_every=1"]),
    case("wide", FULL, "frozen", 8, &[]),
    case("wide", FULL, "ema", 8, &["train.gradient_checkpointing=true"]),
    case(
        "wide",
        FULL,
        "frozen",
        2,
        &["train.accumulation=3", "train.ema_decay=0.9"],
    ),
    case("wide", LORA, "adapter_off", 4, &["run.precision=bf16"]),
    case(
        "wide",
        LORA,
        "adapter_off",
        8,
        &["train.gradient_checkpointing.every=2"],
    ),
    case(
        "wide",
        LORA,
        "adapter_off",
        8,
        &["train.gradient_checkpointing.memory=230"],
    ),
    case("wide", LORA, "adapter_off", 1, &["model.quantization=nf4"]),
    case("wide", EVERY_LAYER, "frozen", 4, &["model.quantization=int8"]),
    case(
        "wide",
        EVERY_LAYER,
        "cached",
        4,
        &["model.quantization.nf4.double=true", "run.precision=bf16"],
    ),
];

/// Four layers of width 256 and 8192 words, without training: 28 MiB.
fn write_wide(to: &Path) {
    let from = golden("trl/llama");
    fs::create_dir_all(to).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let changes = json!({
        "hidden_size": 256, "intermediate_size": 704, "vocab_size": 8192, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": false,
    });
    config
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
        quantization: None,
    };
    let directory = LmDir::open(to).unwrap();
    TrainedLm::untrained(&directory, &options).unwrap().save(to).unwrap();
}

/// Prompts and answers of many lengths.
fn pairs() -> String {
    let words = "the red kite waits for every second window before dawn and a small robot follows";
    let words: Vec<&str> = words.split(' ').collect();
    let text = |start: usize, len: usize| -> String {
        (start..start + len)
            .map(|at| words[at * 7 % words.len()])
            .collect::<Vec<_>>()
            .join(" ")
    };
    let row = |i: usize| {
        let (chosen, rejected) = (text(i + 1, 10 + i * 5 % 30), text(i + 2, 10 + i * 11 % 30));
        json!({ "prompt": text(i, 10 + i * 13 % 30), "chosen": format!(" {chosen}"), "rejected": format!(" {rejected}") }).to_string() + "\n"
    };
    (0..24).map(row).collect()
}

fn recipe(case: &Case) -> String {
    case.recipe("llm", "", "pairs.jsonl")
}

/// What the components of a part of an estimate sum up to.
fn sum(components: &Value) -> f64 {
    let bytes = |component: &Value| component["bytes"].as_f64().unwrap();
    components.as_array().unwrap().iter().map(bytes).sum()
}

/// Peak memory within a fifth of what the run then measures of itself, and its files within a fifth and what a report takes.
#[cfg(target_os = "linux")]
#[test]
fn memory_and_disk_are_those_of_the_run() {
    let place = Place::new();
    write_wide(&place.path("wide"));
    for model in ["llama", "qwen2"] {
        crate::place::copy(&golden("trl").join(model), &place.path(model));
    }
    place.write("pairs.jsonl", pairs());
    let mut problems = Vec::new();
    let mut checked = 0;
    for case in &CASES {
        place.write("recipe.toml", recipe(case));
        let mut arguments = vec!["recipe.toml"];
        for set in case.sets {
            arguments.extend(["--set", set]);
        }
        let planned = place
            .run(&[&["plan", "--json"], arguments.as_slice()].concat())
            .success();
        let planned: Value = serde_json::from_str(&planned).unwrap();
        assert!(!place.path("run").exists(), "a plan writes nothing");
        place.run(&[&["train"], arguments.as_slice()].concat()).success();
        let found = place.json("run/summary.json")["peak_memory_bytes"].as_f64().unwrap();
        let expected = sum(&planned["memory"]["components"]);
        let on_disk: f64 = place
            .tree()
            .iter()
            .filter(|file| file.starts_with("run/"))
            .filter_map(|file| file.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum();
        let disk = sum(&planned["disk"]);
        let line = format!(
            "{}; disk {:.2} MiB, measured {:.2}",
            case.compared(expected, found),
            disk / 1_048_576.0,
            on_disk / 1_048_576.0,
        );
        // Shown by `--nocapture`, and on failure.
        println!("{line}");
        if (expected / found - 1.0).abs() > 0.2 || (disk - on_disk).abs() > 0.2 * on_disk + 150_000.0 {
            problems.push(line);
        }
        fs::remove_dir_all(place.path("run")).unwrap();
        checked += 1;
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(checked, 17);
}

#[test]
fn a_plan_is_a_table_with_its_assumptions() {
    let place = Place::new();
    crate::place::copy(&golden("trl/llama"), &place.path("llama"));
    place.write("pairs.jsonl", pairs());
    place.write("recipe.toml", recipe(&CASES[0]));
    let before = place.tree();
    let text = place
        .run(&["plan", "recipe.toml", "--set", "train.steps=400"])
        .success();
    for said in [
        "memory ",
        "  parameters, frozen ",
        "  optimizer moments ",
        "time     about ",
        " for 400 steps",
        "GFLOP/s",
        "  final ",
        "assumed  The largest micro batch of this run has ",
    ] {
        assert!(text.contains(said), "{said:?} is not in\n{text}");
    }
    assert_eq!(place.tree(), before, "a plan writes nothing");
    let unmatched = place.run(&["plan", "recipe.toml", "--set", "adapter.lora.targets=[\"q_prj\"]"]);
    unmatched.failure(2, &["`q_prj` matches no layer", "q_proj"]);
}

#[test]
fn a_plan_for_images_says_what_it_leaves_out() {
    let place = Place::with_replay();
    let text = place.run(&["plan", "recipe.toml"]).success();
    let planned: Value = serde_json::from_str(&place.run(&["plan", "recipe.toml", "--json"]).success()).unwrap();
    assert!(text.contains("not estimated: activations"), "{text}");
    assert!(text.contains("time     not estimated"), "{text}");
    place.run(&["train", "recipe.toml"]).success();
    let trained = place.json("run/summary.json")["num_trainable"].as_u64().unwrap();
    let of = |name: &str| {
        let components = planned["memory"]["components"].as_array().unwrap();
        components.iter().find(|component| component["name"] == name).unwrap()["bytes"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(of("parameters, trained"), 4 * trained);
    assert_eq!(of("optimizer moments"), 8 * trained);
}
