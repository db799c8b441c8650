//! What a run will need, before anything is loaded.
//!
//! Counted is what is held throughout: weights, adapters and what the optimizer keeps of them, references, kept features. Activations
//! are not, and neither is time; the estimate says so.

use diptych_data::Tokenizer;
use diptych_llm::method::{coupling_note, is_model};
use diptych_llm::records::EncodedRecord;
use diptych_llm::vision::RunImages;
use diptych_models::AdapterConfig;
use diptych_models::vlm::{VisionConfig, VlmConfig, VlmDir};
use diptych_tensor::Weights;
use diptych_train::{Component, Estimate, MemoryEstimate, Recipe, ReferenceConfig, process_component};

use crate::Result;
use crate::adapter::TowerConfig;
use crate::modality::{VisionLanguage, as_text};
use crate::prepare::run_images;
use crate::records::{learn, load_records};

/// Bytes of an element of a trained parameter.
const WIDE: u64 = 4;

/// What a run needs.
///
/// Reads configuration, tokenizer, data, every image and the header of the weights.
///
/// # Errors
/// What would also end the run before its first step: files that are missing or damaged, targets that name no layer, records
/// that the method cannot use.
pub fn estimate(recipe: &Recipe<VisionLanguage>) -> Result<Estimate> {
    let directory = VlmDir::open(recipe.model_path()?)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let mut images = run_images(recipe, &directory)?;
    let mut records = load_records(recipe, directory.config(), &tokenizer, &mut images, |_, _| Ok(()))?;
    learn(&as_text(recipe), directory.config().image_token_id, &mut records);
    let process = process_component(format!("program, tokenizer, {} records: measured now", records.len()));
    let network = Counted::of(recipe, &directory)?;
    let features = kept_bytes(recipe, directory.config(), &images);
    let trained = network.trained * WIDE;
    let mut components: Vec<Component> = process.into_iter().collect();
    let mut add = |name: &str, bytes: u64, note: String| {
        if bytes > 0 {
            components.push(Component::new(name, bytes, note));
        }
    };
    add("frozen weights", network.frozen * network.width, String::new());
    add("trained weights", trained, format!("{} parameters", network.trained));
    add("gradients", trained, String::new());
    add("moments", 2 * trained, String::new());
    if recipe.train.ema_decay.is_some() {
        add("averages", trained, String::new());
    }
    add(
        "reference",
        network.reference(recipe)?,
        format!("`{}`", recipe.reference.name()),
    );
    let what = match recipe.adapter.tower {
        TowerConfig::Frozen => "features",
        TowerConfig::Trained => "pixels",
    };
    add(
        "images",
        features,
        format!("{what} of {} images that are kept", images.len()),
    );
    let assumptions = assumptions(recipe, &records, &images);
    Ok(Estimate {
        memory: MemoryEstimate {
            components,
            moment: "training".to_owned(),
            missing: vec![
                "activations of decoder and tower, which grow with `train.micro_batch` and the images' size".to_owned(),
            ],
        },
        time: None,
        disk: disk(recipe, &network, all_features(recipe, directory.config(), &images)),
        assumptions,
    })
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
    assumptions.extend(coupling_note(&as_text(recipe)));
    assumptions
}

/// Parameters of the policy.
struct Counted {
    frozen: u64,
    trained: u64,
    /// Bytes of a frozen element.
    width: u64,
    all: u64,
}

