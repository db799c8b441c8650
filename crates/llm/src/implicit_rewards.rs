//! Scores of given responses under a model and a reference: what `diptych score` writes.
//!
//! Shape letter: M responses.

use std::path::Path;

use diptych_tensor::DType;
use serde::Serialize;

use crate::arrangement::{Arrangement, Sequence};
use crate::network::NetworkRef;
use crate::records::{EncodedRecord, EncodedResponse};
use crate::reference::{Reference, ResponsePlace};
use crate::scoring::{Gathering, Scored, host, score_detached};
use crate::{Error, Result};

/// How responses are scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RewardConfig {
    /// Factor of the log-ratio, > 0.
    pub beta: f64,
    /// Records computed together. It changes nothing but time and memory.
    pub batch_size: usize,
    /// Token that fills rows up, where rows are filled up.
    pub pad_token_id: u32,
}

/// What a record's responses got.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScoredRecord {
    /// Names the record.
    pub id: String,
    /// Summed log-probability of each response under the model.
    pub logps: Vec<f64>,
    /// Of each response under the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_logps: Option<Vec<f64>>,
    /// `beta` times the log-ratio of each response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewards: Option<Vec<f64>>,
    /// Tokens of each response that count.
    pub num_tokens: Vec<usize>,
    /// What a judge gave each response, where the data has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge_scores: Option<Vec<f64>>,
    /// Whether the responses are in the order of these scores, rather than as the data says.
    #[serde(skip)]
    pub is_ranked: bool,
    /// Whether the response is desirable, of an unpaired record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<bool>,
}

/// How often a network prefers what the data prefers: the share of pairs of responses of which it scores the better one higher.
///
/// The pairs are those of one record; of a ranked list, all that the judge does not score the same. Of unpaired records they
/// are every desirable response with every undesirable one, whatever their prompts: the area under the ROC curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankingAccuracy {
    /// By summed log-probabilities of the model.
    pub model: f64,
    /// By mean log-probabilities a token of the model, which do not favor short responses.
    pub model_per_token: f64,
    /// By summed log-probabilities of the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<f64>,
    /// By implicit rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewards: Option<f64>,
    /// Pairs that were looked at.
    pub num_pairs: usize,
}

/// Scores every response of every record under `model`, and under `reference` where there is one; a reference of cached scores must
/// be one of these records.
///
/// # Errors
/// [`Error::RewardBeta`] for a `beta` out of range; as [`score_detached`]; [`Error::Stopped`] from `advance`.
pub fn score_records<'a>(
    model: impl Into<NetworkRef<'a>>,
    reference: &Reference,
    records: &[EncodedRecord],
    config: RewardConfig,
    mut advance: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<ScoredRecord>> {
    if !(config.beta.is_finite() && config.beta > 0.0) {
        return Err(Error::RewardBeta { found: config.beta });
    }
    let model = model.into();
    let mut scored = Vec::with_capacity(records.len());
    for batch in records.chunks(config.batch_size.max(1)) {
        let done = scored.len();
        let sequences: Vec<Sequence<'_>> = batch.iter().flat_map(sequences).collect();
        let weights: Vec<Option<&[f32]>> = batch
            .iter()
            .flat_map(|record| record.responses.iter().map(|response| response.weights.as_deref()))
            .collect();
        let arranged = Arrangement::SharedPrefix.arrange(&sequences, config.pad_token_id, model.device())?;
        let gathering = Gathering::try_new(&arranged, &weights, DType::F32, model.device())?;
        let sums = |scored: &Scored| host(&gathering.sum(&scored.per_token_logps)?);
        let places: Vec<ResponsePlace> = (done..).zip(batch).flat_map(places).collect();
        let logps = sums(&score_detached(model, &arranged)?)?;
        let reference_logps = reference
            .score(model, &arranged, &places)?
            .as_ref()
            .map(sums)
            .transpose()?;
        let mut next = 0;
        for record in batch {
            let range = next..next + record.responses.len();
            next = range.end;
            let logps = logps[range.clone()].to_vec();
            let reference_logps = reference_logps.as_ref().map(|all| all[range].to_vec());
            let rewards = reference_logps.as_ref().map(|reference| {
                let reward = |(policy, reference): (&f64, &f64)| config.beta * (policy - reference);
                logps.iter().zip(reference).map(reward).collect()
            });
            scored.push(ScoredRecord {
                id: record.id.clone(),
                judge_scores: record.responses.iter().map(|response| response.judge_score).collect(),
                is_ranked: record.is_ranked,
                label: record.label,
                num_tokens: record.responses.iter().map(EncodedResponse::num_counted).collect(),
                logps,
                reference_logps,
                rewards,
            });
        }
        advance(scored.len())?;
    }
    Ok(scored)
}

/// The places of a record's responses.
fn places((index, record): (usize, &EncodedRecord)) -> impl Iterator<Item = ResponsePlace> {
    (0..record.responses.len()).map(move |response| ResponsePlace {
        record: index,
        response,
    })
}

fn sequences(record: &EncodedRecord) -> impl Iterator<Item = Sequence<'_>> {
    record.responses.iter().map(|response| Sequence {
        id: &record.id,
        prompt: &response.prompt,
        response: &response.ids,
        images: &response.images,
    })
}

