//! What a run will need, before anything is loaded: memory, time and disk.
//!
//! The data is really encoded, and the order of the run is gone through for its largest micro batch. Then the run is done in
//! shadows: the network's operations are recorded with the sizes of their results and without numbers, kept alive by what
//! keeps them alive in training, and the backward pass goes over them as candle's does. The most that is held is the estimate.

mod budget;
mod disk;
mod heap;
mod network;
mod run;
mod shadow;
mod sizes;
mod vision;

use std::path::Path;

use diptych_data::{SpecialTokens, Tokenizer};
use diptych_models::lm::{LmConfig, LmDir};
use diptych_tensor::{CheckpointPolicy, DType, Weights};
use diptych_train::{
    Component, Estimate, GradientCheckpointing, MachineRates, MemoryEstimate, Recipe, ReferenceConfig, TimeEstimate,
    process_component,
};

use self::budget::count_within;
use self::heap::{Use, Work};
use self::run::{Counted, Parts, Sampling};
pub use self::sizes::{ImageSizes, SpoiledAnswers};
use self::sizes::{RunImages, RunSizes, largest_in_order};
pub use self::vision::{Answering, VisionEstimate, VisionMemory, vision_memory};
use crate::Result;
use crate::evaluation;
use crate::method::{coupling_note, learn, load_records, network_options, sampled_prompts};
use crate::modality::{Language, adapter_of};
use crate::records::EncodedRecord;
use crate::samples::TokenizedPrompt;

/// Buffers of a thread: tiles of attention, blocks of logits, packed operands of products.
const THREAD_BYTES: u64 = 4 << 20;

/// What a run needs.
///
/// Reads configuration, tokenizer, data and the header of the weights, and measures this machine for a third of a second.
///
/// # Errors
/// What would also end the run before its first step: files that are missing or damaged, targets that name no layer, records
/// that the method cannot use.
pub fn estimate(recipe: &Recipe<Language>) -> Result<Estimate> {
    survey(recipe, |parts, process, model| {
        let counted = count_within(parts, process.as_ref())?;
        let on_cpu = network_options(recipe)?.device.is_cpu();
        let memory = if on_cpu {
            memory(&counted, process)
        } else {
            device_memory(&counted)
        };
        let time = if on_cpu { Some(time(parts, &counted)?) } else { None };
        Ok(Estimate {
            memory,
            time,
            disk: disk::disk(parts, &counted, model),
            assumptions: assumptions(parts, on_cpu),
        })
    })
}

/// Which layers recompute their activations. For a budget the run is gone through as [`estimate`] does it, data included.
///
/// # Errors
/// As [`estimate`]; [`Error::Recipe`](crate::Error::Recipe) for a budget that is too small.
pub(crate) fn checkpoint_policy(recipe: &Recipe<Language>) -> Result<CheckpointPolicy> {
    match recipe.train.gradient_checkpointing {
        GradientCheckpointing::Blocks(policy) => Ok(policy),
        GradientCheckpointing::Memory { .. } => survey(recipe, |parts, process, _| {
            count_within(parts, process.as_ref())?;
            Ok(parts.checkpointing)
        }),
    }
}

