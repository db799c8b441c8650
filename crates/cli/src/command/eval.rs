//! `diptych eval win-rate`: two models, the same prompts, the same seeds, one judge.

use std::path::Path;

use diptych_data::{ImagePair, ImageSource, write_pairs};
use diptych_diffusion::progress::Reporter;
use diptych_diffusion::{Pipeline, generate_with};
use diptych_eval::{WinRate, held_out_prompts, read_prompts};
use diptych_tensor::files::write_file;
use image::RgbImage;

use crate::arguments::WinRateArguments;
use crate::command::sampling;
use crate::command::shapes::read_scenes;
use crate::failure::usage;
use crate::interrupt::stop_flag;
use crate::output::{ensure_free, print, write_directory};
use crate::progress::Progress;

/// Resamples behind the intervals.
const BOOTSTRAP_SAMPLES: usize = 10_000;

pub(crate) fn run(arguments: &WinRateArguments) -> anyhow::Result<()> {
    let adapter = &arguments.sampling.adapter;
    if arguments.base.is_none() && adapter.is_none() {
        return Err(usage(
            "nothing to compare: give --adapter, or another model with --base",
        ));
    }
    ensure_free(&arguments.out)?;
    let config = sampling::config(&arguments.sampling)?;
    let prompts = prompts(arguments)?;
    let stop = stop_flag()?;
    let mut progress = Progress::new();
    let mut reporter = Reporter::new(|event| progress.diffusion(event), &stop);
    let mut sample = |pipeline: &Pipeline| generate_with(pipeline, &prompts, &config, &mut reporter);
    let pipeline = sampling::load(&arguments.sampling)?;
    let aligned = sample(&pipeline)?;
    let base = if let Some(base) = &arguments.base {
        sample(&sampling::load_from(base, None, &arguments.sampling)?)?
    } else {
        let _off = pipeline.adapter_switch().disable();
        sample(&pipeline)?
    };
    drop(reporter);

    let scores = |images: &[RgbImage]| arguments.judge.score(&prompts, images);
    let (base_scores, aligned_scores) = (scores(&base)?, scores(&aligned)?);
    let win_rate = WinRate::compare(
        &base_scores,
        &aligned_scores,
        arguments.sampling.seed,
        BOOTSTRAP_SAMPLES,
    )?;
    let text = serde_json::to_string_pretty(&win_rate)?;
    write_directory(&arguments.out, |dir| {
        write_file(&dir.join("win-rate.json"), text.as_bytes())?;
        write_images(dir, &prompts, (&base, &base_scores), (&aligned, &aligned_scores))
    })?;
    print(win_rate)
}

/// Every image beside its counterpart, as pairs that `data inspect` and `train` read: aligned is `chosen`.
fn write_images(
    directory: &Path,
    prompts: &[String],
    (base, base_scores): (&[RgbImage], &[f64]),
    (aligned, aligned_scores): (&[RgbImage], &[f64]),
) -> anyhow::Result<()> {
    let mut pairs = Vec::with_capacity(prompts.len());
    for (number, prompt) in prompts.iter().enumerate() {
        let (chosen, rejected) = (
            ImageSource::from_image(&aligned[number])?,
            ImageSource::from_image(&base[number])?,
        );
        let mut pair = ImagePair::new(number.to_string(), prompt, chosen, rejected);
        (pair.chosen_score, pair.rejected_score) = (Some(aligned_scores[number]), Some(base_scores[number]));
        pairs.push(pair);
    }
    Ok(write_pairs(&directory.join("aligned-and-base.jsonl"), &pairs)?)
}

fn prompts(arguments: &WinRateArguments) -> anyhow::Result<Vec<String>> {
    if arguments.num_prompts == 0 {
        return Err(usage("--num-prompts is 0, expected at least 1"));
    }
    if let Some(file) = &arguments.prompts {
        let mut prompts = read_prompts(file)?;
        prompts.truncate(arguments.num_prompts);
        return Ok(prompts);
    }
    let scenes = read_scenes(arguments.scenes.as_deref())?;
    Ok(held_out_prompts(
        arguments.sampling.seed,
        arguments.num_prompts,
        &scenes,
    )?)
}
