//! AMBER: objects in descriptions, and yes-or-no questions about objects, attributes and relations.
//!
//! Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", 2023, arXiv:2311.07397. Rules:
//! `inference.py` of junyangwang0410/AMBER, its `data/metrics.txt` included.
//!
//! # Quirks that are kept
//! Every number is rounded to one decimal, and F1 is computed from the rounded precision and recall. Denominators begin at 0.001, and F1's
//! has 0.0001 added, 0.001 for existence. "No" is the positive class; an answer that is neither exactly `Yes` nor `No` is wrong
//! and stays in the denominators of accuracy and recall. Of a word that is in the truth twice only the first is ever covered. Existence
//! questions are all to be answered "No", so their precision is 100 whenever "No" is said at all.
//!
//! # What differs
//! An answer given twice counts twice there and is an error here, and so is a missing one, which there makes the set smaller. Annotations
//! are found by their `id`, not by their place in the file (which agree in the published one).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::amber_nouns::{AmberWords, Noun, NounSource};
use super::report::Scored;
use super::rows::{RowFile, broken, read_text};
use super::tally::{Metric, Tally};
use crate::error::Result;

/// Which part is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AmberDimension {
    /// Descriptions.
    Generative,
    /// Is something there?
    Existence,
    /// States, numbers and actions.
    Attribute,
    /// Do two things touch?
    Relation,
}

impl AmberDimension {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Generative, Self::Existence, Self::Attribute, Self::Relation];
}

/// What is asked of one id.
#[derive(Debug, Clone, Deserialize)]
struct Annotation {
    id: u64,
    #[serde(rename = "type")]
    kind: String,
    truth: Truth,
    #[serde(default)]
    hallu: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Truth {
    Objects(Vec<String>),
    Answer(String),
}

/// Kinds of questions, in the order of their columns. Every kind that is no other is a relation, as there.
const KINDS: [(&str, AmberDimension); 5] = [
    ("discriminative-hallucination", AmberDimension::Existence),
    ("discriminative-attribute-state", AmberDimension::Attribute),
    ("discriminative-attribute-number", AmberDimension::Attribute),
    ("discriminative-attribute-action", AmberDimension::Attribute),
    ("discriminative-relation", AmberDimension::Relation),
];
/// The other name of relations in the published file.
const RELATION: &str = "relation";
const GENERATIVE: &str = "generative";

/// Columns of the descriptions: unsafe nouns, nouns, covered truth, truth, covered targets, targets, clean descriptions, descriptions.
const NUM_GENERATIVE: usize = 8;
/// Columns of a kind of questions: right, all, said "No" of those to be answered so, those to be answered so, all that said "No".
const NUM_OF_KIND: usize = 5;

/// Scores answers: rows with `id` and `response`, and for descriptions `nouns` where [`NounSource::Stored`] says so. Every number is a
/// percentage as the official program prints it. `images` tells which image an id is about, so that its questions are resampled together; an id
/// that it lacks is resampled alone. The order of the answers does not matter.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); [`Error::StoredRow`](crate::Error::StoredRow) for a defective row, an unknown id and one answered twice;
/// [`Error::BenchmarkFile`](crate::Error::BenchmarkFile) for answers that are missing in `dimensions`, and defective annotations.
pub fn score_amber(
    answers: &Path,
    annotations: &Path,
    words: &AmberWords,
    nouns: &NounSource,
    dimensions: &[AmberDimension],
    images: &BTreeMap<u64, String>,
) -> Result<Scored> {
    let file = RowFile::read(answers)?;
    let annotated = read_annotations(annotations)?;
    let mut tally = Tally::new(NUM_GENERATIVE + NUM_OF_KIND * KINDS.len(), metrics(dimensions));
    let (mut rows, mut answered, mut num_unclear) = (Vec::new(), BTreeSet::new(), 0_usize);
    for row in &file.rows {
        let id = file.id(row, &["id"])?;
        let annotation = id.parse().ok().and_then(|id: u64| annotated.get(&id));
        let annotation = annotation.ok_or_else(|| file.error(row, format!("id {id} is not among the annotations")))?;
        if !dimensions.contains(&annotation.dimension()) {
            continue;
        }
        if !answered.insert(annotation.id) {
            return Err(file.error(row, format!("id {id} was answered in an earlier row already")));
        }
        let response = file.text(row, &["response"])?;
        let unit = images.get(&annotation.id).cloned().unwrap_or_else(|| id.clone());
        let found = match &annotation.truth {
            Truth::Objects(truth) => {
                let nouns = nouns.of(&file, row, response, words)?;
                let description = words
                    .judge(&nouns, truth, &annotation.hallu)
                    .map_err(|reason| broken(annotations, format!("id {id}: {reason}")))?;
                let unsafe_nouns: Vec<&Noun> = description.nouns.iter().filter(|noun| noun.is_unsafe).collect();
                let counts = [
                    unsafe_nouns.len(),
                    description.nouns.len(),
                    description.covered_truth,
                    truth.len(),
                    description.covered_targets,
                    annotation.hallu.len(),
                    usize::from(unsafe_nouns.is_empty()),
                    1,
                ];
                for (column, count) in counts.into_iter().enumerate() {
                    tally.add(&unit, column, count as f64);
                }
                json!({"id": annotation.id, "nouns": description.nouns.iter().map(|noun| &noun.word).collect::<Vec<_>>(),
                    "unsafe": unsafe_nouns.iter().map(|noun| &noun.word).collect::<Vec<_>>(),
                    "covered_truth": description.covered_truth, "covered_targets": description.covered_targets})
            }
            Truth::Answer(truth) => {
                num_unclear += usize::from(response != "Yes" && response != "No");
                let is_correct = count_answer(&mut tally, &unit, annotation.kind_index(), truth, response);
                json!({"id": annotation.id, "type": annotation.kind, "truth": truth, "response": response, "is_correct": is_correct})
            }
        };
        rows.push(found);
    }
    let missing = annotated
        .values()
        .find(|one| dimensions.contains(&one.dimension()) && !answered.contains(&one.id));
    if let Some(annotation) = missing {
        return Err(broken(answers, format!("id {} is not answered", annotation.id)));
    }
    Ok(Scored {
        benchmark: "amber",
        tally,
        notes: notes(words, nouns, dimensions, (num_unclear, images)),
        rows,
    })
}

/// Which image each id of AMBER's files of queries is about.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io), [`Error::StoredRow`](crate::Error::StoredRow).
pub fn read_amber_queries(path: &Path) -> Result<BTreeMap<u64, String>> {
    let file = RowFile::read(path)?;
    let read = file.rows.iter().map(|row| {
        let id = file.id(row, &["id"])?;
        let id = id
            .parse()
            .map_err(|_| file.error(row, format!("`id` is {id}, expected a number from 0")))?;
        Ok((id, file.text(row, &["image"])?.to_owned()))
    });
    read.collect()
}

impl Annotation {
    fn dimension(&self) -> AmberDimension {
        if self.kind == GENERATIVE {
            AmberDimension::Generative
        } else {
            KINDS[self.kind_index()].1
        }
    }

