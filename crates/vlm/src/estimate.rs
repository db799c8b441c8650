//! What a run will need, before anything is loaded.
//!
//! On a CPU the run is gone through in shadows, as that of a language model is (`diptych_llm::estimate`), with tower and projector: the
//! estimate is the most that is held at once, activations included. On a GPU it is what is held throughout. Time is not estimated.

use diptych_data::Tokenizer;
use diptych_llm::adapter_of;
use diptych_llm::estimate::{
    Answering, ImageSizes, SpoiledAnswers, VisionEstimate, VisionMemory, term_assumptions, vision_memory,
};
use diptych_llm::method::is_model;
use diptych_llm::records::EncodedRecord;
use diptych_llm::samples::TokenizedPrompt;
use diptych_llm::vision::RunImages;
use diptych_models::AdapterConfig;
use diptych_models::vlm::{ProcessedImage, TowerConfig as Tower, VisionConfig, VlmConfig, VlmDir};
use diptych_tensor::{CheckpointPolicy, DType, Weights};
use diptych_train::{Component, Estimate, GradientCheckpointing, Recipe, ReferenceConfig};
use image::RgbImage;

use crate::Result;
use crate::adapter::TowerConfig;
use crate::clip::Clip;
use crate::modality::{CLIP, VisionLanguage, as_text};
use crate::prepare::{IMAGE_MEMORY, run_images, sampled_prompts};
use crate::records::{learn, load_records};

/// Bytes of an element of a trained parameter.
const WIDE: u64 = 4;

/// Words around an image in a question of `[eval.hallucination]`, about.
const QUESTION_LEN: usize = 32;

/// What a run needs.
///
/// Reads configuration, tokenizer, data, every image and the header of the weights.
///
/// # Errors
/// What would also end the run before its first step: files that are missing or damaged, targets that name no layer, records
/// that the method cannot use.
pub fn estimate(recipe: &Recipe<VisionLanguage>) -> Result<Estimate> {
    Ok(survey(recipe)?.0)
}

/// Which layers recompute their activations. For a budget the run is gone through as [`estimate`] does it, data and images included.
pub(crate) fn checkpoint_policy(recipe: &Recipe<VisionLanguage>) -> Result<CheckpointPolicy> {
    match recipe.train.gradient_checkpointing {
        GradientCheckpointing::Blocks(policy) => Ok(policy),
        GradientCheckpointing::Memory { .. } => Ok(survey(recipe)?.1),
    }
}

fn survey(recipe: &Recipe<VisionLanguage>) -> Result<(Estimate, CheckpointPolicy)> {
    let text = as_text(recipe);
    let directory = VlmDir::open(recipe.model_path()?)?;
    let config = directory.config();
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let mut images = run_images(recipe, &directory)?;
    let mut records = load_records(recipe, config, &tokenizer, &mut images, |_, _| Ok(()))?.records;
    let prompts = sampled_prompts(recipe, &records, &tokenizer, config.image_token_id)?;
    learn(&text, config.image_token_id, &mut records);
    let sizes = (0..images.len())
        .map(|index| {
            let tokens = config.num_image_tokens(&images.layout(index))?;
            Ok(image_sizes(config, images.num_elements(index), tokens))
        })
        .collect::<Result<Vec<ImageSizes>>>()?;
    let weights = directory.weights()?;
    let layers = adaptable(recipe, config, &weights);
    let adapter = adapter_of(&text)?;
    let other = other_network(recipe)?;
    let features = all_features(recipe, config, &sizes);
    let limit = recipe.data.image_memory.unwrap_or(IMAGE_MEMORY);
    let run = VisionEstimate {
        config,
        adapter: &adapter,
        is_tower_trained: recipe.adapter.tower == TowerConfig::Trained,
        layers: &layers,
        stored_width: stored_width(&weights),
        other: other.as_ref().map(|(config, width)| (config, *width)),
        images: &sizes,
        kept_bytes: features.min(limit.saturating_mul(1 << 20)),
        spoiled: spoiled(recipe),
        passing_bytes: clip_bytes(recipe)?,
        samples: prompts.as_deref().map(|prompts| samples(recipe, prompts, &sizes)),
        evaluation: questions(recipe, config, &images)?,
    };
    let VisionMemory {
        memory,
        num_trained,
        checkpointing,
        note,
    } = vision_memory(&text, &records, &run)?;
    let num_parameters = shapes(&weights)
        .map(|(_, shape)| shape.iter().product::<usize>() as u64)
        .sum();
    let mut assumptions = assumptions(recipe, &records, &images);
    assumptions.extend(note);
    let estimate = Estimate {
        memory,
        time: None,
        disk: disk(recipe, [num_trained, num_parameters], features),
        assumptions,
    };
    Ok((estimate, checkpointing))
}

