//! What every method does with a batch: lay it out, score it under policy and reference, and say what was seen.

use std::collections::BTreeMap;

use diptych_core::{Objective, Responses};
use diptych_tensor::Tensor;
use diptych_train::{MicroBatch, StepOutput, Weighted};

use super::image_preference::{ImageScores, likeliest_others, of_rejected};
use super::texts::{Texts, WholeText};
use crate::Result;
use crate::arrangement::{Arranged, Arrangement, Sequence};
use crate::network::{Network, NetworkRef};
use crate::policy::Trained;
use crate::records::{EncodedRecord, EncodedResponse};
use crate::reference::{Reference, ResponsePlace};
use crate::scoring::{Gathering, Scored, Statistics, TokenScores, host, score, score_detached};

/// The networks, the records and the objective of a run.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) policy: Trained<Network>,
    pub(crate) reference: Reference,
    pub(crate) objective: Objective,
    pub(crate) records: Vec<EncodedRecord>,
    pub(crate) arrangement: Arrangement,
    pub(crate) statistics: Statistics,
    pub(crate) pad_token_id: u32,
    /// Whether the reference's scores of the responses are looked at: by the objective, or by a term beside it.
    pub(crate) needs_reference: bool,
    /// Tokens of a prompt with a response, at most.
    pub(crate) max_len: usize,
    /// Whether dense weights are for a second objective, rather than for the only one.
    pub(crate) dense: Dense,
    /// What the scores of rejected answers are sums of.
    pub(crate) rejected_scores: ImageScores,
}

/// What the weights of a dense preference are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dense {
    /// The objective's scores.
    Instead,
    /// Those of a second objective beside it.
    Beside,
}

/// A batch of responses with their scores.
pub(crate) struct Batch {
    pub(crate) responses: Responses,
    pub(crate) arranged: Arranged,
    pub(crate) gathering: Gathering,
    pub(crate) policy: Scored,
    /// Scores of the reference token by token, where it has them.
    pub(crate) reference: Option<Scored>,
    /// The scores with dense weights, where these are for a second objective.
    pub(crate) segments: Option<Responses>,
}

/// What a term beside the objective gives a micro batch of B records.
pub(super) struct Term {
    /// Added to the losses, (B).
    pub(super) losses: Tensor,
    pub(super) metrics: BTreeMap<&'static str, Vec<f64>>,
    /// Tokens of its texts, prompts included.
    pub(super) num_tokens: f64,
}

impl Term {
    pub(super) fn weighted(losses: &Tensor, weight: f64) -> diptych_tensor::Result<Tensor> {
        Ok((losses * weight)?)
    }

    pub(super) fn count(sequences: &[Sequence<'_>]) -> f64 {
        let len = |sequence: &Sequence<'_>| sequence.prompt.len() + sequence.response.len();
        sequences.iter().map(len).sum::<usize>() as f64
    }

    /// Adds the term to what the objective gave.
    pub(super) fn add_to(self, step: &mut StepOutput) -> Result<()> {
        let sum = || -> diptych_tensor::Result<Tensor> { Ok((&step.losses + &self.losses)?) };
        step.losses = sum()?;
        step.metrics.extend(self.metrics);
        *step.totals.entry("num_tokens").or_default() += self.num_tokens;
        Ok(())
    }
}

impl Engine {
    /// The network that is trained.
    pub(super) fn network(&self) -> NetworkRef<'_> {
        NetworkRef::from(&self.policy.model)
    }

