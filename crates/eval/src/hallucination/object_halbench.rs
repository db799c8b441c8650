//! Object `HalBench`: CHAIR on the objects that a language model extracted from the answers.
//!
//! Yu et al., "RLHF-V", CVPR 2024, arXiv:2312.00849, section 5.1; rules: `eval/eval_gpt_obj_halbench.py` of RLHF-V/RLAIF-V. Tables show
//! `response_hallucination` (100 times the official `CHAIRs_refine`) and `object_hallucination` (100 times `CHAIRi`).
//!
//! # Quirks that are kept
//! An object named twice in an answer counts once, but two synonyms of one object count twice. The share of hallucinating responses is of
//! those that mention an object, not of all. Words of an answer are what stands between single spaces.
//!
//! # Who extracts
//! A row has the objects either as the official program leaves them (`objs`, or `words` in its output), which gives the official numbers, or
//! as the extracting model named them (`extract_objs`), or not at all ([`ExtractedObjects::WholeAnswer`]). The official program brings those into shape with spaCy's `en_core_web_trf`, which
//! is not part of this program: [`ExtractedObjects::HeadNoun`] does it by a rule instead, and the report says so.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::ground_truth::ObjectTruth;
use super::report::Scored;
use super::rows::{Row, RowFile};
use super::tally::{Metric, Tally};
use super::vocabulary::{Lemmatizer, ObjectVocabulary};
use crate::error::Result;

/// Answers of so few words name no objects, the official program says.
const SHORT_ANSWER_WORDS: usize = 3;

/// What is done with objects that are only there as the extracting model named them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtractedObjects {
    /// They are refused: only objects in the official program's final shape are scored.
    Refused,
    /// Words are made singular by the rules of `pattern.en`; pairs of words that belong together are taken, or else the longest end of
    /// the name that is a known object, or else the name. An approximation.
    HeadNoun,
    /// Nothing needs to be extracted: what the answer mentions is found word by word, as CHAIR does. An approximation.
    WholeAnswer,
}

const NUM_COLUMNS: usize = 8;

/// Scores answers: rows with `image_id`, `caption` (or `answer`, `text`) and objects. Percentages are from 0 to 100. The order of the rows
/// does not matter.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a defective row, an image without annotations, and
/// objects that are [refused](ExtractedObjects::Refused).
pub fn score_object_halbench(
    answers: &Path,
    vocabulary: &ObjectVocabulary,
    truth: &ObjectTruth,
    extracted: ExtractedObjects,
) -> Result<Scored> {
    let file = RowFile::read(answers)?;
    let mut tally = Tally::new(NUM_COLUMNS, metrics());
    let (mut rows, mut num_shaped_here) = (Vec::new(), 0_usize);
    for row in &file.rows {
        let image = file.id(row, &["image_id"])?;
        let caption = file.text(row, &["caption", "answer", "text"])?;
        let caption = caption.replace("Assistant:", "");
        let caption = caption.trim();
        let there = truth.of(&file, row, &image)?;
        let names = if row.get("objs").is_some() || row.get("words").is_some() {
            unique(file.texts(row, &["objs", "words"])?)
        } else {
            num_shaped_here += 1;
            shaped(&file, row, caption, vocabulary, extracted)?
        };
        let mentions = vocabulary.known_objects(&names);
        let hallucinated: Vec<&String> = mentions
            .objects
            .iter()
            .filter(|object| !there.contains(*object))
            .collect();
        let recalled: BTreeSet<&String> = mentions
            .objects
            .iter()
            .filter(|object| there.contains(*object))
            .collect();
        let counts = [
            usize::from(!hallucinated.is_empty()),
            1,
            usize::from(!mentions.objects.is_empty()),
            hallucinated.len(),
            mentions.objects.len(),
            recalled.len(),
            there.len(),
            caption.split(' ').count(),
        ];
        for (column, count) in counts.into_iter().enumerate() {
            tally.add(&image, column, count as f64);
        }
        rows.push(json!({
            "image_id": row.get("image_id"), "caption": caption, "objs": names, "mentioned": mentions.objects,
            "hallucinated": hallucinated, "ground_truth": there,
        }));
    }
    Ok(Scored {
        benchmark: "object-halbench",
        tally,
        notes: notes(num_shaped_here, extracted),
        rows,
    })
}

