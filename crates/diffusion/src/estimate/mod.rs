//! What a run will need, before anything is loaded: memory that can be counted, and disk.
//!
//! Parameters are counted from the headers of the weight files. Activations and time are left out, and the result says so.

mod phases;
mod preference_model;
mod sampled;
mod volume;

use std::path::Path;

use diptych_models::diffusers::{ComponentDir, PipelineDir};
use diptych_models::vae::AutoencoderKlConfig;
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_tensor::Weights;
use diptych_tensor::optim::{MomentFormat, OptimizerConfig};
use diptych_train::{Component, Estimate, MemoryEstimate, Recipe, ReferenceConfig, process_component};

use self::volume::Volume;
use crate::Result;
use crate::method::{ConsistencyConfig, EMBEDDINGS, MethodConfig, PosteriorUse, judge_files, teacher_key};
use crate::modality::{Diffusion, adapter_of};
use crate::pipeline::{DenoiserConfig, TextConditioner, UserEmbeddings, denoiser_component};
use crate::rounds::{Accumulate, PastPolicy};

/// Bytes of an element of a master, a gradient, a moment or a cached latent.
const WIDE: u64 = 4;
/// Bytes of a logged row: in `metrics.jsonl`, and in the event file.
const ROW_BYTES: u64 = 1200 + 1800;

/// Scalars of a network.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    frozen: u64,
    trained: u64,
}

/// What a run needs. Of rounds it is what their largest trainings need, sampling and judging between them included.
///
/// # Errors
/// What would also end the run before its first step: files that are missing or damaged, targets that name no layer.
pub fn estimate(recipe: &Recipe<Diffusion>) -> Result<Estimate> {
    if let MethodConfig::PreferenceModel(config) = &recipe.method {
        return preference_model::estimate(recipe, config);
    }
    let pipeline = PipelineDir::open(recipe.model_path()?)?;
    let volume = Volume::of(recipe)?;
    let process = process_component(format!("program and {} records: measured now", volume.num_read));
    let counts = networks(recipe, &pipeline)?;
    let trained = counts.trained * WIDE;
    let average = if recipe.train.ema_decay.is_some() { trained } else { 0 };
    let sampled = sampled::latents(recipe, &pipeline)?;
    let (moment, components) = phases::largest([
        (
            "training",
            training(recipe, &pipeline, &volume, (&counts, average, sampled))?,
        ),
        ("sampling for a round", phases::sampling(recipe, &pipeline)?),
        ("judging the images of a round", phases::judging(recipe)?),
        ("evaluation", phases::evaluation(recipe, &pipeline, &counts)?),
    ]);
    let mut missing = vec!["activations of the denoiser, and of the encoders before training".to_owned()];
    if recipe.method.is_online() || recipe.rounds.is_some() || recipe.evaluation.is_some() {
        missing.push("activations of judges, and images on their way to them".to_owned());
    }
    let mut assumptions = vec!["Sizes of logs are typical ones; checkpoints are exact but for headers.".to_owned()];
    if let Some(rounds) = &recipe.rounds {
        assumptions.push(format!(
            "A round makes {} images of {} prompts and trains on {} records, if its filter leaves all.",
            volume.num_made, volume.num_round_prompts, volume.num_records
        ));
        if rounds.accumulate == Accumulate::All {
            assumptions.push("The last round is meant, which trains on the records of all.".to_owned());
        }
    }
    Ok(Estimate {
        memory: MemoryEstimate {
            components: process.into_iter().chain(components).collect(),
            moment,
            missing,
        },
        time: None,
        disk: disk(
            recipe,
            volume.num_records,
            images_of_rounds(recipe, &pipeline, &volume)?,
            (trained, average, sampled),
        ),
        assumptions,
    })
}

/// Whether some round has a network beside the policy as its reference: anything but the initial policy, which an adapter switched off is.
fn is_network_beside(recipe: &Recipe<Diffusion>) -> bool {
    let Some(rounds) = &recipe.rounds else { return false };
    let is_initial = rounds.num_rounds == 1 || rounds.reference == Some(PastPolicy::Initial);
    let is_off = matches!(recipe.adapter.0, AdapterConfig::Lora(_)) && is_initial;
    recipe.objective.requirements().reference && !is_off
}

