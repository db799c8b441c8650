//! `[data.cache]`: features of a frozen tower on disk change nothing but the time.

use std::path::{Path, PathBuf};

use diptych_llm::vision::CacheCounts;
use diptych_train::{MetricsRow, Reporter};
use diptych_vlm::cache_images;
use serde_json::{Value, json};

use crate::bench::{Bench, golden};

fn changes(cache: Option<&Path>) -> Value {
    // No memory: what is not on disk is computed in every step.
    let mut changes = json!({
        "adapter": { "full": { "tower": "frozen" } }, "reference": { "frozen": {} },
        "data": { "image_memory": 0 }, "train": { "steps": 4 },
    });
    if let Some(path) = cache {
        changes["data"]["cache"] = json!({ "path": path });
    }
    changes
}

fn fill(bench: &Bench, changes: &Value) -> CacheCounts {
    cache_images(&bench.try_recipe(changes).unwrap(), &mut Reporter::silent()).unwrap()
}

/// The files of features in a cache, sorted.
fn files(cache: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.is_dir() {
            found.extend(std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found.sort();
    found
}

fn counts(num_read: usize, num_written: usize, num_damaged: usize) -> CacheCounts {
    CacheCounts {
        num_read,
        num_written,
        num_damaged,
    }
}

/// What must be the same to the last bit.
fn bits(rows: &[MetricsRow]) -> Vec<u64> {
    let keys = ["logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"];
    rows.iter()
        .flat_map(|row| {
            let metrics = keys.map(|key| row.metrics[key]);
            [row.loss, row.grad_norm].into_iter().chain(metrics)
        })
        .map(f64::to_bits)
        .collect()
}

#[test]
fn a_run_with_a_cache_is_the_run_without_one() {
    for model in ["llava", "qwen2_5_vl"] {
        let bench = Bench::new(model);
        let cache = bench.path("cache");
        let without = bits(&bench.run(&changes(None)));
        assert_eq!(without.len(), 4 * 6);
        let with = changes(Some(&cache));
        assert_eq!(bits(&bench.run(&with)), without, "{model}: filling");
        // The steps of the run have seen some of the four images.
        let there = files(&cache).len();
        assert!(there > 0);
        assert_eq!(fill(&bench, &with), counts(there, 4 - there, 0), "{model}");
        assert_eq!(bits(&bench.run(&with)), without, "{model}: reading");
        assert_eq!(fill(&bench, &with), counts(4, 0, 0), "{model}");
    }
}

#[test]
fn features_are_read_and_not_computed() {
    let bench = Bench::new("llava");
    let cache = bench.path("cache");
    let with = changes(Some(&cache));
    fill(&bench, &with);
    let of = |path: &Path| bits(&bench.run(&changes(Some(path))));
    let before = of(&cache);
    // Features of one image in the place of all others, under the names and keys of these: the run believes them.
    let files = files(&cache);
    let weights = |path: &Path| diptych_tensor::Weights::open(path).unwrap();
    let first = weights(&files[0]);
    for file in &files[1..] {
        let mut metadata = first.metadata();
        metadata.insert("key".to_owned(), weights(file).metadata()["key"].clone());
        let features = first
            .read("features", diptych_tensor::DType::F32, &diptych_tensor::Device::Cpu)
            .unwrap();
        let tensors = std::collections::BTreeMap::from([("features".to_owned(), features)]);
        diptych_tensor::save_tensors(file, &tensors, &metadata).unwrap();
    }
    assert_ne!(of(&cache), before);
}

#[test]
fn files_that_cannot_be_used_are_made_again_and_counted() {
    let bench = Bench::new("llava");
    let cache = bench.path("cache");
    let with = changes(Some(&cache));
    let expected = bits(&bench.run(&changes(None)));
    fill(&bench, &with);
    let files = files(&cache);
    assert_eq!(files.len(), 4);
    let whole: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    std::fs::write(&files[0], &whole[0][..whole[0].len() / 2]).unwrap();
    // Another image's file, and one with another number in it.
    std::fs::write(&files[1], &whole[2]).unwrap();
    let mut flipped = whole[3].clone();
    let last = flipped.len() - 2;
    flipped[last] ^= 1;
    std::fs::write(&files[3], flipped).unwrap();
    assert_eq!(bits(&bench.run(&with)), expected);
    for (file, bytes) in files.iter().zip(&whole) {
        std::fs::write(file, &bytes[..10]).unwrap();
    }
    assert_eq!(fill(&bench, &with), counts(0, 4, 4));
    let again: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(again, whole);
}

#[test]
fn another_tower_processor_or_precision_has_files_of_its_own() {
    let bench = Bench::new("llava");
    let cache = bench.path("cache");
    let with = changes(Some(&cache));
    assert_eq!(fill(&bench, &with), counts(0, 4, 0));
    let mut half = with.clone();
    half["run"] = json!({ "precision": "bf16" });
    assert_eq!(fill(&bench, &half), counts(0, 4, 0));
    // An adapter on the tower that the run starts from.
    let trained = golden("vlm/llava_lora");
    let mut adapted = with.clone();
    let config: Value = serde_json::from_slice(&std::fs::read(trained.join("adapter_config.json")).unwrap()).unwrap();
    adapted["adapter"] = json!({ "lora": {
        "rank": config["r"], "alpha": config["lora_alpha"], "targets": ["q_proj", "v_proj"], "init": trained,
    } });
    assert_eq!(fill(&bench, &adapted), counts(0, 4, 0));
    let processor = bench.path("model/preprocessor_config.json");
    let mut processing: Value = serde_json::from_slice(&std::fs::read(&processor).unwrap()).unwrap();
    processing["image_mean"] = json!([0.5, 0.5, 0.5]);
    std::fs::write(&processor, processing.to_string()).unwrap();
    assert_eq!(fill(&bench, &with), counts(0, 4, 0));
    assert_eq!(files(&cache).len(), 16);
}

#[test]
fn a_resumed_run_with_a_cache_is_the_uninterrupted_one() {
    for model in ["llava", "qwen2_5_vl"] {
        let bench = Bench::new(model);
        bench.assert_resumes(&changes(Some(&bench.path("cache"))));
    }
}

#[test]
fn what_is_no_cache_is_refused() {
    let bench = Bench::new("llava");
    let folder = bench.path("folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("cache.json"), "{}").unwrap();
    let error = bench.try_method(&changes(Some(&folder))).unwrap_err();
    assert!(
        error.is_configuration() && error.to_string().contains("no features.json"),
        "{error}"
    );
    std::fs::write(folder.join("features.json"), r#"{ "format": 9, "holds": "features" }"#).unwrap();
    let error = bench.try_method(&changes(Some(&folder))).unwrap_err().to_string();
    assert!(
        error.contains("format 9") && error.contains("data.cache.path"),
        "{error}"
    );
    let mut trained = changes(Some(&bench.path("cache")));
    trained["adapter"] = json!({ "full": { "tower": "trained" } });
    let error = bench.try_recipe(&trained).unwrap_err().to_string();
    assert!(error.contains("data.cache") && error.contains("frozen"), "{error}");
    let recipe = bench.try_recipe(&changes(None)).unwrap();
    let error = cache_images(&recipe, &mut Reporter::silent()).unwrap_err().to_string();
    assert!(error.contains("data.cache.path"), "{error}");
}
