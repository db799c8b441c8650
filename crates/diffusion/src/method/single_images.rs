//! Data sets as single images, for methods that do not look at pairs.

use std::collections::BTreeMap;

use diptych_data::{
    Dataset, HostTensor, ImageCaption, ImageLabel, ImagePair, LatentPairs, LatentTensors, RankedImages,
};

use super::config::ListScores;
use super::ranked::{RankedList, shares_of_wins};
use crate::{Error, Result};

/// Images with what they are to a method; records and images are in the same order.
pub(super) struct SingleImages<T> {
    /// One image a record; of latent pairs, the chosen sides are the images, and the rejected ones are not looked at.
    pub(super) dataset: Dataset,
    pub(super) ids: Vec<String>,
    /// A number for each image's prompt: images of one prompt have one.
    pub(super) prompts: Vec<usize>,
    /// What each is.
    pub(super) meaning: Vec<T>,
}

/// An image with a verdict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    pub(super) label: bool,
    pub(super) score: Option<f64>,
}

/// Images judged good or bad; a pair is two of them, the chosen one first.
pub(super) fn judged(dataset: Dataset) -> Result<SingleImages<Verdict>> {
    match dataset {
        Dataset::Pairs(pairs) => {
            let scores = pairs.iter().flat_map(|pair| [pair.chosen_score, pair.rejected_score]);
            let meaning = verdicts(scores);
            Ok(SingleImages {
                meaning,
                ..captions(pairs)
            })
        }
        Dataset::LatentPairs(pairs) => {
            let scores = (0..pairs.len()).flat_map(|number| match latent_scores(&pairs, number) {
                Some((chosen, rejected)) => [Some(chosen), Some(rejected)],
                None => [None; 2],
            });
            let meaning = verdicts(scores);
            let (dataset, ids) = interleaved(pairs)?;
            Ok(SingleImages {
                prompts: (0..ids.len()).map(|image| image / 2).collect(),
                dataset,
                ids,
                meaning,
            })
        }
        Dataset::Labels(labels) => Ok(labelled(labels)),
        other => Err(Error::DataKind {
            method: "unpaired",
            found: other.records().name(),
            expected: "labelled images, image pairs or latent pairs",
        }),
    }
}

/// Lists of images with how good each is; a pair is a list of two.
pub(super) fn listed(dataset: Dataset, scores: ListScores) -> Result<(SingleImages<()>, Vec<RankedList>)> {
    match dataset {
        Dataset::Pairs(pairs) => {
            let lists = pairs
                .iter()
                .enumerate()
                .map(|(number, pair)| {
                    let given = pair.chosen_score.zip(pair.rejected_score);
                    list_of_pair(&pair.id, number, scores, given)
                })
                .collect::<Result<_>>()?;
            Ok((captions(pairs), lists))
        }
        Dataset::LatentPairs(pairs) => {
            let lists = (0..pairs.len())
                .map(|number| list_of_pair(&pairs.record_id(number), number, scores, latent_scores(&pairs, number)))
                .collect::<Result<_>>()?;
            let (dataset, ids) = interleaved(pairs)?;
            let images = SingleImages {
                prompts: (0..ids.len()).map(|image| image / 2).collect(),
                dataset,
                ids,
                meaning: Vec::new(),
            };
            Ok((images, lists))
        }
        Dataset::Ranked(records) => Ok(lists_of(records, scores)),
        other => Err(Error::DataKind {
            method: "ranked",
            found: other.records().name(),
            expected: "ranked images, image pairs or latent pairs",
        }),
    }
}

fn labelled(labels: Vec<ImageLabel>) -> SingleImages<Verdict> {
    let meaning = labels
        .iter()
        .map(|record| Verdict {
            label: record.label,
            score: record.score,
        })
        .collect();
    let prompts = numbered(labels.iter().map(|record| record.prompt.as_str()));
    let ids = labels.iter().map(|record| record.id.clone()).collect();
    let captions = labels
        .into_iter()
        .map(|record| ImageCaption::new(record.id, record.prompt, record.image))
        .collect();
    SingleImages {
        dataset: Dataset::Captions(captions),
        ids,
        prompts,
        meaning,
    }
}

fn lists_of(records: Vec<RankedImages>, scores: ListScores) -> (SingleImages<()>, Vec<RankedList>) {
    let (mut lists, mut ids, mut captions) = (Vec::new(), Vec::new(), Vec::new());
    for record in records {
        let given: Vec<f64> = record.responses.iter().map(|response| response.score).collect();
        let good = match scores {
            ListScores::Wins => shares_of_wins(&given),
            ListScores::Given => given,
        };
        lists.push(RankedList::new(record.id.clone(), ids.len(), &good));
        for (number, response) in record.responses.into_iter().enumerate() {
            let id = format!("{}/{number}", record.id);
            captions.push(ImageCaption::new(&id, &record.prompt, response.image));
            ids.push(id);
        }
    }
    let prompts = numbered(captions.iter().map(|caption| caption.prompt.as_str()));
    let images = SingleImages {
        dataset: Dataset::Captions(captions),
        ids,
        prompts,
        meaning: Vec::new(),
    };
    (images, lists)
}

