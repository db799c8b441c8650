//! Tiny runs: recipes over the checkpoints and rows of `tests/golden/trl`, and what they compute.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use diptych_llm::{Language, LanguageMethod, prepare, run};
use diptych_tensor::{Gradients, backward};
use diptych_train::{
    Item, Method as _, MetricsRow, MicroBatch, Recipe, Reporter, ResumeMode, RunDirectory, StepOutput, read_metrics,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::sections::{changed, numbers, write_rows};

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/trl")
}

/// A folder with the files of a test.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes rows and returns where.
    pub(crate) fn rows(&self, name: &str, rows: &[Value]) -> PathBuf {
        write_rows(self.path(name), rows)
    }

    /// A directory with the files of a golden checkpoint, to be changed.
    pub(crate) fn copy(&self, model: &str) -> PathBuf {
        let to = self.path(model);
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(golden().join(model)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
        to
    }

    /// A recipe: full training of the tiny Llama by DPO on four pairs a step, with some sections changed. Keys of a section are
    /// replaced one by one; of `adapter`, `reference`, `method`, `objective` and `schedule` all of it.
    pub(crate) fn recipe(&self, changes: &Value) -> Recipe<Language> {
        self.try_recipe(changes)
            .unwrap_or_else(|error| panic!("{error}\n{changes:#}"))
    }

    pub(crate) fn try_recipe(&self, changes: &Value) -> diptych_train::Result<Recipe<Language>> {
        let recipe = json!({
            "modality": "llm",
            "run": { "output": self.path("run"), "device": "cpu" },
            "model": { "path": golden().join("llama") },
            "adapter": { "full": {} },
            "data": { "path": golden().join("data/pairs.jsonl"), "shuffle": false },
            "method": { "offline_pairs": {} },
            "objective": { "dpo": { "beta": 0.1 } },
            "optimizer": { "adamw": { "lr": 1e-3, "weight_decay": 0.0 } },
            "train": { "steps": 3, "micro_batch": 4, "checkpoint_every": 0, "sample_every": 0 },
        });
        let recipe = changed(recipe, changes);
        Recipe::<Language>::parse(&toml::to_string(&recipe).unwrap(), &[])
    }

    /// The rows of a whole run.
    pub(crate) fn run(&self, changes: &Value) -> Vec<MetricsRow> {
        self.try_run(changes)
            .unwrap_or_else(|error| panic!("{error}\n{changes:#}"))
    }

    pub(crate) fn try_run(&self, changes: &Value) -> diptych_llm::Result<Vec<MetricsRow>> {
        let mut recipe = self.try_recipe(changes)?;
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        recipe.run.output = folder.path().join("run");
        let outcome = run(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh)?;
        Ok(read_metrics(&RunDirectory::new(&outcome.output).metrics())?)
    }

    pub(crate) fn method(&self, changes: &Value) -> LanguageMethod {
        self.try_method(changes)
            .unwrap_or_else(|error| panic!("{error}\n{changes:#}"))
    }

    pub(crate) fn try_method(&self, changes: &Value) -> diptych_llm::Result<LanguageMethod> {
        prepare(&self.try_recipe(changes)?, &mut Reporter::silent())
    }
}

