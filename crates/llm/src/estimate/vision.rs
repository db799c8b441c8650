//! What a run of a network that reads images will hold at its peak on a CPU.

use std::rc::Rc;

use diptych_models::AdapterConfig;
use diptych_models::vlm::VlmConfig;
use diptych_tensor::CheckpointPolicy;
use diptych_train::{MemoryEstimate, Recipe, process_component};

use super::budget::{count_within, note};
use super::heap::{Block, Heap, Use};
use super::network::{ShadowLm, VisionLoading};
use super::run::{Parts, Sampling};
use super::sizes::{ImageSizes, RunImages, RunSizes, SpoiledAnswers};
use super::{answers, cached_pass, device_memory, memory};
use crate::Result;
use crate::method::network_options;
use crate::modality::Language;
use crate::records::EncodedRecord;

/// What there is to know of a run with images beside its recipe and records.
#[derive(Debug)]
pub struct VisionEstimate<'a> {
    /// The network.
    pub config: &'a VlmConfig,
    /// What is trained of it.
    pub adapter: &'a AdapterConfig,
    /// Whether that reaches the tower.
    pub is_tower_trained: bool,
    /// Names and shapes of all layers that could carry an adapter, tower included only where it is reached.
    pub layers: &'a [(String, Vec<usize>)],
    /// Bytes of a stored element.
    pub stored_width: usize,
    /// The network of `reference.checkpoint` where it is a whole one, with the bytes of its stored elements.
    pub other: Option<(&'a VlmConfig, usize)>,
    /// Every image of the run.
    pub images: &'a [ImageSizes],
    /// Bytes of features, or pixels, that are kept of them in memory.
    pub kept_bytes: u64,
    /// What is done with chosen answers under images that are made of their own.
    pub spoiled: SpoiledAnswers,
    /// Bytes of a network that is there before training and gone when it begins.
    pub passing_bytes: u64,
    /// What is sampled while training.
    pub samples: Option<Answering>,
    /// What is asked after training.
    pub evaluation: Option<Answering>,
}

/// Prompts that are answered.
#[derive(Debug, Clone, Copy)]
pub struct Answering {
    /// Answers computed together.
    pub batch_size: usize,
    /// Tokens of the longest prompt, those of its images among them.
    pub longest: usize,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// Prompts in all.
    pub num_prompts: usize,
    /// The images of a prompt.
    pub images: ImageSizes,
    /// Bytes of what is kept of the images of all prompts, where these are not the run's.
    pub kept_bytes: u64,
}

impl From<Answering> for Sampling {
    fn from(answering: Answering) -> Self {
        Self {
            batch: answering.batch_size,
            longest: answering.longest,
            max_new_tokens: answering.max_new_tokens,
            num_prompts: answering.num_prompts,
            images: answering.images,
            kept_bytes: answering.kept_bytes as usize,
        }
    }
}

/// Images and their tower.
#[derive(Clone, Copy)]
pub(super) struct VisionCounts<'a> {
    /// Of the policy, and of another network with a tower of its own.
    pub(super) loading: VisionLoading<'a>,
    pub(super) other: Option<VisionLoading<'a>>,
    /// Bytes of features or pixels that are kept in memory.
    kept_bytes: usize,
    /// Bytes of a network that is there before all others and gone when they are loaded.
    passing_bytes: usize,
    /// The largest image.
    pub(super) largest: ImageSizes,
}

impl VisionCounts<'_> {
    /// The network that is gone before training.
    pub(super) fn pass(self, heap: &Heap) {
        if self.passing_bytes > 0 {
            heap.begin("reading texts and images with another network");
            drop(heap.take(Use::Loading, self.passing_bytes));
        }
    }

    /// What is kept of all images.
    pub(super) fn keep(self, heap: &Heap, policy: &ShadowLm) -> Rc<Block> {
        heap.begin("encoding images");
        if !self.loading.is_tower_trained {
            policy.encode(heap, self.largest);
        }
        heap.take(Use::Images, self.kept_bytes)
    }
}

/// What a run holds, and what it trains.
#[derive(Debug)]
pub struct VisionMemory {
    /// The most that is held, on a CPU with activations and all else; on a GPU what is held throughout.
    pub memory: MemoryEstimate,
    /// Trained parameters.
    pub num_trained: u64,
    /// Which layers recompute their activations, in the decoder and in a tower that is trained.
    pub checkpointing: CheckpointPolicy,
    /// What a budget came to.
    pub note: Option<String>,
}

/// What a run holds. `records` are as they are learned.
///
/// # Errors
/// Targets that name no layer.
pub fn vision_memory(
    recipe: &Recipe<Language>,
    records: &[EncodedRecord],
    run: &VisionEstimate<'_>,
) -> Result<VisionMemory> {
    // Before anything is counted: what the run will have read at this point too.
    let process = process_component(format!("program, tokenizer, {} records: measured now", records.len()));
    let images = RunImages {
        sizes: run.images,
        spoiled: run.spoiled,
    };
    let mut parts = Parts {
        recipe,
        config: &run.config.text,
        adapter: run.adapter,
        stored_width: run.stored_width,
        other: run.other.map(|(config, width)| (config.text.clone(), width)),
        sizes: RunSizes::of(recipe, records, &images),
        cached: cached_pass(recipe, records, &images),
        num_scores: records
            .iter()
            .flat_map(|record| &record.responses)
            .map(|response| response.ids.len())
            .sum(),
        samples: run.samples.map(Sampling::from),
        evaluation: run.evaluation.map(Sampling::from),
        answers: answers(recipe, records, &images),
        vision: Some(VisionCounts {
            loading: VisionLoading {
                config: &run.config.vision,
                is_tower_trained: run.is_tower_trained,
                layers: run.layers,
            },
            other: run.other.map(|(config, _)| VisionLoading {
                config: &config.vision,
                is_tower_trained: false,
                layers: &[],
            }),
            kept_bytes: run.kept_bytes as usize,
            passing_bytes: run.passing_bytes as usize,
            largest: images.largest(),
        }),
        checkpointing: CheckpointPolicy::Off,
    };
    let counted = count_within(&mut parts, process.as_ref())?;
    let memory = if network_options(recipe)?.device.is_cpu() {
        memory(&counted, process)
    } else {
        device_memory(&counted)
    };
    Ok(VisionMemory {
        memory,
        num_trained: counted.num_trained as u64,
        checkpointing: parts.checkpointing,
        note: note(&parts),
    })
}