/// What is no official number of these.
fn notes(num_shaped_here: usize, extracted: ExtractedObjects) -> Vec<String> {
    if num_shaped_here == 0 {
        return Vec::new();
    }
    vec![match extracted {
        ExtractedObjects::WholeAnswer => {
            format!(
                "of {num_shaped_here} answers no language model extracted the objects; they were found word by word"
            )
        }
        ExtractedObjects::Refused | ExtractedObjects::HeadNoun => format!(
            "{num_shaped_here} answers have only `extract_objs`: their objects were brought into shape by a rule, not by spaCy"
        ),
    }]
}

fn metrics() -> Vec<Metric> {
    // Columns: hallucinating answers, answers, answers with objects, hallucinated objects, objects, recalled, there, words.
    vec![
        Metric::new("response_hallucination", 0..3, |sums| 100.0 * sums[0] / sums[2]),
        Metric::new("object_hallucination", 3..5, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("chair_s", 0..2, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("response_correct", 0..3, |sums| 100.0 * (1.0 - sums[0] / sums[2])),
        Metric::new("object_correct", 3..5, |sums| 100.0 * (1.0 - sums[0] / sums[1])),
        Metric::new("object_recall", 5..7, |sums| 100.0 * sums[0] / sums[1]),
        Metric::new("answers_with_objects", 2..3, |sums| sums[0]),
        Metric::new("mean_words", 1..8, |sums| sums[6] / sums[0]),
    ]
}

fn shaped(
    file: &RowFile,
    row: &Row,
    caption: &str,
    vocabulary: &ObjectVocabulary,
    extracted: ExtractedObjects,
) -> Result<Vec<String>> {
    let is_short = caption.split_whitespace().count() <= SHORT_ANSWER_WORDS;
    if extracted == ExtractedObjects::WholeAnswer {
        let mentions = vocabulary.mentions(caption, &Lemmatizer::PatternRules);
        return Ok(if is_short { Vec::new() } else { unique(mentions.words) });
    }
    let Some(value) = row.get("extract_objs") else {
        return Err(file.error(
            row,
            "there is no `objs`, `words` or `extract_objs`: the objects that were extracted from the answer",
        ));
    };
    if extracted == ExtractedObjects::Refused {
        let reason = "there is only `extract_objs`, which the official program brings into shape with spaCy: give its `objs`, or allow \
             the approximation by a rule (`head-noun`)";
        return Err(file.error(row, reason));
    }
    if is_short {
        return Ok(Vec::new());
    }
    if let Value::String(text) = value {
        return Err(file.error(
            row,
            format!("`extract_objs` is {text:?}: the extracting model gave no list"),
        ));
    }
    let names = file.texts(row, &["extract_objs"])?;
    let shaped = names.iter().flat_map(|name| shape(name, vocabulary));
    Ok(unique(shaped.collect()))
}

/// What one extracted name comes to.
fn shape(name: &str, vocabulary: &ObjectVocabulary) -> Vec<String> {
    let words = name.to_lowercase();
    let words: Vec<String> = words
        .split_whitespace()
        .map(|word| Lemmatizer::PatternRules.singular(word))
        .collect();
    let pairs = vocabulary.double_words(&words);
    if !pairs.is_empty() {
        return pairs;
    }
    let ends = (0..words.len()).map(|start| words[start..].join(" "));
    let head = ends.into_iter().find(|end| vocabulary.object(end).is_some());
    vec![head.unwrap_or_else(|| words.join(" "))]
}

/// Each once, in their order.
fn unique(names: Vec<String>) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}
