//! How the prompts and responses of a batch are laid out for the network.
//!
//! | arrangement | rows | a prompt is computed | filling |
//! |---|---|---|---|
//! | `shared_prefix` | one | once for all its responses | none |
//! | `packed` | one | once a response | none |
//! | `padded` | one a response | once a response | up to the longest |
//!
//! All three give the same scores: tokens see their own prompt and the tokens before them in their own response, and nothing
//! else.
//!
//! Shape letters: B rows, T tokens of a row, M responses, N response tokens of the batch.

use std::ops::Range;
use std::sync::Arc;

use diptych_models::lm::{LmInput, LmSequence};
use diptych_tensor::Device;
use serde::{Deserialize, Serialize};

use crate::vision::MadeImages;
use crate::{Error, Result};

/// How prompts and responses are laid out; see the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrangement {
    /// One row; the responses to a prompt follow it as branches that do not see each other.
    #[default]
    SharedPrefix,
    /// One row; every response follows a copy of its prompt.
    Packed,
    /// A row for every response, filled up on the right.
    Padded,
}

/// A prompt with one of its responses, in tokens.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Names the record in messages.
    pub id: &'a str,
    /// What the response is conditioned on; at least one token.
    pub prompt: &'a [u32],
    /// What is scored; at least one token.
    pub response: &'a [u32],
    /// The images of both, in the order of their tokens.
    pub images: &'a [PlacedImage],
}

/// An image in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedImage {
    /// Which of the run's images it is.
    pub index: usize,
    /// Its tokens, among those of prompt and response together.
    pub tokens: Range<usize>,
}

impl<'a> Sequence<'a> {
    /// The images of the prompt.
    fn prompt_images(&self) -> &'a [PlacedImage] {
        &self.images[..self.num_prompt_images()]
    }

    /// The images of the response.
    fn response_images(&self) -> &'a [PlacedImage] {
        &self.images[self.num_prompt_images()..]
    }

    fn num_prompt_images(&self) -> usize {
        self.images
            .partition_point(|image| image.tokens.start < self.prompt.len())
    }

    /// Whether both follow the same prompt, with the same images, none of which reaches into the response.
    fn shares_prompt(&self, other: &Self) -> bool {
        let own = self.prompt_images();
        let index = |image: &PlacedImage| image.index;
        self.prompt == other.prompt
            && own.iter().map(index).eq(other.prompt_images().iter().map(index))
            && own.last().is_none_or(|image| image.tokens.end <= self.prompt.len())
    }
}

/// A batch as the network takes it, and where its responses are.
#[derive(Debug, Clone)]
pub struct Arranged {
    /// Ids, positions and mask, (B, T).
    pub input: LmInput,
    /// For each response token its predecessor among the B T tokens, whose hidden state predicts it: N of them, response after
    /// response.
    pub predecessors: Vec<u32>,
    /// The response tokens, N.
    pub targets: Vec<u32>,
    /// Which of the N tokens each of the M responses has.
    pub responses: Vec<Range<usize>>,
    /// The images of the batch in the order of their tokens: one of a shared prompt once, one of copies as often as there are copies.
    pub images: Vec<usize>,
    /// Those of them that are not the run's, which are counted before them.
    pub made: Option<Arc<MadeImages>>,
    /// Where among the B T tokens the prompt and the response of each text are.
    pub texts: Vec<[Vec<u32>; 2]>,
}