/// What is done with chosen answers under spoiled images. No recipe does both.
fn spoiled(recipe: &Recipe<VisionLanguage>) -> SpoiledAnswers {
    let preference = recipe.method.image_preference();
    if recipe.method.own_answer().is_some() {
        SpoiledAnswers::Read
    } else if preference.is_some_and(|term| term.corruption.is_some()) {
        SpoiledAnswers::Scored
    } else {
        SpoiledAnswers::None
    }
}

/// Bytes of the CLIP that says which tokens are perturbed, where one does: it is let go of before the network is loaded.
fn clip_bytes(recipe: &Recipe<VisionLanguage>) -> Result<u64> {
    match recipe.method.token_perturbation() {
        Some(config) => Ok(WIDE * Clip::num_weights(&recipe.resolve_path(CLIP, &config.clip)?)?),
        None => Ok(0),
    }
}

/// The sizes of an image of which the tower reads so many numbers, and the decoder so many tokens.
fn image_sizes(config: &VlmConfig, pixels: usize, tokens: usize) -> ImageSizes {
    let (patches, features) = match &config.vision {
        VisionConfig::Qwen(vision) => {
            let patches = pixels / (3 * vision.temporal_patch_size * vision.patch_size.pow(2));
            (patches, patches)
        }
        VisionConfig::Llava(vision) => {
            let pictures = pixels / (3 * vision.tower.image_size().pow(2));
            let extra = usize::from(matches!(vision.tower, Tower::Clip(_)));
            let of_picture = vision.tower.patches_per_side().pow(2) + extra;
            (pictures * of_picture, pictures * vision.features_per_picture())
        }
    };
    ImageSizes {
        pixels,
        patches,
        features,
        tokens,
    }
}

/// Names and shapes of the layers that could carry an adapter.
fn adaptable(recipe: &Recipe<VisionLanguage>, config: &VlmConfig, weights: &Weights) -> Vec<(String, Vec<usize>)> {
    let is_reached = |name: &str| recipe.adapter.tower == TowerConfig::Trained || !config.is_tower_parameter(name);
    shapes(weights)
        .filter(|(name, shape)| is_reached(name) && shape.len() == 2 && !name.contains("embed"))
        .filter_map(|(name, shape)| Some((name.strip_suffix(".weight")?.to_owned(), shape.to_vec())))
        .collect()
}

/// Bytes of an element of the largest tensor.
fn stored_width(weights: &Weights) -> usize {
    let largest = shapes(weights).max_by_key(|(_, shape)| shape.iter().product::<usize>());
    let dtype = largest.and_then(|(name, _)| weights.dtype(name));
    dtype.unwrap_or(DType::F32).size_in_bytes()
}

/// The network of `reference.checkpoint` where it is a whole one.
fn other_network(recipe: &Recipe<VisionLanguage>) -> Result<Option<(VlmConfig, usize)>> {
    let ReferenceConfig::Checkpoint { path } = &recipe.reference else {
        return Ok(None);
    };
    let path = recipe.resolve_path(diptych_llm::method::CHECKPOINT, path)?;
    if !is_model(&path) {
        return Ok(None);
    }
    let directory = VlmDir::open(&path)?;
    let width = stored_width(&directory.weights()?);
    Ok(Some((directory.config().clone(), width)))
}

/// What is sampled while training.
fn samples(recipe: &Recipe<VisionLanguage>, prompts: &[TokenizedPrompt], sizes: &[ImageSizes]) -> Answering {
    let config = recipe.samples.clone().unwrap_or_default();
    let of_prompt = |prompt: &TokenizedPrompt| {
        let images = prompt.images.iter().map(|index| sizes[*index]);
        images.fold(ImageSizes::default(), ImageSizes::and)
    };
    Answering {
        batch_size: config.batch_size,
        longest: prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(1),
        max_new_tokens: config.max_new_tokens,
        num_prompts: prompts.len(),
        images: prompts
            .iter()
            .map(of_prompt)
            .max_by_key(|sizes| sizes.patches)
            .unwrap_or_default(),
        kept_bytes: 0,
    }
}

