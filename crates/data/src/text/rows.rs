//! What encoding and lint need to know about a record, whichever kind it is.

use serde_json::{Map, Value};

use crate::{CharSpan, ImageSource, RankedText, SampleBody, Text, TextPair, TextPrompt, TextSample, UnpairedText};

/// A record with a prompt and completions of it, or one text.
pub trait TextRow: Sync {
    /// Its parts, borrowed.
    fn parts(&self) -> RowParts<'_>;
}

/// Parts of a record.
#[derive(Debug, Clone)]
pub struct RowParts<'a> {
    /// Names the record in messages.
    pub id: &'a str,
    /// None where all of the text is learned.
    pub prompt: Option<&'a Text>,
    /// What is scored; for a pair, chosen first.
    pub completions: Vec<CompletionPart<'a>>,
    /// Why the first completion is better than the second, where the record says so.
    pub rationale: Option<&'a str>,
    /// What the prompt shows, or the text where there is no prompt.
    pub images: &'a [ImageSource],
    /// What the prompt of the second completion shows instead.
    pub rejected_images: Option<&'a [ImageSource]>,
    /// What the images of the prompt are compared with.
    pub other_images: Option<&'a [ImageSource]>,
    /// JSON schemas of functions; empty is none.
    pub tools: &'a [Value],
    /// Further variables of the chat template.
    pub chat_template_kwargs: &'a Map<String, Value>,
}

/// One completion of a record.
#[derive(Debug, Clone)]
pub struct CompletionPart<'a> {
    /// `chosen`, `rejected`, `completion`, `text` or `responses[i]`.
    pub side: String,
    /// What is scored.
    pub text: &'a Text,
    /// Weights on parts of it.
    pub spans: &'a [CharSpan],
}

fn part<'a>(side: &str, text: &'a Text, spans: &'a [CharSpan]) -> CompletionPart<'a> {
    CompletionPart {
        side: side.to_owned(),
        text,
        spans,
    }
}

impl TextRow for TextPair {
    fn parts(&self) -> RowParts<'_> {
        RowParts {
            id: &self.id,
            prompt: Some(&self.prompt),
            completions: vec![
                part("chosen", &self.chosen, &self.chosen_spans),
                part("rejected", &self.rejected, &self.rejected_spans),
            ],
            rationale: self.rationale.as_deref(),
            images: &self.images,
            rejected_images: self.rejected_images.as_deref(),
            other_images: self.other_images.as_deref(),
            tools: &self.tools,
            chat_template_kwargs: &self.chat_template_kwargs,
        }
    }
}

impl TextRow for UnpairedText {
    fn parts(&self) -> RowParts<'_> {
        RowParts {
            id: &self.id,
            prompt: Some(&self.prompt),
            completions: vec![part("completion", &self.completion, &self.completion_spans)],
            rationale: None,
            images: &self.images,
            rejected_images: None,
            other_images: None,
            tools: &self.tools,
            chat_template_kwargs: &self.chat_template_kwargs,
        }
    }
}

impl TextRow for RankedText {
    fn parts(&self) -> RowParts<'_> {
        let name = |(idx, response)| (format!("responses[{idx}]"), response);
        RowParts {
            id: &self.id,
            prompt: Some(&self.prompt),
            completions: self
                .responses
                .iter()
                .enumerate()
                .map(name)
                .map(|(side, response)| part(&side, &response.completion, &[]))
                .collect(),
            rationale: None,
            images: &self.images,
            rejected_images: None,
            other_images: None,
            tools: &self.tools,
            chat_template_kwargs: &self.chat_template_kwargs,
        }
    }
}

impl TextRow for TextSample {
    fn parts(&self) -> RowParts<'_> {
        let (prompt, completion) = match &self.body {
            SampleBody::Whole(text) => (None, part("text", text, &[])),
            SampleBody::Completed { prompt, completion } => {
                (Some(prompt), part("completion", completion, &self.completion_spans))
            }
        };
        RowParts {
            id: &self.id,
            prompt,
            completions: vec![completion],
            rationale: None,
            images: &self.images,
            rejected_images: None,
            other_images: None,
            tools: &self.tools,
            chat_template_kwargs: &self.chat_template_kwargs,
        }
    }
}

impl TextRow for TextPrompt {
    fn parts(&self) -> RowParts<'_> {
        RowParts {
            id: &self.id,
            prompt: Some(&self.prompt),
            completions: Vec::new(),
            rationale: None,
            images: &self.images,
            rejected_images: None,
            other_images: None,
            tools: &self.tools,
            chat_template_kwargs: &self.chat_template_kwargs,
        }
    }
}
