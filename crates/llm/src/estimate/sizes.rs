//! How large the micro batches of a run are.

use std::collections::BTreeSet;

use diptych_train::{Order, Recipe};

use crate::arrangement::{Arrangement, PlacedImage};
use crate::method::MethodConfig;
use crate::modality::Language;
use crate::records::{EncodedRecord, EncodedResponse};

/// At most so many micro batches are gone through in detail.
const NUM_SAMPLED: usize = 24;

/// The size of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchSizes {
    /// Rows B.
    pub(super) rows: usize,
    /// Tokens T of a row, filling included.
    pub(super) row_len: usize,
    /// Response tokens of all rows.
    pub(super) targets: usize,
    /// Responses.
    pub(super) responses: usize,
    /// Pairs of a token and one that it sees, in all rows.
    pub(super) visible: usize,
    /// Its different images.
    pub(super) images: ImageSizes,
}

/// The sizes of some images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageSizes {
    /// Numbers that the tower reads.
    pub pixels: usize,
    /// Tokens of the tower.
    pub patches: usize,
    /// Those of them that the projector reads.
    pub features: usize,
    /// Tokens of the decoder.
    pub tokens: usize,
}

impl ImageSizes {
    /// Both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            pixels: self.pixels + other.pixels,
            patches: self.patches + other.patches,
            features: self.features + other.features,
            tokens: self.tokens + other.tokens,
        }
    }

    /// So many of them.
    pub(super) fn times(self, num: usize) -> Self {
        Self {
            pixels: num * self.pixels,
            patches: num * self.patches,
            features: num * self.features,
            tokens: num * self.tokens,
        }
    }
}

/// The images of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct RunImages<'a> {
    /// The size of each.
    pub(super) sizes: &'a [ImageSizes],
    /// What is done with the chosen answers under images that are made of these.
    pub(super) spoiled: SpoiledAnswers,
}

/// What is done with chosen answers under images that are made of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SpoiledAnswers {
    /// Nothing: there are no such images.
    #[default]
    None,
    /// They are scored, and that is learned from.
    Scored,
    /// They are read without a backward pass, and the tokens found there are scored in their places.
    Read,
}

impl RunImages<'_> {
    /// The different ones among these, together.
    fn together(&self, images: impl Iterator<Item = usize>) -> ImageSizes {
        let different: BTreeSet<usize> = images.collect();
        let sizes = different.into_iter().filter_map(|index| self.sizes.get(index));
        sizes.fold(ImageSizes::default(), |sum, image| sum.and(*image))
    }

    /// The largest one.
    pub(super) fn largest(&self) -> ImageSizes {
        self.sizes
            .iter()
            .max_by_key(|sizes| sizes.patches)
            .copied()
            .unwrap_or_default()
    }
}

/// A prompt and how many tokens follow it.
#[derive(Debug, Clone, Copy)]
pub(super) struct SizedText<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) len: usize,
    pub(super) images: &'a [PlacedImage],
}

impl<'a> SizedText<'a> {
    fn of(response: &'a EncodedResponse) -> Self {
        Self {
            prompt: &response.prompt,
            len: response.ids.len(),
            images: &response.images,
        }
    }

    fn shares_prompt(&self, other: &Self) -> bool {
        let own = |text: &Self| -> Vec<usize> {
            let of_prompt = text
                .images
                .iter()
                .filter(|image| image.tokens.start < text.prompt.len());
            of_prompt.map(|image| image.index).collect()
        };
        self.prompt == other.prompt && own(self) == own(other)
    }
}

impl BatchSizes {
    /// Tokens of all rows.
    pub(super) fn tokens(&self) -> usize {
        self.rows * self.row_len
    }

    /// Both batches, each in a pass of its own, whose results are kept beside each other.
    fn beside(self, other: Self) -> Self {
        if other.responses == 0 {
            return self;
        }
        Self {
            rows: 1,
            row_len: self.tokens() + other.tokens(),
            targets: self.targets + other.targets,
            responses: self.responses + other.responses,
            visible: self.visible + other.visible,
            images: self.images.and(other.images),
        }
    }

