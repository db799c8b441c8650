//! From a recipe to a method that can be trained.

use std::path::Path;
use std::sync::Arc;

use diptych_data::{SpecialTokens, Tokenizer};
use diptych_llm::method::{
    CHECKPOINT, ImagePreference, ImageTerms, LanguageMethod, MethodParts, OwnAnswer, Replacement, Spoil,
    TokenPerturbation, TokensWanted, assemble, check_tokens, is_model, network_options, warn_of_long,
};
use diptych_llm::network::Network;
use diptych_llm::policy::{NetworkOptions, Trained, VisionParts, load_frozen_vision, start_vision_adapter};
use diptych_llm::records::EncodedRecord;
use diptych_llm::reference::Reference;
use diptych_llm::samples::TokenizedPrompt;
use diptych_llm::vision::{KeptFeatures, PixelMemory, RunImages};
use diptych_llm::{Language, adapter_of};
use diptych_models::AdapterConfig;
use diptych_models::text_encoder::ClipTokenizer;
use diptych_models::vlm::VlmDir;
use diptych_tensor::DType;
use diptych_train::{Recipe, ReferenceConfig, Reporter};

use crate::adapter::TowerConfig;
use crate::cache::kept_features;
use crate::clip::Clip;
use crate::estimate::checkpoint_policy;
use crate::likeness::{WordClip, likenesses};
use crate::method::{Change, TokenPerturbationConfig};
use crate::modality::{CLIP, VisionLanguage, as_text};
use crate::progress::advance;
use crate::records::{LoadedRecords, learn, load_records};
use crate::spoil::Corrupted;
use crate::{Error, Result};

/// MiB that may keep what was made of images where the recipe does not say.
pub(crate) const IMAGE_MEMORY: u64 = 4096;

/// Loads the networks of a recipe, reads its records and their images.
///
/// # Errors
/// Files that are missing, damaged or do not fit each other, settings that contradict the data, a stop that was asked for.
pub fn prepare(recipe: &Recipe<VisionLanguage>, reporter: &mut Reporter<'_>) -> Result<LanguageMethod> {
    let text = as_text(recipe);
    let checkpointing = checkpoint_policy(recipe)?;
    let directory = VlmDir::open(recipe.model_path()?)?;
    let tokenizer = Tokenizer::from_dir(directory.path())?;
    let mut images = run_images(recipe, &directory)?;
    let texts = read_texts(recipe, (&directory, &tokenizer), &mut images, reporter)?;
    let (adapter, options) = (adapter_of(&text)?, network_options(&text)?);
    let networks = Networks {
        directory: &directory,
        kept: kept_features(recipe, &directory, &adapter, &options)?,
        adapter,
        options,
        images: Arc::new(images),
    };
    let policy = networks.policy(recipe.adapter.tower)?;
    let parts = MethodParts {
        reference: networks.reference(&text, recipe, &policy)?,
        policy,
        records: texts.records,
        pad_token_id: pad_token_id(&directory, &tokenizer),
        tokenizer,
        prompts: texts.prompts,
        terms: ImageTerms {
            image_preference: recipe.method.image_preference().map(|config| {
                let spoil = config
                    .corruption
                    .map(|corruption| Box::new(Corrupted(corruption)) as Box<dyn Spoil>);
                ImagePreference::new(config.term(), spoil)
            }),
            own_answer: recipe
                .method
                .own_answer()
                .map(|config| OwnAnswer::new(config.term(), Box::new(Corrupted(config.corruption)))),
            token_perturbation: texts.perturbation,
        },
        checkpointing,
    };
    Ok(assemble(&text, parts, reporter)?)
}

/// What is learned from, and what is made of it.
struct RunTexts {
    records: Vec<EncodedRecord>,
    prompts: Option<Vec<TokenizedPrompt>>,
    perturbation: Option<TokenPerturbation>,
}

