//! The methods learn on the embedded world: a short run on the shipped checkpoint and pairs lowers the objective's loss on the
//! very draws on which an idle run leaves it where it was.

use std::sync::atomic::AtomicBool;

use diptych::diffusion::progress::Reporter;
use diptych::diffusion::{Diffusion, prepare};
use diptych::train::{LoopConfig, Recipe, ResumeMode, Silent, read_metrics, train};

use crate::root;

/// Mean loss over the last steps of a short run.
fn loss(objective: &str, lr: f64) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("run");
    let recipe = format!(
        r#"
        modality = "diffusion"
        run.output = "{output}"
        model.path = "{root}/models/shapes-diffusion"
        data.path = "{root}/datasets/shapes-pairs/pairs.jsonl"
        {objective}
        optimizer.adamw = {{ lr = {lr:e}, weight_decay = 0.0 }}
        train = {{ steps = {STEPS}, micro_batch = 4, sample_every = 0, checkpoint_every = 0 }}
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
    assert_eq!(rows.len(), STEPS);
    let last = &rows[STEPS - LAST..];
    last.iter().map(|row| row.loss).sum::<f64>() / LAST as f64
}

/// Optimizer steps of a run.
const STEPS: usize = 20;
/// Steps whose losses are compared.
const LAST: usize = 6;
/// Too small to move a parameter by anything that matters.
const NOTHING: f64 = 1e-12;

/// Records, timesteps and noise of both runs are the same, so what differs is what was learned.
fn assert_learns(objective: &str, at_least: f64) {
    let (before, after) = (loss(objective, NOTHING), loss(objective, 2e-3));
    assert!(after < before - at_least, "{objective}: {before} to {after}");
}

#[test]
fn dpo_learns() {
    assert_learns("objective.dpo.beta = 2000.0", 0.05);
}

#[test]
fn mapo_learns() {
    assert_learns("objective.mapo.beta = 1.0", 0.0);
}
