//! Tiny runs: recipes over the checkpoints of `tests/golden/vlm` and the rows of `tests/golden/vlm_trl`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use diptych_llm::LanguageMethod;
use diptych_tensor::{Gradients, backward, save_tensors};
use diptych_train::{
    Event, Item, LoopConfig, Method as _, MetricsRow, MicroBatch, Recipe, Reporter, ResumeMode, RunDirectory,
    StepOutput, VerifyConfig, read_metrics, verify_resume,
};
use diptych_vlm::{Outcome, VisionLanguage, prepare, run};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) use crate::sections::numbers;
use crate::sections::{changed, write_rows};

#[expect(dead_code, reason = "weights are made from lists of names here")]
#[path = "../../../../tests/golden/named_values.rs"]
mod named_values;

pub(crate) fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(path)
}

/// A folder with the files of a test: the checkpoint of a family, its tokenizer, rows and their images.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    /// With the checkpoint `llava` or `qwen2_5_vl`.
    pub(crate) fn new(model: &str) -> Self {
        let bench = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let to = bench.path("model");
        std::fs::create_dir(&to).unwrap();
        for folder in [format!("vlm/{model}"), format!("vlm_trl/{model}")] {
            for entry in std::fs::read_dir(golden(&folder)).unwrap() {
                let from = entry.unwrap().path();
                let name = from.file_name().unwrap().to_str().unwrap().to_owned();
                if name.contains("config.json") || name.contains("token") || name.contains("template") {
                    std::fs::copy(&from, to.join(name)).unwrap();
                }
            }
        }
        let names = std::fs::read_to_string(golden(&format!("vlm/{model}/names.json"))).unwrap();
        let table: Vec<(String, String, Vec<usize>)> = serde_json::from_str(&names).unwrap();
        let tensors: BTreeMap<_, _> = table
            .into_iter()
            .map(|(memory, saved, shape)| (saved, named_values::named(&memory, &shape)))
            .collect();
        std::fs::create_dir(bench.path("images")).unwrap();
        for entry in std::fs::read_dir(golden("vlm_trl/images")).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, bench.path("images").join(from.file_name().unwrap())).unwrap();
        }
        save_tensors(&to.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes rows and returns where.
    pub(crate) fn rows(&self, name: &str, rows: &[Value]) -> PathBuf {
        write_rows(self.path(name), rows)
    }

    /// A recipe: DPO of a LoRA adapter on two pairs a step, with some sections changed. Keys of a section are replaced one by one; of
    /// `adapter`, `reference`, `method`, `objective` and `samples` all of it.
    pub(crate) fn try_recipe(&self, changes: &Value) -> diptych_train::Result<Recipe<VisionLanguage>> {
        let recipe = json!({
            "modality": "vlm",
            "run": { "output": self.path("run"), "device": "cpu" },
            "model": { "path": self.path("model") },
            "adapter": { "lora": { "rank": 2 } },
            "data": { "path": golden("vlm_trl/pairs.jsonl"), "shuffle": false },
            "method": { "offline_pairs": {} },
            "objective": { "dpo": { "beta": 0.1 } },
            "optimizer": { "adamw": { "lr": 1e-2, "weight_decay": 0.0 } },
            "train": { "steps": 3, "micro_batch": 2, "checkpoint_every": 0, "sample_every": 0 },
        });
        let recipe = changed(recipe, changes);
        Recipe::parse(&toml::to_string(&recipe).unwrap(), &[])
    }

    /// The rows of a whole run.
    pub(crate) fn run(&self, changes: &Value) -> Vec<MetricsRow> {
        self.try_run(changes)
            .unwrap_or_else(|error| panic!("{error}\n{changes:#}"))
    }

    pub(crate) fn try_run(&self, changes: &Value) -> diptych_vlm::Result<Vec<MetricsRow>> {
        let outcome = self.try_outcome(changes)?;
        Ok(read_metrics(&RunDirectory::new(&outcome.output).metrics())?)
    }

    /// What a whole run came to, in a folder of its own.
    pub(crate) fn outcome(&self, changes: &Value) -> Outcome {
        self.try_outcome(changes)
            .unwrap_or_else(|error| panic!("{error}\n{changes:#}"))
    }

    fn try_outcome(&self, changes: &Value) -> diptych_vlm::Result<Outcome> {
        let mut recipe = self.try_recipe(changes)?;
        recipe.run.output = tempfile::tempdir_in(self.folder.path()).unwrap().keep().join("run");
        run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh)
    }

    /// A run of four steps that is stopped after two and goes on is the one that is not.
    pub(crate) fn assert_resumes(&self, changes: &Value) {
        let recipe = self.try_recipe(changes).unwrap();
        let config = LoopConfig::from_recipe(&recipe).unwrap();
        let verify = VerifyConfig {
            steps: 4,
            stop_after: 2,
            directory: self.path("runs"),
        };
        let build = || prepare(&recipe, &mut Reporter::silent());
        let report = verify_resume(build, &config, &verify, &mut |_: &Event<'_>| {}).unwrap();
        assert!(report.is_exact(), "{changes:#}: {:?}", report.comparisons);
    }

    pub(crate) fn method(&self, changes: &Value) -> LanguageMethod {
        self.try_method(changes)
            .unwrap_or_else(|error| panic!("{error}\n{changes:#}"))
    }

    pub(crate) fn try_method(&self, changes: &Value) -> diptych_vlm::Result<LanguageMethod> {
        prepare(&self.try_recipe(changes)?, &mut Reporter::silent())
    }
}

/// Losses and gradients of the first records, in one micro batch.
pub(crate) fn compute(method: &LanguageMethod, num: usize) -> (StepOutput, Gradients) {
    let items: Vec<Item> = (0..num)
        .map(|index| Item {
            index,
            position: index as u64,
        })
        .collect();
    let batch = MicroBatch {
        seed: 7,
        step: 1,
        update: 0,
        step_items: Arc::from(items.clone()),
        items,
    };
    let output = method.step(&batch).unwrap();
    let gradients = backward(&output.losses.sum_all().unwrap(), method.params()).unwrap();
    (output, gradients)
}

/// Losses and all gradients as numbers, to be compared.
pub(crate) fn flat(method: &LanguageMethod, num: usize) -> (Vec<f64>, Vec<f64>) {
    let (output, gradients) = compute(method, num);
    let of = |name| numbers(gradients.get(name).unwrap());
    (numbers(&output.losses), method.params().names().flat_map(of).collect())
}

pub(crate) fn assert_close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-12, |max: f64, value| max.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() <= tolerance * scale,
            "{what}: {found}, expected {expected}"
        );
    }
}