/// Rows of a golden file.
pub(crate) fn rows_of(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(golden().join("data").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// An untrained adapter of the tiny Qwen2.
pub(crate) fn fresh_adapter() -> Value {
    json!({ "lora": { "rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"] } })
}

/// Changes that put the tiny Qwen2 with a trained adapter beside itself without one: policy and reference differ, and so do all
/// log-ratios from 0.
pub(crate) fn apart(objective: &Value) -> Value {
    let mut changes = json!({
        "model": { "path": golden().join("qwen2") },
        "adapter": { "lora": {
            "rank": 4,
            "alpha": 8.0,
            "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "init": golden().join("qwen2_lora"),
        } },
        "objective": objective,
    });
    let parsed: diptych_core::Objective = serde_json::from_value(objective.clone()).unwrap();
    if parsed.requirements().reference {
        changes["reference"] = json!({ "checkpoint": { "path": golden().join("qwen2") } });
    }
    changes
}

/// What a step of some records computes, before any update.
pub(crate) struct Computed {
    /// One loss a record.
    pub(crate) losses: Vec<f64>,
    /// Of the mean loss, parameter by parameter.
    pub(crate) gradients: BTreeMap<String, Vec<f64>>,
    /// The output of each micro batch.
    pub(crate) outputs: Vec<StepOutput>,
}

/// The step over the first records of a method, cut into micro batches of `micro_batch`.
pub(crate) fn compute(method: &LanguageMethod, num_records: usize, micro_batch: usize) -> Computed {
    let items: Arc<[Item]> = (0..num_records)
        .map(|index| Item {
            index,
            position: index as u64,
        })
        .collect();
    let mut total: Option<Gradients> = None;
    let (mut losses, mut outputs) = (Vec::new(), Vec::new());
    for part in items.chunks(micro_batch) {
        let batch = MicroBatch {
            items: part.to_vec(),
            ..MicroBatch::whole(0, 1, items.to_vec())
        };
        let output = method.step(&batch).unwrap();
        let share = (output.losses.sum_all().unwrap() * (1.0 / num_records as f64)).unwrap();
        let gradients = backward(&share, method.params()).unwrap();
        match &mut total {
            None => total = Some(gradients),
            Some(total) => total.add_assign(&gradients).unwrap(),
        }
        losses.extend(numbers(&output.losses));
        outputs.push(output);
    }
    let gradients = total.unwrap();
    let gradients = gradients
        .iter()
        .map(|(name, tensor)| (name.to_owned(), numbers(tensor)));
    Computed {
        losses,
        gradients: gradients.collect(),
        outputs,
    }
}

/// The largest difference of two vectors, relative to the largest entry or 1, whichever is larger.
pub(crate) fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale);
    differences.fold(0.0, f64::max)
}

impl Computed {
    pub(crate) fn mean_loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len() as f64
    }

    /// Largest difference of the gradients of any parameter.
    pub(crate) fn gradient_difference(&self, expected: &Self) -> f64 {
        assert!(self.gradients.keys().eq(expected.gradients.keys()));
        let of = |(name, values): (&String, &Vec<f64>)| difference(values, &expected.gradients[name]);
        self.gradients.iter().map(of).fold(0.0, f64::max)
    }

    /// Whether there is anything to compare: a gradient that is not 0.
    pub(crate) fn moves(&self) -> bool {
        self.gradients.values().flatten().any(|value| value.abs() > 1e-6)
    }

    pub(crate) fn assert_equals(&self, expected: &Self, tolerance: f64, what: &str) {
        let (losses, gradients) = (
            difference(&self.losses, &expected.losses),
            self.gradient_difference(expected),
        );
        assert!(losses <= tolerance, "{what}: losses differ by {losses:e}");
        assert!(gradients <= tolerance, "{what}: gradients differ by {gradients:e}");
        assert!(expected.moves(), "{what}: nothing to compare");
    }
}

/// Asserts that the numbers of two runs agree within a tolerance, relative to the number or 1, and returns how many there were.
pub(crate) fn assert_same_rows(found: &[MetricsRow], expected: &[MetricsRow], tolerance: f64, what: &str) -> usize {
    assert_eq!(found.len(), expected.len(), "{what}: steps");
    let mut num = 0;
    for (found, expected) in found.iter().zip(expected) {
        let numbers = |row: &MetricsRow| {
            let mut numbers = row.metrics.clone();
            numbers.insert("loss".into(), row.loss);
            numbers.insert("grad_norm".into(), row.grad_norm);
            numbers
        };
        let (found_numbers, expected_numbers) = (numbers(found), numbers(expected));
        for (key, expected_value) in &expected_numbers {
            let Some(value) = found_numbers.get(key) else { continue };
            // A policy that is its reference has margins of rounding, whose signs say nothing.
            let is_tied = expected_numbers
                .get("rewards/margins")
                .is_some_and(|margin| margin.abs() < 1e-5);
            if key == "rewards/accuracies" && is_tied {
                continue;
            }
            let bound = tolerance * expected_value.abs().max(1.0);
            assert!(
                (value - expected_value).abs() <= bound,
                "{what}: `{key}` at step {} is {value}, expected {expected_value}",
                expected.step
            );
            num += 1;
        }
    }
    num
}

/// Names of keys in a recipe's error.
pub(crate) fn message(result: Result<impl Sized, impl std::fmt::Display>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}
