//! Records in tokens, ready to be scored.

use std::collections::BTreeMap;

use diptych_data::{
    Encoded, EncodedCompletion, EncodedPair, EncodedRanked, EncodedSample, EncodedUnpaired, Encoder, RationaleTemplate,
    RecordKind, SkipReason, SkippedRow, TextDataset, TextPair,
};

use crate::arrangement::PlacedImage;
use crate::{Error, Result};

/// A record: the responses to one prompt.
///
/// Pairs have the chosen response first and the rejected one second; ranked records are ordered from best to worst; unpaired and
/// supervised ones have one response.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedRecord {
    /// Names the record in messages.
    pub id: String,
    /// Index of the record in the data set.
    pub row: usize,
    /// Its responses, at least one.
    pub responses: Vec<EncodedResponse>,
    /// Whether the responses are ordered by their scores, rather than as the data says: responses of equal scores are then in no order.
    pub is_ranked: bool,
    /// Whether the response is desirable, of an unpaired record.
    pub label: Option<bool>,
    /// By how much the chosen response of a pair is better, where the data says so.
    pub margin: Option<f64>,
    /// Why the chosen response of a pair is better, behind a prompt of its own, where that is learned.
    pub rationale: Option<EncodedResponse>,
    /// The chosen response of a pair under other images than its own, where the data brings these and they are learned from.
    pub other_images: Option<EncodedResponse>,
}

/// A response with its prompt, in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedResponse {
    /// What the response is conditioned on, at least one token; the same for all responses of a record that share it.
    pub prompt: Vec<u32>,
    /// The response.
    pub ids: Vec<u32>,
    /// The images of both, in the order of their tokens.
    pub images: Vec<PlacedImage>,
    /// How many of the first `ids` belong to the prompt, because the responses of the record do not share them. They have no weight.
    pub prompt_tail: usize,
    /// The weight of each token in the score, where they are not all 1.
    pub weights: Option<Vec<f32>>,
    /// Whether each token is one of the answer, where spans give some of these no weight; without it those are that have a weight.
    pub is_answer: Option<Vec<bool>>,
    /// The weights with those of `[method.offline_pairs.token_weights]` in them, where the recipe has such a section.
    pub dense: Option<Vec<f32>>,
    /// Whether tokens of its row were left out to fit `data.max_len`.
    pub is_cut: bool,
    /// What a judge gave it.
    pub judge_score: Option<f64>,
    /// Its summed score under the reference, where the data has it.
    pub reference_logps: Option<f64>,
}

/// A language model does not see images.
fn refuse_images(dataset: &TextDataset) -> Result<()> {
    match dataset.first_with_images() {
        None => Ok(()),
        Some(index) => Err(Error::Images {
            id: dataset.record_id(index).to_owned(),
        }),
    }
}

/// Encodes the records of a data set; those that have nothing to learn from are left out, and a warning says how many.
///
/// # Errors
/// The first record that cannot be encoded; [`Error::Images`] for one with images; [`Error::NothingLeft`] when none is left.
pub fn encode(dataset: &TextDataset, encoder: &Encoder<'_>) -> Result<Vec<EncodedRecord>> {
    refuse_images(dataset)?;
    let (records, _) = encode_with_images(dataset, encoder)?;
    if records.is_empty() {
        return Err(Error::NothingLeft { num: dataset.len() });
    }
    Ok(records)
}