    /// The weights of a response's tokens in the score that the objective and the terms beside it compare.
    pub(super) fn weights_of<'r>(&self, response: &'r EncodedResponse) -> Option<&'r [f32]> {
        match self.dense {
            Dense::Instead => response.score_weights(),
            Dense::Beside => response.weights.as_deref(),
        }
    }

    /// Texts that need not be responses of the data, as the network takes them.
    pub(super) fn arranged(&self, sequences: &[Sequence<'_>]) -> Result<Arranged> {
        self.arrangement
            .arrange(sequences, self.pad_token_id, self.policy.model.device())
    }

    /// The scores of such texts, summed over their tokens with the weights of these.
    pub(super) fn summed(
        &self,
        arranged: &Arranged,
        weights: &[Option<&[f32]>],
        policy: &Scored,
        reference: Option<&Scored>,
    ) -> Result<Responses> {
        let dtype = policy.per_token_logps.dtype();
        let gathering = Gathering::try_new(arranged, weights, dtype, self.policy.model.device())?;
        gathering.responses(policy, reference, TokenScores::Summed)
    }

    /// The responses at `places`, as the objective wants them.
    pub(crate) fn score(&self, places: &[ResponsePlace]) -> Result<Batch> {
        self.score_texts(&Texts::of(self), places)
    }

    /// The same of texts that may be perturbed.
    pub(super) fn score_texts(&self, own: &Texts<'_>, places: &[ResponsePlace]) -> Result<Batch> {
        let needs = self.objective.requirements();
        let image = self.network().image_token_id();
        let texts: Option<Vec<WholeText>> = needs.whole_texts.then(|| {
            places
                .iter()
                .map(|place| WholeText::of(own.response(*place), image))
                .collect()
        });
        let (sequences, weights) = own.parts(places, texts.as_deref());
        let model = self.network();
        let arranged = self.arranged(&sequences)?;
        let reference = if self.needs_reference {
            self.reference.score(model, &arranged, places)?
        } else {
            None
        };
        let statistics = if needs.collisions {
            Statistics::Measured
        } else {
            self.statistics
        };
        let mut policy = score(model, &arranged, statistics)?;
        let mut reference = reference;
        if self.rejected_scores == ImageScores::LikeliestOther {
            let others = likeliest_others(self, &arranged, &policy, reference.as_ref())?;
            (policy, reference) = of_rejected(places, &arranged, (policy, reference), others)?;
        }
        let dtype = policy.per_token_logps.dtype();
        let gathering = Gathering::try_new(&arranged, &weights, dtype, model.device())?;
        let token_scores = TokenScores::from(needs.tokens || needs.collisions);
        let mut responses = gathering.responses(&policy, reference.as_ref(), token_scores)?;
        responses.judge_scores = self.judge_scores(places, &policy.per_token_logps)?;
        if let Some(texts) = &texts {
            let weights: Vec<Option<&[f32]>> = texts.iter().map(|text| Some(text.weights.as_slice())).collect();
            let gathering = Gathering::try_new(&arranged, &weights, dtype, model.device())?;
            responses.whole_texts = Some(gathering.whole_texts(&policy)?);
        }
        let segments = match self.dense {
            Dense::Instead => None,
            Dense::Beside => {
                let weights: Vec<Option<&[f32]>> = places
                    .iter()
                    .map(|place| own.response(*place).score_weights())
                    .collect();
                let gathering = Gathering::try_new(&arranged, &weights, dtype, model.device())?;
                let mut segments = gathering.responses(&policy, reference.as_ref(), token_scores)?;
                segments.judge_scores.clone_from(&responses.judge_scores);
                Some(segments)
            }
        };
        Ok(Batch {
            segments,
            responses,
            arranged,
            gathering,
            policy,
            reference: reference.filter(|_| self.reference.has_token_scores()),
        })
    }

    pub(super) fn response(&self, place: ResponsePlace) -> &EncodedResponse {
        &self.records[place.record].responses[place.response]
    }

    pub(super) fn sequence(&self, place: ResponsePlace) -> Sequence<'_> {
        let response = self.response(place);
        Sequence {
            id: &self.records[place.record].id,
            prompt: &response.prompt,
            response: &response.ids,
            images: &response.images,
        }
    }

    /// A judge's scores of the responses, where all of them have one.
    fn judge_scores(&self, places: &[ResponsePlace], like: &Tensor) -> Result<Option<Tensor>> {
        let scores: Option<Vec<f64>> = places.iter().map(|place| self.response(*place).judge_score).collect();
        let tensor = |scores: Vec<f64>| -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::new(scores.as_slice(), like.device())?.to_dtype(like.dtype())?)
        };
        Ok(scores.map(tensor).transpose()?)
    }

    /// Every response of the batch's records, record after record.
    pub(crate) fn places(&self, batch: &MicroBatch) -> Vec<ResponsePlace> {
        let responses = |record: usize| 0..self.records[record].responses.len();
        let of = |record| responses(record).map(move |response| ResponsePlace { record, response });
        batch.items.iter().flat_map(|item| of(item.index)).collect()
    }

    /// Number of tokens of prompts and responses, each response with a prompt of its own: what a trainer without shared prompts
    /// would count.
    pub(super) fn num_tokens(&self, places: &[ResponsePlace]) -> f64 {
        let len = |place: &ResponsePlace| {
            let response = self.response(*place);
            response.prompt.len() + response.ids.len()
        };
        places.iter().map(len).sum::<usize>() as f64
    }
}

