//! What training of a preference model needs.

use diptych_models::diffusers::{ComponentDir, PipelineDir};
use diptych_train::{Component, Estimate, MemoryEstimate, Recipe, Reporter, process_component};

use super::{WIDE, count, disk, elements, moments};
use crate::Result;
use crate::method::{PIPELINE, PreferenceModelConfig, load_records, pipeline_of};
use crate::modality::Diffusion;
use crate::pipeline::denoiser_component;

pub(super) fn estimate(recipe: &Recipe<Diffusion>, config: &PreferenceModelConfig) -> Result<Estimate> {
    let dataset = load_records(recipe, &mut Reporter::silent())?;
    let trained = elements(&ComponentDir::new(recipe.model_path()?).weights()?) * WIDE;
    let mut frozen = 0;
    if let Some(path) = pipeline_of(config) {
        let pipeline = PipelineDir::open(recipe.resolve_path(PIPELINE, path)?)?;
        let scalars = count(&pipeline, denoiser_component(&pipeline))? + count(&pipeline, "vae")?;
        frozen = scalars * recipe.run.precision.dtype().size_in_bytes() as u64;
    }
    let average = if recipe.train.ema_decay.is_some() { trained } else { 0 };
    let components = [
        ("denoiser and autoencoder, frozen", frozen),
        ("parameters, trained", trained),
        ("gradients", trained),
        ("optimizer moments", moments(recipe, trained)),
        ("moving average", average),
    ];
    let counted = components.into_iter().filter(|(_, bytes)| *bytes > 0);
    let process = process_component(format!("program and {} records: measured now", dataset.len()));
    let mut missing = vec!["activations".to_owned()];
    if config.step_aware.is_some() {
        missing.push(
            "the time embedding of a model that has none yet; latents and text embeddings of the records".to_owned(),
        );
    }
    Ok(Estimate {
        memory: MemoryEstimate {
            components: process
                .into_iter()
                .chain(counted.map(|(name, bytes)| Component::new(name, bytes, "")))
                .collect(),
            moment: "training".into(),
            missing,
        },
        time: None,
        disk: disk(recipe, dataset.len(), 0, (trained, average, 0)),
        assumptions: vec!["Sizes of logs are typical ones; checkpoints are exact but for headers.".into()],
    })
}
