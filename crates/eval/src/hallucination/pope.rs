//! POPE: is there a … in the image?
//!
//! Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023, arXiv:2305.10355.
//! Rules: `evaluate.py` of RUCAIBox/POPE. "yes" is the positive class.
//!
//! # Quirks that are kept
//! An answer is cut at its first period and freed of commas, then split at single spaces; it is "no" when a piece equals `No`, `no` or
//! `not`, and "yes" otherwise. So "NO", "no!", "No\n", "Nope", "There isn't one" and nothing at all are all "yes", and "Yes, not really" is "no".
//!
//! # What differs
//! Answers belong to questions by their order, as there. There a file that is too long or too short is cut silently and
//! a question that is not the one asked goes unnoticed; here both are errors. A ratio without a denominator stops the official
//! program; here it has no value.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::report::Scored;
use super::rows::{Row, RowFile, broken, id_text};
use super::tally::{Metric, Tally};
use crate::error::Result;

/// The two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum YesNo {
    /// The object is there, or said to be.
    Yes,
    /// It is not.
    No,
}

/// A question, in the official file's layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PopeQuestion {
    /// Its number, from 1.
    pub question_id: u64,
    /// File of the image.
    pub image: String,
    /// What is asked.
    pub text: String,
    /// The truth.
    pub label: YesNo,
}

/// What an answer says, by the official rule.
///
/// # Example
/// ```
/// use diptych_eval::hallucination::{YesNo, parse_pope_answer};
///
/// assert_eq!(parse_pope_answer("No, there is no cat."), YesNo::No);
/// assert_eq!(parse_pope_answer("There isn't a dog"), YesNo::Yes);
/// ```
pub fn parse_pope_answer(answer: &str) -> YesNo {
    let sentence = answer.split('.').next().unwrap_or_default().replace(',', "");
    if sentence.split(' ').any(|word| matches!(word, "No" | "not" | "no")) {
        YesNo::No
    } else {
        YesNo::Yes
    }
}

/// Reads a file of questions.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a row that is no question.
pub fn read_pope_questions(path: &Path) -> Result<Vec<PopeQuestion>> {
    let file = RowFile::read(path)?;
    let question = |row: &Row| {
        let label = match file.text(row, &["label"])? {
            "yes" => YesNo::Yes,
            "no" => YesNo::No,
            other => return Err(file.error(row, format!("`label` is {other:?}, expected yes or no"))),
        };
        let id = file.id(row, &["question_id"])?;
        Ok(PopeQuestion {
            question_id: id
                .parse()
                .map_err(|_| file.error(row, format!("`question_id` is {id}, expected a number from 0")))?,
            image: file.text(row, &["image"])?.to_owned(),
            text: file.text(row, &["text"])?.to_owned(),
            label,
        })
    };
    file.rows.iter().map(question).collect()
}

/// The lines of a file of questions.
pub fn pope_question_lines(questions: &[PopeQuestion]) -> String {
    let lines = questions.iter().map(|question| {
        let PopeQuestion {
            question_id,
            image,
            text,
            label,
        } = question;
        let row = json!({"question_id": question_id, "image": image, "text": text, "label": label});
        format!("{row}\n")
    });
    lines.collect()
}

/// A file of questions and the answers to it.
#[derive(Debug, Clone)]
pub struct PopeFiles<'a> {
    /// Name of the setting in the result: `random`, `popular`, `adversarial`.
    pub setting: String,
    /// The questions, with their labels.
    pub questions: &'a Path,
    /// Rows with `answer`, or in `LLaVA`'s layout `text`; `question` and `question_id` are compared where present.
    pub answers: &'a Path,
}