    /// Prompts to be continued.
    pub(super) fn prompts(batch: usize, longest: usize) -> Self {
        Self {
            rows: batch,
            row_len: longest,
            visible: batch * triangle(longest),
            ..Self::default()
        }
    }

    /// Of prompts with responses in one batch.
    pub(super) fn of(arrangement: Arrangement, texts: &[SizedText<'_>], images: &RunImages<'_>) -> Self {
        let lens = || texts.iter().map(|text| text.prompt.len() + text.len);
        let targets = texts.iter().map(|text| text.len).sum();
        let (rows, row_len, visible) = match arrangement {
            Arrangement::Padded => (texts.len(), lens().max().unwrap_or(0), lens().map(triangle).sum()),
            Arrangement::Packed => (1, lens().sum(), lens().map(triangle).sum()),
            Arrangement::SharedPrefix => {
                let groups = || texts.chunk_by(SizedText::shares_prompt);
                let prompts: usize = groups().map(|group| group[0].prompt.len()).sum();
                let of_prompts: usize = groups().map(|group| triangle(group[0].prompt.len())).sum();
                let of_responses: usize = texts
                    .iter()
                    .map(|text| text.len * text.prompt.len() + triangle(text.len))
                    .sum();
                (1, prompts + targets, of_prompts + of_responses)
            }
        };
        Self {
            rows,
            row_len,
            targets,
            responses: texts.len(),
            visible,
            images: images.together(texts.iter().flat_map(|text| text.images).map(|image| image.index)),
        }
    }
}

fn triangle(len: usize) -> usize {
    len * (len + 1) / 2
}

/// The micro batches of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunSizes {
    /// Some of them, evenly spread over the run.
    pub(super) sampled: Vec<BatchSizes>,
    /// The largest by tokens, by response tokens, and by what it takes to sum these.
    pub(super) largest: Vec<BatchSizes>,
    /// The chosen answers of a micro batch that are read again without a backward pass, at most.
    pub(super) read: Option<BatchSizes>,
    /// Optimizer steps.
    pub(super) num_steps: u64,
}

impl RunSizes {
    /// Goes through the run's order.
    pub(super) fn of(recipe: &Recipe<Language>, records: &[EncodedRecord], images: &RunImages<'_>) -> Self {
        let train = &recipe.train;
        let num_steps = train.num_steps(records.len(), 1);
        let arrangement = recipe.method.batch().arrangement;
        let stride = (num_steps as usize * train.accumulation).div_ceil(NUM_SAMPLED).max(1);
        let mut order = Order::new(recipe.run.seed, records.len(), recipe.data.shuffle);
        let by: [fn(&BatchSizes) -> usize; 3] = [
            |sizes| sizes.tokens(),
            |sizes| sizes.targets,
            |sizes| sizes.targets * sizes.responses,
        ];
        let mut largest = [BatchSizes::default(); 3];
        let (mut sampled, mut read) = (Vec::new(), None);
        let mut number = 0;
        for step in 0..num_steps {
            let start = step * train.effective_batch();
            for batch in order.micro_batches(step + 1, start, train.micro_batch, train.accumulation) {
                let texts: Vec<SizedText<'_>> = batch
                    .items
                    .iter()
                    .flat_map(|item| responses(&recipe.method, &records[item.index]))
                    .collect();
                let of_items = batch.items.iter().map(|item| &records[item.index]);
                if images.spoiled == SpoiledAnswers::Read {
                    let chosen: Vec<_> = of_items
                        .clone()
                        .map(|record| SizedText::of(&record.responses[0]))
                        .collect();
                    let sizes = BatchSizes::of(arrangement, &chosen, images);
                    read = read.max(Some(sizes));
                }
                let sizes = terms(&recipe.method, of_items, images)
                    .iter()
                    .map(|texts| BatchSizes::of(arrangement, texts, images))
                    .fold(BatchSizes::of(arrangement, &texts, images), BatchSizes::beside);
                for (largest, by) in largest.iter_mut().zip(by) {
                    if by(&sizes) > by(largest) {
                        *largest = sizes;
                    }
                }
                if number % stride == 0 {
                    sampled.push(sizes);
                }
                number += 1;
            }
        }
        let mut largest = largest.to_vec();
        largest.sort_unstable();
        largest.dedup();
        Self {
            sampled,
            largest,
            read,
            num_steps,
        }
    }
}

