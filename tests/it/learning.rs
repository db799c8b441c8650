//! The methods learn on the embedded world: a short run on the shipped checkpoint and pairs moves the scores in the
//! direction of the preferences, by far more than the noise of a step.

use std::sync::atomic::AtomicBool;

use diptych::diffusion::progress::Reporter;
use diptych::diffusion::{Diffusion, prepare};
use diptych::train::{LoopConfig, Recipe, ResumeMode, Silent, read_metrics, train};

use crate::root;

/// Mean reward margin of the first and of the last five steps of a short run.
fn margins(objective: &str) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("run");
    let recipe = format!(
        r#"
        modality = "diffusion"
        run.output = "{output}"
        model.path = "{root}/models/shapes-diffusion"
        data.path = "{root}/datasets/shapes-pairs/pairs.jsonl"
        {objective}
        optimizer.adamw = {{ lr = 2e-3, weight_decay = 0.0 }}
        train = {{ steps = 40, micro_batch = 8, sample_every = 0, checkpoint_every = 0 }}
        "#,
        output = output.display(),
        root = root().display(),
    );
    let recipe = Recipe::<Diffusion>::parse(&recipe, &[]).unwrap();
    let method = prepare(&recipe, &mut Reporter::silent()).unwrap();
    let config = LoopConfig::from_recipe(&recipe).unwrap();
    train(
        &method,
        &config,
        &mut Silent,
        &AtomicBool::new(false),
        ResumeMode::Fresh,
    )
    .unwrap();
    let rows = read_metrics(&output.join("metrics.jsonl")).unwrap();
    assert_eq!(rows.len(), 40);
    let mean = |from: usize| {
        rows[from..from + 5]
            .iter()
            .map(|row| row.metrics["rewards/margins"])
            .sum::<f64>()
            / 5.0
    };
    (mean(0), mean(35))
}

/// At policy = reference the margin is 0; a run that learns nothing stays there.
#[test]
fn dpo_raises_the_margin_of_the_chosen_side() {
    let (first, last) = margins("objective.dpo.beta = 2000.0");
    assert!(first.abs() < 0.2, "{first}");
    assert!(last > first + 0.1, "{first} to {last}");
}

/// Without a reference the margin starts where the two errors differ; it must rise from there.
#[test]
fn mapo_raises_the_margin_of_the_chosen_side() {
    let (first, last) = margins("objective.mapo.beta = 1.0");
    assert!(last > first, "{first} to {last}");
}
