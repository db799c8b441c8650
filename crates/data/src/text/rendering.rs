//! From a record to the strings that are tokenized, and where in them its turns and contents lie.

use std::ops::Range;

use serde_json::Value;

use super::chat_template::{ChatEnding, ChatRequest, RenderedChat};
use super::encoding_config::{EncodingConfig, EosRule, TurnMask};
use super::encoding_problem::EncodingProblem;
use super::rows::{CompletionPart, RowParts};
use super::template_engine::is_python_space;
use super::tokenizer::{SpecialTokens, Tokenizer};
use crate::{Message, Text, TextKind};

type Result<T> = std::result::Result<T, EncodingProblem>;

/// Renders the sides of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Renderer<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) config: EncodingConfig,
    pub(crate) row: &'a RowParts<'a>,
}

/// A string to be tokenized.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) special: SpecialTokens,
}

/// Prompt and completion as one string.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) source: Source,
    /// Assistant turns, in characters; none where all of the completion is learned.
    pub(crate) turns: Option<Vec<Range<usize>>>,
    /// Where characters of the completion's content stand, in order.
    pub(crate) contents: Vec<ContentRange>,
    /// Whether each part of the content was found.
    pub(crate) is_verbatim: bool,
}

/// Content of a completion in rendered text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentRange {
    /// Characters of the rendered text.
    pub(crate) rendered: Range<usize>,
    /// First of the same characters in [`Text::content`].
    pub(crate) content_start: usize,
}

