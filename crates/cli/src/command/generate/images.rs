//! Images from prompts.

use diptych_data::{ImageCaption, ImageSource, write_captions};
use diptych_diffusion::{Pipeline, generate_with, images};
use diptych_train::Reporter;

use crate::arguments::{DEFAULT_GUIDANCE, DEFAULT_STEPS, GenerateArguments, SamplingArguments};
use crate::command::sampling;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{print, write_directory};
use crate::progress::Progress;

pub(super) fn run(arguments: &GenerateArguments) -> anyhow::Result<()> {
    let mut prompts = arguments.prompt.clone();
    if let Some(file) = &arguments.prompts {
        prompts.extend(diptych_eval::read_prompts(file)?);
    }
    let sampling = sampling_of(arguments);
    let config = sampling::config(&sampling)?;
    let pipeline = for_users(sampling::load(&sampling)?, arguments)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.show(event), &stop);
    let generated = generate_with(&pipeline, &prompts, &config, &mut reporter)?;
    drop(reporter);

    write_directory(&arguments.out, |dir| {
        let mut captions = Vec::new();
        for (number, (prompt, image)) in prompts.iter().zip(&generated).enumerate() {
            let id = format!("{number:05}");
            images::save(image, &dir.join(format!("{id}.png")))?;
            captions.push(ImageCaption::new(id, prompt, ImageSource::from_image(image)?));
        }
        Ok(write_captions(&dir.join("captions.jsonl"), &captions)?)
    })?;
    print(format!(
        "wrote {} images to {}",
        generated.len(),
        arguments.out.display()
    ))
}

/// The pipeline for the users that are asked for.
fn for_users(pipeline: Pipeline, arguments: &GenerateArguments) -> anyhow::Result<Pipeline> {
    let users = &arguments.images.user;
    if users.is_empty() {
        return Ok(pipeline);
    }
    let adapter = arguments.adapter.as_deref();
    let adapter = adapter.ok_or_else(|| usage("--user needs --adapter, the result of a training for users"))?;
    let users: Vec<(String, f64)> = users.iter().map(|user| (user.name.clone(), user.weight)).collect();
    Ok(pipeline.for_user(adapter, &users)?)
}

fn sampling_of(arguments: &GenerateArguments) -> SamplingArguments {
    let images = &arguments.images;
    SamplingArguments {
        model: arguments.model.clone(),
        adapter: arguments.adapter.clone(),
        negative_adapter: images.negative_adapter.clone(),
        steps: images.steps.unwrap_or(DEFAULT_STEPS),
        guidance: images.guidance.unwrap_or(DEFAULT_GUIDANCE),
        sampler: images.sampler.unwrap_or_default(),
        eta: images.eta.unwrap_or(0.0),
        height: images.height,
        width: images.width,
        seed: arguments.seed,
        batch_size: arguments.batch_size,
        device: arguments.device,
    }
}
