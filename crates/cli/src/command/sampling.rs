//! What every command that samples images needs: a pipeline and settings.

use std::path::Path;

use diptych_diffusion::{NetworkOptions, Pipeline, SampleConfig};
use diptych_tensor::DType;

use crate::arguments::SamplingArguments;
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
        sampler: arguments.sampler,
        steps: arguments.steps,
        guidance_scale: arguments.guidance,
        seed: arguments.seed,
        batch_size: arguments.batch_size,
    })
}

/// Refuses `--num-prompts 0`.
pub(crate) fn check_num_prompts(num: Option<usize>) -> anyhow::Result<()> {
    match num {
        Some(0) => Err(usage("--num-prompts is 0, expected at least 1")),
        _ => Ok(()),
    }
}
