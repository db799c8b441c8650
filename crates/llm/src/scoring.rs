//! The score of a response: the sum of its tokens' log-probabilities, and what else a forward pass says about it.
//!
//! Logits exist for response tokens only, and a chunk of them at a time.
//!
//! Shape letters: M responses, N response tokens of the batch, T tokens of the longest response.

use std::borrow::Cow;

use diptych_core::{Responses, TokenLogps, WholeTexts};
use diptych_tensor::ops::TokenStatistics;
use diptych_tensor::{DType, Device, Tensor};

use crate::arrangement::Arranged;
use crate::network::NetworkRef;
use crate::{Error, Result};

/// Whether the shape of the distributions is looked at beside the tokens' probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// Yes: entropy, collision probability, mean logit, whether a token was the likeliest.
    Measured,
    /// No.
    Skipped,
}

/// What one network says about the responses of a batch.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Log-probability of every response token, (N), f32 or f64.
    pub per_token_logps: Tensor,
    /// What the distributions look like, (N) each.
    pub statistics: Option<TokenStatistics>,
    /// The last states of all tokens of the batch, (B T, D): what whole distributions are made of. `None` for scores that were kept.
    pub states: Option<Tensor>,
}

/// Log-probabilities of the response tokens under a network.
///
/// # Errors
/// When an id is not in the network's vocabulary, or a text is longer than its positions.
pub fn score<'a>(model: impl Into<NetworkRef<'a>>, arranged: &Arranged, statistics: Statistics) -> Result<Scored> {
    let model = model.into();
    score_hidden(model, &model.hidden(arranged)?, arranged, statistics)
}

/// Log-probabilities of the response tokens under a network, without a graph: whether it is trained or not, no more than one
/// layer's activations are held at a time.
///
/// # Errors
/// As [`score`].
pub fn score_detached<'a>(model: impl Into<NetworkRef<'a>>, arranged: &Arranged) -> Result<Scored> {
    let model = model.into();
    let hidden = model.hidden_detached(arranged)?;
    let scored = score_hidden(model, &hidden, arranged, Statistics::Skipped)?;
    Ok(Scored {
        per_token_logps: scored.per_token_logps.detach(),
        states: scored.states.map(|states| states.detach()),
        ..scored
    })
}

fn score_hidden(model: NetworkRef<'_>, hidden: &Tensor, arranged: &Arranged, statistics: Statistics) -> Result<Scored> {
    let model_targets = readable_targets(model, &arranged.targets);
    let rows = || -> diptych_tensor::Result<(Tensor, Tensor, Tensor)> {
        let device = hidden.device();
        let at = Tensor::new(arranged.predecessors.as_slice(), device)?;
        let targets = Tensor::new(model_targets.as_ref(), device)?;
        let states = hidden.flatten(0, 1)?;
        Ok((states.index_select(&at, 0)?, states, targets))
    };
    let (rows, states, targets) = rows()?;
    let model = model.language_model();
    let config = model.token_logps_config();
    Ok(match statistics {
        Statistics::Measured => {
            let (per_token_logps, statistics) = model.token_logps_and_statistics(&rows, &targets, config)?;
            Scored {
                per_token_logps,
                statistics: Some(statistics),
                states: Some(states),
            }
        }
        Statistics::Skipped => Scored {
            per_token_logps: model.token_logps(&rows, &targets, config)?,
            statistics: None,
            states: Some(states),
        },
    })
}

impl Scored {
    /// The states that predict some of the response tokens, each of which is counted among all of the batch: (n, D).
    ///
    /// # Errors
    /// [`Error::NoDistributions`] for scores that were kept.
    pub(crate) fn predicting(&self, arranged: &Arranged, tokens: impl Iterator<Item = usize>) -> Result<Tensor> {
        let states = self.states.as_ref().ok_or(Error::NoDistributions)?;
        let at: Vec<u32> = tokens.map(|token| arranged.predecessors[token]).collect();
        let rows = || -> diptych_tensor::Result<Tensor> {
            Ok(states.index_select(&Tensor::new(at.as_slice(), states.device())?, 0)?)
        };
        Ok(rows()?)
    }
}