impl Counted {
    fn of(recipe: &Recipe<VisionLanguage>, directory: &VlmDir) -> Result<Self> {
        let (weights, config) = (directory.weights()?, directory.config());
        let is_reached = |name: &str| recipe.adapter.tower == TowerConfig::Trained || !config.is_tower_parameter(name);
        let size = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let shapes: Vec<(&str, &[usize])> = shapes(&weights).collect();
        let all: u64 = shapes.iter().map(|(_, shape)| size(shape)).sum();
        let trained = match &recipe.adapter.adapter {
            AdapterConfig::Full(_) => {
                let reached = shapes.iter().filter(|(name, _)| is_reached(name));
                reached.map(|(_, shape)| size(shape)).sum()
            }
            AdapterConfig::Lora(lora) => {
                let layers: Vec<(String, Vec<usize>)> = shapes
                    .iter()
                    .filter(|(name, shape)| is_reached(name) && shape.len() == 2 && !name.contains("embed"))
                    .filter_map(|(name, shape)| Some((name.strip_suffix(".weight")?.to_owned(), shape.to_vec())))
                    .collect();
                let targeted = lora.targeted(&layers)?;
                let of_layer = |shape: &[usize]| {
                    let magnitude = if lora.use_dora { shape[0] } else { 0 };
                    (lora.rank * (shape[0] + shape[1]) + magnitude) as u64
                };
                let chosen = layers.iter().zip(targeted).filter(|(_, is_targeted)| *is_targeted);
                chosen.map(|((_, shape), _)| of_layer(shape)).sum()
            }
        };
        let frozen = match &recipe.adapter.adapter {
            AdapterConfig::Full(_) => all - trained,
            AdapterConfig::Lora(_) => all,
        };
        let width = recipe.run.precision.dtype().size_in_bytes() as u64;
        Ok(Self {
            frozen,
            trained,
            width,
            all,
        })
    }

    /// Bytes of what the policy is compared with.
    fn reference(&self, recipe: &Recipe<VisionLanguage>) -> Result<u64> {
        Ok(match &recipe.reference {
            ReferenceConfig::None {} | ReferenceConfig::AdapterOff {} | ReferenceConfig::Cached { .. } => 0,
            ReferenceConfig::Frozen {} => self.all * self.width,
            ReferenceConfig::Ema { .. } => self.frozen * self.width + self.trained * WIDE,
            ReferenceConfig::Checkpoint { path } => {
                let path = recipe.resolve_path(diptych_llm::method::CHECKPOINT, path)?;
                let directory = if is_model(&path) { path } else { recipe.model_path()? };
                let weights = VlmDir::open(directory)?.weights()?;
                let elements: usize = shapes(&weights).map(|(_, shape)| shape.iter().product::<usize>()).sum();
                elements as u64 * self.width
            }
        })
    }
}

fn shapes(weights: &Weights) -> impl Iterator<Item = (&str, &[usize])> {
    weights.names().filter_map(|name| Some((name, weights.shape(name)?)))
}

/// Bytes of features or pixels of all images.
fn all_features(recipe: &Recipe<VisionLanguage>, config: &VlmConfig, images: &RunImages) -> u64 {
    let elements = |index: usize| -> usize {
        let pixels = images.num_elements(index);
        match (&config.vision, recipe.adapter.tower) {
            (_, TowerConfig::Trained) => pixels,
            (VisionConfig::Qwen(vision), TowerConfig::Frozen) => {
                pixels / (3 * vision.temporal_patch_size * vision.patch_size * vision.patch_size) * vision.width
            }
            (VisionConfig::Llava(vision), TowerConfig::Frozen) => {
                let side = vision.tower.image_size();
                let of_picture = vision.features_per_picture() * vision.tower.width() * vision.feature_layers.len();
                pixels / (3 * side * side) * of_picture
            }
        }
    };
    let width = match recipe.adapter.tower {
        TowerConfig::Frozen => recipe.run.precision.dtype().size_in_bytes() as u64,
        TowerConfig::Trained => WIDE,
    };
    (0..images.len()).map(|index| elements(index) as u64 * width).sum()
}

/// Bytes of what is kept of the images in memory, as far as it is allowed.
fn kept_bytes(recipe: &Recipe<VisionLanguage>, config: &VlmConfig, images: &RunImages) -> u64 {
    let limit = recipe.data.image_memory.unwrap_or(crate::prepare::IMAGE_MEMORY);
    all_features(recipe, config, images).min(limit.saturating_mul(1 << 20))
}

/// Checkpoints and the result.
fn disk(recipe: &Recipe<VisionLanguage>, network: &Counted, features: u64) -> Vec<Component> {
    let train = &recipe.train;
    let result = match recipe.adapter.adapter {
        AdapterConfig::Lora(_) => network.trained * WIDE,
        AdapterConfig::Full(_) => network.all * WIDE,
    };
    let averages = u64::from(train.ema_decay.is_some()) * network.trained * WIDE;
    let moving = u64::from(matches!(recipe.reference, ReferenceConfig::Ema { .. })) * network.trained * WIDE;
    let one = result + 2 * network.trained * WIDE + averages + moving;
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