impl Renderer<'_> {
    /// The same, for a convention that adds EOS after tokenization.
    pub(crate) fn without_appended_eos(&self) -> Self {
        let config = EncodingConfig {
            eos: EosRule::AsWritten,
            ..self.config
        };
        Self { config, ..*self }
    }

    /// The prompt as the model sees it before it answers.
    pub(crate) fn prompt(&self, prompt: &Text) -> Result<Source> {
        match prompt {
            Text::Plain(text) => Ok(plain(text.clone())),
            Text::Messages(messages) if messages.is_empty() => Ok(rendered(String::new())),
            Text::Messages(messages) => {
                let chat = self.render(&values(messages), ChatEnding::GenerationPrompt)?;
                Ok(rendered(chat.text))
            }
            // Tokens are handled before anything is rendered.
            Text::Ids(_) => Ok(rendered(String::new())),
        }
    }

    /// Prompt and completion.
    pub(crate) fn whole(&self, prompt: Option<&Text>, part: &CompletionPart) -> Result<Whole> {
        if let Some(prompt) = prompt
            && prompt.kind() != part.text.kind()
        {
            return Err(EncodingProblem::MixedKinds {
                side: part.side.clone(),
                prompt: prompt.kind(),
                found: part.text.kind(),
            });
        }
        match (prompt, part.text) {
            (Some(Text::Messages(prompt)), Text::Messages(completion)) => self.conversation(prompt, completion, part),
            (None, Text::Messages(completion)) => self.conversation(&[], completion, part),
            (Some(Text::Plain(prompt)), Text::Plain(completion)) => self.plain(prompt, completion, part),
            (_, Text::Plain(completion)) => self.plain("", completion, part),
            (_, _) => Ok(Whole {
                source: rendered(String::new()),
                turns: None,
                contents: Vec::new(),
                is_verbatim: false,
            }),
        }
    }

    fn plain(&self, prompt: &str, completion: &str, part: &CompletionPart) -> Result<Whole> {
        // A plain completion is one turn; a plain text without a prompt has none.
        if self.config.turns != TurnMask::All && self.row.prompt.is_none() {
            return Err(EncodingProblem::NoTurns {
                side: part.side.clone(),
            });
        }
        let mut text = format!("{prompt}{completion}");
        if self.config.eos == EosRule::Append {
            let eos = self
                .tokenizer
                .named_token("eos_token")
                .ok_or_else(|| EncodingProblem::NoEos {
                    side: part.side.clone(),
                })?;
            if !completion.ends_with(eos) {
                text.push_str(eos);
            }
        }
        let start = prompt.chars().count();
        Ok(Whole {
            source: plain(text),
            turns: None,
            contents: vec![ContentRange {
                rendered: start..start + completion.chars().count(),
                content_start: 0,
            }],
            is_verbatim: true,
        })
    }

    fn conversation(&self, prompt: &[Message], completion: &[Message], part: &CompletionPart) -> Result<Whole> {
        let mut messages = values(prompt);
        messages.extend(values(completion));
        let chat = self.render(&messages, ChatEnding::Closed)?;
        let turns = match self.config.turns {
            TurnMask::All => None,
            mask => Some(self.turns(&messages, prompt.len(), &chat, mask, part)?),
        };
        let (contents, is_verbatim) = self.contents(&messages, prompt.len(), completion, &chat.text)?;
        Ok(Whole {
            source: rendered(chat.text),
            turns,
            contents,
            is_verbatim,
        })
    }

    /// Where the assistant speaks after the prompt: from generation blocks, else from rendering the conversation up to
    /// the turn, with and without it.
    fn turns(
        &self,
        messages: &[Value],
        num_prompt: usize,
        chat: &RenderedChat,
        mask: TurnMask,
        part: &CompletionPart,
    ) -> Result<Vec<Range<usize>>> {
        let has_blocks = self.tokenizer.chat_template(self.row.tools)?.has_generation_blocks();
        let mut turns = Vec::new();
        if has_blocks {
            turns.clone_from(&chat.generated);
        } else {
            for (idx, message) in messages.iter().enumerate().skip(num_prompt) {
                if message["role"] == "assistant" {
                    turns.push(self.turn(messages, idx, &chat.text, part)?);
                }
            }
        }
        if mask == TurnMask::LastAssistant {
            turns.drain(..turns.len().saturating_sub(1));
        }
        if turns.is_empty() {
            return Err(EncodingProblem::NoTurns {
                side: part.side.clone(),
            });
        }
        Ok(turns)
    }

    fn turn(&self, messages: &[Value], idx: usize, whole: &str, part: &CompletionPart) -> Result<Range<usize>> {
        let not_found = || EncodingProblem::TurnNotFound {
            side: part.side.clone(),
            message: idx,
        };
        let before = match idx {
            0 => String::new(),
            _ => self.render(&messages[..idx], ChatEnding::GenerationPrompt)?.text,
        };
        if !whole.starts_with(&before) {
            return Err(not_found());
        }
        let start = before.chars().count();
        if idx + 1 == messages.len() {
            return Ok(start..whole.chars().count());
        }
        let until = self.render(&messages[..=idx], ChatEnding::Closed)?.text;
        if !whole.starts_with(&until) {
            return Err(not_found());
        }
        Ok(start..until.chars().count())
    }

    /// Finds the text of the completion's messages in the rendered whole.
    fn contents(
        &self,
        messages: &[Value],
        num_prompt: usize,
        completion: &[Message],
        whole: &str,
    ) -> Result<(Vec<ContentRange>, bool)> {
        let (mut found, mut is_verbatim) = (Vec::new(), true);
        let (mut cursor, mut content_start) = (0, 0);
        for (idx, message) in completion.iter().enumerate() {
            let at = num_prompt + idx;
            if at > 0 {
                // What the template writes before a turn may hold the same words as the turn.
                let before = self.render(&messages[..at], ChatEnding::GenerationPrompt)?.text;
                cursor = cursor.max(common_prefix_bytes(&before, whole));
            }
            for piece in pieces(message) {
                let num_chars = piece.chars().count();
                let trimmed = piece.trim_matches(is_python_space);
                // Templates may trim what is said; the exact text is looked for first.
                let exact = whole[cursor..].find(piece).map(|at| (at, piece));
                let place = exact.or_else(|| whole[cursor..].find(trimmed).map(|at| (at, trimmed)));
                match place {
                    _ if trimmed.is_empty() => {}
                    None => is_verbatim = false,
                    Some((at, text)) => {
                        let start = whole[..cursor + at].chars().count();
                        let skipped = if text.len() == piece.len() {
                            0
                        } else {
                            let leading = piece.len() - piece.trim_start_matches(is_python_space).len();
                            piece[..leading].chars().count()
                        };
                        found.push(ContentRange {
                            rendered: start..start + text.chars().count(),
                            content_start: content_start + skipped,
                        });
                        cursor += at + text.len();
                    }
                }
                content_start += num_chars;
            }
        }
        Ok((found, is_verbatim))
    }

    pub(crate) fn render(&self, messages: &[Value], ending: ChatEnding) -> Result<RenderedChat> {
        let request = ChatRequest {
            messages,
            tools: self.row.tools,
            documents: &[],
            variables: Some(self.row.chat_template_kwargs),
            ending,
        };
        Ok(self.tokenizer.render(&request)?)
    }
}

/// Kind of the sides of a row; the completion's where there is no prompt.
pub(crate) fn kind(row: &RowParts) -> TextKind {
    match (row.prompt, row.completions.first()) {
        (Some(prompt), _) => prompt.kind(),
        (None, Some(part)) => part.text.kind(),
        (None, None) => TextKind::Standard,
    }
}

/// Messages as a template sees them.
pub(crate) fn values(messages: &[Message]) -> Vec<Value> {
    messages
        .iter()
        .map(|message| serde_json::to_value(message).expect("messages are strings and JSON values"))
        .collect()
}

/// Bytes of the longest common beginning; always whole characters.
pub(crate) fn common_prefix_bytes(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

fn pieces(message: &Message) -> Vec<&str> {
    match &message.content {
        None => Vec::new(),
        Some(crate::Content::Text(text)) => vec![text],
        Some(crate::Content::Blocks(blocks)) => blocks.iter().filter_map(crate::ContentBlock::text).collect(),
    }
}

fn plain(text: String) -> Source {
    Source {
        text,
        special: SpecialTokens::Include,
    }
}

/// A template writes special tokens itself.
fn rendered(text: String) -> Source {
    Source {
        text,
        special: SpecialTokens::Omit,
    }
}