impl Arrangement {
    /// Lays out the sequences. Consecutive sequences with the same prompt share it, where the arrangement shares prompts.
    ///
    /// # Errors
    /// [`Error::EmptySequence`] for a prompt or a response without a token.
    pub fn arrange(self, sequences: &[Sequence<'_>], pad_token_id: u32, device: &Device) -> Result<Arranged> {
        for sequence in sequences {
            let part = match (sequence.prompt, sequence.response) {
                ([], _) => "prompt",
                (_, []) => "response",
                _ => continue,
            };
            return Err(Error::EmptySequence {
                id: sequence.id.to_owned(),
                part,
            });
        }
        let joined: Vec<Vec<u32>> = match self {
            Self::SharedPrefix => Vec::new(),
            Self::Packed | Self::Padded => sequences.iter().map(|s| [s.prompt, s.response].concat()).collect(),
        };
        match self {
            Self::Padded => {
                let rows = joined
                    .iter()
                    .map(|ids| vec![LmSequence::plain(ids)])
                    .collect::<Vec<_>>();
                let input = LmInput::packed(&rows, pad_token_id, device)?;
                let width = joined.iter().map(Vec::len).max().unwrap_or(0);
                let starts = (0..joined.len()).map(|row| row * width);
                Ok(Arranged::new(input, sequences, starts.zip(sequences).map(after_prompt)))
            }
            Self::Packed => {
                let row: Vec<_> = joined.iter().map(|ids| LmSequence::plain(ids)).collect();
                let input = LmInput::packed(&[row], pad_token_id, device)?;
                let starts = joined.iter().scan(0, |start, ids| {
                    *start += ids.len();
                    Some(*start - ids.len())
                });
                Ok(Arranged::new(input, sequences, starts.zip(sequences).map(after_prompt)))
            }
            Self::SharedPrefix => shared(sequences, pad_token_id, device),
        }
    }
}

/// Where a prompt and its response begin, when the prompt begins at `start` and the response follows it.
fn after_prompt((start, sequence): (usize, &Sequence<'_>)) -> (usize, usize) {
    (start, start + sequence.prompt.len())
}

/// One row of prompts, each followed by its responses as branches.
fn shared(sequences: &[Sequence<'_>], pad_token_id: u32, device: &Device) -> Result<Arranged> {
    let groups: Vec<&[Sequence<'_>]> = sequences.chunk_by(Sequence::shares_prompt).collect();
    let branches: Vec<Vec<&[u32]>> = groups
        .iter()
        .map(|group| group.iter().map(|sequence| sequence.response).collect())
        .collect();
    let row: Vec<LmSequence<'_>> = groups
        .iter()
        .zip(&branches)
        .map(|(group, branches)| LmSequence {
            prefix: group[0].prompt,
            branches,
        })
        .collect();
    let input = LmInput::packed(&[row], pad_token_id, device)?;
    let mut places = Vec::with_capacity(sequences.len());
    let mut next = 0;
    let mut images = Vec::new();
    for group in groups {
        images.extend(group[0].prompt_images().iter().map(|image| image.index));
        let of_responses = group.iter().flat_map(Sequence::response_images);
        images.extend(of_responses.map(|image| image.index));
        let prompt = next;
        next += group[0].prompt.len();
        for sequence in group {
            places.push((prompt, next));
            next += sequence.response.len();
        }
    }
    Ok(Arranged {
        images,
        ..Arranged::new(input, sequences, places.into_iter())
    })
}

impl Arranged {
    /// `places`: for each text the first token of its prompt and that of its response.
    fn new(input: LmInput, sequences: &[Sequence<'_>], places: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut arranged = Self {
            input,
            predecessors: Vec::new(),
            targets: Vec::new(),
            responses: Vec::with_capacity(sequences.len()),
            images: sequences
                .iter()
                .flat_map(|sequence| sequence.images)
                .map(|image| image.index)
                .collect(),
            made: None,
            texts: Vec::with_capacity(sequences.len()),
        };
        for (sequence, (prompt, first)) in sequences.iter().zip(places) {
            let (len, before) = (sequence.response.len(), prompt + sequence.prompt.len() - 1);
            let range = |start: usize, len: usize| (start..start + len).map(|at| at as u32).collect();
            arranged
                .texts
                .push([range(prompt, sequence.prompt.len()), range(first, len)]);
            let begin = arranged.targets.len();
            arranged.targets.extend_from_slice(sequence.response);
            arranged.predecessors.push(before as u32);
            arranged
                .predecessors
                .extend((first..first + len - 1).map(|at| at as u32));
            arranged.responses.push(begin..begin + len);
        }
        arranged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences<'a>(parts: &[(&'a [u32], &'a [u32])]) -> Vec<Sequence<'a>> {
        parts
            .iter()
            .map(|&(prompt, response)| Sequence {
                id: "row",
                prompt,
                response,
                images: &[],
            })
            .collect()
    }

    /// The token before each response token and the token itself, read from the input.
    fn predicted(arrangement: Arrangement, sequences: &[Sequence<'_>]) -> Vec<(u32, u32)> {
        let arranged = arrangement.arrange(sequences, 0, &Device::Cpu).unwrap();
        let ids: Vec<u32> = arranged.input.input_ids().flatten_all().unwrap().to_vec1().unwrap();
        let before = arranged.predecessors.iter().map(|&at| ids[at as usize]);
        before.zip(arranged.targets).collect()
    }

    #[test]
    fn every_arrangement_predicts_the_same_tokens_from_the_same_ones() {
        let parts: [(&[u32], &[u32]); 4] = [
            (&[1, 2], &[3, 4, 5]),
            (&[1, 2], &[6]),
            (&[7], &[8, 9]),
            (&[1, 2], &[10, 11]),
        ];
        let sequences = sequences(&parts);
        let expected = vec![(2, 3), (3, 4), (4, 5), (2, 6), (7, 8), (8, 9), (2, 10), (10, 11)];
        for arrangement in [Arrangement::Padded, Arrangement::Packed, Arrangement::SharedPrefix] {
            assert_eq!(predicted(arrangement, &sequences), expected, "{arrangement:?}");
        }
        let tokens = |arrangement: Arrangement| {
            let arranged = arrangement.arrange(&sequences, 0, &Device::Cpu).unwrap();
            arranged.input.input_ids().dims().to_vec()
        };
        assert_eq!(tokens(Arrangement::Padded), [4, 5]);
        assert_eq!(tokens(Arrangement::Packed), [1, 15]);
        // The first two share their prompt; the last one does not stand beside them.
        assert_eq!(tokens(Arrangement::SharedPrefix), [1, 13]);
        for arrangement in [Arrangement::Padded, Arrangement::Packed, Arrangement::SharedPrefix] {
            let arranged = arrangement.arrange(&sequences, 0, &Device::Cpu).unwrap();
            let ids: Vec<u32> = arranged.input.input_ids().flatten_all().unwrap().to_vec1().unwrap();
            for ((prompt, response), text) in parts.iter().zip(&arranged.texts) {
                let spelled = |at: &Vec<u32>| at.iter().map(|at| ids[*at as usize]).collect::<Vec<_>>();
                assert_eq!(
                    [spelled(&text[0]), spelled(&text[1])],
                    [prompt.to_vec(), response.to_vec()]
                );
            }
        }
    }

    #[test]
    fn a_part_without_tokens_is_named() {
        for (prompt, response, part) in [(&[][..], &[1u32][..], "prompt"), (&[1], &[], "response")] {
            let error = Arrangement::Packed
                .arrange(&sequences(&[(prompt, response)]), 0, &Device::Cpu)
                .unwrap_err();
            assert!(
                matches!(&error, Error::EmptySequence { id, part: found } if id == "row" && *found == part),
                "{error}"
            );
        }
    }
}