/// How often the better of two responses is scored higher; ties count as wrong. `None` without a pair.
pub fn ranking_accuracy(records: &[ScoredRecord]) -> Option<RankingAccuracy> {
    let per_token = |record: &ScoredRecord| -> Option<Vec<f64>> {
        let mean = |(logps, num): (&f64, &usize)| logps / (*num).max(1) as f64;
        Some(record.logps.iter().zip(&record.num_tokens).map(mean).collect())
    };
    let (model, num_pairs) = share(records, |record| Some(record.logps.clone()))?;
    let accuracy = |values: &dyn Fn(&ScoredRecord) -> Option<Vec<f64>>| Some(share(records, values)?.0);
    Some(RankingAccuracy {
        model,
        model_per_token: accuracy(&per_token)?,
        reference: accuracy(&|record| record.reference_logps.clone()),
        rewards: accuracy(&|record| record.rewards.clone()),
        num_pairs,
    })
}

/// The share of pairs whose better response has the larger value, and the number of pairs.
fn share(records: &[ScoredRecord], values: impl Fn(&ScoredRecord) -> Option<Vec<f64>>) -> Option<(f64, usize)> {
    let (mut right, mut num) = (0, 0);
    let (mut desirable, mut undesirable) = (Vec::new(), Vec::new());
    for record in records {
        let values = values(record)?;
        match record.label {
            Some(true) => desirable.extend(values),
            Some(false) => undesirable.extend(values),
            None => {
                for (better, worse) in record.ordered_pairs() {
                    num += 1;
                    right += usize::from(values[better] > values[worse]);
                }
            }
        }
    }
    undesirable.sort_by(f64::total_cmp);
    for value in &desirable {
        right += undesirable.partition_point(|other| other < value);
    }
    num += desirable.len() * undesirable.len();
    (num > 0).then(|| (right as f64 / num as f64, num))
}

impl ScoredRecord {
    /// The responses of which the data prefers the first to the second.
    fn ordered_pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        let len = self.logps.len();
        let is_tied = move |a: usize, b: usize| {
            // A judge that cannot decide does not undo what was said to be chosen.
            self.is_ranked
                && self
                    .judge_scores
                    .as_ref()
                    .is_some_and(|scores| scores[a].total_cmp(&scores[b]).is_eq())
        };
        (0..len)
            .flat_map(move |better| (better + 1..len).map(move |worse| (better, worse)))
            .filter(move |&(better, worse)| !is_tied(better, worse))
    }
}

/// Writes one JSON object a record. The file appears whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_scores(path: &Path, records: &[ScoredRecord]) -> Result<()> {
    let mut text = String::new();
    for record in records {
        let line = serde_json::to_string(record).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(diptych_tensor::files::write_file(path, text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(logps: &[f64], reference: &[f64], num_tokens: &[usize]) -> ScoredRecord {
        ScoredRecord {
            id: "row".into(),
            rewards: Some(logps.iter().zip(reference).map(|(p, r)| 0.1 * (p - r)).collect()),
            logps: logps.to_vec(),
            reference_logps: Some(reference.to_vec()),
            num_tokens: num_tokens.to_vec(),
            judge_scores: None,
            is_ranked: false,
            label: None,
        }
    }

    #[test]
    fn accuracy_counts_strictly_greater_first_responses() {
        let records = [
            record(&[-4.0, -6.0], &[-5.0, -5.0], &[2, 2]),
            record(&[-8.0, -6.0], &[-7.0, -4.0], &[8, 2]),
        ];
        let accuracy = ranking_accuracy(&records).unwrap();
        assert_eq!((accuracy.model, accuracy.model_per_token), (0.5, 1.0));
        assert_eq!((accuracy.reference, accuracy.rewards), (Some(0.0), Some(1.0)));
        assert_eq!(accuracy.num_pairs, 2);
        assert_eq!(ranking_accuracy(&[]), None);
    }

    #[test]
    fn all_pairs_of_a_list_count_unless_the_judge_is_undecided() {
        let mut list = record(&[-1.0, -3.0, -2.0], &[-1.0, -1.0, -1.0], &[1, 1, 1]);
        assert_eq!(ranking_accuracy(&[list.clone()]).unwrap().model, 2.0 / 3.0);
        list.judge_scores = Some(vec![3.0, 1.0, 1.0]);
        list.is_ranked = true;
        let accuracy = ranking_accuracy(&[list]).unwrap();
        assert_eq!((accuracy.model, accuracy.num_pairs), (1.0, 2));
        let two = |is_ranked| ScoredRecord {
            judge_scores: Some(vec![1.0, 1.0]),
            is_ranked,
            ..record(&[-1.0, -3.0], &[-1.0, -1.0], &[1, 1])
        };
        assert_eq!(ranking_accuracy(&[two(true)]), None);
        assert_eq!(ranking_accuracy(&[two(false)]).unwrap().num_pairs, 1);
    }

    #[test]
    fn labels_are_compared_across_prompts() {
        let labelled = |logps: f64, label: bool| ScoredRecord {
            label: Some(label),
            ..record(&[logps], &[-2.0], &[1])
        };
        let records = [
            labelled(-1.0, true),
            labelled(-3.0, true),
            labelled(-2.0, false),
            labelled(-3.0, false),
        ];
        let accuracy = ranking_accuracy(&records).unwrap();
        // -1 beats both; -3 beats none, a tie included.
        assert_eq!((accuracy.model, accuracy.num_pairs), (0.5, 4));
        assert_eq!(ranking_accuracy(&records[..2]), None);
    }
}