/// What is held while training.
fn training(
    recipe: &Recipe<Diffusion>,
    pipeline: &PipelineDir,
    volume: &Volume,
    (counts, average, sampled): (&Counts, u64, u64),
) -> Result<Vec<Component>> {
    let width = recipe.run.precision.dtype().size_in_bytes() as u64;
    let trained = counts.trained * WIDE;
    let reference = match recipe.reference {
        // A round has a reference of its own, whatever stands in the recipe of all.
        _ if recipe.rounds.is_some() => {
            if is_network_beside(recipe) {
                count(pipeline, denoiser_component(pipeline))? * width
            } else {
                0
            }
        }
        ReferenceConfig::Frozen {} | ReferenceConfig::Checkpoint { .. } => {
            count(pipeline, denoiser_component(pipeline))? * width
        }
        // Its parameters, and those of the policy while it borrows the policy's network.
        ReferenceConfig::Ema { .. } => 2 * trained,
        ReferenceConfig::None {} | ReferenceConfig::AdapterOff {} | ReferenceConfig::Cached { .. } => 0,
    };
    let [latents, texts] = cached(recipe, pipeline, volume)?;
    let judge = phases::judge_elements(&judge_files(recipe)?) * width;
    let components = [
        (
            "parameters, frozen",
            counts.frozen * width,
            "with the autoencoder while samples are shown",
        ),
        ("parameters, trained", trained, ""),
        ("gradients", trained, ""),
        ("optimizer moments", moments(recipe, trained), moments_note(recipe)),
        ("moving average", average, ""),
        ("reference network", reference, ""),
        ("teacher network", teacher(recipe)? * width, ""),
        ("judge", judge, "its networks"),
        (
            "sampled latents",
            sampled,
            "of the prompts of an optimizer step, at most",
        ),
        ("latents", latents, "of every image, computed once"),
        ("text embeddings", texts, "of every different prompt, computed once"),
    ];
    Ok(phases::present(components))
}

/// Scalars of the network that solves steps for a consistency model.
fn teacher(recipe: &Recipe<Diffusion>) -> Result<u64> {
    let Some(teacher) = recipe.method.consistency().and_then(ConsistencyConfig::teacher) else {
        return Ok(0);
    };
    let pipeline = PipelineDir::open(recipe.resolve_path(&teacher_key(recipe.method.name()), &teacher.path)?)?;
    count(&pipeline, denoiser_component(&pipeline))
}

/// Scalars of a part of a pipeline.
fn count(pipeline: &PipelineDir, component: &str) -> Result<u64> {
    Ok(elements(&pipeline.component(component)?.weights()?))
}

/// Scalars of a weight file, without reading them.
fn elements(weights: &Weights) -> u64 {
    let of = |name: &str| weights.shape(name).map_or(0, |shape| shape.iter().product::<usize>());
    weights.names().map(of).sum::<usize>() as u64
}

/// Scalars of the networks that are there while training.
fn networks(recipe: &Recipe<Diffusion>, pipeline: &PipelineDir) -> Result<Counts> {
    if matches!(recipe.method, MethodConfig::Autoencoder(_)) {
        let trained = count(pipeline, "vae")?;
        return Ok(Counts { frozen: 0, trained });
    }
    let network = pipeline.component(denoiser_component(pipeline))?;
    if let Some(users) = recipe.method.users() {
        return Ok(Counts {
            frozen: elements(&network.weights()?),
            trained: user_elements(
                &network.weights()?,
                &recipe.resolve_path(EMBEDDINGS, &users.embeddings)?,
            )?,
        });
    }
    let mut counts = match adapter_of(recipe)? {
        AdapterConfig::Full(_) => Counts {
            frozen: 0,
            trained: elements(&network.weights()?),
        },
        AdapterConfig::Lora(lora) => Counts {
            frozen: elements(&network.weights()?),
            trained: adapter_elements(&network, &lora)?,
        },
    };
    if matches!(&recipe.method, MethodConfig::Sft(config) if config.train_text_encoder) {
        let unread = TextConditioner::num_unread(pipeline)? as u64;
        for (encoder, _) in TextConditioner::components(pipeline) {
            counts.trained += count(pipeline, encoder)?;
        }
        counts.trained -= unread;
        counts.frozen += unread;
    }
    if recipe.train.sample_every > 0 || recipe.method.is_online() {
        counts.frozen += count(pipeline, "vae")?;
    }
    Ok(counts)
}

