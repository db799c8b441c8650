//! Why the chosen answer is better, learned beside the preference.
//!
//! # Paper
//! Just et al., "Data-Centric Human Preference with Rationales for Direct Preference Alignment", Conference on Language Modeling
//! 2025, arXiv:2407.14477: `L = L_preference - gamma log pi(rationale | prompt, chosen, rejected)`, beside any objective of pairs
//! (RDPO, RORPO, `RSimPO`). Log-probs are summed over tokens; `gamma` is `weight`.
//!
//! Reference code: reds-lab/preference-learning-with-rationales `trainers.py`, `RDPOTrainer`. Differences: the code has
//! `-log s(gamma log pi(rationale))` in the place of `-gamma log pi(rationale)`, whose slope is gamma where the rationale is unlikely and
//! falls to half of it where it is certain; here it is the paper's term. In the code the prompt has the assistant's prefix in the model's
//! own marks; here the chat template puts them, and plain pairs get none.
//!
//! A rationale is encoded as a supervised text, with `data.max_len` and `data.encoding`. One whose prompt leaves no room has no term:
//! its record counts with the preference alone, and the mean over the batch still divides by all records.
//!
//! Shape letters: B records, M rationales.

use std::collections::BTreeMap;

use diptych_core::{Objective, Sft};
use diptych_tensor::Tensor;
use diptych_train::MicroBatch;

use super::engine::{Engine, Term};
use crate::Result;
use crate::arrangement::Sequence;
use crate::scoring::{Statistics, host, score};

/// The weighted term of each record of a micro batch, (B); none where no record has a rationale.
pub(super) fn term(engine: &Engine, batch: &MicroBatch, weight: f64) -> Result<Option<Term>> {
    let mut sequences: Vec<Sequence<'_>> = Vec::new();
    let mut weights: Vec<Option<&[f32]>> = Vec::new();
    // The place of each record's loss among those of the M rationales; none for a record without.
    let mut places: Vec<Option<u32>> = Vec::with_capacity(batch.items.len());
    for item in &batch.items {
        let record = &engine.records[item.index];
        places.push(record.rationale.as_ref().map(|_| sequences.len() as u32));
        if let Some(rationale) = &record.rationale {
            sequences.push(Sequence {
                id: &record.id,
                prompt: &rationale.prompt,
                response: &rationale.ids,
                images: &rationale.images,
            });
            weights.push(rationale.weights.as_deref());
        }
    }
    if sequences.is_empty() {
        return Ok(None);
    }
    let arranged = engine.arranged(&sequences)?;
    let policy = score(engine.network(), &arranged, Statistics::Skipped)?;
    let rationales = engine.summed(&arranged, &weights, &policy, None)?;
    let losses = Objective::from(Sft::default()).chosen_losses(&rationales)?;
    let lengths = rationales.lengths.as_ref().map(host).transpose()?.unwrap_or_default();
    Ok(Some(Term {
        losses: Term::weighted(&spread(&losses, &places)?, weight)?,
        metrics: BTreeMap::from([
            ("logps/rationale", host(&rationales.policy)?),
            ("lengths/rationale", lengths),
        ]),
        num_tokens: Term::count(&sequences),
    }))
}

/// The losses at their places, 0 where there is none: (M) to (B).
fn spread(losses: &Tensor, places: &[Option<u32>]) -> diptych_tensor::Result<Tensor> {
    let none = losses.dims1()? as u32;
    let places: Vec<u32> = places.iter().map(|place| place.unwrap_or(none)).collect();
    let zero = Tensor::zeros(1, losses.dtype(), losses.device())?;
    let places = Tensor::new(places, losses.device())?;
    Ok(Tensor::cat(&[losses, &zero], 0)?.index_select(&places, 0)?)
}