fn read_texts(
    recipe: &Recipe<VisionLanguage>,
    (directory, tokenizer): (&VlmDir, &Tokenizer),
    images: &mut RunImages,
    reporter: &mut Reporter<'_>,
) -> Result<RunTexts> {
    let text = as_text(recipe);
    let config = directory.config();
    let mut loaded = load_records(recipe, config, tokenizer, images, |done, total| {
        advance(reporter, "images", done, total)
    })?;
    let wanted = if recipe.method.own_answer().is_some() || recipe.method.token_perturbation().is_some() {
        TokensWanted::All
    } else {
        TokensWanted::of(&text)
    };
    let image_token_id = config.image_token_id;
    check_tokens(
        &text,
        &loaded.records,
        (tokenizer, Some(image_token_id)),
        wanted,
        |path| Ok(VlmDir::open(path)?.config().text.vocab_size),
    )?;
    warn_of_long(&loaded.records, config.text.max_position_embeddings);
    let prompts = sampled_prompts(recipe, &loaded.records, tokenizer, image_token_id)?;
    learn(&text, image_token_id, &mut loaded.records);
    let perturbation = token_perturbation(recipe, (tokenizer, image_token_id), (&loaded, images), reporter)?;
    Ok(RunTexts {
        records: loaded.records,
        prompts,
        perturbation,
    })
}

/// What perturbs the texts, where the recipe says so.
fn token_perturbation(
    recipe: &Recipe<VisionLanguage>,
    (tokenizer, image_token_id): (&Tokenizer, u32),
    (loaded, images): (&LoadedRecords, &RunImages),
    reporter: &mut Reporter<'_>,
) -> Result<Option<TokenPerturbation>> {
    let Some(config) = recipe.method.token_perturbation() else {
        return Ok(None);
    };
    let replacement = match config.change {
        Change::Mask => Replacement::Mask(mask_token(config, tokenizer)?),
        Change::Replace => {
            let mut words = Vec::new();
            for id in (5..tokenizer.vocab_size() as u32).filter(|id| *id != image_token_id) {
                if !tokenizer.decode(&[id], SpecialTokens::Omit)?.is_empty() {
                    words.push(id);
                }
            }
            Replacement::OneOf(words)
        }
    };
    let device = recipe.run.device.resolve().map_err(Error::from)?;
    let path = recipe.resolve_path(CLIP, &config.clip)?;
    let clip = WordClip {
        clip: Clip::load(&path, &device, DType::F32)?,
        tokenizer: ClipTokenizer::from_dir(&path)?,
    };
    let likenesses = likenesses(&clip, loaded, tokenizer, images, |done, total| {
        advance(reporter, "words and images in a CLIP", done, total)
    })?;
    Ok(Some(TokenPerturbation::new(config.tokens, replacement, likenesses)))
}

/// What masks a token.
fn mask_token(config: &TokenPerturbationConfig, tokenizer: &Tokenizer) -> Result<u32> {
    let missing = |found: String, expected: &str| Error::Setting {
        key: "method.offline_pairs.token_perturbation.mask_token".to_owned(),
        found,
        expected: expected.to_owned(),
    };
    match &config.mask_token {
        Some(token) => tokenizer
            .id(token)
            .ok_or_else(|| missing(format!("{token:?}"), "a token of the vocabulary")),
        None => tokenizer
            .named_token("mask_token")
            .and_then(|token| tokenizer.id(token))
            .or(tokenizer.unk_id())
            .or(tokenizer.pad_id())
            .ok_or_else(|| {
                missing(
                    "not given".to_owned(),
                    "a token: the tokenizer has no mask, unknown or padding token",
                )
            }),
    }
}

/// No images yet, with the limits of the recipe.
///
/// # Errors
/// When the directory has no image processor, or one that does not fit.
pub(crate) fn run_images(recipe: &Recipe<VisionLanguage>, directory: &VlmDir) -> Result<RunImages> {
    let mut processor = directory.image_processor()?;
    if let Some(limit) = recipe.data.max_image_area {
        processor.max_image_pixels = limit;
    }
    let pixels = match recipe.adapter.tower {
        TowerConfig::Frozen => PixelMemory::MadeAgain,
        TowerConfig::Trained => PixelMemory::Kept,
    };
    let limit = recipe.data.image_memory.unwrap_or(IMAGE_MEMORY).saturating_mul(1 << 20);
    Ok(RunImages::new(processor, pixels, limit))
}

/// What fills rows up: any token that is no image.
fn pad_token_id(directory: &VlmDir, tokenizer: &Tokenizer) -> u32 {
    let config = directory.config();
    [config.text.pad_token_id, tokenizer.pad_id(), tokenizer.eos_id()]
        .into_iter()
        .flatten()
        .find(|id| *id != config.image_token_id)
        .unwrap_or(u32::from(config.image_token_id == 0))
}

