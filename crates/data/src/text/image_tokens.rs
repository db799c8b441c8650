//! The token that stands for an image in a row's tokens.
//!
//! There is one an image here. How many a network makes of it depends on the image's size, so that it is for the network to repeat it
//! (transformers' processors do that before they tokenize).

use super::encoding_problem::EncodingProblem;
use super::rows::RowParts;
use super::tokenizer::Tokenizer;
use crate::{IMAGE_PLACEHOLDERS, Text};

/// What stands around Qwen's token, in its chat template and here.
const AROUND_PAD: [&str; 2] = ["<|vision_start|>", "<|vision_end|>"];

impl Tokenizer {
    /// The token that stands for an image: what `tokenizer_config.json` calls `image_token`, else the first of [`IMAGE_PLACEHOLDERS`] that
    /// is one token of the vocabulary. None for a language model's tokenizer.
    pub fn image_token(&self) -> Option<&str> {
        self.named_token("image_token")
            .or_else(|| IMAGE_PLACEHOLDERS.into_iter().find(|token| self.id(token).is_some()))
    }

    /// Its id.
    pub fn image_token_id(&self) -> Option<u32> {
        self.image_token().and_then(|token| self.id(token))
    }
}

/// The token of an image.
#[derive(Debug, Clone)]
pub(crate) struct ImageToken {
    id: u32,
    content: String,
}

impl ImageToken {
    /// The token of this id, or by default the tokenizer's own.
    pub(crate) fn of(tokenizer: &Tokenizer, id: Option<u32>) -> Option<Self> {
        let id = id.or_else(|| tokenizer.image_token_id())?;
        let content = tokenizer.token(id)?;
        Some(Self { id, content })
    }

    /// A plain text with this token in place of [`IMAGE_PLACEHOLDERS`]`[0]`; none where nothing is replaced.
    fn in_place_of_general(&self, text: &Text) -> Option<Text> {
        let general = IMAGE_PLACEHOLDERS[0];
        let Text::Plain(words) = text else { return None };
        if self.content == general || !words.contains(general) {
            return None;
        }
        let [before, after] = if self.content == IMAGE_PLACEHOLDERS[1] {
            AROUND_PAD
        } else {
            [""; 2]
        };
        Some(Text::Plain(
            words.replace(general, &format!("{before}{}{after}", self.content)),
        ))
    }
}

/// Texts of a row in which placeholders were replaced.
#[derive(Default)]
pub(crate) struct Replaced {
    prompt: Option<Text>,
    whole: Option<Text>,
}

impl Replaced {
    pub(crate) fn of(token: Option<&ImageToken>, parts: &RowParts) -> Self {
        let Some(token) = token.filter(|_| !parts.images.is_empty()) else {
            return Self::default();
        };
        match (parts.prompt, parts.completions.first()) {
            (Some(prompt), _) => Self {
                prompt: token.in_place_of_general(prompt),
                whole: None,
            },
            (None, Some(whole)) => Self {
                prompt: None,
                whole: token.in_place_of_general(whole.text),
            },
            (None, None) => Self::default(),
        }
    }

    /// The row with these texts.
    pub(crate) fn apply<'a>(&'a self, mut parts: RowParts<'a>) -> RowParts<'a> {
        if let Some(prompt) = &self.prompt {
            parts.prompt = Some(prompt);
        }
        if let (Some(whole), Some(part)) = (&self.whole, parts.completions.first_mut()) {
            part.text = whole;
        }
        parts
    }
}

/// Refuses tokens in which there is not one place an image.
pub(crate) fn check_image_tokens(
    token: Option<&ImageToken>,
    parts: &RowParts,
    ids: &[u32],
) -> Result<(), EncodingProblem> {
    if parts.images.is_empty() {
        return Ok(());
    }
    let token = token.ok_or(EncodingProblem::NoImageToken)?;
    let found = ids.iter().filter(|id| **id == token.id).count();
    if found == parts.images.len() {
        return Ok(());
    }
    Err(EncodingProblem::ImageTokens {
        token: token.content.clone(),
        found,
        images: parts.images.len(),
    })
}