/// Scalars of the attention to users of a file: keys and values at every cross attention.
fn user_elements(weights: &Weights, users: &Path) -> Result<u64> {
    let [_, dim] = UserEmbeddings::read(users)?.shape();
    let keys = weights.names().filter(|name| name.ends_with(".attn2.to_k.weight"));
    let widths = keys.filter_map(|name| weights.shape(name)?.first().copied());
    Ok(widths.map(|width| 2 * width * dim).sum::<usize>() as u64)
}

/// Scalars of an adapter on the layers that it targets.
fn adapter_elements(network: &ComponentDir, lora: &LoraConfig) -> Result<u64> {
    let weights = network.weights()?;
    let layers: Vec<(String, Vec<usize>)> = weights
        .names()
        .filter_map(|name| {
            let shape = weights.shape(name)?;
            let module = name.strip_suffix(".weight")?;
            (shape.len() >= 2).then(|| (module.to_owned(), shape.to_vec()))
        })
        .collect();
    let targeted = lora.targeted(&layers)?;
    let of = |shape: &[usize]| lora.rank * (shape[0] + shape[1..].iter().product::<usize>());
    let sum: usize = layers
        .iter()
        .zip(targeted)
        .filter(|(_, is_target)| *is_target)
        .map(|((_, shape), _)| of(shape))
        .sum();
    Ok(sum as u64)
}

/// Bytes of the latents of all images and of the embeddings of all prompts.
fn cached(recipe: &Recipe<Diffusion>, pipeline: &PipelineDir, volume: &Volume) -> Result<[u64; 2]> {
    // They are read as they are, and the process holds them already.
    if volume.is_encoded {
        return Ok([0; 2]);
    }
    let (posterior, resolution) = match &recipe.method {
        MethodConfig::OfflinePairs(config) => (config.posterior, config.resolution),
        MethodConfig::Unpaired(config) => (config.posterior, config.resolution),
        MethodConfig::Ranked(config) => (config.posterior, config.resolution),
        MethodConfig::Sft(config) => (config.posterior, config.resolution),
        MethodConfig::Autoencoder(_) | MethodConfig::PreferenceModel(_) => return Ok([0; 2]),
        MethodConfig::TrajectoryPairs(_)
        | MethodConfig::StepAware(_)
        | MethodConfig::PolicyGradient(_)
        | MethodConfig::DirectReward(_) => return Ok([0, embeddings(pipeline, volume.num_prompts)?]),
    };
    let vae = AutoencoderKlConfig::from_file(pipeline.component("vae")?.config())?;
    let [y, x] = match resolution.or(recipe.data.resolution) {
        Some(side) => [side as usize / vae.downscale(); 2],
        // A run without a size ends before its first step, and says why.
        None => DenoiserConfig::read(pipeline)?.sample_size().unwrap_or([0; 2]),
    };
    let parts = match posterior {
        PosteriorUse::Sample => 2,
        PosteriorUse::Mean => 1,
    };
    let mirrors = if recipe.data.flip.is_some_and(|flip| 0.0 < flip && flip < 1.0) {
        2
    } else {
        1
    };
    // Those of buckets have about the same area.
    let forms = mirrors * recipe.data.crops.unwrap_or(1) as usize;
    let latents = (volume.num_images * forms * parts * vae.latent_channels * y * x) as u64;
    let trains_text = matches!(&recipe.method, MethodConfig::Sft(config) if config.train_text_encoder);
    if trains_text {
        return Ok([latents * WIDE, 0]);
    }
    Ok([latents * WIDE, embeddings(pipeline, volume.num_prompts)?])
}

/// Bytes of the embeddings of so many prompts.
fn embeddings(pipeline: &PipelineDir, num_prompts: usize) -> Result<u64> {
    Ok((num_prompts * TextConditioner::num_values(pipeline)?) as u64 * WIDE)
}

/// Bytes of what the optimizer keeps for `trained` bytes of parameters, at most: factored moments are counted as if nothing were a matrix,
/// 8-bit ones as if every parameter were too small for them.
fn moments(recipe: &Recipe<Diffusion>, trained: u64) -> u64 {
    if has_bounded_moments(&recipe.optimizer) {
        2 * trained
    } else {
        recipe.optimizer.state_bytes(&[(trained / WIDE) as usize])
    }
}

fn moments_note(recipe: &Recipe<Diffusion>) -> &'static str {
    if has_bounded_moments(&recipe.optimizer) {
        "at most"
    } else {
        ""
    }
}