/// Log-probabilities of other tokens in the places of those that were scored, (N), with the gradient of these. `tokens` is (N) u32.
///
/// # Errors
/// [`Error::Tensor`] for a token that is not in the vocabulary.
pub(crate) fn score_others(model: NetworkRef<'_>, hidden: &Tensor, tokens: &Tensor) -> Result<Tensor> {
    let model = model.language_model();
    Ok(model.token_logps(hidden, tokens, model.token_logps_config())?)
}

/// Targets that are in the vocabulary. The token of images need not be, and has no weight in any score.
pub(crate) fn readable_targets<'a>(model: NetworkRef<'_>, targets: &'a [u32]) -> Cow<'a, [u32]> {
    match model.image_token_id() {
        Some(image) if targets.contains(&image) => {
            let readable = |target: &u32| if *target == image { 0 } else { *target };
            targets.iter().map(readable).collect()
        }
        _ => Cow::Borrowed(targets),
    }
}

/// How the token scores of a batch are gathered into scores of its responses.
#[derive(Debug)]
pub struct Gathering {
    /// (M, T): the weight of every token in the score of its response; 0 for filling.
    weights: Tensor,
    /// (M): tokens that count.
    lengths: Vec<f32>,
    /// (N): whether a token counts.
    counted: Vec<bool>,
    /// (M T): the place of every token of every response; N, the place of a zero, for filling.
    places: Vec<u32>,
    num_tokens: usize,
}

impl Gathering {
    /// For an arranged batch. `weights` has the weights of each response's tokens where they are not all 1; a token of weight 0 is
    /// not part of the response.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn try_new(arranged: &Arranged, weights: &[Option<&[f32]>], dtype: DType, device: &Device) -> Result<Self> {
        let (num_responses, num_tokens) = (arranged.responses.len(), arranged.targets.len());
        let longest = arranged.responses.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        let mut own_weights = vec![0.0f32; num_responses * longest];
        let mut lengths = Vec::with_capacity(num_responses);
        let mut counted = Vec::with_capacity(num_tokens);
        let mut places = vec![num_tokens as u32; num_responses * longest];
        for (at, tokens) in arranged.responses.iter().enumerate() {
            let weight = |i: usize| weights.get(at).copied().flatten().map_or(1.0, |weights| weights[i]);
            for i in 0..tokens.len() {
                own_weights[at * longest + i] = weight(i);
                places[at * longest + i] = (tokens.start + i) as u32;
            }
            counted.extend((0..tokens.len()).map(|i| weight(i) != 0.0));
            let num_counted = counted[tokens.start..].iter().filter(|&&counts| counts).count();
            // A response of which nothing counts has score 0; its length must still divide.
            lengths.push(num_counted.max(1) as f32);
        }
        let matrix = || -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::from_vec(own_weights, (num_responses, longest), device)?.to_dtype(dtype)?)
        };
        Ok(Self {
            weights: matrix()?,
            lengths,
            counted,
            places,
            num_tokens,
        })
    }

    /// Number of responses.
    fn num_responses(&self) -> usize {
        self.lengths.len()
    }

    /// The weighted sum of the tokens of each response: (N) to (M). A number that is not finite spoils the response it belongs to,
    /// and no other.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn sum(&self, per_token: &Tensor) -> Result<Tensor> {
        let rows = self.rows(per_token)?;
        let sum = || -> diptych_tensor::Result<Tensor> {
            let products = rows.unsqueeze(1)?.matmul(&self.weights.unsqueeze(2)?)?;
            Ok(products.flatten_all()?)
        };
        Ok(sum()?)
    }

    /// The tokens of each response side by side, zero after the last: (N) to (M, T).
    fn rows(&self, per_token: &Tensor) -> Result<Tensor> {
        let longest = self.places.len() / self.num_responses().max(1);
        let gathered = || -> diptych_tensor::Result<Tensor> {
            let per_token = per_token.to_dtype(self.weights.dtype())?;
            let zero = Tensor::zeros(1, per_token.dtype(), per_token.device())?;
            let places = Tensor::new(self.places.as_slice(), per_token.device())?;
            let rows = Tensor::cat(&[&per_token, &zero], 0)?.index_select(&places, 0)?;
            Ok(rows.reshape((self.num_responses(), longest))?)
        };
        Ok(gathered()?)
    }

    /// 1 for tokens that count, 0 for others: (M, T).
    fn mask(&self) -> Result<Tensor> {
        let counts: Vec<f32> = self.counted.iter().map(|&counts| f32::from(u8::from(counts))).collect();
        let tensor =
            || -> diptych_tensor::Result<Tensor> { Ok(Tensor::new(counts.as_slice(), self.weights.device())?) };
        self.rows(&tensor()?)
    }

    /// What an objective is given about the responses. Token scores only where it needs them.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub fn responses(
        &self,
        policy: &Scored,
        reference: Option<&Scored>,
        token_scores: TokenScores,
    ) -> Result<Responses> {
        let mut responses = Responses::new(self.sum(&policy.per_token_logps)?);
        responses.reference = reference
            .map(|reference| self.sum(&reference.per_token_logps))
            .transpose()?;
        let lengths = || -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::new(self.lengths.as_slice(), self.weights.device())?.to_dtype(self.weights.dtype())?)
        };
        responses.lengths = Some(lengths()?);
        if token_scores == TokenScores::Kept {
            responses.tokens = Some(TokenLogps {
                policy: self.rows(&policy.per_token_logps)?,
                reference: reference
                    .map(|reference| self.rows(&reference.per_token_logps))
                    .transpose()?,
                mask: self.mask()?,
                log_collisions: policy
                    .statistics
                    .as_ref()
                    .map(|statistics| self.rows(&statistics.log_collision))
                    .transpose()?,
            });
        }
        Ok(responses)
    }

    /// The weighted sums as scores of prompts and responses together, where the weights are those of both.
    ///
    /// # Errors
    /// [`Error::Tensor`].
    pub(crate) fn whole_texts(&self, policy: &Scored) -> Result<WholeTexts> {
        let lengths = || -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::new(self.lengths.as_slice(), self.weights.device())?.to_dtype(self.weights.dtype())?)
        };
        Ok(WholeTexts {
            policy: self.sum(&policy.per_token_logps)?,
            lengths: lengths()?,
        })
    }

    /// Tokens of each response that count.
    pub fn lengths(&self) -> &[f32] {
        &self.lengths
    }

    /// Of each response token whether it counts: its weight is not 0.
    pub fn counted(&self) -> &[bool] {
        &self.counted
    }

    /// Response tokens of the batch.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }
}

