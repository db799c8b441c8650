//! Answers of a network to prompts: what `diptych generate` writes.

use std::path::{Path, PathBuf};

use diptych_data::{Encoder, EncodingConfig, Layout, Message, SpecialTokens, Text, TextDataset, TextPrompt, TextRow};
use diptych_data::{RecordKind, Tokenizer};
use diptych_tensor::files::write_file;
use serde::Serialize;

use crate::network::{NetworkRef, PromptRef};
use crate::samples::{AnswerConfig, TokenizedPrompt};
use crate::{Error, Result};

/// An answer to a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Without special tokens.
    pub text: String,
    /// As it was generated, with the token that ended it if there was one.
    pub tokens: Vec<u32>,
    /// Whether a token ended it, rather than the limit.
    pub is_finished: bool,
}

/// A line of a file of answers.
#[derive(Serialize)]
struct Row<'a> {
    prompt: PromptValue<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<String>,
    answer: &'a str,
    tokens: &'a [u32],
    finished: bool,
}

/// A prompt as the data had it.
#[derive(Serialize)]
#[serde(untagged)]
enum PromptValue<'a> {
    Plain(&'a str),
    Messages(&'a [Message]),
    Ids(&'a [u32]),
}

impl<'a> From<&'a Text> for PromptValue<'a> {
    fn from(text: &'a Text) -> Self {
        match text {
            Text::Plain(text) => Self::Plain(text),
            Text::Messages(messages) => Self::Messages(messages),
            Text::Ids(ids) => Self::Ids(ids),
        }
    }
}

/// Prompts from a file: those of the rows of any text layout (`.jsonl`, `.json`, `.parquet`), else one a line.
///
/// # Errors
/// A file that cannot be read; [`Error::RecordKind`] for texts without a prompt.
pub fn read_prompts(path: &Path) -> Result<Vec<TextPrompt>> {
    let is_rows = path.extension().is_some_and(|extension| {
        let extension = extension.to_ascii_lowercase();
        ["json", "jsonl", "ndjson", "parquet"]
            .iter()
            .any(|known| extension == *known)
    });
    if !is_rows {
        let lines = diptych_eval::read_prompts(path)?;
        let prompt = |(index, text)| plain_prompt(format!("{}:{}", path.display(), index + 1), text);
        return Ok(lines.into_iter().enumerate().map(prompt).collect());
    }
    match TextDataset::load(&[PathBuf::from(path)], Layout::Auto)? {
        TextDataset::Pairs(records) => prompts_of(&records, RecordKind::TextPair),
        TextDataset::Unpaired(records) => prompts_of(&records, RecordKind::UnpairedText),
        TextDataset::Ranked(records) => prompts_of(&records, RecordKind::RankedText),
        TextDataset::Samples(records) => prompts_of(&records, RecordKind::TextSample),
        TextDataset::Prompts(records) => Ok(records),
    }
}

fn prompts_of<R: TextRow>(records: &[R], found: RecordKind) -> Result<Vec<TextPrompt>> {
    let prompt = |record| {
        prompt_of(record).ok_or(Error::RecordKind {
            found,
            expected: "rows with a prompt",
        })
    };
    records.iter().map(prompt).collect()
}

/// The prompt of a row of a data set as the row has it; none for a text that is learned as a whole.
pub(crate) fn prompt_at(dataset: &TextDataset, row: usize) -> Option<TextPrompt> {
    match dataset {
        TextDataset::Pairs(records) => prompt_of(&records[row]),
        TextDataset::Unpaired(records) => prompt_of(&records[row]),
        TextDataset::Ranked(records) => prompt_of(&records[row]),
        TextDataset::Samples(records) => prompt_of(&records[row]),
        TextDataset::Prompts(records) => Some(records[row].clone()),
    }
}

fn prompt_of<R: TextRow>(record: &R) -> Option<TextPrompt> {
    let parts = record.parts();
    parts.prompt.cloned().map(|prompt| TextPrompt {
        id: parts.id.to_owned(),
        prompt,
        images: parts.images.to_vec(),
        tools: parts.tools.to_vec(),
        chat_template_kwargs: parts.chat_template_kwargs.clone(),
    })
}

/// Plain text as a prompt.
pub fn plain_prompt(id: String, text: String) -> TextPrompt {
    TextPrompt {
        id,
        prompt: Text::Plain(text),
        images: Vec::new(),
        tools: Vec::new(),
        chat_template_kwargs: serde_json::Map::new(),
    }
}

/// The same prompt as what a user says, after what the system says if anything. Conversations and tokens stay as they are.
pub fn as_conversation(mut prompt: TextPrompt, system: Option<&str>) -> TextPrompt {
    if let Text::Plain(text) = &prompt.prompt {
        let system = system.map(|system| Message::new("system", system));
        let user = Message::new("user", text.as_str());
        prompt.prompt = Text::Messages(system.into_iter().chain([user]).collect());
    }
    prompt
}

/// Prompts as a network takes them: plain text with the tokenizer's special tokens, conversations by the chat template up to where
/// an answer begins.
///
/// # Errors
/// A prompt that cannot be rendered; [`Error::EmptySequence`] for one without a token.
pub fn tokenize(tokenizer: &Tokenizer, prompts: &[TextPrompt]) -> Result<Vec<TokenizedPrompt>> {
    if let Some(prompt) = prompts.iter().find(|prompt| !prompt.images.is_empty()) {
        return Err(Error::Images { id: prompt.id.clone() });
    }
    let encoder = Encoder::try_new(tokenizer, EncodingConfig::default())?;
    let rows = encoder.prompts(prompts)?;
    let tokenized = |(row, prompt): (diptych_data::EncodedPrompt, &TextPrompt)| {
        if row.prompt_ids.is_empty() {
            return Err(Error::EmptySequence {
                id: row.id,
                part: "prompt",
            });
        }
        Ok(TokenizedPrompt {
            text: prompt.prompt.content(),
            ids: row.prompt_ids,
            images: Vec::new(),
        })
    };
    rows.into_iter().zip(prompts).map(tokenized).collect()
}

/// Tokens that end an answer: those of the checkpoint, else that of the tokenizer.
pub fn end_tokens<'a>(model: impl Into<NetworkRef<'a>>, tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = &model.into().language_model().config().eos_token_ids;
    if ids.is_empty() {
        tokenizer.eos_id().into_iter().collect()
    } else {
        ids.clone()
    }
}