/// [`encode`] where images may be among the rows: each is one image token in the ids, and no response has
/// [`images`](EncodedResponse::images) yet. None may be left. With them come the rows that an encoder which
/// [passes over](Encoder::with_on_error) such rows left out because of their image tokens; nothing was said of them yet.
///
/// # Errors
/// The first record that cannot be encoded.
pub fn encode_with_images(
    dataset: &TextDataset,
    encoder: &Encoder<'_>,
) -> Result<(Vec<EncodedRecord>, Vec<SkippedRow>)> {
    let mut odd = Vec::new();
    let records: Vec<EncodedRecord> = match dataset {
        TextDataset::Pairs(records) => kept(encoder.pairs(records)?, &mut odd)
            .into_iter()
            .map(|row| pair(&records[row.row], row))
            .collect(),
        TextDataset::Unpaired(records) => {
            let record = |row: EncodedUnpaired| {
                let response = EncodedResponse {
                    judge_score: records[row.row].score,
                    reference_logps: records[row.row].reference_logps,
                    ..response(&row.prompt_ids, row.completion)
                };
                alone((row.row, row.id), response, Some(row.label))
            };
            kept(encoder.unpaired(records)?, &mut odd)
                .into_iter()
                .map(record)
                .collect()
        }
        TextDataset::Ranked(records) => kept(encoder.ranked(records)?, &mut odd)
            .into_iter()
            .map(ranked)
            .collect(),
        TextDataset::Samples(samples) => {
            let record = |row: EncodedSample| {
                let response = response(&row.prompt_ids, row.completion);
                alone((row.row, row.id), response, None)
            };
            kept(encoder.samples(samples)?, &mut odd)
                .into_iter()
                .map(record)
                .collect::<Vec<_>>()
        }
        TextDataset::Prompts(_) => {
            return Err(Error::RecordKind {
                found: RecordKind::TextPrompt,
                expected: "pairs, unpaired or ranked responses, or supervised texts",
            });
        }
    };
    let (records, silent): (Vec<_>, Vec<_>) = records
        .into_iter()
        .partition(|record| record.responses.iter().all(EncodedResponse::is_scored));
    if let Some(first) = silent.first() {
        tracing::warn!(
            "{} records are left out, {} first: of a response without a prompt the first token is not predicted, and no other is left",
            silent.len(),
            first.id
        );
    }
    Ok((records, odd))
}

impl EncodedResponse {
    /// Whether it answers the same prompt, with the same images.
    pub(crate) fn has_prompt_of(&self, other: &Self) -> bool {
        let own = |response: &Self| -> Vec<usize> {
            let of_prompt = response
                .images
                .iter()
                .filter(|image| image.tokens.start < response.prompt.len());
            of_prompt.map(|image| image.index).collect()
        };
        self.prompt == other.prompt && own(self) == own(other)
    }

    /// The weights of its score, those of a dense preference where there is one.
    pub(crate) fn score_weights(&self) -> Option<&[f32]> {
        self.dense.as_deref().or(self.weights.as_deref())
    }

    /// Whether any of its tokens counts.
    pub fn is_scored(&self) -> bool {
        let counts = |weights: &Vec<f32>| weights.iter().any(|&weight| weight != 0.0);
        !self.ids.is_empty() && self.weights.as_ref().is_none_or(counts)
    }

    /// Whether tokens of the answer itself are weighed.
    pub(crate) fn has_spans(&self) -> bool {
        let own = |weights: &Vec<f32>| weights[self.prompt_tail..].iter().any(|&weight| weight != 1.0);
        self.weights.as_ref().is_some_and(own)
    }

    /// Number of tokens that count.
    pub(crate) fn num_counted(&self) -> usize {
        match &self.weights {
            Some(weights) => weights.iter().filter(|&&weight| weight != 0.0).count(),
            None => self.ids.len(),
        }
    }
}

/// A response that is compared with no other.
fn alone((row, id): (usize, String), response: EncodedResponse, label: Option<bool>) -> EncodedRecord {
    EncodedRecord {
        responses: vec![response],
        row,
        id,
        is_ranked: false,
        label,
        margin: None,
        rationale: None,
        other_images: None,
    }
}

/// The chosen response, then the rejected one.
fn pair(source: &TextPair, row: EncodedPair) -> EncodedRecord {
    let side = |completion, judge_score, reference_logps| EncodedResponse {
        judge_score,
        reference_logps,
        ..response(&row.prompt_ids, completion)
    };
    EncodedRecord {
        responses: vec![
            side(row.chosen, source.chosen_score, source.reference_chosen_logps),
            side(row.rejected, source.rejected_score, source.reference_rejected_logps),
        ],
        row: row.row,
        id: row.id,
        is_ranked: false,
        label: None,
        margin: source.margin,
        rationale: None,
        other_images: None,
    }
}