/// Whether the scores of single tokens are handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenScores {
    /// Yes.
    Kept,
    /// Only their sums.
    Summed,
}

impl From<bool> for TokenScores {
    /// From what an objective says it needs.
    fn from(needed: bool) -> Self {
        if needed { Self::Kept } else { Self::Summed }
    }
}

/// The elements of a vector of any precision on any device.
///
/// # Errors
/// [`Error::Tensor`].
pub(crate) fn host(values: &Tensor) -> Result<Vec<f64>> {
    let read = || -> diptych_tensor::Result<Vec<f64>> {
        // On the host before it is widened: Metal has no f64.
        Ok(values
            .detach()
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F64)?
            .to_vec1()?)
    };
    read().map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrangement::{Arrangement, Sequence};

    #[test]
    fn a_number_that_is_not_finite_spoils_its_own_response_alone() {
        let sequence = |response| Sequence {
            id: "row",
            prompt: &[1, 2],
            response,
            images: &[],
        };
        let sequences = [sequence(&[3, 4][..]), sequence(&[5, 6, 7][..])];
        let arranged = Arrangement::Padded.arrange(&sequences, 0, &Device::Cpu).unwrap();
        let weights = [None, Some(&[1.0, 0.5, 0.0][..])];
        let gathering = Gathering::try_new(&arranged, &weights, DType::F64, &Device::Cpu).unwrap();
        let sums =
            |values: [f64; 5]| host(&gathering.sum(&Tensor::new(&values, &Device::Cpu).unwrap()).unwrap()).unwrap();
        assert_eq!(sums([-1.0, -2.0, -4.0, -8.0, -16.0]), [-3.0, -8.0]);
        let spoiled = sums([-1.0, f64::NAN, -4.0, -8.0, -16.0]);
        assert!(spoiled[0].is_nan() && spoiled[1] == -8.0, "{spoiled:?}");
    }
}
