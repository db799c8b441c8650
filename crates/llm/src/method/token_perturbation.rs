//! Prompts of which the words that have least to do with the images are masked or replaced.
//!
//! # Paper
//! Zhang et al., "TARS: `MinMax` Token-Adaptive Preference Strategy for Hallucination Reduction in MLLMs", arXiv:2507.21584: DPO whose prompts
//! `p(q)` have their visual-agnostic tokens perturbed, so that answers cannot lean on them:
//!
//! ```text
//! P_i = - cos(image, q_i) in the space of a CLIP
//! N = floor(omega / (P_(1) - P_(2))) + 1
//! ```
//!
//! The `N` tokens of the question with the largest P are masked, or replaced by others; `P_(1)` and `P_(2)` are the two largest. With `omega` = 0.1
//! in the paper. Policy and reference both read the perturbed prompt. What is a word of the question, and how like the image it is, is said
//! by whoever makes a [`TokenPerturbation`].
//!
//! Reference code: KejiaZhang-Robust/TARS `llava/train/llava_trainer.py`. Differences: the released program draws `share` of all tokens of prompt and
//! answer, with chances that fall with their likeness, `sampled`; perturbed tokens of answers are not learned. Its loss has the term of
//! `image_preference` with diffusion noise too.
//!
//! Tokens are drawn anew in every epoch.

use diptych_tensor::random::{Generator, Stream, generator};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::records::{EncodedRecord, EncodedResponse};

/// Which tokens are perturbed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Perturbed {
    /// Those of the question that have least to do with the images: the paper.
    MostAgnostic {
        /// How many, above 0: over the difference of the two largest `P`. 0.1 in the paper.
        omega: f64,
    },
    /// Tokens of prompt and answer that are drawn, those that have little to do with the images sooner: the released program.
    Sampled {
        /// Of all tokens, above 0 and at most 1; 0.05 in the program.
        share: f64,
    },
}

impl Default for Perturbed {
    fn default() -> Self {
        Self::MostAgnostic { omega: 0.1 }
    }
}

impl Perturbed {
    /// The first value out of its range: key, what was found, what was expected.
    pub fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        match self {
            Self::MostAgnostic { omega } if !(omega.is_finite() && *omega > 0.0) => {
                Some(("most_agnostic.omega", omega.to_string(), "a finite number above 0"))
            }
            Self::Sampled { share } if !(*share > 0.0 && *share <= 1.0) => {
                Some(("sampled.share", share.to_string(), "a number above 0, at most 1"))
            }
            Self::MostAgnostic { .. } | Self::Sampled { .. } => None,
        }
    }
}

/// What stands in the place of a perturbed token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replacement {
    /// Always this one.
    Mask(u32),
    /// One of these, drawn.
    OneOf(Vec<u32>),
}

/// How like its images a token is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeness {
    /// Where it stands, among the tokens of prompt and response together.
    pub at: usize,
    /// Cosine.
    pub cosine: f64,
}

/// The perturbation with what it knows about the records.
#[derive(Debug)]
pub struct TokenPerturbation {
    perturbed: Perturbed,
    replacement: Replacement,
    /// Of every record the tokens of each response's text that may be perturbed.
    likenesses: Vec<Vec<Vec<Likeness>>>,
}

impl TokenPerturbation {
    /// `likenesses` has of every record, and of each of its responses, the words of the text that may be perturbed, in their order.
    pub fn new(perturbed: Perturbed, replacement: Replacement, likenesses: Vec<Vec<Vec<Likeness>>>) -> Self {
        Self {
            perturbed,
            replacement,
            likenesses,
        }
    }

    /// The responses of a record with perturbed texts, as they are in some epoch.
    pub(super) fn apply(
        &self,
        index: usize,
        record: &EncodedRecord,
        (seed, epoch): (u64, u64),
    ) -> Vec<EncodedResponse> {
        let start = || generator(seed, Stream::Perturbation, epoch, record.row as u64);
        let mut rng = start();
        let mut responses = record.responses.clone();
        for (response, words) in responses.iter_mut().zip(&self.likenesses[index]) {
            let places = match self.perturbed {
                Perturbed::MostAgnostic { omega } => {
                    // Answers to one question have one perturbed prompt.
                    rng = start();
                    let prompt_len = response.prompt.len() + response.prompt_tail;
                    let words: Vec<Likeness> = words.iter().copied().filter(|word| word.at < prompt_len).collect();
                    most_agnostic(&words, omega)
                }
                Perturbed::Sampled { share } => sampled(words, text_len(response), share, &mut rng),
            };
            for at in places {
                self.replace(response, at, &mut rng);
            }
        }
        responses
    }

