//! `diptych plan` of recipes with images: peak memory is what the run then measures of itself.
//!
//! A process says what it held at most since it began, so that every plan and every run is one of its own: this program again, with the
//! recipe in its environment.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use diptych_models::vlm::{TowerTraining, VisionLanguageModel, VlmDir};
use diptych_models::{Builder, BuilderConfig, Trainable};
use diptych_tensor::{DType, Tensor};
use diptych_train::{Recipe, ResumeMode};
use diptych_vlm::{VisionLanguage, estimate, run};
use serde_json::{Value, json};

use crate::bench::golden;
use crate::plan_case::{Case, case};

/// What the allocator of the command keeps is part of what is planned.
#[global_allocator]
static ALLOCATOR: diptych_tensor::memory::BlockCache = diptych_tensor::memory::BlockCache::new();

/// The file of the recipe, and whether it is to be run.
const RECIPE: &str = "PLAN_TEST_RECIPE";
const IS_RUN: &str = "PLAN_TEST_IS_RUN";

const LORA: &str = "[adapter.lora]\nrank = 8\n";
const LORA_TOWER: &str =
    "[adapter.lora]\nrank = 8\ntower = \"trained\"\ntargets = \"(.*q_proj|.*v_proj|.*fc1|.*linear_1|.*qkv)\"\n";
const FULL: &str = "[adapter.full]\n";
const FULL_TOWER: &str = "[adapter.full]\ntower = \"trained\"\n";
const CHECKPOINTING: &[&str] = &["train.gradient_checkpointing=true"];
const SPOILED: &[&str] =
    &["method={ offline_pairs = { image_preference = { beta = 0.1, corruption = { crop = {} } } } }"];

const OWN_ANSWERS: &[&str] =
    &["method={ offline_pairs = { own_answer = { beta = 0.1, reference_tokens = \"own\" } } }"];

const CASES: [Case; 13] = [
    case("llava", LORA, "adapter_off", 2, &[]),
    case("llava", LORA, "frozen", 8, &[]),
    case("llava", LORA, "frozen", 8, &["model.quantization=nf4"]),
    case("llava", LORA_TOWER, "adapter_off", 8, &[]),
    case("llava", LORA_TOWER, "adapter_off", 8, CHECKPOINTING),
    case("llava", FULL, "frozen", 4, &["train.checkpoint_every=1"]),
    case("llava", FULL_TOWER, "ema", 4, &[]),
    case("llava", LORA, "adapter_off", 4, SPOILED),
    case("llava", LORA, "adapter_off", 8, OWN_ANSWERS),
    case("qwen2_5_vl", FULL, "frozen", 4, OWN_ANSWERS),
    case(
        "qwen2_5_vl",
        LORA,
        "adapter_off",
        8,
        &["method.offline_pairs.arrangement=padded"],
    ),
    case("qwen2_5_vl", FULL_TOWER, "frozen", 4, &[]),
    case("qwen2_5_vl", FULL_TOWER, "frozen", 4, CHECKPOINTING),
];

/// A model of some MiB in a family's layout, without training, and images large enough that they count.
fn write_model(folder: &Path, model: &str) {
    let to = folder.join(model);
    fs::create_dir(&to).unwrap();
    for folder in [format!("vlm/{model}"), format!("vlm_trl/{model}")] {
        for entry in fs::read_dir(golden(&folder)).unwrap() {
            let from = entry.unwrap().path();
            let name = from.file_name().unwrap().to_str().unwrap().to_owned();
            if name.contains("config.json") || name.contains("token") || name.contains("template") {
                fs::copy(&from, to.join(name)).unwrap();
            }
        }
    }
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&fs::read(to.join(name)).unwrap()).unwrap();
        change(&mut value);
        fs::write(to.join(name), value.to_string()).unwrap();
    };
    let extend = |value: &mut Value, changes: &Value| {
        value
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
    };
    edit("config.json", &|config| {
        let text = json!({
            "hidden_size": 256, "intermediate_size": 704, "vocab_size": 4096, "num_attention_heads": 8, "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
        });
        extend(&mut config["text_config"], &text);
        let vision = if model == "llava" {
            config["text_config"]["head_dim"] = json!(32);
            json!({
                "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6, "image_size": 112,
                "patch_size": 8,
            })
        } else {
            config["text_config"]["rope_parameters"]["mrope_section"] = json!([4, 6, 6]);
            json!({ "hidden_size": 192, "intermediate_size": 512, "num_heads": 6, "out_hidden_size": 256 })
        };
        extend(&mut config["vision_config"], &vision);
    });
    if model == "llava" {
        edit("preprocessor_config.json", &|config| {
            config["size"] = json!({ "shortest_edge": 112 });
            config["crop_size"] = json!({ "height": 112, "width": 112 });
        });
    } else {
        // About 600 patches an image.
        edit("processor_config.json", &|config| {
            config["image_processor"]["size"] = json!({ "shortest_edge": 9000, "longest_edge": 10_000 });
        });
    }
    write_weights(&to, &folder.join("saved"));
}

