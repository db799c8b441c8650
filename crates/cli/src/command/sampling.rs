//! What every command that samples images needs: a pipeline, settings, prompts.

use std::path::Path;

use diptych_diffusion::sampler::SamplerKind;
use diptych_diffusion::{NetworkOptions, Pipeline, SampleConfig};
use diptych_shapes::{Example, Split};
use diptych_tensor::DType;

use crate::arguments::{SamplerName, SamplingArguments};
use crate::command::shapes::read_scenes;
use crate::failure::usage;

/// The pipeline with its adapter.
pub(crate) fn load(arguments: &SamplingArguments) -> anyhow::Result<Pipeline> {
    load_from(&arguments.model, arguments.adapter.as_deref(), arguments)
}

/// Another pipeline on the same device.
pub(crate) fn load_from(
    model: &Path,
    adapter: Option<&Path>,
    arguments: &SamplingArguments,
) -> anyhow::Result<Pipeline> {
    let options = NetworkOptions {
        device: arguments.device.resolve()?,
        dtype: DType::F32,
        seed: arguments.seed,
    };
    Ok(Pipeline::load(model, adapter, &options)?)
}

/// How to sample.
pub(crate) fn config(arguments: &SamplingArguments) -> anyhow::Result<SampleConfig> {
    if arguments.steps == 0 || arguments.batch_size == 0 {
        return Err(usage("--steps and --batch-size must be at least 1"));
    }
    if !(arguments.guidance.is_finite() && arguments.guidance >= 0.0) {
        let found = arguments.guidance;
        return Err(usage(format!(
            "--guidance is {found}, expected a finite number, at least 0"
        )));
    }
    Ok(SampleConfig {
        sampler: match arguments.sampler {
            SamplerName::Ddim => SamplerKind::Ddim,
            SamplerName::Euler => SamplerKind::Euler,
        },
        steps: arguments.steps,
        guidance_scale: arguments.guidance,
        seed: arguments.seed,
        batch_size: arguments.batch_size,
    })
}

/// The first `num` prompts of a file, or as many captions of the shapes world's training split.
pub(crate) fn training_prompts(
    file: Option<&Path>,
    scenes: Option<&Path>,
    num: usize,
    seed: u64,
) -> anyhow::Result<Vec<String>> {
    if let Some(file) = file {
        let mut prompts = diptych_eval::read_prompts(file)?;
        prompts.truncate(num);
        return Ok(prompts);
    }
    let scenes = read_scenes(scenes)?;
    (0..num as u64)
        .map(|index| Ok(Example::generate(seed, index, Split::Train, &scenes)?.caption))
        .collect()
}
