//! The model that data is built with: it looks at images, answers, and says how sure it is.

mod judging;

use std::path::Path;

use diptych_data::{
    Encoder, EncodingConfig, IMAGE_PLACEHOLDERS, Message, SpecialTokens, Text, TextPrompt, Tokenizer, conversation,
};
use diptych_llm::answers::end_tokens;
use diptych_llm::policy::{VisionParts, load_frozen_vision};
use diptych_llm::vision::{PixelMemory, RunImages, VisionNetwork};
use diptych_models::lm::{GenerateConfig, Generated};
use diptych_models::vlm::{
    ImageEmbeddings, ImageLayout, ProcessedImage, VisionLanguageModel, VlmDir, VlmImageProcessor, VlmPrompt,
};
use image::RgbImage;

use super::problem::BuildProblem;
use crate::answers::{AnswerSettings, PromptFormat};
use crate::{Error, Result};

/// A checkpoint in memory.
#[derive(Debug)]
pub(super) struct Speaker {
    network: VisionNetwork,
    directory: VlmDir,
    tokenizer: Tokenizer,
    processor: VlmImageProcessor,
    end_tokens: Vec<u32>,
    settings: AnswerSettings,
    format: Option<PromptFormat>,
}

/// An image as the decoder reads it.
#[derive(Debug, Clone)]
pub(super) struct Seen(ImageEmbeddings);

impl Seen {
    pub(super) fn embeddings(&self) -> &ImageEmbeddings {
        &self.0
    }

    pub(super) fn layout(&self) -> ImageLayout {
        self.0.layout
    }
}

/// A prompt to answer.
#[derive(Debug, Clone)]
pub(super) struct Ask<'a> {
    pub(super) prompt: &'a TextPrompt,
    /// In the order of their places.
    pub(super) images: Vec<&'a Seen>,
    /// Tokens of the answer that are said already.
    pub(super) begun: &'a [u32],
    /// Key of the random choices, different for all that is asked.
    pub(super) key: u64,
}

/// What was said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    /// The answer without white space around it.
    pub(super) text: String,
    /// Its tokens, with the one that ended it.
    pub(super) tokens: Vec<u32>,
    /// The log-probability of each.
    pub(super) logps: Vec<f64>,
    /// Whether it ended by itself, and not at the limit or at a token that cannot be read.
    pub(super) is_finished: bool,
}

/// The tokens of a prompt.
pub(super) struct AskedTokens {
    pub(super) ids: Vec<u32>,
    /// Where each image is among them.
    pub(super) images: Vec<std::ops::Range<usize>>,
}

impl Speaker {
    /// Loads a checkpoint. `format` says how words become a prompt; by default its chat template does.
    pub(super) fn open(
        model: &Path,
        adapter: Option<&Path>,
        settings: &AnswerSettings,
        format: Option<PromptFormat>,
    ) -> Result<Self> {
        let directory = VlmDir::open(model)?;
        let tokenizer = Tokenizer::from_dir(directory.path())?;
        let processor = directory.image_processor()?;
        let adapter = adapter.map(|path| directory.adapter(path)).transpose()?;
        // The images of rows come and go; none belongs to the network.
        let images = RunImages::new(processor.clone(), PixelMemory::MadeAgain, 0);
        let parts = VisionParts {
            images: images.into(),
            kept: None,
        };
        let network = load_frozen_vision(&directory, adapter.as_ref(), &settings.network, parts)?;
        let has_template = tokenizer.template_names().next().is_some();
        Ok(Self {
            end_tokens: end_tokens(&network, &tokenizer),
            format: format.or_else(|| has_template.then_some(PromptFormat::Chat { system: None })),
            network,
            directory,
            tokenizer,
            processor,
            settings: settings.clone(),
        })
    }

