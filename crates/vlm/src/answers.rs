//! Answers of a vision-language model to prompts that show images.
//!
//! A prompt is rendered with one image token an image, which becomes as many as the image has features. An image that several prompts show is
//! read once and encoded once, also for several networks with the same tower (a model with and without its adapter).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_data::{
    Encoder, EncodingConfig, IMAGE_PLACEHOLDERS, ImageSource, Text, TextPrompt, Tokenizer, conversation,
};
use diptych_llm::answers::{Answer, end_tokens, generate_answers};
use diptych_llm::policy::{NetworkOptions, VisionParts, load_frozen_vision};
use diptych_llm::samples::{AnswerConfig, TokenizedPrompt};
use diptych_llm::vision::{KeptFeatures, PixelMemory, RunImages, VisionNetwork};
use diptych_models::lm::{GenerateConfig, Sampling};
use diptych_models::lora::LoraAdapter;
use diptych_models::vlm::{ImageLayout, VlmDir};
use diptych_train::Reporter;

use crate::prepare::IMAGE_MEMORY;
use crate::progress::advance;
use crate::{Error, Result};

/// How answers are sampled, and what with.
#[derive(Debug, Clone)]
pub struct AnswerSettings {
    /// Where networks are put, and how.
    pub network: NetworkOptions,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Source of the choices. Those of a prompt depend on its place among all prompts, not on the batch it is in.
    pub seed: u64,
    /// Answers computed together.
    pub batch_size: usize,
}

impl AnswerSettings {
    /// # Errors
    /// [`Error::Setting`] for a number that is 0; values of `sampling` that are out of range.
    pub fn validate(&self) -> Result<()> {
        let counts = [("max_new_tokens", self.max_new_tokens), ("batch_size", self.batch_size)];
        if let Some((key, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(Error::Setting {
                key: key.to_owned(),
                found: "0".to_owned(),
                expected: "a number, at least 1".to_owned(),
            });
        }
        Ok(self.sampling.validate()?)
    }
}

/// How a question about an image becomes a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptFormat {
    /// What a user says, by the checkpoint's chat template; images come before the words.
    Chat {
        /// What the system says before.
        system: Option<String>,
    },
    /// Plain text with `{}` where the question's words are and `<image>` where its image is. Of a question without an image `<image>` and the
    /// white space behind it are left out.
    Plain(String),
}

impl PromptFormat {
    /// The prompt of a question.
    pub fn prompt(&self, id: String, question: &str, image: Option<ImageSource>) -> TextPrompt {
        let prompt = match self {
            Self::Chat { system } => conversation(system.as_deref(), question, usize::from(image.is_some())),
            Self::Plain(format) => {
                let format = match (&image, format.split_once(PLACEHOLDER)) {
                    (None, Some((before, after))) => format!("{before}{}", after.trim_start()),
                    _ => format.clone(),
                };
                Text::Plain(format.replace("{}", question))
            }
        };
        TextPrompt {
            images: image.into_iter().collect(),
            ..TextPrompt::new(id, prompt)
        }
    }
}

/// What stands for an image in plain text.
const PLACEHOLDER: &str = IMAGE_PLACEHOLDERS[0];

/// A checkpoint that answers, with or without adapters.
#[derive(Debug)]
pub struct Answerer {
    directory: VlmDir,
    tokenizer: Tokenizer,
    settings: AnswerSettings,
}

/// Prompts in tokens, and their images.
#[derive(Debug)]
pub struct PreparedPrompts {
    prompts: Vec<TokenizedPrompt>,
    images: Arc<RunImages>,
    /// What towers made of the images, and the checkpoint whose towers they are.
    kept: Arc<KeptFeatures>,
    home: PathBuf,
}

impl PreparedPrompts {
    /// The prompts, in their order.
    pub fn prompts(&self) -> &[TokenizedPrompt] {
        &self.prompts
    }

    /// Different images among all that the prompts show.
    pub fn num_images(&self) -> usize {
        self.images.len()
    }
}

impl Answerer {
    /// Opens the checkpoint at `model`; its weights are read when it answers.
    ///
    /// # Errors
    /// What is no vision-language model or has no tokenizer; [`Error::Setting`] for a number that is 0.
    pub fn open(model: &Path, settings: AnswerSettings) -> Result<Self> {
        settings.validate()?;
        let directory = VlmDir::open(model)?;
        let tokenizer = Tokenizer::from_dir(directory.path())?;
        Ok(Self {
            directory,
            tokenizer,
            settings,
        })
    }