/// Scores one or several settings; with several, their mean is what tables call the POPE score. Shares are from 0 to 1. An image is
/// resampled with all its questions of all settings.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a defective row, or an answer to another question;
/// [`Error::BenchmarkFile`](crate::Error::BenchmarkFile) for too few or too many answers.
pub fn score_pope(settings: &[PopeFiles<'_>]) -> Result<Scored> {
    let mut tally = Tally::new(4 * settings.len(), metrics(settings));
    let mut rows = Vec::new();
    for (index, files) in settings.iter().enumerate() {
        let questions = read_pope_questions(files.questions)?;
        let answers = RowFile::read(files.answers)?;
        let (found, expected) = (answers.rows.len(), questions.len());
        for (question, row) in questions.iter().zip(&answers.rows) {
            check_question(&answers, row, question)?;
            let answer = answers.text(row, &["answer", "text"])?;
            if answer == question.text {
                let reason = "the answer is the question itself: are these the questions?".to_owned();
                return Err(answers.error(row, reason));
            }
            let said = parse_pope_answer(answer);
            let column = match (said, question.label) {
                (YesNo::Yes, YesNo::Yes) => 0,
                (YesNo::Yes, YesNo::No) => 1,
                (YesNo::No, YesNo::No) => 2,
                (YesNo::No, YesNo::Yes) => 3,
            };
            tally.add(&question.image, 4 * index + column, 1.0);
            rows.push(json!({
                "setting": files.setting, "question_id": question.question_id, "image": question.image,
                "question": question.text, "label": question.label, "answer": answer, "parsed": said,
            }));
        }
        if found != expected {
            return Err(broken(
                files.answers,
                format!(
                    "found {found} answers, expected {expected}, one for each question of {}",
                    files.questions.display()
                ),
            ));
        }
    }
    Ok(Scored {
        benchmark: "pope",
        tally,
        notes: Vec::new(),
        rows,
    })
}

fn check_question(answers: &RowFile, row: &Row, question: &PopeQuestion) -> Result<()> {
    let out_of_order = |key: &str, found: &str, expected: &str| {
        let reason =
            format!("`{key}` is {found:?}, expected {expected:?}: answers have to be in the order of the questions");
        Err(answers.error(row, reason))
    };
    if let Some(id) = row.get("question_id").and_then(id_text)
        && id != question.question_id.to_string()
    {
        return out_of_order("question_id", &id, &question.question_id.to_string());
    }
    if let Some(text) = row.get("question").and_then(|text| text.as_str())
        && text != question.text
    {
        return out_of_order("question", text, &question.text);
    }
    if let Some(image) = row.get("image").and_then(|image| image.as_str())
        && image != question.image
    {
        return out_of_order("image", image, &question.image);
    }
    Ok(())
}

type Formula = fn(&[f64]) -> f64;

/// Name, formula of one setting, formula of their mean.
const FORMULAS: [(&str, Formula, Formula); 6] = [
    ("accuracy", accuracy, |counts| mean(counts, accuracy)),
    ("precision", precision, |counts| mean(counts, precision)),
    ("recall", recall, |counts| mean(counts, recall)),
    ("f1", f1, |counts| mean(counts, f1)),
    ("yes_ratio", yes_ratio, |counts| mean(counts, yes_ratio)),
    ("false_yes", false_yes, |counts| mean(counts, false_yes)),
];

fn metrics(settings: &[PopeFiles<'_>]) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for (index, files) in settings.iter().enumerate() {
        for (name, formula, _) in FORMULAS {
            metrics.push(Metric::new(
                format!("{}/{name}", files.setting),
                4 * index..4 * index + 4,
                formula,
            ));
        }
    }
    if settings.len() > 1 {
        for (name, _, mean) in FORMULAS {
            metrics.push(Metric::new(format!("mean/{name}"), 0..4 * settings.len(), mean));
        }
    }
    metrics
}

// Counts are true and false positives, then true and false negatives.

fn accuracy(counts: &[f64]) -> f64 {
    (counts[0] + counts[2]) / counts.iter().sum::<f64>()
}

fn precision(counts: &[f64]) -> f64 {
    counts[0] / (counts[0] + counts[1])
}

fn recall(counts: &[f64]) -> f64 {
    counts[0] / (counts[0] + counts[3])
}

fn f1(counts: &[f64]) -> f64 {
    let (precision, recall) = (precision(counts), recall(counts));
    2.0 * precision * recall / (precision + recall)
}

fn yes_ratio(counts: &[f64]) -> f64 {
    (counts[0] + counts[1]) / counts.iter().sum::<f64>()
}

/// How often what is not there is said to be there; not one of the official numbers.
fn false_yes(counts: &[f64]) -> f64 {
    counts[1] / (counts[1] + counts[2])
}

fn mean(counts: &[f64], formula: Formula) -> f64 {
    let settings = counts.len() / 4;
    counts.chunks(4).map(formula).sum::<f64>() / settings as f64
}
