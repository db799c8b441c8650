//! What a language model that judges is asked, and the file of its replies.
//!
//! The official programs ask GPT-4 with prompts of their own. These ask for the same in other words: the same scale, the same things to
//! look at, and a reply that the same rule reads. Another judge and another prompt give other numbers, so that these are to be compared
//! with numbers of the same judge alone.

use std::path::Path;

use serde_json::json;

use super::judgments::JudgmentRequest;
use super::rows::{Row, RowFile};
use super::{hallusion, mmhal};
use crate::error::{Error, Result};

/// A benchmark whose answers a judge reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgedBenchmark {
    /// MMHal-Bench: a rating from 0 to 6.
    Mmhal,
    /// `HallusionBench`: correct, incorrect or unclear.
    Hallusion,
}

/// An answer, and what it is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct JudgedAnswer {
    pub(super) question: String,
    pub(super) reference: String,
    pub(super) image_content: Vec<String>,
    pub(super) answer: String,
}

impl JudgedAnswer {
    /// As a judge is given it; `index` is the answer's place in its file.
    pub(super) fn request(&self, index: usize) -> JudgmentRequest<'_> {
        JudgmentRequest {
            index,
            question: &self.question,
            reference: &self.reference,
            image_content: &self.image_content,
            answer: &self.answer,
        }
    }
}

/// The answers of a file that are to be judged, in its order.
#[derive(Debug, Clone)]
pub struct JudgedAnswers {
    benchmark: JudgedBenchmark,
    answers: Vec<JudgedAnswer>,
}

impl JudgedAnswers {
    /// Reads the file of answers that [`score_mmhal`](super::score_mmhal) or [`score_hallusion`](super::score_hallusion) scores.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::StoredRow`] for a row without question, reference or answer.
    pub fn read(benchmark: JudgedBenchmark, path: &Path) -> Result<Self> {
        let file = RowFile::read(path)?;
        let read: fn(&RowFile, &Row) -> Result<JudgedAnswer> = match benchmark {
            JudgedBenchmark::Mmhal => mmhal::judged,
            JudgedBenchmark::Hallusion => hallusion::judged,
        };
        let answers = file.rows.iter().map(|row| read(&file, row)).collect::<Result<_>>()?;
        Ok(Self { benchmark, answers })
    }

    /// What a judge is asked about each of them.
    pub fn prompts(&self) -> Vec<String> {
        let prompt = |answer| match self.benchmark {
            JudgedBenchmark::Mmhal => rating_prompt(answer),
            JudgedBenchmark::Hallusion => verdict_prompt(answer),
        };
        self.answers.iter().map(prompt).collect()
    }

    /// The judge's replies as a file of JSON lines that [`StoredJudgments`](super::StoredJudgments) reads, each with what it is about.
    ///
    /// # Errors
    /// [`Error::Benchmark`] for fewer or more replies than answers.
    pub fn judgment_file(&self, replies: &[&str]) -> Result<String> {
        if replies.len() != self.answers.len() {
            let reason = format!("found {} judgments, expected {}", replies.len(), self.answers.len());
            return Err(Error::Benchmark { reason });
        }
        let line = |(answer, reply): (&JudgedAnswer, &&str)| {
            json!({"question": answer.question, "model_answer": answer.answer, "judgment": reply}).to_string() + "\n"
        };
        Ok(self.answers.iter().zip(replies).map(line).collect())
    }
}

/// The published scale: an answer without hallucination gets 3 or more.
fn rating_prompt(answer: &JudgedAnswer) -> String {
    let content = if answer.image_content.is_empty() {
        "not given".to_owned()
    } else {
        answer.image_content.join(", ")
    };
    format!(
        "You judge an assistant's answer to a question about an image. You do not see the image: go by the list of what is in it and by \
         the reference answer of a person who did.\n\n\
         An answer hallucinates if it says anything about the image that neither the list nor the reference supports or that contradicts \
         them: objects that are not there, wrong colors, numbers, places or actions, or a premise of the question that is wrong and goes \
         unnoticed. General knowledge and careful reasoning are no hallucination. Say first, in a sentence or two, whether the answer \
         hallucinates and how informative it is. Then rate it:\n\
         6: very informative, with insight; no hallucination\n\
         5: very informative; no hallucination\n\
         4: somewhat informative; no hallucination\n\
         3: not informative; no hallucination\n\
         2: very informative; hallucination\n\
         1: somewhat informative; hallucination\n\
         0: not informative; hallucination\n\n\
         In the image: {content}\n\
         Question: {}\n\
         Reference answer: {}\n\
         Answer to be judged: {}\n\n\
         End with one line that is nothing but \"Rating: \" and the number.",
        answer.question, answer.reference, answer.answer
    )
}

fn verdict_prompt(answer: &JudgedAnswer) -> String {
    format!(
        "You judge an assistant's answer to a question about an image by the right answer. It is correct if what it says agrees with the \
         right answer, also in other words or with more detail that does not contradict it; incorrect if it contradicts the right answer; \
         unclear if it does not decide the question, says that it cannot be answered, or is about something else.\n\n\
         Question: {}\n\
         Right answer: {}\n\
         Answer to be judged: {}\n\n\
         Reply with one word: correct, incorrect or unclear.",
        answer.question, answer.reference, answer.answer
    )
}