    /// The checkpoint.
    pub fn directory(&self) -> &VlmDir {
        &self.directory
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether it has a chat template, without which conversations cannot be rendered.
    pub fn has_chat_template(&self) -> bool {
        self.tokenizer.template_names().next().is_some()
    }

    /// How questions become prompts where nothing else is said: by the chat template, if there is one.
    pub fn prompt_format(&self) -> Option<PromptFormat> {
        self.has_chat_template().then_some(PromptFormat::Chat { system: None })
    }

    /// Brings prompts into tokens and reads their images.
    ///
    /// # Errors
    /// The first prompt that cannot be rendered, or has not one place an image; [`Error::Image`] with the prompt and the image for one that
    /// cannot be read or that the network does not take; a stop that was asked for.
    pub fn prepare(&self, prompts: &[TextPrompt], reporter: &mut Reporter<'_>) -> Result<PreparedPrompts> {
        let config = self.directory.config();
        let encoder =
            Encoder::try_new(&self.tokenizer, EncodingConfig::default())?.with_image_token_id(config.image_token_id);
        let rows = encoder.prompts(prompts)?;
        let processor = self.directory.image_processor()?;
        let mut reader = ImageReader {
            images: RunImages::new(processor, PixelMemory::MadeAgain, IMAGE_MEMORY << 20),
            known: BTreeMap::new(),
        };
        let mut tokenized = Vec::with_capacity(prompts.len());
        for (prompt, row) in prompts.iter().zip(rows) {
            if row.prompt_ids.is_empty() {
                return Err(Error::from(diptych_llm::Error::EmptySequence {
                    id: row.id,
                    part: "prompt",
                }));
            }
            let images = reader.read(prompt)?;
            let layouts: Vec<ImageLayout> = images.iter().map(|image| reader.images.layout(*image)).collect();
            let expanded = config
                .expand(&row.prompt_ids, &layouts)
                .map_err(|source| Error::Placeholders {
                    id: row.id,
                    source: Box::new(source),
                })?;
            tokenized.push(TokenizedPrompt {
                text: prompt.prompt.content(),
                ids: expanded.input_ids,
                images,
            });
            advance(reporter, "prompts", tokenized.len(), prompts.len())?;
        }
        Ok(PreparedPrompts {
            prompts: tokenized,
            images: Arc::new(reader.images),
            kept: Arc::default(),
            home: self.directory.path().to_owned(),
        })
    }

    /// The answers of the checkpoint, with an adapter where one is given.
    ///
    /// # Errors
    /// Weights or an adapter that are missing, damaged or do not fit; a stop that was asked for.
    pub fn answer(
        &self,
        adapter: Option<&Path>,
        prepared: &PreparedPrompts,
        stage: &'static str,
        reporter: &mut Reporter<'_>,
    ) -> Result<Vec<Answer>> {
        let network = self.network(adapter, prepared)?;
        let config = AnswerConfig {
            generate: GenerateConfig {
                max_new_tokens: self.settings.max_new_tokens,
                sampling: self.settings.sampling,
                eos_token_ids: end_tokens(&network, &self.tokenizer),
                seed: self.settings.seed,
            },
            batch_size: self.settings.batch_size,
        };
        let total = prepared.prompts.len() as u64;
        let answers = generate_answers(&network, &self.tokenizer, &prepared.prompts, &config, |done| {
            Ok(reporter.advance(stage, done as u64, total)?)
        });
        Ok(answers?)
    }

    fn network(&self, adapter: Option<&Path>, prepared: &PreparedPrompts) -> Result<VisionNetwork> {
        let adapter = adapter.map(|path| self.directory.adapter(path)).transpose()?;
        let is_own_vision = adapter.as_ref().is_none_or(|adapter| !self.adapts_vision(adapter));
        let parts = VisionParts {
            images: prepared.images.clone(),
            kept: (is_own_vision && prepared.home == self.directory.path()).then(|| prepared.kept.clone()),
        };
        Ok(load_frozen_vision(
            &self.directory,
            adapter.as_ref(),
            &self.settings.network,
            parts,
        )?)
    }

    /// Whether an adapter changes what images become.
    fn adapts_vision(&self, adapter: &LoraAdapter) -> bool {
        let mut names = adapter.modules.keys().chain(adapter.base.keys());
        names.any(|name| self.directory.config().is_vision_parameter(name))
    }
}

/// Images by where they come from, so that each is decoded once.
struct ImageReader {
    images: RunImages,
    known: BTreeMap<ImageSource, usize>,
}

impl ImageReader {
    fn read(&mut self, prompt: &TextPrompt) -> Result<Vec<usize>> {
        let one = |(at, source): (usize, &ImageSource)| {
            if let Some(index) = self.known.get(source) {
                return Ok(*index);
            }
            let read = self.images.read(source).map_err(|error| Error::Image {
                id: prompt.id.clone(),
                key: "images",
                place: at,
                image: source.clone(),
                source: Box::new(error),
            })?;
            let index = self.images.add(source, read);
            self.known.insert(source.clone(), index);
            Ok(index)
        };
        prompt.images.iter().enumerate().map(one).collect()
    }
}
