//! Rows of text as token sequences, ready for a trainer.
//!
//! A sequence is `prompt_ids` followed by a completion's `ids`. Weights are 0 for tokens that are not scored; the first
//! token of a sequence has nothing before it and is never scored, whatever its weight. Rows are encoded in parallel and
//! come out in the order they went in.

use std::ops::Range;

use rayon::prelude::*;

use super::branch::{Branch, common_prefix};
use super::encoding_config::{EncodingConfig, EncodingConvention, Truncation};
use super::encoding_problem::EncodingProblem;
use super::image_tokens::{ImageToken, Replaced, check_image_tokens};
use super::rationale::RationaleTemplate;
use super::rendering::Renderer;
use super::rows::{RowParts, TextRow};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::{OnError, RankedText, TextPair, TextPrompt, TextSample, UnpairedText};

/// Encodes records with one tokenizer and one configuration.
///
/// Of an image there is one token ([`Tokenizer::image_token`]) in the ids, where the chat template or the words have it; a plain text may
/// have `<image>` for it whatever the tokenizer's own is. [`EncodingConfig::max_len`] knows nothing of how many tokens an image will be.
///
/// ```
/// use diptych_data::{Encoder, EncodingConfig, TextPair, Tokenizer};
/// # fn main() -> Result<(), diptych_data::Error> {
/// let tokenizer = Tokenizer::from_dir("../../tests/golden/text/tokenizers/byte_level")?;
/// let encoder = Encoder::try_new(&tokenizer, EncodingConfig::default())?;
/// let pairs = [TextPair::new("0", "Which answer?", " The first.", " The second.")];
/// let row = &encoder.pairs(&pairs)?.rows[0];
/// // As TRL does, EOS is appended to plain text.
/// assert_eq!(row.chosen.ids.last().copied(), tokenizer.eos_id());
/// assert_eq!(row.chosen.ids.len(), row.chosen.weights.len());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    config: EncodingConfig,
    image_token_id: Option<u32>,
    on_error: OnError,
}

/// Encoded rows, and those that were skipped.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T> {
    /// In the order of the records.
    pub rows: Vec<T>,
    /// In the order of the records.
    pub skipped: Vec<SkippedRow>,
}

/// A record that has nothing to learn from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct SkippedRow {
    /// Index of the record.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Why.
    pub reason: SkipReason,
}

/// Why a record was skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SkipReason {
    /// The prompt alone has `max_len` tokens or more.
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
    },
    /// No token of a completion is scored: it is empty, or truncation or weights left nothing.
    NothingScored,
    /// The tokens of its images are more or fewer than the images, and such rows are [passed over](Encoder::with_on_error).
    ImageTokens {
        /// Tokens of images once the row is rendered.
        found: usize,
        /// Images of the row.
        images: usize,
    },
}

/// A completion in tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EncodedCompletion {
    /// Token ids, after `prompt_ids`.
    pub ids: Vec<u32>,
    /// What the log-probability of each token is multiplied by; 0 leaves it out. As long as `ids`.
    pub weights: Vec<f32>,
    /// Whether each token is one of an answer, also where spans give it no weight. As long as `ids`.
    pub is_answer: Vec<bool>,
    /// Characters of [`crate::Text::content`] that each token stands for, `0..0` for what template and tokenizer added.
    /// As long as `ids`.
    pub content_offsets: Vec<Range<usize>>,
    /// How many of the first `ids` belong to the prompt, because the sides of the row do not share them.
    pub prompt_tail: usize,
    /// Whether tokens of prompt or completion were left out to fit [`EncodingConfig::max_len`].
    pub is_cut: bool,
}

/// A [`TextPair`] in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedPair {
    /// Index of the record.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Tokens that both sequences begin with and that are not scored. Where the end of long sequences is kept, or
    /// tokens merge across the boundary, the rest of a side's prompt stands in its completion with weight 0.
    pub prompt_ids: Vec<u32>,
    /// The preferred completion.
    pub chosen: EncodedCompletion,
    /// The other completion.
    pub rejected: EncodedCompletion,
}