/// A number for each different prompt.
fn numbered<'a>(prompts: impl Iterator<Item = &'a str>) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    prompts
        .map(|prompt| {
            let next = numbers.len();
            *numbers.entry(prompt).or_insert(next)
        })
        .collect()
}

/// The label of a pair is a judge that prefers the chosen image.
fn list_of_pair(id: &str, number: usize, scores: ListScores, given: Option<(f64, f64)>) -> Result<RankedList> {
    let scores = match (scores, given) {
        (ListScores::Wins, _) => [1.0, 0.0],
        (ListScores::Given, Some((chosen, rejected))) => [chosen, rejected],
        (ListScores::Given, None) => {
            return Err(Error::Record {
                id: id.to_owned(),
                name: "chosen_score",
                found: "no value, or `rejected_score` has none".into(),
                expected: "a number, which `scores = \"given\"` of `[method.ranked]` asks for".into(),
            });
        }
    };
    Ok(RankedList::new(id.to_owned(), 2 * number, &scores))
}

/// Verdicts on images of which every other one is the chosen one of a pair.
fn verdicts(scores: impl Iterator<Item = Option<f64>>) -> Vec<Verdict> {
    scores
        .enumerate()
        .map(|(place, score)| Verdict {
            label: place % 2 == 0,
            score,
        })
        .collect()
}

/// Both images of every pair.
fn captions<T>(pairs: Vec<ImagePair>) -> SingleImages<T> {
    let mut ids = Vec::with_capacity(2 * pairs.len());
    let mut captions = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        for (side, image) in [("chosen", pair.chosen), ("rejected", pair.rejected)] {
            let id = format!("{}/{side}", pair.id);
            captions.push(ImageCaption::new(&id, &pair.prompt, image));
            ids.push(id);
        }
    }
    SingleImages {
        prompts: numbered(captions.iter().map(|caption| caption.prompt.as_str())),
        dataset: Dataset::Captions(captions),
        ids,
        meaning: Vec::new(),
    }
}

/// Both images of every pair as chosen ones, with what belongs to the pair given twice.
fn interleaved(pairs: LatentPairs) -> Result<(Dataset, Vec<String>)> {
    let ids = (0..pairs.len())
        .map(|number| pairs.record_id(number))
        .flat_map(|id| [format!("{id}/chosen"), format!("{id}/rejected")])
        .collect();
    let tensors = pairs.into_tensors();
    let twice = |tensor: &HostTensor| {
        let rows: Vec<usize> = (0..tensor.num_records()).flat_map(|row| [row; 2]).collect();
        tensor.gather(&rows)
    };
    let latents = alternating(&tensors.latents_chosen, &tensors.latents_rejected)?;
    let tensors = LatentTensors {
        latents_rejected: latents.clone(),
        latents_chosen: latents,
        encoder_hidden_states: twice(&tensors.encoder_hidden_states),
        pooled: tensors.pooled.as_ref().map(twice),
        time_ids: tensors.time_ids.as_ref().map(twice),
        noise: tensors.noise.as_ref().map(twice),
        timesteps: tensors
            .timesteps
            .map(|timesteps| timesteps.into_iter().flat_map(|timestep| [timestep; 2]).collect()),
        // Read before, as what each image is.
        chosen_score: None,
        rejected_score: None,
    };
    Ok((Dataset::LatentPairs(LatentPairs::new(tensors)?), ids))
}

/// A judge's scores of the images of a latent pair, chosen first.
pub(super) fn latent_scores(pairs: &LatentPairs, number: usize) -> Option<(f64, f64)> {
    let tensors = pairs.tensors();
    let score = |scores: &Option<HostTensor>| Some(f64::from(scores.as_ref()?.data()[number]));
    score(&tensors.chosen_score).zip(score(&tensors.rejected_score))
}

/// Records of two tensors in turn.
fn alternating(first: &HostTensor, second: &HostTensor) -> Result<HostTensor> {
    let num = first.num_records();
    let mut shape = first.shape().to_vec();
    shape[0] = 2 * num;
    let values = (0..num)
        .flat_map(|record| [first.record(record), second.record(record)])
        .flatten()
        .copied()
        .collect();
    Ok(HostTensor::new(shape, values)?)
}
