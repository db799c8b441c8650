//! How large the micro batches of a run are.

use diptych_train::{Order, Recipe};

use crate::arrangement::Arrangement;
use crate::method::MethodConfig;
use crate::modality::Language;
use crate::records::EncodedRecord;

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

    /// Of sequences (prompt, response) in one batch.
    pub(super) fn of(arrangement: Arrangement, sequences: &[(&[u32], usize)]) -> Self {
        let lens = || sequences.iter().map(|(prompt, response)| prompt.len() + response);
        let targets = sequences.iter().map(|(_, response)| response).sum();
        let (rows, row_len, visible) = match arrangement {
            Arrangement::Padded => (sequences.len(), lens().max().unwrap_or(0), lens().map(triangle).sum()),
            Arrangement::Packed => (1, lens().sum(), lens().map(triangle).sum()),
            Arrangement::SharedPrefix => {
                let groups = || sequences.chunk_by(|(a, _), (b, _)| a == b);
                let prompts: usize = groups().map(|group| group[0].0.len()).sum();
                let of_prompts: usize = groups().map(|group| triangle(group[0].0.len())).sum();
                let of_responses: usize = sequences
                    .iter()
                    .map(|(prompt, response)| response * prompt.len() + triangle(*response))
                    .sum();
                (1, prompts + targets, of_prompts + of_responses)
            }
        };
        Self {
            rows,
            row_len,
            targets,
            responses: sequences.len(),
            visible,
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
    /// Optimizer steps.
    pub(super) num_steps: u64,
}

impl RunSizes {
    /// Goes through the run's order.
    pub(super) fn of(recipe: &Recipe<Language>, records: &[EncodedRecord]) -> Self {
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
        let mut sampled = Vec::new();
        let mut number = 0;
        for step in 0..num_steps {
            let start = step * train.effective_batch();
            for batch in order.micro_batches(step + 1, start, train.micro_batch, train.accumulation) {
                let sequences: Vec<(&[u32], usize)> = batch
                    .items
                    .iter()
                    .flat_map(|item| responses(&recipe.method, &records[item.index]))
                    .collect();
                let of_items = batch.items.iter().map(|item| &records[item.index]);
                let [answers, rationales] = terms(&recipe.method, of_items);
                let sizes = BatchSizes::of(arrangement, &sequences)
                    .beside(BatchSizes::of(arrangement, &answers))
                    .beside(BatchSizes::of(arrangement, &rationales));
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
            num_steps,
        }
    }
}

/// What a method scores of a record: prompts and the numbers of their responses' tokens.
fn responses<'a>(method: &MethodConfig, record: &'a EncodedRecord) -> impl Iterator<Item = (&'a [u32], usize)> {
    let count = match method {
        MethodConfig::Sft(_) => 1,
        MethodConfig::OfflinePairs(_) | MethodConfig::Unpaired(_) | MethodConfig::Ranked(_) => record.responses.len(),
    };
    let of = |response: &'a crate::records::EncodedResponse| (response.prompt.as_slice(), response.ids.len());
    record.responses.iter().take(count).map(of)
}

/// What the terms beside the objective score of some records: answers of the policy, taken to be as long as they may be, and rationales.
fn terms<'a>(
    method: &MethodConfig,
    records: impl Iterator<Item = &'a EncodedRecord> + Clone,
) -> [Vec<(&'a [u32], usize)>; 2] {
    let answers = method.online_kl().map_or_else(Vec::new, |term| {
        let answer = |record: &'a EncodedRecord| (record.responses[0].prompt.as_slice(), term.max_new_tokens);
        records.clone().map(answer).collect()
    });
    let rationale = |record: &'a EncodedRecord| {
        let rationale = record.rationale.as_ref()?;
        Some((rationale.prompt.as_slice(), rationale.ids.len()))
    };
    [answers, records.filter_map(rationale).collect()]
}

/// The largest batch when all responses of a data set are scored in their order, so many at a time.
pub(super) fn largest_in_order(arrangement: Arrangement, records: &[EncodedRecord], batch_size: usize) -> BatchSizes {
    let all: Vec<(&[u32], usize)> = records
        .iter()
        .flat_map(|record| &record.responses)
        .map(|response| (response.prompt.as_slice(), response.ids.len()))
        .collect();
    all.chunks(batch_size.max(1))
        .map(|sequences| BatchSizes::of(arrangement, sequences))
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
        let sizes = parts.map(|(prompt, response)| (prompt, response.len()));
        for arrangement in [Arrangement::Padded, Arrangement::Packed, Arrangement::SharedPrefix] {
            let arranged = arrangement.arrange(&sequences, 0, &Device::Cpu).unwrap();
            let found = BatchSizes::of(arrangement, &sizes);
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
                    .map(|(prompt, len)| prompt.len() + len)
                    .sum::<usize>()
                    .min(found.tokens());
            assert_eq!(
                found.visible,
                pairs - if arrangement == Arrangement::Padded { filling } else { 0 }
            );
        }
    }
}