impl Batch {
    /// Adds the entropy, and the divergence from a reference, to what is logged.
    pub(super) fn describe(&self, step: &mut StepOutput) -> Result<()> {
        if let Some(entropy) = self.entropy()? {
            step.weighted.insert("entropy", entropy);
        }
        if let Some(divergence) = self.divergence()? {
            step.weighted.insert("kl_per_token", divergence);
        }
        Ok(())
    }

    /// Mean entropy of the response tokens that count, in nats.
    fn entropy(&self) -> Result<Option<Weighted>> {
        let Some(statistics) = &self.policy.statistics else {
            return Ok(None);
        };
        let values = host(&statistics.entropy)?;
        Ok(Some(self.mean_over(0..values.len(), &values)))
    }

    /// Mean logit of the tokens of some responses, and the share of their tokens that were the likeliest.
    pub(crate) fn logits_and_accuracy(&self, of: impl Fn(usize) -> bool) -> Result<Option<(Weighted, Weighted)>> {
        let Some(statistics) = &self.policy.statistics else {
            return Ok(None);
        };
        let (logits, hits) = (host(&statistics.mean_logit)?, host(&statistics.is_argmax)?);
        let tokens = || {
            let chosen = self.arranged.responses.iter().enumerate().filter(|(at, _)| of(*at));
            chosen.flat_map(|(_, range)| range.clone())
        };
        Ok(Some((
            self.mean_over(tokens(), &logits),
            self.mean_over(tokens(), &hits),
        )))
    }

    /// Mean of a value over those of some tokens that count.
    fn mean_over(&self, tokens: impl Iterator<Item = usize>, values: &[f64]) -> Weighted {
        let counted = self.gathering.counted();
        tokens
            .filter(|&at| counted[at])
            .fold(Weighted::default(), |total, at| Weighted {
                sum: total.sum + values[at],
                weight: total.weight + 1.0,
            })
    }

    /// Estimate of the divergence of the policy from the reference a token, on the tokens of the data: the mean of
    /// `r - 1 - log r` with `r = reference / policy`, which is never negative (Schulman, "Approximating KL Divergence", 2020, k3).
    fn divergence(&self) -> Result<Option<Weighted>> {
        let Some(reference) = &self.reference else {
            return Ok(None);
        };
        let policy = host(&self.policy.per_token_logps)?;
        let reference = host(&reference.per_token_logps)?;
        let k3 = |(policy, reference): (&f64, &f64)| {
            // A token that the reference finds e^30 times likelier says enough; beyond, one token would drown all others.
            let log_ratio = (reference - policy).min(30.0);
            log_ratio.exp_m1() - log_ratio
        };
        let values: Vec<f64> = policy.iter().zip(&reference).map(k3).collect();
        Ok(Some(self.mean_over(0..values.len(), &values)))
    }
}

/// The scores of a whole data set under the policy as it is now, for a cache: before its first step it is the network at the start,
/// which need not be loaded a second time.
pub(crate) fn start_logps(
    engine: &Engine,
    batch_size: usize,
    mut advance: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<f32>> {
    let places: Vec<ResponsePlace> = engine
        .records
        .iter()
        .enumerate()
        .flat_map(|(record, of)| (0..of.responses.len()).map(move |response| ResponsePlace { record, response }))
        .collect();
    let mut logps = Vec::new();
    let mut done = 0;
    for places in places.chunks(batch_size.max(1)) {
        let sequences: Vec<Sequence<'_>> = places.iter().map(|place| engine.sequence(*place)).collect();
        let scored = score_detached(engine.network(), &engine.arranged(&sequences)?)?;
        logps.extend(host(&scored.per_token_logps)?.into_iter().map(|logp| logp as f32));
        done += places.len();
        advance(done)?;
    }
    Ok(logps)
}