/// What is asked after training: two questions and a caption a scene.
fn questions(recipe: &Recipe<VisionLanguage>, config: &VlmConfig, images: &RunImages) -> Result<Option<Answering>> {
    let evaluation = recipe.evaluation.as_ref();
    let Some(asked) = evaluation.and_then(|evaluation| evaluation.hallucination.as_ref()) else {
        return Ok(None);
    };
    let ProcessedImage { pixels, layout } = images.processor().process(&RgbImage::new(asked.size, asked.size))?;
    let sizes = image_sizes(config, pixels.elem_count(), config.num_image_tokens(&layout)?);
    Ok(Some(Answering {
        batch_size: asked.batch_size,
        longest: sizes.tokens + QUESTION_LEN,
        max_new_tokens: asked.max_new_tokens,
        num_prompts: 3 * asked.num_scenes,
        images: sizes,
        kept_bytes: asked.num_scenes as u64 * feature_bytes(recipe, config, &sizes),
    }))
}

/// What the numbers rest on.
fn assumptions(recipe: &Recipe<VisionLanguage>, records: &[EncodedRecord], images: &RunImages) -> Vec<String> {
    let longest = records
        .iter()
        .flat_map(|record| &record.responses)
        .map(|response| response.prompt.len() + response.ids.len())
        .max()
        .unwrap_or(0);
    let mut assumptions = vec![
        format!(
            "{} records, {} different images; the longest text has {longest} tokens, those of its images among them.",
            records.len(),
            images.len()
        ),
        "On disk are checkpoints and the result; logs and samples are small beside them.".to_owned(),
    ];
    assumptions.extend(term_assumptions(&as_text(recipe)));
    if recipe.method.token_perturbation().is_some() {
        assumptions.push(
            "Of the CLIP of `method.offline_pairs.token_perturbation` the weights are counted, and not what it holds while it reads some words \
             or images at a time."
                .to_owned(),
        );
    }
    assumptions
}

fn shapes(weights: &Weights) -> impl Iterator<Item = (&str, &[usize])> {
    weights.names().filter_map(|name| Some((name, weights.shape(name)?)))
}

/// Bytes of features, or pixels where the tower is trained, of all images.
fn all_features(recipe: &Recipe<VisionLanguage>, config: &VlmConfig, sizes: &[ImageSizes]) -> u64 {
    let bytes = |image: &ImageSizes| match recipe.adapter.tower {
        TowerConfig::Frozen => feature_bytes(recipe, config, image),
        TowerConfig::Trained => image.pixels as u64 * WIDE,
    };
    sizes.iter().map(bytes).sum()
}

/// Bytes of what the tower makes of an image.
fn feature_bytes(recipe: &Recipe<VisionLanguage>, config: &VlmConfig, image: &ImageSizes) -> u64 {
    let width = match &config.vision {
        VisionConfig::Qwen(vision) => vision.width,
        VisionConfig::Llava(vision) => vision.tower.width() * vision.feature_layers.len(),
    };
    (image.features * width * recipe.run.precision.dtype().size_in_bytes()) as u64
}

/// Checkpoints and the result.
fn disk(recipe: &Recipe<VisionLanguage>, [trained, all]: [u64; 2], features: u64) -> Vec<Component> {
    let train = &recipe.train;
    let result = match recipe.adapter.adapter {
        AdapterConfig::Lora(_) => trained * WIDE,
        AdapterConfig::Full(_) => all * WIDE,
    };
    let averages = u64::from(train.ema_decay.is_some()) * trained * WIDE;
    let moving = u64::from(matches!(recipe.reference, ReferenceConfig::Ema { .. })) * trained * WIDE;
    let one = result + 2 * trained * WIDE + averages + moving;
    let mut disk = Vec::new();
    if train.checkpoint_every > 0 {
        let note = match train.keep_checkpoints {
            0 => "each of them; all are kept".to_owned(),
            kept => format!("{kept} of them, at most"),
        };
        let bytes = one * (train.keep_checkpoints as u64).max(1);
        disk.push(Component::new("checkpoints", bytes, note));
    }
    disk.push(Component::new("final", result, ""));
    if recipe.data.cache.is_some() {
        disk.push(Component::new("features", features, "in `data.cache.path`"));
    }
    disk
}