/// Weights of the initial distribution, by way of another folder.
fn write_weights(to: &Path, saved: &Path) {
    let directory = VlmDir::open(to).unwrap();
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    });
    let builder = builder.unwrap();
    let network = VisionLanguageModel::load(&builder, directory.config(), TowerTraining::Included).unwrap();
    let mut tensors = builder.finish().unwrap().snapshot().unwrap();
    drop(network);
    // What is never read is not trained, and is in files all the same: the last layer of LLaVA's tower, and the norm behind it.
    let unread: Vec<(String, Tensor)> = tensors
        .iter()
        .filter(|(name, _)| name.contains(".encoder.layers.2.") || name.contains("pre_layrnorm"))
        .map(|(name, tensor)| {
            let name = name
                .replace("layers.2.", "layers.3.")
                .replace("pre_layrnorm", "post_layernorm");
            (name, tensor.clone())
        })
        .collect();
    tensors.extend(unread);
    diptych_models::vlm::save(saved, directory.config(), (&tensors, DType::F32)).unwrap();
    fs::rename(saved.join("model.safetensors"), to.join("model.safetensors")).unwrap();
    fs::remove_dir_all(saved).unwrap();
}

/// What is to be done in a process of its own: a plan, or the run. It writes the bytes beside the recipe.
#[test]
#[ignore = "started by the test of this module"]
fn plan_or_run() {
    let path = std::env::var(RECIPE).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let (text, sets) = text.split_once("\n---\n").unwrap();
    let sets: Vec<String> = sets.lines().map(str::to_owned).collect();
    let recipe = Recipe::<VisionLanguage>::parse(text, &sets).unwrap();
    let bytes = if std::env::var(IS_RUN).is_ok() {
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
        outcome.summary.peak_memory_bytes.unwrap()
    } else {
        let estimate = estimate(&recipe).unwrap();
        assert!(estimate.memory.missing.is_empty(), "{:?}", estimate.memory.missing);
        estimate.memory.components.iter().map(|component| component.bytes).sum()
    };
    fs::write(format!("{path}.bytes"), bytes.to_string()).unwrap();
}

/// The bytes of a plan, or of the run.
fn bytes(recipe: &Path, is_run: bool) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "plan::plan_or_run", "--ignored"])
        .env(RECIPE, recipe);
    if is_run {
        command.env(IS_RUN, "yes");
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = fs::read_to_string(format!("{}.bytes", recipe.display())).unwrap();
    text.parse().unwrap()
}

/// Within 15 % of what the run then measures of itself; 8 % was the most that was seen.
#[test]
fn memory_is_that_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    for model in ["llava", "qwen2_5_vl"] {
        write_model(folder.path(), model);
    }
    let pairs = golden("vlm_trl/pairs.jsonl").display().to_string();
    let mut problems = Vec::new();
    for case in &CASES {
        let path = folder.path().join("recipe.toml");
        let sets = case.sets.join("\n");
        let recipe = case.recipe("vlm", &format!("{}/", folder.path().display()), &pairs);
        fs::write(&path, format!("{recipe}\n---\n{sets}")).unwrap();
        let expected = bytes(&path, false);
        assert!(!folder.path().join("run").exists(), "a plan writes nothing");
        let found = bytes(&path, true);
        let line = case.compared(expected, found);
        // Shown by `--nocapture`, and on failure.
        println!("{line}");
        if (expected / found - 1.0).abs() > 0.15 {
            problems.push(line);
        }
        fs::remove_dir_all(folder.path().join("run")).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(CASES.len(), 13);
}