/// The answers of a network to prompts. `advance` is told how many there are after every batch.
///
/// # Errors
/// Settings out of range, or a tokenizer that cannot decode; [`Error::Stopped`] from `advance`.
pub fn generate_answers<'a>(
    model: impl Into<NetworkRef<'a>>,
    tokenizer: &Tokenizer,
    prompts: &[TokenizedPrompt],
    config: &AnswerConfig,
    mut advance: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<Answer>> {
    let model = model.into();
    let mut answers = Vec::with_capacity(prompts.len());
    for batch in prompts.chunks(config.batch_size.max(1)) {
        let first = answers.len();
        let inputs: Vec<PromptRef<'_>> = batch
            .iter()
            .enumerate()
            .map(|(at, prompt)| PromptRef {
                input_ids: &prompt.ids,
                images: &prompt.images,
                example: (first + at) as u64,
            })
            .collect();
        for generated in model.generate(&inputs, &config.generate)? {
            answers.push(Answer {
                text: tokenizer.decode(&generated.tokens, SpecialTokens::Omit)?,
                tokens: generated.tokens,
                is_finished: generated.is_finished,
            });
        }
        advance(answers.len())?;
    }
    Ok(answers)
}

/// Writes one JSON object an answer: `prompt` as it was given, the names of its `images` if it shows any, `answer`, `tokens`, `finished`. The file appears whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_answers(path: &Path, prompts: &[TextPrompt], answers: &[Answer]) -> Result<()> {
    let mut text = String::new();
    for (prompt, answer) in prompts.iter().zip(answers) {
        let row = Row {
            prompt: (&prompt.prompt).into(),
            images: prompt.images.iter().map(ToString::to_string).collect(),
            answer: &answer.text,
            tokens: &answer.tokens,
            finished: answer.is_finished,
        };
        let line = serde_json::to_string(&row).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(write_file(path, text.as_bytes())?)
}