/// Looks at the files of a run, and hands over what was found, what the process holds by then and where the model is.
fn survey<R>(
    recipe: &Recipe<Language>,
    work: impl FnOnce(&mut Parts<'_>, Option<Component>, &Path) -> Result<R>,
) -> Result<R> {
    let directory = LmDir::open(recipe.model_path()?)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let loaded = load_records(recipe, &tokenizer)?;
    let sampled = sampled_prompts(recipe, &loaded, &tokenizer)?;
    let mut records = loaded.records;
    learn(recipe, &mut records);
    // Before anything is counted: what the run will have read at this point too.
    let process = process_component(format!("program, tokenizer, {} records: measured now", records.len()));
    let adapter = adapter_of(recipe)?;
    let sizes = RunSizes::of(recipe, &records, &RunImages::default());
    let mut parts = Parts {
        recipe,
        config: directory.config(),
        adapter: &adapter,
        stored_width: stored_width(&directory.weights()?),
        other: other_network(recipe)?,
        cached: cached_pass(recipe, &records, &RunImages::default()),
        num_scores: records
            .iter()
            .flat_map(|record| &record.responses)
            .map(|response| response.ids.len())
            .sum(),
        samples: sampled.map(|prompts| samples(recipe, &prompts)),
        evaluation: truth(recipe, &tokenizer)?,
        answers: answers(recipe, &records, &RunImages::default()),
        vision: None,
        sizes,
        checkpointing: CheckpointPolicy::Off,
    };
    work(&mut parts, process, directory.path())
}

/// Everything that is held at the peak of a run on the CPU.
fn memory(counted: &Counted, process: Option<Component>) -> MemoryEstimate {
    let threads = rayon::current_num_threads() as u64;
    let missing = match &process {
        Some(_) => Vec::new(),
        None => vec!["program, tokenizer and records: this system does not say what a process holds".to_owned()],
    };
    let buffers = Component::new(
        "buffers of threads",
        threads * THREAD_BYTES,
        format!("{threads} threads, {} MiB each", THREAD_BYTES >> 20),
    );
    let kept = counted.peak.bytes.saturating_sub(counted.peak.live_bytes());
    let kept = Component::new("free blocks", kept as u64, "kept to be used again, at most");
    let held = counted
        .peak
        .live
        .iter()
        .filter(|(_, bytes)| **bytes > 0)
        .map(|(of, bytes)| Component::new(of.name(), *bytes as u64, ""));
    MemoryEstimate {
        components: process.into_iter().chain(held).chain([kept, buffers]).collect(),
        moment: counted.peak.moment.to_owned(),
        missing,
    }
}

/// What a GPU holds throughout.
fn device_memory(counted: &Counted) -> MemoryEstimate {
    let throughout = [Use::Frozen, Use::Trained, Use::Moments, Use::Average, Use::Reference];
    let component = |of: Use| {
        let bytes = counted.peak.live.get(&of).copied().unwrap_or(0);
        (bytes > 0).then(|| Component::new(of.name(), bytes as u64, ""))
    };
    let gradients = (counted.num_trained * network::WIDE) as u64;
    MemoryEstimate {
        components: throughout
            .into_iter()
            .filter_map(component)
            .chain([Component::new(Use::Gradients.name(), gradients, "")])
            .collect(),
        moment: "training".to_owned(),
        missing: vec!["activations: the operations of a GPU keep other tensors than those of the CPU".to_owned()],
    }
}

/// From the work of the sampled micro batches.
fn time(parts: &Parts<'_>, counted: &Counted) -> Result<TimeEstimate> {
    let sampled = &parts.sizes.sampled;
    let mean_tokens = sampled.iter().map(sizes::BatchSizes::tokens).sum::<usize>() / sampled.len().max(1);
    let config = parts.config;
    let rates = MachineRates::measure(mean_tokens.max(1), config.hidden_size, config.intermediate_size)?;
    // A shadow step has at most two micro batches.
    let train = &parts.recipe.train;
    let passes = train.accumulation as f64 / train.accumulation.min(2) as f64 / sampled.len().max(1) as f64;
    let Work { flop, bytes } = counted.work;
    Ok(TimeEstimate {
        num_steps: parts.sizes.num_steps,
        flop_per_step: flop * passes,
        bytes_per_step: bytes * passes,
        rates,
    })
}

fn assumptions(parts: &Parts<'_>, on_cpu: bool) -> Vec<String> {
    let largest = parts.sizes.largest.iter().max_by_key(|sizes| sizes.tokens());
    let mut assumptions = Vec::new();
    if let Some(largest) = largest {
        assumptions.push(format!(
            "The largest micro batch of this run has {} tokens in {} rows, {} of them scored.",
            largest.tokens(),
            largest.rows,
            largest.targets
        ));
    }
    if on_cpu {
        assumptions.push("Memory is what the process holds, as `peak_memory_bytes` of summary.json.".to_owned());
        assumptions.push(
            "Time is that of optimizer steps alone, at rates measured now; other programs on this machine slow it down."
                .to_owned(),
        );
    }
    assumptions.extend(budget::note(parts));
    assumptions.extend(term_assumptions(parts.recipe));
    assumptions
        .push("Sizes of logs and samples on disk are typical ones; the others are exact but for headers.".to_owned());
    assumptions
}

/// What the numbers rest on where terms stand beside the objective: of texts alone, and of texts with images.
pub fn term_assumptions(recipe: &Recipe<Language>) -> Vec<String> {
    let mut assumptions: Vec<String> = coupling_note(recipe).into_iter().collect();
    let method = &recipe.method;
    let terms = [
        (
            method.online_kl().is_some(),
            "Answers of `method.offline_pairs.online_kl` are taken to have `max_new_tokens` each; time, where it is estimated, counts scoring \
             them, and not giving them token by token.",
        ),
        (
            method.token_divergence().is_some(),
            "`method.offline_pairs.token_divergence` is not counted: it holds the logits of both networks for some tokens at a time, about \
             0.2 GiB, and computes those of the answers four times more.",
        ),
        (
            method.frequency().is_some(),
            "`method.offline_pairs.frequency` is not counted: it keeps the states of all texts, and where these are perturbed it reads them \
             unperturbed under the reference once more.",
        ),
    ];
    let used = terms.into_iter().filter(|(is_used, _)| *is_used);
    assumptions.extend(used.map(|(_, text)| text.to_owned()));
    assumptions
}

/// Bytes of an element of the largest tensor.
fn stored_width(weights: &Weights) -> usize {
    let elements = |name: &&str| weights.shape(name).map_or(0, |shape| shape.iter().product::<usize>());
    weights
        .names()
        .max_by_key(elements)
        .and_then(|name| weights.dtype(name))
        .unwrap_or(DType::F32)
        .size_in_bytes()
}

/// The network of `reference.checkpoint` where it is a whole one.
fn other_network(recipe: &Recipe<Language>) -> Result<Option<(LmConfig, usize)>> {
    let ReferenceConfig::Checkpoint { path } = &recipe.reference else {
        return Ok(None);
    };
    let path = recipe.resolve_path("reference.checkpoint.path", path)?;
    if !path.join("config.json").is_file() {
        return Ok(None);
    }
    let directory = LmDir::open(&path)?;
    let width = stored_width(&directory.weights()?);
    Ok(Some((directory.config().clone(), width)))
}

/// The largest batch of a pass that scores the data before training, where there will be one.
fn cached_pass(
    recipe: &Recipe<Language>,
    records: &[EncodedRecord],
    images: &RunImages<'_>,
) -> Option<sizes::BatchSizes> {
    let ReferenceConfig::Cached { path } = &recipe.reference else {
        return None;
    };
    let is_given = records
        .iter()
        .flat_map(|record| &record.responses)
        .all(|response| response.reference_logps.is_some());
    let is_there = path.as_deref().is_some_and(Path::is_file);
    let arrangement = recipe.method.batch().arrangement;
    (!is_given && !is_there).then(|| largest_in_order(arrangement, records, images, 2 * recipe.train.micro_batch))
}

/// What is sampled while training.
fn samples(recipe: &Recipe<Language>, prompts: &[TokenizedPrompt]) -> Sampling {
    let config = recipe.samples.clone().unwrap_or_default();
    Sampling {
        batch: config.batch_size,
        longest: prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(1),
        max_new_tokens: config.max_new_tokens,
        num_prompts: prompts.len(),
        images: ImageSizes::default(),
        kept_bytes: 0,
    }
}

/// What the policy answers in a micro batch.
fn answers(recipe: &Recipe<Language>, records: &[EncodedRecord], images: &RunImages<'_>) -> Option<Sampling> {
    let term = recipe.method.online_kl()?;
    let batch = recipe.train.micro_batch;
    let longest = records.iter().map(|record| record.responses[0].prompt.len()).max()?;
    Some(Sampling {
        batch,
        longest,
        max_new_tokens: term.max_new_tokens,
        num_prompts: batch,
        images: images.largest(),
        kept_bytes: 0,
    })
}

/// What is sampled for an evaluation of truth.
fn truth(recipe: &Recipe<Language>, tokenizer: &Tokenizer) -> Result<Option<Sampling>> {
    let Some(config) = recipe
        .evaluation
        .as_ref()
        .and_then(|evaluation| evaluation.truth.as_ref())
    else {
        return Ok(None);
    };
    let prompts = evaluation::prompts(recipe, config)?;
    Ok(Some(Sampling {
        batch: config.batch_size,
        longest: longest(tokenizer, &prompts)?.unwrap_or(1),
        max_new_tokens: config.max_new_tokens,
        num_prompts: prompts.len(),
        images: ImageSizes::default(),
        kept_bytes: 0,
    }))
}

/// Tokens of the longest prompt.
fn longest(tokenizer: &Tokenizer, prompts: &[String]) -> Result<Option<usize>> {
    let mut longest = None;
    for prompt in prompts {
        longest = longest.max(Some(tokenizer.encode(prompt, SpecialTokens::Include)?.ids.len()));
    }
    Ok(longest)
}