/// An [`UnpairedText`] in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedUnpaired {
    /// Index of the record.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Tokens of the prompt.
    pub prompt_ids: Vec<u32>,
    /// The completion.
    pub completion: EncodedCompletion,
    /// Whether it is desirable.
    pub label: bool,
}

/// A [`RankedText`] in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedRanked {
    /// Index of the record.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Tokens that all sequences begin with and that are not scored.
    pub prompt_ids: Vec<u32>,
    /// The completions in the order of the record.
    pub responses: Vec<EncodedCompletion>,
    /// Their scores.
    pub scores: Vec<f64>,
}

/// A [`TextSample`] in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedSample {
    /// Index of the record.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Tokens of the prompt; empty where all of the text is learned.
    pub prompt_ids: Vec<u32>,
    /// What is learned.
    pub completion: EncodedCompletion,
}

/// A [`TextPrompt`] in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Index of the record.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Tokens of the prompt, never truncated.
    pub prompt_ids: Vec<u32>,
}

/// Branches of a row that is kept, or why it is not.
pub(crate) type Outcome = std::result::Result<(Vec<u32>, Vec<EncodedCompletion>), SkipReason>;

impl<'a> Encoder<'a> {
    /// An encoder.
    ///
    /// # Errors
    /// [`Error::EncodingConfig`] if settings contradict each other.
    pub fn try_new(tokenizer: &'a Tokenizer, config: EncodingConfig) -> Result<Self> {
        config.check()?;
        Ok(Self {
            tokenizer,
            config,
            image_token_id: None,
            on_error: OnError::Fail,
        })
    }

    /// The same with a token of images that is not the one of [`Tokenizer::image_token`]: what a network's configuration calls
    /// `image_token_id`.
    #[must_use]
    pub fn with_image_token_id(mut self, id: u32) -> Self {
        self.image_token_id = Some(id);
        self
    }

    /// The same with rows whose image tokens are not as many as their images skipped ([`SkipReason::ImageTokens`]), rather than refused.
    /// What else is wrong with a row is an error with either.
    #[must_use]
    pub fn with_on_error(mut self, on_error: OnError) -> Self {
        self.on_error = on_error;
        self
    }

