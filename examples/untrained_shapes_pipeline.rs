//! Writes the untrained pipeline that the pretraining recipes start from: the first step to `models/shapes-diffusion`.
//!
//! Run: `cargo run --release --example untrained_shapes_pipeline -- runs/shapes-untrained`

use std::path::Path;

use diptych::diffusion::shapes_pipeline::{ShapesPipelineConfig, initialize};
use diptych::shapes::vocabulary;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "runs/shapes-untrained".into());
    let words = vocabulary();
    initialize(Path::new(&directory), &ShapesPipelineConfig::default(), &words, 0)?;
    Ok(())
}