/// Whether what is kept depends on the shapes of parameters.
fn has_bounded_moments(optimizer: &OptimizerConfig) -> bool {
    match optimizer {
        OptimizerConfig::Adamw(config) => matches!(config.state, MomentFormat::Int8 { .. }),
        OptimizerConfig::Adafactor(_) => true,
    }
}

/// Checkpoints, the result, logs, and the images of rounds.
fn disk(
    recipe: &Recipe<Diffusion>,
    num_records: usize,
    images: u64,
    (trained, average, sampled): (u64, u64, u64),
) -> Vec<Component> {
    let train = &recipe.train;
    let num_runs = recipe.rounds.as_ref().map_or(1, |rounds| rounds.num_rounds as u64);
    let num_steps = train.num_steps(num_records, recipe.method.updates_per_batch());
    let times = |every: u64| if every == 0 { 0 } else { num_steps.div_ceil(every) };
    let written = times(train.checkpoint_every);
    let kept = match train.keep_checkpoints as u64 {
        0 => written,
        keep => written.min(keep),
    };
    let (weights, note) = match &recipe.adapter.0 {
        _ if recipe.method.users().is_some() => (trained + users_bytes(recipe), "the attention to users, and users"),
        // An adapter is written as PEFT and as diffusers has it.
        AdapterConfig::Lora(_) => (2 * trained, "the adapter in two layouts"),
        AdapterConfig::Full(_) => (trained + other_parts(recipe).unwrap_or(0), "a whole pipeline"),
    };
    let in_checkpoint = match &recipe.adapter.0 {
        _ if recipe.method.users().is_some() => trained + users_bytes(recipe),
        AdapterConfig::Lora(_) => 2 * trained,
        AdapterConfig::Full(_) => trained,
    };
    let of_checkpoint = in_checkpoint + moments(recipe, trained) + average;
    // What was sampled is written between the updates on it.
    let of_checkpoint = of_checkpoint
        + if recipe.method.updates_per_batch() > 1 {
            sampled
        } else {
            0
        };
    let rows = times(train.log_every);
    let each = if num_runs > 1 { " of each round" } else { "" };
    let note_of_checkpoints = format!("{kept} of them{each}: weights and moments");
    let parts = [
        Component::new("checkpoints", num_runs * kept * of_checkpoint, note_of_checkpoints),
        Component::new("final", num_runs * weights, format!("{note}{each}")),
        Component::new("logs", num_runs * rows * ROW_BYTES, format!("{rows} rows{each}, twice")),
        Component::new("images", images, "of all rounds, at most: as if none were compressed"),
    ];
    parts.into_iter().filter(|part| part.bytes > 0).collect()
}

/// Bytes of the file of users, which stands in every result.
fn users_bytes(recipe: &Recipe<Diffusion>) -> u64 {
    let path = recipe
        .method
        .users()
        .map(|users| recipe.resolve_path(EMBEDDINGS, &users.embeddings));
    let metadata = path.and_then(|path| std::fs::metadata(path.ok()?).ok());
    metadata.map_or(0, |metadata| metadata.len())
}

/// Bytes of the images that rounds make, at most.
fn images_of_rounds(recipe: &Recipe<Diffusion>, pipeline: &PipelineDir, volume: &Volume) -> Result<u64> {
    match &recipe.rounds {
        Some(rounds) => {
            let num = (rounds.num_rounds * volume.num_made) as u64;
            Ok(num * sampled::image_bytes(&rounds.sampling, pipeline)?)
        }
        None => Ok(0),
    }
}

/// Bytes of the parts of the pipeline that are copied into the result of a full run.
fn other_parts(recipe: &Recipe<Diffusion>) -> Option<u64> {
    let pipeline = PipelineDir::open(recipe.model_path().ok()?).ok()?;
    let denoiser = denoiser_component(&pipeline);
    let trained = match &recipe.method {
        MethodConfig::Autoencoder(_) => vec!["vae"],
        MethodConfig::Sft(config) if config.train_text_encoder => {
            let encoders = TextConditioner::components(&pipeline).into_iter();
            std::iter::once(denoiser)
                .chain(encoders.map(|(encoder, _)| encoder))
                .collect()
        }
        _ => vec![denoiser],
    };
    let others = pipeline.names().filter(|name| !trained.contains(name));
    Some(others.map(|name| directory_bytes(&pipeline.path().join(name))).sum())
}

/// Bytes of the files in a directory.
fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|metadata| metadata.len())
        .sum()
}