/// What the networks of a run are made of.
struct Networks<'a> {
    directory: &'a VlmDir,
    adapter: AdapterConfig,
    options: NetworkOptions,
    images: Arc<RunImages>,
    /// What is kept on disk of the policy's tower.
    kept: Option<Arc<KeptFeatures>>,
}

impl Networks<'_> {
    fn policy(&self, tower: TowerConfig) -> Result<Trained<Network>> {
        let parts = VisionParts {
            images: self.images.clone(),
            kept: self.kept.clone(),
        };
        Ok(Trained::load_vision(
            self.directory,
            &self.adapter,
            tower.into(),
            &self.options,
            parts,
        )?)
    }

    /// The reference that computes scores when it is asked.
    fn reference(
        &self,
        text: &Recipe<Language>,
        recipe: &Recipe<VisionLanguage>,
        policy: &Trained<Network>,
    ) -> Result<Reference> {
        // A copy of the start has the policy's tower, where that does not change.
        let same_tower = || VisionParts {
            images: self.images.clone(),
            kept: match &policy.model {
                Network::Vision(network) => network.kept(),
                Network::Text(_) => None,
            },
        };
        Ok(match &text.reference {
            ReferenceConfig::None {} | ReferenceConfig::Cached { .. } => Reference::None,
            ReferenceConfig::AdapterOff {} => Reference::AdapterOff,
            ReferenceConfig::Frozen {} => {
                let start = start_vision_adapter(self.directory, &self.adapter)?;
                let network = load_frozen_vision(self.directory, start.as_ref(), &self.options, same_tower())?;
                Reference::Frozen(Box::new(network.into()))
            }
            ReferenceConfig::Ema {
                mixup_alpha,
                sync_steps,
            } => {
                let tower = recipe.adapter.tower.into();
                let copy = Trained::load_vision(self.directory, &self.adapter, tower, &self.options, same_tower())?;
                Reference::moving(copy, *mixup_alpha, *sync_steps)
            }
            ReferenceConfig::Checkpoint { path } => self.checkpoint(&recipe.resolve_path(CHECKPOINT, path)?)?,
        })
    }

    /// Another model, or another adapter on this one.
    fn checkpoint(&self, path: &Path) -> Result<Reference> {
        let parts = VisionParts {
            images: self.images.clone(),
            kept: None,
        };
        let network = if is_model(path) {
            let other = VlmDir::open(path)?;
            if other.image_processor()? != self.directory.image_processor()?
                || other.config().image_token_id != self.directory.config().image_token_id
            {
                return Err(Error::Setting {
                    key: CHECKPOINT.to_owned(),
                    found: format!(
                        "{}, which processes images otherwise or has another image token",
                        path.display()
                    ),
                    expected: "a model that reads the images of `model.path` as they are processed for it".to_owned(),
                });
            }
            load_frozen_vision(&other, None, &self.options, parts)?
        } else {
            let adapter = self.directory.adapter(path)?;
            load_frozen_vision(self.directory, Some(&adapter), &self.options, parts)?
        };
        Ok(Reference::Frozen(Box::new(network.into())))
    }
}

/// The first different prompts of the records, where anything is sampled.
pub(crate) fn sampled_prompts(
    recipe: &Recipe<VisionLanguage>,
    records: &[EncodedRecord],
    tokenizer: &Tokenizer,
    image_token_id: u32,
) -> Result<Option<Vec<TokenizedPrompt>>> {
    if recipe.train.sample_every == 0 {
        return Ok(None);
    }
    let num = recipe.samples.clone().unwrap_or_default().num_prompts();
    let mut prompts: Vec<TokenizedPrompt> = Vec::new();
    for response in records.iter().map(|record| &record.responses[0]) {
        if prompts.len() == num {
            break;
        }
        let ids = [response.prompt.as_slice(), &response.ids[..response.prompt_tail]].concat();
        let own = response.images.iter().filter(|image| image.tokens.end <= ids.len());
        let images: Vec<usize> = own.map(|image| image.index).collect();
        if prompts
            .iter()
            .any(|prompt| prompt.ids == ids && prompt.images == images)
        {
            continue;
        }
        let words: Vec<u32> = ids.iter().copied().filter(|id| *id != image_token_id).collect();
        prompts.push(TokenizedPrompt {
            text: tokenizer.decode(&words, SpecialTokens::Omit)?,
            ids,
            images,
        });
    }
    Ok(Some(prompts))
}
