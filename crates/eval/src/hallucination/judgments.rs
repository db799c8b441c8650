//! Who reads an answer and says how good it is: a language model's replies, given elsewhere and stored, or a model to be asked.

use std::path::{Path, PathBuf};

use super::rows::{Row, RowFile};
use crate::error::Result;

/// An answer to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgmentRequest<'a> {
    /// Place of the answer in its file, from 0.
    pub index: usize,
    /// What was asked.
    pub question: &'a str,
    /// What a right answer says.
    pub reference: &'a str,
    /// What is in the image, where the benchmark tells.
    pub image_content: &'a [String],
    /// The answer.
    pub answer: &'a str,
}

/// A source of judgments in words, which each benchmark reads by its own rule. A judge that is a model words the request as it
/// needs to.
pub trait Judgments {
    /// The judge's reply to one request.
    ///
    /// # Errors
    /// Whatever keeps the judge from answering.
    fn judgment(&mut self, request: &JudgmentRequest<'_>) -> Result<String>;
}

/// Replies that were given elsewhere, in the order of the answers.
#[derive(Debug, Clone)]
pub struct StoredJudgments {
    path: PathBuf,
    replies: Vec<StoredReply>,
}

/// A reply, and the question and answer that its row says it is about.
#[derive(Debug, Clone)]
struct StoredReply {
    reply: String,
    question: Option<String>,
    answer: Option<String>,
}

impl StoredJudgments {
    /// Reads a file: rows with `judgment`, with the `gpt4_review` of RLAIF-V's merged files, or chat completions as `OpenAI`'s
    /// interface returns them (`choices[0].message.content`), which the program of MMHal-Bench saves. Where rows name the `question`
    /// or the answer (`model_answer`, `model_prediction`), these must be those that are judged.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a row without a reply.
    pub fn read(path: &Path) -> Result<Self> {
        let file = RowFile::read(path)?;
        let said = |row: &Row, keys: &[&str]| {
            let value = keys.iter().find_map(|key| row.get(key)?.as_str());
            value.map(str::to_owned)
        };
        let replies = file.rows.iter().map(|row| {
            let completion = row
                .get("choices")
                .and_then(|choices| choices.pointer("/0/message/content"));
            let reply = match completion {
                Some(serde_json::Value::String(reply)) => reply.clone(),
                Some(other) => {
                    return Err(file.error(row, format!("the completion's content is {other}, expected a string")));
                }
                None => file.text(row, &["judgment", "gpt4_review"])?.to_owned(),
            };
            Ok(StoredReply {
                reply,
                question: said(row, &["question"]),
                answer: said(row, &["model_answer", "model_prediction"]),
            })
        });
        Ok(Self {
            path: path.to_owned(),
            replies: replies.collect::<Result<_>>()?,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.replies.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Refuses replies to fewer or more answers than there are.
    ///
    /// # Errors
    /// [`Error::BenchmarkFile`](crate::Error::BenchmarkFile).
    pub fn check_len(&self, num_answers: usize) -> Result<()> {
        if self.len() == num_answers {
            return Ok(());
        }
        let reason = format!(
            "found {} judgments, expected {num_answers}, one for each answer in their order",
            self.len()
        );
        Err(super::rows::broken(&self.path, reason))
    }
}

impl Judgments for StoredJudgments {
    fn judgment(&mut self, request: &JudgmentRequest<'_>) -> Result<String> {
        let number = request.index + 1;
        let stored = self
            .replies
            .get(request.index)
            .ok_or_else(|| super::rows::broken(&self.path, format!("there is no judgment of answer {number}")))?;
        let parts = [
            ("question", &stored.question, request.question),
            ("answer", &stored.answer, request.answer),
        ];
        for (part, found, expected) in parts {
            if let Some(found) = found
                && found != expected
            {
                let reason = format!("judgment {number} is about the {part} {found:?}, expected {expected:?}");
                return Err(super::rows::broken(&self.path, reason));
            }
        }
        Ok(stored.reply.clone())
    }
}
