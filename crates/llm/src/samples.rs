//! Texts sampled while training: for each prompt the answer before training and the answer now, at fixed seeds.

use std::path::{Path, PathBuf};

use diptych_data::Tokenizer;
use diptych_models::lm::{GenerateConfig, Sampling};
use diptych_tensor::files::write_file;
use serde::{Deserialize, Serialize};

use crate::answers::generate_answers;
use crate::network::NetworkRef;
use crate::{Error, Result};

/// Prompts sampled while training when the recipe does not say how many.
const NUM_PROMPTS: usize = 4;

/// `[samples]`: what is sampled while training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// The prompts, as plain text; by default the first different ones of the data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// How many prompts of the data; 4 by default. Contradicts `prompts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_prompts: Option<usize>,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// How tokens are chosen; by default the likeliest.
    pub sampling: Sampling,
    /// Source of the choices.
    pub seed: u64,
    /// Answers computed together. It changes nothing but time and memory.
    pub batch_size: usize,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self {
            prompts: Vec::new(),
            num_prompts: None,
            max_new_tokens: 64,
            sampling: Sampling::GREEDY,
            seed: 0,
            batch_size: 8,
        }
    }
}

impl SamplesConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        if !self.prompts.is_empty() && self.num_prompts.is_some() {
            return Some(("num_prompts", "both `prompts` and `num_prompts`".into(), "one of them"));
        }
        let counts = [
            ("num_prompts", self.num_prompts.unwrap_or(1)),
            ("max_new_tokens", self.max_new_tokens),
            ("batch_size", self.batch_size),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Some((key, "0".into(), "a number, at least 1"));
        }
        match self.sampling.validate() {
            Err(diptych_models::Error::GenerationSetting { key, found, expected }) => Some((key, found, expected)),
            Err(_) | Ok(()) => None,
        }
    }

    /// How many prompts of the data are shown, where the recipe names none itself.
    pub fn num_prompts(&self) -> usize {
        self.num_prompts.unwrap_or(NUM_PROMPTS)
    }
}

/// A prompt in text and tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedPrompt {
    /// As it is shown.
    pub text: String,
    /// As the network sees it; at least one token.
    pub ids: Vec<u32>,
    /// The images that it has, among the run's, in the order of their tokens.
    pub images: Vec<usize>,
}

/// How answers are sampled.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerConfig {
    /// Settings of the network.
    pub generate: GenerateConfig,
    /// Answers computed together.
    pub batch_size: usize,
}

/// The answers of a network to prompts, decoded without special tokens.
///
/// # Errors
/// Settings out of range, or a tokenizer that cannot decode.
pub fn answers<'a>(
    model: impl Into<NetworkRef<'a>>,
    tokenizer: &Tokenizer,
    prompts: &[TokenizedPrompt],
    config: &AnswerConfig,
    advance: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<String>> {
    let answers = generate_answers(model, tokenizer, prompts, config, advance)?;
    Ok(answers.into_iter().map(|answer| answer.text).collect())
}

/// What is sampled, and what it looked like before training.
#[derive(Debug)]
pub(crate) struct TextSamples {
    tokenizer: Tokenizer,
    prompts: Vec<TokenizedPrompt>,
    config: AnswerConfig,
    before: Vec<String>,
}

/// A row of a file of samples.
#[derive(Debug, Serialize)]
struct Row<'a> {
    prompt: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<String>,
    before: &'a str,
    after: &'a str,
}

impl TextSamples {
    /// Samples the answers before training.
    pub(crate) fn try_new(
        model: NetworkRef<'_>,
        tokenizer: Tokenizer,
        prompts: Vec<TokenizedPrompt>,
        config: AnswerConfig,
    ) -> Result<Self> {
        let before = answers(model, &tokenizer, &prompts, &config, |_| Ok(()))?;
        Ok(Self {
            tokenizer,
            prompts,
            config,
            before,
        })
    }

    /// Writes one JSON object a prompt and returns the file.
    pub(crate) fn write(&self, model: NetworkRef<'_>, stem: &Path) -> Result<PathBuf> {
        let after = answers(model, &self.tokenizer, &self.prompts, &self.config, |_| Ok(()))?;
        let path = stem.with_extension("jsonl");
        let mut text = String::new();
        for ((prompt, before), after) in self.prompts.iter().zip(&self.before).zip(&after) {
            let row = Row {
                prompt: &prompt.text,
                images: model.image_names(&prompt.images),
                before,
                after,
            };
            let line = serde_json::to_string(&row).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })?;
            text.push_str(&line);
            text.push('\n');
        }
        write_file(&path, text.as_bytes())?;
        Ok(path)
    }
}