    pub(crate) fn image_token(&self) -> Option<ImageToken> {
        ImageToken::of(self.tokenizer, self.image_token_id)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// The settings.
    pub fn config(&self) -> EncodingConfig {
        self.config
    }

    /// Encodes pairs, as TRL's `DPOTrainer` does (or `CPOTrainer`, by [`EncodingConvention`]).
    ///
    /// # Errors
    /// [`Error::Encoding`] for the first record that cannot be encoded.
    pub fn pairs(&self, records: &[TextPair]) -> Result<Encoded<EncodedPair>> {
        self.encode(records, |row, record, prompt_ids, completions| {
            let [chosen, rejected] = two(completions);
            EncodedPair {
                row,
                id: record.id.clone(),
                prompt_ids,
                chosen,
                rejected,
            }
        })
    }

    /// Encodes labelled completions, as TRL's `KTOTrainer` does.
    ///
    /// # Errors
    /// As [`Encoder::pairs`].
    pub fn unpaired(&self, records: &[UnpairedText]) -> Result<Encoded<EncodedUnpaired>> {
        self.encode(records, |row, record, prompt_ids, completions| EncodedUnpaired {
            row,
            id: record.id.clone(),
            prompt_ids,
            completion: only(completions),
            label: record.label,
        })
    }

    /// Encodes ranked completions, by the rule of pairs.
    ///
    /// # Errors
    /// As [`Encoder::pairs`].
    pub fn ranked(&self, records: &[RankedText]) -> Result<Encoded<EncodedRanked>> {
        self.encode(records, |row, record, prompt_ids, responses| EncodedRanked {
            row,
            id: record.id.clone(),
            prompt_ids,
            responses,
            scores: record.responses.iter().map(|response| response.score).collect(),
        })
    }

    /// Encodes texts to imitate, as TRL's `SFTTrainer` does: of prompt and completion only the completion is learned, of
    /// a whole text all of it, or its assistant turns.
    ///
    /// # Errors
    /// As [`Encoder::pairs`].
    pub fn samples(&self, records: &[TextSample]) -> Result<Encoded<EncodedSample>> {
        self.encode(records, |row, record, prompt_ids, completions| EncodedSample {
            row,
            id: record.id.clone(),
            prompt_ids,
            completion: only(completions),
        })
    }

    /// Encodes the rationales of the pairs in some `rows` behind the prompts that a template makes of these, by the rule of samples.
    /// Pairs without a rationale are passed over; the rows say which pairs they are of.
    ///
    /// # Errors
    /// As [`Encoder::pairs`]; [`Error::Encoding`] for a pair whose sides are tokens.
    pub fn rationales(
        &self,
        records: &[TextPair],
        rows: impl IntoIterator<Item = usize>,
        template: &RationaleTemplate,
    ) -> Result<Encoded<EncodedSample>> {
        let mut places = Vec::new();
        let mut samples = Vec::new();
        for place in rows {
            let record = &records[place];
            if let Some(sample) = template
                .sample(record)
                .map_err(|problem| row_error(&record.id, problem))?
            {
                places.push(place);
                samples.push(sample);
            }
        }
        let mut encoded = self.samples(&samples)?;
        let rows = encoded.rows.iter_mut().map(|row| &mut row.row);
        for row in rows.chain(encoded.skipped.iter_mut().map(|skipped| &mut skipped.row)) {
            *row = places[*row];
        }
        Ok(encoded)
    }

    /// Encodes prompts to answer.
    ///
    /// # Errors
    /// As [`Encoder::pairs`].
    pub fn prompts(&self, records: &[TextPrompt]) -> Result<Vec<EncodedPrompt>> {
        let encoded: Vec<Result<EncodedPrompt>> = records
            .par_iter()
            .enumerate()
            .map(|(row, record)| {
                let prompt_ids = self.prompt_row(record);
                Ok(EncodedPrompt {
                    row,
                    id: record.id.clone(),
                    prompt_ids: prompt_ids.map_err(|problem| row_error(&record.id, problem))?,
                })
            })
            .collect();
        encoded.into_iter().collect()
    }

    fn encode<R: TextRow, T: Send>(
        &self,
        records: &[R],
        build: impl Fn(usize, &R, Vec<u32>, Vec<EncodedCompletion>) -> T + Sync,
    ) -> Result<Encoded<T>> {
        // Collected before errors are looked at: which of two broken rows is named must not depend on threads.
        let outcomes: Vec<Result<std::result::Result<T, SkippedRow>>> = records
            .par_iter()
            .enumerate()
            .map(|(row, record)| {
                let parts = record.parts();
                let outcome = match self.row(record) {
                    Err(EncodingProblem::ImageTokens { found, images, .. }) if self.on_error == OnError::Skip => {
                        Err(SkipReason::ImageTokens { found, images })
                    }
                    outcome => outcome.map_err(|problem| row_error(parts.id, problem))?,
                };
                Ok(outcome
                    .map(|(prompt_ids, completions)| build(row, record, prompt_ids, completions))
                    .map_err(|reason| SkippedRow {
                        row,
                        id: parts.id.to_owned(),
                        reason,
                    }))
            })
            .collect();
        let mut encoded = Encoded {
            rows: Vec::new(),
            skipped: Vec::new(),
        };
        for outcome in outcomes {
            match outcome? {
                Ok(row) => encoded.rows.push(row),
                Err(skipped) => encoded.skipped.push(skipped),
            }
        }
        Ok(encoded)
    }

    /// One record: its shared prompt and its completions.
    pub(crate) fn row<R: TextRow>(&self, record: &R) -> std::result::Result<Outcome, EncodingProblem> {
        let token = self.image_token();
        let replaced = Replaced::of(token.as_ref(), &record.parts());
        let branches = self.branches(&replaced.apply(record.parts()))?;
        Ok(self.truncated(branches))
    }

    /// The branches of a row, with one token an image.
    pub(crate) fn branches(&self, parts: &RowParts<'_>) -> std::result::Result<Vec<Branch>, EncodingProblem> {
        let branches = self.renderer(parts).branches()?;
        let token = self.image_token();
        for branch in &branches {
            check_image_tokens(token.as_ref(), parts, &branch.ids)?;
        }
        Ok(branches)
    }

    fn prompt_row(&self, record: &TextPrompt) -> std::result::Result<Vec<u32>, EncodingProblem> {
        let token = self.image_token();
        let replaced = Replaced::of(token.as_ref(), &record.parts());
        let parts = replaced.apply(record.parts());
        let prompt = parts.prompt.unwrap_or(&record.prompt);
        let ids = self.renderer(&parts).prompt_ids(prompt)?;
        check_image_tokens(token.as_ref(), &parts, &ids)?;
        Ok(ids)
    }

    pub(crate) fn renderer<'r>(&self, row: &'r RowParts<'r>) -> Renderer<'r>
    where
        'a: 'r,
    {
        Renderer {
            tokenizer: self.tokenizer,
            config: self.config,
            row,
        }
    }

    /// Applies `max_len` and splits the shared prompt off.
    pub(crate) fn truncated(&self, mut branches: Vec<Branch>) -> Outcome {
        let lens: Vec<usize> = branches.iter().map(|branch| branch.ids.len()).collect();
        if let Some(max_len) = self.config.max_len {
            let prompt_len = branches.iter().map(|branch| branch.prompt_len).max().unwrap_or(0);
            let is_skipped = match (self.config.convention, self.config.truncation) {
                (EncodingConvention::Dpo, Truncation::KeepStart) => prompt_len >= max_len,
                (EncodingConvention::Dpo, Truncation::KeepEnd) | (EncodingConvention::Cpo, _) => false,
            };
            if is_skipped {
                return Err(SkipReason::PromptTooLong { prompt_len });
            }
            for branch in &mut branches {
                branch.keep(self.kept(branch, max_len));
            }
        }
        if branches
            .iter()
            .any(|branch| branch.weights.iter().all(|&weight| weight == 0.0))
        {
            return Err(SkipReason::NothingScored);
        }
        let shared = shared_prompt(&branches);
        let prompt_ids = branches
            .first()
            .map_or(Vec::new(), |branch| branch.ids[..shared].to_vec());
        let completions = branches
            .into_iter()
            .zip(lens)
            .map(|(mut branch, len)| EncodedCompletion {
                is_cut: branch.ids.len() < len,
                ids: branch.ids.split_off(shared),
                weights: branch.weights.split_off(shared),
                is_answer: branch.is_answer.split_off(shared),
                content_offsets: branch.content.split_off(shared),
                prompt_tail: branch.prompt_len - shared,
            })
            .collect();
        Ok((prompt_ids, completions))
    }

    /// The tokens of a branch that `max_len` leaves.
    pub(crate) fn kept(&self, branch: &Branch, max_len: usize) -> Range<usize> {
        let len = branch.ids.len();
        match (self.config.convention, self.config.truncation) {
            // The answer gives way, the prompt stays even if it is longer.
            (EncodingConvention::Cpo, _) => 0..len.min(max_len.max(branch.prompt_len)),
            (EncodingConvention::Dpo, Truncation::KeepStart) => 0..len.min(max_len),
            (EncodingConvention::Dpo, Truncation::KeepEnd) => len.saturating_sub(max_len)..len,
        }
    }
}

/// Tokens of the prompts that all branches have in common from the beginning.
fn shared_prompt(branches: &[Branch]) -> usize {
    let Some((first, others)) = branches.split_first() else {
        return 0;
    };
    others.iter().fold(first.prompt_len, |shared, branch| {
        shared
            .min(branch.prompt_len)
            .min(common_prefix(&first.ids, &branch.ids))
    })
}

fn two(completions: Vec<EncodedCompletion>) -> [EncodedCompletion; 2] {
    completions.try_into().expect("a pair has two completions")
}

fn only(completions: Vec<EncodedCompletion>) -> EncodedCompletion {
    completions.into_iter().next().expect("the record has one completion")
}

pub(crate) fn row_error(id: &str, problem: EncodingProblem) -> Error {
    Error::Encoding {
        id: id.to_owned(),
        problem: Box::new(problem),
    }
}