/// Encodes the rationales of pairs for their records. Those that cannot be learned are left out, and a warning says how many: their
/// prompt leaves no room for them, or none of their tokens counts.
///
/// # Errors
/// [`Error::MissingRationale`] for the first record that has none; the first that cannot be encoded; [`Error::NoRationale`] when none is
/// left.
pub fn add_rationales(
    records: &mut [EncodedRecord],
    pairs: &[TextPair],
    encoder: &Encoder<'_>,
    template: &RationaleTemplate,
) -> Result<()> {
    if let Some(record) = records.iter().find(|record| pairs[record.row].rationale.is_none()) {
        return Err(Error::MissingRationale { id: record.id.clone() });
    }
    let encoded = encoder.rationales(pairs, records.iter().map(|record| record.row), template)?;
    let samples = encoded.rows.into_iter();
    let mut responses: BTreeMap<usize, EncodedResponse> = samples
        .map(|sample| (sample.row, response(&sample.prompt_ids, sample.completion)))
        .filter(|(_, rationale)| rationale.is_scored())
        .collect();
    for record in records.iter_mut() {
        record.rationale = responses.remove(&record.row);
    }
    let mut without = records.iter().filter(|record| record.rationale.is_none());
    if let Some(first) = without.next() {
        let num = 1 + without.count();
        if num == records.len() {
            return Err(Error::NoRationale { num });
        }
        tracing::warn!(
            "the rationales of {num} records are left out, {} first: nothing of them is left within `data.max_len`",
            first.id
        );
    }
    Ok(())
}

/// From best to worst; of equal scores the one that stands first.
fn ranked(row: EncodedRanked) -> EncodedRecord {
    let mut responses: Vec<EncodedResponse> = row
        .responses
        .into_iter()
        .zip(&row.scores)
        .map(|(completion, &score)| EncodedResponse {
            judge_score: Some(score),
            ..response(&row.prompt_ids, completion)
        })
        .collect();
    responses.sort_by(|a, b| {
        b.judge_score
            .partial_cmp(&a.judge_score)
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    EncodedRecord {
        row: row.row,
        id: row.id,
        responses,
        is_ranked: true,
        label: None,
        margin: None,
        rationale: None,
        other_images: None,
    }
}

/// A completion after its prompt. Without a prompt the first token, which nothing predicts, takes its place.
fn response(prompt: &[u32], completion: EncodedCompletion) -> EncodedResponse {
    let EncodedCompletion {
        mut ids,
        mut weights,
        mut is_answer,
        mut prompt_tail,
        is_cut,
        ..
    } = completion;
    let mut prompt = prompt.to_vec();
    if prompt.is_empty() && !ids.is_empty() {
        prompt.push(ids.remove(0));
        weights.remove(0);
        is_answer.remove(0);
        prompt_tail = prompt_tail.saturating_sub(1);
    }
    let is_weighted = weights.iter().any(|&weight| weight != 1.0);
    let is_left_out = |(weight, is_answer): (&f32, &bool)| *is_answer && *weight == 0.0;
    let has_left_out = weights.iter().zip(&is_answer).any(is_left_out);
    EncodedResponse {
        prompt,
        ids,
        images: Vec::new(),
        prompt_tail,
        weights: is_weighted.then_some(weights),
        is_answer: has_left_out.then_some(is_answer),
        dense: None,
        is_cut,
        judge_score: None,
        reference_logps: None,
    }
}

/// The rows that were encoded. Those whose image tokens are not as many as their images are added to `odd`, the others are told.
fn kept<T>(encoded: Encoded<T>, odd: &mut Vec<SkippedRow>) -> Vec<T> {
    let is_odd = |row: &SkippedRow| matches!(row.reason, SkipReason::ImageTokens { .. });
    let (of_images, skipped): (Vec<_>, Vec<_>) = encoded.skipped.into_iter().partition(is_odd);
    odd.extend(of_images);
    if let Some(first) = skipped.first() {
        tracing::warn!(
            "{} records are left out, {} first: {}; `diptych data lint` lists them",
            skipped.len(),
            first.id,
            why_skipped(first.reason)
        );
    }
    encoded.rows
}

/// Why a record is left out.
pub fn why_skipped(reason: SkipReason) -> String {
    match reason {
        SkipReason::PromptTooLong { prompt_len } => {
            format!("its prompt has {prompt_len} tokens and leaves no room for an answer")
        }
        SkipReason::NothingScored => "no token of an answer is learned".to_owned(),
        SkipReason::ImageTokens { found, images } => {
            format!("it has {images} images, but {found} tokens of images once its texts are rendered")
        }
    }
}
