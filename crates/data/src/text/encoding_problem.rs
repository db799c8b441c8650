//! Why a row cannot be turned into tokens.

use crate::{Error, TextKind};

/// What is wrong with one row, or with how it is to be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodingProblem {
    /// The model would be trained on a context that it does not see when it answers.
    #[error(
        "the tokens of the prompt do not begin the tokens of prompt + {side}: from token {at} on, the prompt alone is \
         [{prompt_tokens}] but the whole is [{whole_tokens}]; end the prompt where a token ends, use a chat template that \
         renders the prompt alike in both, or set `prefix = \"common\"` to leave the end of the prompt to the completion"
    )]
    NotAPrefix {
        /// `chosen`, `rejected`, `completion` or `responses[i]`.
        side: String,
        /// First token that differs, from 0.
        at: usize,
        /// Tokens of the prompt from just before there, quoted.
        prompt_tokens: String,
        /// Tokens of the whole from just before there, quoted.
        whole_tokens: String,
    },
    /// EOS is to be appended, and the tokenizer has none.
    #[error(
        "an EOS token is to be appended to {side}, but the tokenizer has no `eos_token`; set it, or `eos = \"as-written\"`"
    )]
    NoEos {
        /// Which completion.
        side: String,
    },
    /// Two sides of a row are of different kinds.
    #[error("the prompt is {}, but {side} is {}; both must be the same", prompt.name(), found.name())]
    MixedKinds {
        /// Which completion.
        side: String,
        /// What the prompt is.
        prompt: TextKind,
        /// What the completion is.
        found: TextKind,
    },
    /// Turns are to be masked where there are none.
    #[error("only assistant turns are to be learned, but {side} has none")]
    NoTurns {
        /// Which completion.
        side: String,
    },
    /// The template renders the beginning of a conversation differently from the beginning of the whole.
    #[error(
        "the chat template has no `{{% generation %}}` blocks and renders message {message} of {side} differently when \
         messages follow, so that its turn cannot be found; add the blocks, or learn all of the completion"
    )]
    TurnNotFound {
        /// Which completion.
        side: String,
        /// Index in the conversation, from 0.
        message: usize,
    },
    /// A weight for characters that are not there.
    #[error("the span {start}..{end} of {side} reaches beyond its {num_chars} characters")]
    SpanOutside {
        /// Which completion.
        side: String,
        /// First character.
        start: usize,
        /// One past the last.
        end: usize,
        /// How many there are.
        num_chars: usize,
    },
    /// A weight for characters that the template rewrote.
    #[error("{side} has weighted spans, but the chat template does not render its text as it stands")]
    SpanNotRendered {
        /// Which completion.
        side: String,
    },
    /// A token id of a row that brings its own tokens.
    #[error("{side} has the token id {found}; the tokenizer has {vocab_size} tokens")]
    UnknownId {
        /// `prompt` or which completion.
        side: String,
        /// The id.
        found: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A row with images, and a tokenizer that knows none.
    #[error(
        "the row has images, but the tokenizer has no token for them (`image_token` in tokenizer_config.json, `<image>` or \
         `<|image_pad|>`): it is a language model's"
    )]
    NoImageToken,
    /// Tokens of images that are more or fewer than the images.
    #[error(
        "the prompt has {images} images, but {found} tokens `{token}` once it is rendered; both must be as many: the chat template \
         writes one for every image block, and words must not have any of their own"
    )]
    ImageTokens {
        /// The token.
        token: String,
        /// How often it is there.
        found: usize,
        /// Images of the row.
        images: usize,
    },
    /// A rationale is to be learned of a row that brings its own tokens.
    #[error("the prompt of a rationale is composed of texts, but the sides of this row are tokens")]
    TokenizedRationale,
    /// A prompt that nothing can answer, in the convention of CPO and ORPO.
    #[error("the last message of the prompt is by `{role}`; expected `user`, `tool` or `assistant`")]
    LastRole {
        /// Who speaks last.
        role: String,
    },
    /// Prompt + answer has fewer tokens than the prompt, or the two prompts differ by more than one token (CPO, ORPO).
    #[error("the prompt is tokenized differently before {side} by more than its last token")]
    PromptDiffers {
        /// Which completion.
        side: String,
    },
    /// The tokenizer or its chat template refuses the row.
    #[error("{0}")]
    Refused(Box<Error>),
}

impl From<Error> for EncodingProblem {
    fn from(error: Error) -> Self {
        Self::Refused(Box::new(error))
    }
}