    pub(super) fn model(&self) -> &VisionLanguageModel {
        self.network.model()
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(super) fn processor(&self) -> &VlmImageProcessor {
        &self.processor
    }

    /// Words as a prompt that shows so many images, before the words.
    pub(super) fn request(&self, words: &str, num_images: usize) -> Result<Text> {
        match &self.format {
            Some(PromptFormat::Chat { system }) => Ok(conversation(system.as_deref(), words, num_images)),
            Some(PromptFormat::Plain(format)) => {
                let place = IMAGE_PLACEHOLDERS[0];
                let format = match format.split_once(place) {
                    Some((before, after)) if num_images == 0 => format!("{before}{}", after.trim_start()),
                    Some((before, after)) => format!("{before}{}{after}", place.repeat(num_images)),
                    None => format.clone(),
                };
                Ok(Text::Plain(format.replace("{}", words)))
            }
            None => Err(BuildProblem::NoFormat {
                model: self.directory.path().to_owned(),
            }
            .into()),
        }
    }

    /// Looks at images.
    pub(super) fn look_at_all(&self, images: &[RgbImage]) -> Result<Vec<Seen>> {
        images.iter().map(|image| self.look(image)).collect()
    }

    /// Looks at an image.
    pub(super) fn look(&self, image: &RgbImage) -> Result<Seen> {
        self.look_at_pixels(&self.processor.process(image)?)
    }

    /// Looks at an image that was processed. Each is encoded by itself, so that what it becomes does not depend on its company.
    pub(super) fn look_at_pixels(&self, image: &ProcessedImage) -> Result<Seen> {
        let mut seen = self.model().encode(&[image])?;
        let seen = seen.pop().ok_or(diptych_models::Error::Condition {
            name: "image",
            problem: "has no embeddings",
        })?;
        Ok(Seen(seen.detach()))
    }

    /// The tokens of a prompt, images expanded.
    pub(super) fn tokens(&self, prompt: &TextPrompt, layouts: &[ImageLayout]) -> Result<AskedTokens> {
        let config = self.directory.config();
        let encoder =
            Encoder::try_new(&self.tokenizer, EncodingConfig::default())?.with_image_token_id(config.image_token_id);
        let rows = encoder.prompts(std::slice::from_ref(prompt))?;
        let ids = rows.into_iter().next().map(|row| row.prompt_ids).unwrap_or_default();
        if ids.is_empty() {
            return Err(diptych_llm::Error::EmptySequence {
                id: prompt.id.clone(),
                part: "prompt",
            }
            .into());
        }
        let expanded = config.expand(&ids, layouts).map_err(|source| Error::Placeholders {
            id: prompt.id.clone(),
            source: Box::new(source),
        })?;
        Ok(AskedTokens {
            ids: expanded.input_ids,
            images: expanded.images,
        })
    }

    /// The answers, in batches.
    pub(super) fn answers(&self, asks: &[Ask<'_>]) -> Result<Vec<Said>> {
        self.answers_of(asks, self.settings.max_new_tokens, &self.end_tokens)
    }

    /// The next tokens of each, without an end.
    pub(super) fn go_on(&self, asks: &[Ask<'_>], num_tokens: usize) -> Result<Vec<Said>> {
        self.answers_of(asks, num_tokens, &[])
    }

    fn answers_of(&self, asks: &[Ask<'_>], max_new_tokens: usize, ends: &[u32]) -> Result<Vec<Said>> {
        let config = GenerateConfig {
            max_new_tokens,
            sampling: self.settings.sampling,
            eos_token_ids: ends.to_vec(),
            seed: self.settings.seed,
        };
        let mut said = Vec::with_capacity(asks.len());
        for batch in asks.chunks(self.settings.batch_size) {
            let ids = self.ids_of(batch)?;
            let images: Vec<Vec<&ImageEmbeddings>> = batch
                .iter()
                .map(|ask| ask.images.iter().map(|seen| &seen.0).collect())
                .collect();
            let prompts: Vec<VlmPrompt<'_>> = batch
                .iter()
                .zip(&ids)
                .zip(&images)
                .map(|((ask, input_ids), images)| VlmPrompt {
                    input_ids,
                    images,
                    example: ask.key,
                })
                .collect();
            for generated in self.model().generate(&prompts, &config)? {
                said.push(self.said(generated)?);
            }
        }
        Ok(said)
    }

    fn said(&self, generated: Generated) -> Result<Said> {
        let Generated {
            mut tokens,
            mut logps,
            mut is_finished,
        } = generated;
        // Nothing can be read in the place of an image token that the network gives itself: the answer is cut there.
        let image = self.directory.config().image_token_id;
        if let Some(at) = tokens.iter().position(|token| *token == image) {
            tokens.truncate(at);
            logps.truncate(at);
            is_finished = false;
        }
        let text = self.tokenizer.decode(&tokens, SpecialTokens::Omit)?;
        Ok(Said {
            text: text.trim().to_owned(),
            tokens,
            logps,
            is_finished,
        })
    }

    fn ids_of(&self, asks: &[Ask<'_>]) -> Result<Vec<Vec<u32>>> {
        let ids = |ask: &Ask<'_>| {
            let layouts: Vec<ImageLayout> = ask.images.iter().map(|seen| seen.layout()).collect();
            let mut ids = self.tokens(ask.prompt, &layouts)?.ids;
            ids.extend_from_slice(ask.begun);
            Ok(ids)
        };
        asks.iter().map(ids).collect()
    }

    /// Words as the answer to a prompt, of the prompt's kind.
    ///
    /// Behind plain text an answer begins with the space that parts it from the prompt, where there is none yet.
    pub(super) fn completion(prompt: &TextPrompt, words: &str) -> Result<Text> {
        match &prompt.prompt {
            Text::Plain(text) if text.ends_with(char::is_whitespace) => Ok(words.into()),
            Text::Plain(_) => Ok(format!(" {words}").into()),
            Text::Messages(_) => Ok(vec![Message::new("assistant", words)].into()),
            Text::Ids(_) => Err(BuildProblem::TokenIds { id: prompt.id.clone() }.into()),
        }
    }

    /// Where the tokens of a picture's patches are among an image's: the first of them, rows and columns. Of an image that is seen whole and
    /// in tiles, those of the whole.
    pub(super) fn patch_grid(&self, layout: ImageLayout) -> Result<PatchGrid> {
        use diptych_models::vlm::{FeatureSelection, TowerConfig, VisionConfig};
        let config = self.directory.config();
        match (&config.vision, layout) {
            (VisionConfig::Llava(vision), _) => {
                let side = vision.tower.patches_per_side();
                let is_behind_one =
                    vision.selection == FeatureSelection::All && matches!(vision.tower, TowerConfig::Clip(_));
                Ok(PatchGrid {
                    first: usize::from(is_behind_one),
                    rows: side,
                    columns: side,
                })
            }
            (
                VisionConfig::Qwen(vision),
                ImageLayout::Grid {
                    thw: [_, rows, columns],
                },
            ) => Ok(PatchGrid {
                first: 0,
                rows: rows / vision.merge_size,
                columns: columns / vision.merge_size,
            }),
            (VisionConfig::Qwen(_), _) => Err(diptych_models::Error::Condition {
                name: "image",
                problem: "was laid out for a network of another family",
            }
            .into()),
        }
    }
}

/// Tokens of an image as places in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PatchGrid {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
}