    fn kind_index(&self) -> usize {
        KINDS
            .iter()
            .position(|(name, _)| *name == self.kind)
            .unwrap_or(KINDS.len() - 1)
    }
}

fn read_annotations(path: &Path) -> Result<BTreeMap<u64, Annotation>> {
    let list: Vec<Annotation> =
        serde_json::from_str(&read_text(path)?).map_err(|source| broken(path, source.to_string()))?;
    let mut annotated = BTreeMap::new();
    for annotation in list {
        let id = annotation.id;
        let is_known = annotation.kind == GENERATIVE
            || annotation.kind == RELATION
            || KINDS.iter().any(|(name, _)| *name == annotation.kind);
        let fits = match &annotation.truth {
            Truth::Objects(_) => annotation.kind == GENERATIVE,
            Truth::Answer(truth) => annotation.kind != GENERATIVE && (truth == "yes" || truth == "no"),
        };
        if !is_known || !fits {
            return Err(broken(
                path,
                format!("id {id}: type {:?} with this truth is unknown", annotation.kind),
            ));
        }
        if annotated.insert(id, annotation).is_some() {
            return Err(broken(path, format!("id {id} is annotated twice")));
        }
    }
    Ok(annotated)
}

fn count_answer(tally: &mut Tally, unit: &str, kind: usize, truth: &str, response: &str) -> bool {
    let column = NUM_GENERATIVE + NUM_OF_KIND * kind;
    let (is_no, says_no) = (truth == "no", response == "No");
    let is_correct = if is_no { says_no } else { response == "Yes" };
    let counts = [is_correct, true, is_no && says_no, is_no, says_no];
    for (offset, holds) in counts.into_iter().enumerate() {
        tally.add(unit, column + offset, f64::from(u8::from(holds)));
    }
    is_correct
}

fn notes(
    words: &AmberWords,
    nouns: &NounSource,
    dimensions: &[AmberDimension],
    (num_unclear, images): (usize, &BTreeMap<u64, String>),
) -> Vec<String> {
    let mut notes = Vec::new();
    if images.is_empty() {
        notes.push("without the queries it is not known which ids share an image: intervals treat every id as an image of its own".into());
    }
    if num_unclear > 0 {
        notes.push(format!(
            "{num_unclear} answers are neither `Yes` nor `No` and count as wrong"
        ));
    }
    if dimensions.contains(&AmberDimension::Generative) {
        notes.extend(nouns.note());
        notes.extend(words.note());
    }
    notes
}

fn metrics(dimensions: &[AmberDimension]) -> Vec<Metric> {
    let has = |dimension| dimensions.contains(&dimension);
    let mut metrics = Vec::new();
    if has(AmberDimension::Generative) {
        metrics.extend([
            Metric::new("generative/chair", 0..2, percent),
            Metric::new("generative/cover", 2..4, percent),
            Metric::new("generative/hal", 6..8, |sums| {
                rounded(100.0 - sums[0] / (sums[1] + 0.001) * 100.0)
            }),
            Metric::new("generative/cog", 4..6, percent),
        ]);
    }
    let of_kinds = |first: usize, end: usize| NUM_GENERATIVE + NUM_OF_KIND * first..NUM_GENERATIVE + NUM_OF_KIND * end;
    let mut add = |name: &str, columns: std::ops::Range<usize>, f1: fn(&[f64]) -> f64| {
        metrics.push(Metric::new(format!("{name}/accuracy"), columns.clone(), accuracy));
        metrics.push(Metric::new(format!("{name}/precision"), columns.clone(), precision));
        metrics.push(Metric::new(format!("{name}/recall"), columns.clone(), recall));
        metrics.push(Metric::new(format!("{name}/f1"), columns, f1));
    };
    let is_whole = AmberDimension::ALL[1..].iter().all(|dimension| has(*dimension));
    if is_whole {
        add("discriminative", of_kinds(0, 5), |sums| f1(sums, 0.0001));
    }
    if has(AmberDimension::Existence) {
        add("existence", of_kinds(0, 1), |sums| f1(sums, 0.001));
    }
    if has(AmberDimension::Attribute) {
        add("attribute", of_kinds(1, 4), |sums| f1(sums, 0.0001));
        add("state", of_kinds(1, 2), |sums| f1(sums, 0.0001));
        add("number", of_kinds(2, 3), |sums| f1(sums, 0.0001));
        add("action", of_kinds(3, 4), |sums| f1(sums, 0.0001));
    }
    if has(AmberDimension::Relation) {
        add("relation", of_kinds(4, 5), |sums| f1(sums, 0.0001));
    }
    if is_whole && has(AmberDimension::Generative) {
        let all = 0..NUM_GENERATIVE + NUM_OF_KIND * KINDS.len();
        metrics.push(Metric::new("amber_score", all, |sums| {
            f64::midpoint(100.0 - percent(&sums[0..2]), f1(&sums[NUM_GENERATIVE..], 0.0001))
        }));
    }
    metrics
}

/// To one decimal, exact ties to the even digit, as Python does it.
fn rounded(value: f64) -> f64 {
    format!("{value:.1}").parse().unwrap_or(f64::NAN)
}

fn percent(sums: &[f64]) -> f64 {
    rounded(sums[0] / (sums[1] + 0.001) * 100.0)
}

/// Of one column over all kinds that are there, and what the official sums begin with: 0.001 for each kind added.
fn of_column(sums: &[f64], column: usize) -> f64 {
    sums.chunks(NUM_OF_KIND).map(|kind| kind[column]).sum()
}

fn denominator(sums: &[f64], column: usize) -> f64 {
    // The three attributes are three sums there, all questions together are one.
    let starts = if sums.len() == 3 * NUM_OF_KIND { 0.003 } else { 0.001 };
    of_column(sums, column) + starts
}

fn accuracy(sums: &[f64]) -> f64 {
    rounded(of_column(sums, 0) / denominator(sums, 1) * 100.0)
}

fn precision(sums: &[f64]) -> f64 {
    rounded(of_column(sums, 2) / denominator(sums, 4) * 100.0)
}

fn recall(sums: &[f64]) -> f64 {
    rounded(of_column(sums, 2) / denominator(sums, 3) * 100.0)
}

fn f1(sums: &[f64], added: f64) -> f64 {
    let (precision, recall) = (precision(sums) / 100.0, recall(sums) / 100.0);
    rounded(2.0 * precision * recall / (precision + recall + added) * 100.0)
}