/// What a method scores of a record: prompts and the numbers of their responses' tokens.
fn responses<'a>(method: &MethodConfig, record: &'a EncodedRecord) -> impl Iterator<Item = SizedText<'a>> {
    let count = match method {
        MethodConfig::Sft(_) => 1,
        MethodConfig::OfflinePairs(_) | MethodConfig::Unpaired(_) | MethodConfig::Ranked(_) => record.responses.len(),
    };
    record.responses.iter().take(count).map(SizedText::of)
}

/// What the terms beside the objective score of some records: answers of the policy, taken to be as long as they may be, rationales, and
/// chosen answers under other images.
fn terms<'a>(
    method: &MethodConfig,
    records: impl Iterator<Item = &'a EncodedRecord> + Clone,
    images: &RunImages<'_>,
) -> [Vec<SizedText<'a>>; 3] {
    let answers = method.online_kl().map_or_else(Vec::new, |term| {
        let answer = |record: &'a EncodedRecord| SizedText {
            len: term.max_new_tokens,
            ..SizedText::of(&record.responses[0])
        };
        records.clone().map(answer).collect()
    });
    let rationales = records.clone().filter_map(|record| record.rationale.as_ref());
    let others = records.filter_map(|record| match (&record.other_images, images.spoiled) {
        (Some(other), _) => Some(other),
        (None, SpoiledAnswers::Scored) => Some(&record.responses[0]),
        (None, SpoiledAnswers::None | SpoiledAnswers::Read) => None,
    });
    [
        answers,
        rationales.map(SizedText::of).collect(),
        others.map(SizedText::of).collect(),
    ]
}

/// The largest batch when all responses of a data set are scored in their order, so many at a time.
pub(super) fn largest_in_order(
    arrangement: Arrangement,
    records: &[EncodedRecord],
    images: &RunImages<'_>,
    batch_size: usize,
) -> BatchSizes {
    let all: Vec<SizedText<'_>> = records
        .iter()
        .flat_map(|record| &record.responses)
        .map(SizedText::of)
        .collect();
    all.chunks(batch_size.max(1))
        .map(|texts| BatchSizes::of(arrangement, texts, images))
        .max_by_key(BatchSizes::tokens)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use diptych_tensor::Device;

    use super::*;
    use crate::arrangement::Sequence;

    #[test]
    fn sizes_are_those_of_what_the_network_is_given() {
        let parts: [(&[u32], &[u32]); 4] = [
            (&[1, 2], &[3, 4, 5]),
            (&[1, 2], &[6]),
            (&[7], &[8, 9]),
            (&[1, 2], &[10, 11]),
        ];
        let sequences = parts.map(|(prompt, response)| Sequence {
            id: "",
            prompt,
            response,
            images: &[],
        });
        let sizes = parts.map(|(prompt, response)| SizedText {
            prompt,
            len: response.len(),
            images: &[],
        });
        for arrangement in [Arrangement::Padded, Arrangement::Packed, Arrangement::SharedPrefix] {
            let arranged = arrangement.arrange(&sequences, 0, &Device::Cpu).unwrap();
            let found = BatchSizes::of(arrangement, &sizes, &RunImages::default());
            let visible = arranged.input.visible();
            assert_eq!([found.rows, found.row_len], [visible.batch(), visible.queries()]);
            assert_eq!([found.targets, found.responses], [arranged.targets.len(), 4]);
            let seen =
                |row: usize, token: usize| visible.row(row, token).map(|range| range.len()).iter().sum::<usize>();
            let pairs: usize = (0..found.rows)
                .flat_map(|row| (0..found.row_len).map(move |token| (row, token)))
                .map(|(row, token)| seen(row, token))
                .sum();
            // A token of filling sees itself, and is not counted.
            let filling = found.tokens()
                - sizes
                    .iter()
                    .map(|text| text.prompt.len() + text.len)
                    .sum::<usize>()
                    .min(found.tokens());
            assert_eq!(
                found.visible,
                pairs - if arrangement == Arrangement::Padded { filling } else { 0 }
            );
        }
    }
}