    fn replace(&self, response: &mut EncodedResponse, at: usize, rng: &mut Generator) {
        let token = match &self.replacement {
            Replacement::Mask(token) => *token,
            Replacement::OneOf(tokens) => tokens[rng.random_range(0..tokens.len())],
        };
        let Some(own) = at.checked_sub(response.prompt.len()) else {
            response.prompt[at] = token;
            return;
        };
        response.ids[own] = token;
        let weights = response.weights.get_or_insert_with(|| vec![1.0; response.ids.len()]);
        weights[own] = 0.0;
        if let Some(is_answer) = &mut response.is_answer {
            is_answer[own] = false;
        }
        if let Some(dense) = &mut response.dense {
            dense[own] = 0.0;
        }
    }
}

/// Tokens of a text, an image being one.
fn text_len(response: &EncodedResponse) -> usize {
    let of_images: usize = response.images.iter().map(|image| image.tokens.len() - 1).sum();
    response.prompt.len() + response.ids.len() - of_images
}

/// The places of the words that have least to do with the images, in their order.
fn most_agnostic(words: &[Likeness], omega: f64) -> Vec<usize> {
    let mut sorted = words.to_vec();
    sorted.sort_by(|a, b| a.cosine.total_cmp(&b.cosine).then(a.at.cmp(&b.at)));
    let num = match sorted.as_slice() {
        [first, second, ..] => (omega / (second.cosine - first.cosine)).floor() + 1.0,
        _ => 1.0,
    };
    // Where two are equally unlike, so much is meant that all are taken.
    let num = if num < sorted.len() as f64 {
        num as usize
    } else {
        sorted.len()
    };
    let mut places: Vec<usize> = sorted[..num].iter().map(|word| word.at).collect();
    places.sort_unstable();
    places
}

/// The places of so many words that their number is `share` of `len` tokens, at least one, each drawn with a chance that falls with its
/// cosine, without replacement (Efraimidis and Spirakis, 2006).
fn sampled(words: &[Likeness], len: usize, share: f64, rng: &mut Generator) -> Vec<usize> {
    let num = ((len as f64 * share) as usize).max(1);
    let mut keyed: Vec<(f64, usize)> = words
        .iter()
        .map(|word| {
            let chance = (1.0 - word.cosine).max(f64::MIN_POSITIVE);
            let draw: f64 = rng.random();
            ((1.0 - draw).ln() / chance, word.at)
        })
        .collect();
    keyed.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut places: Vec<usize> = keyed.into_iter().take(num).map(|(_, at)| at).collect();
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(cosines: &[f64]) -> Vec<Likeness> {
        let word = |(at, cosine): (usize, &f64)| Likeness {
            at: 10 + at,
            cosine: *cosine,
        };
        cosines.iter().enumerate().map(word).collect()
    }

    #[test]
    fn as_many_words_are_perturbed_as_the_paper_says() {
        // P is 0.3, -0.05, -0.1, -0.4: its two largest differ by 0.35.
        let words = words(&[0.05, 0.4, -0.3, 0.1]);
        assert_eq!(most_agnostic(&words, 0.1), [12]);
        assert_eq!(most_agnostic(&words, 0.4), [10, 12]);
        assert_eq!(most_agnostic(&words, 0.8), [10, 12, 13]);
        assert_eq!(most_agnostic(&words, 100.0), [10, 11, 12, 13]);
        assert_eq!(most_agnostic(&words[..1], 0.1), [10]);
        assert!(most_agnostic(&[], 0.1).is_empty());
        // Two that are equally unlike.
        assert_eq!(most_agnostic(&[words[0], Likeness { at: 3, ..words[0] }], 0.1), [3, 10]);
    }

    #[test]
    fn unlike_words_are_drawn_more_often() {
        let words = words(&[0.9, 0.0, 0.5, 0.9]);
        let mut counts = [0usize; 4];
        for epoch in 0..4000 {
            let mut rng = generator(3, Stream::Perturbation, epoch, 0);
            let found = sampled(&words, 20, 0.05, &mut rng);
            assert_eq!(found.len(), 1);
            counts[found[0] - 10] += 1;
        }
        // Chances 0.1, 1, 0.5 and 0.1 of 1.7.
        for (count, chance) in counts.iter().zip([0.1, 1.0, 0.5, 0.1]) {
            let expected = 4000.0 * chance / 1.7;
            assert!((*count as f64 - expected).abs() < 4.0 * expected.sqrt(), "{counts:?}");
        }
        let mut rng = generator(3, Stream::Perturbation, 0, 0);
        assert_eq!(sampled(&words, 60, 0.05, &mut rng).len(), 3);
        assert_eq!(sampled(&words, 400, 0.05, &mut rng), [10, 11, 12, 13]);
    }
}
