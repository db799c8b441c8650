//! How far the policy's distributions are from the reference's, token by token along the answers of the data.
//!
//! # Papers
//! With `KL_y = sum_t sum_v p_ref(v) (log p_ref(v) - log p(v))` over the tokens of an answer, teacher-forced:
//!
//! - Zeng et al., "Token-level Direct Preference Optimization", ICML 2024, arXiv:2404.11999 (TDPO):
//!   `-log s(beta (A_w - A_l) - weight beta (KL_l - sg KL_w))`, TDPO2, with the stop of the gradient `sg` and the paper's alpha as weight;
//!   TDPO1 is the same without the stop and with weight 1.
//! - Fu et al., "`CHiP`: Cross-modal Hierarchical Direct Preference Optimization for Multimodal LLMs", ICLR 2025, arXiv:2501.16629: the same term
//!   beside an image preference; its published program puts all of them into one sigmoid. An additive form of this term is not here.
//! - Sarkar et al., "Self-alignment of Large Video Language Models with Refined Regularized Preference Optimization", Neural Information
//!   Processing Systems 2025, arXiv:2504.12083 (RRPO): `weight KL_w` added to the loss.
//!
//! Convention: sums over tokens. Within the sigmoid a divergence is added to the score of its answer, `log p(y) + weight KL_y`, which is
//! the same number for `dpo` and gives every other objective of log-ratios such a form too. Rewards that are logged have the weighted
//! divergence in them; the published programs log it there without its weight. What counts is every token of an answer, each by itself: not more where
//! spans of the data or `token_weights` weigh it more, and also where they weigh it with nothing. RRPO's penalty is that of whole answers beside
//! scores of phrases alone.
//!
//! Reference code: LVUGAI/CHiP `muffin/train/trainers.py`, pritamqu/RRPO `losses.py`. Differences: none.
//!
//! Shape letters: B records, M responses, N response tokens of the batch.

use diptych_core::{PairLogps, Requirements};
use diptych_tensor::{Tensor, ops};
use diptych_train::StepOutput;
use serde::{Deserialize, Serialize};

use super::engine::{Batch, Term};
use super::texts::Texts;
use crate::reference::ResponsePlace;
use crate::scoring::{Gathering, Scored, host};
use crate::{Error, Result};

/// `[method.offline_pairs.token_divergence]`: needs a reference whose network is there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenDivergenceConfig {
    /// Factor of the divergence, at least 0. With 0 it is only measured. TDPO has 0.5, `CHiP` 0.1, RRPO 0.01 to 0.1.
    pub weight: f64,
    /// Where it enters.
    #[serde(default)]
    pub role: DivergenceRole,
}

/// Where a divergence enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DivergenceRole {
    /// Both answers' within the objective's log-ratios, that of the chosen one as a constant: TDPO2, `CHiP`.
    #[default]
    Margin,
    /// The same, and that of the chosen answer is learned too: TDPO1.
    MarginOfBoth,
    /// That of the chosen answer beside the objective: RRPO.
    Penalty,
}

impl TokenDivergenceConfig {
    /// The first value out of its range, or without a use: key, what was found, what was expected.
    pub(crate) fn problem(&self, needs: Requirements) -> Option<(&'static str, String, &'static str)> {
        if !(self.weight.is_finite() && self.weight >= 0.0) {
            let expected = "a finite number, at least 0";
            return Some(("token_divergence.weight", self.weight.to_string(), expected));
        }
        let reason = match self.role {
            DivergenceRole::Penalty => return None,
            _ if !needs.reference => "does not look at log-ratios",
            _ if needs.tokens || needs.collisions => "looks at the scores of single tokens",
            _ => return None,
        };
        let found = format!("a part of log-ratios, while the objective {reason}");
        Some((
            "token_divergence.role",
            found,
            "`penalty`, or an objective of log-ratios as `dpo`",
        ))
    }
}

/// The divergences of a micro batch of pairs, (B) each.
pub(super) struct Divergences {
    pub(super) chosen: Tensor,
    /// Not where nothing looks at it.
    pub(super) rejected: Option<Tensor>,
}

impl TokenDivergenceConfig {
    /// The divergences of the answers at `places`, which are pairs, chosen before rejected.
    pub(super) fn measure(&self, texts: &Texts<'_>, places: &[ResponsePlace], batch: &Batch) -> Result<Divergences> {
        let answers: &[usize] = match self.role {
            DivergenceRole::Margin | DivergenceRole::MarginOfBoth => &[0, 1],
            DivergenceRole::Penalty => &[0],
        };
        let sums = sums(texts, places, batch, answers)?;
        let side = |side: u32| {
            let at: Vec<u32> = (side..places.len() as u32).step_by(2).collect();
            let taken = || -> diptych_tensor::Result<Tensor> {
                Ok(sums.index_select(&Tensor::new(at.as_slice(), sums.device())?, 0)?)
            };
            taken()
        };
        Ok(Divergences {
            chosen: side(0)?,
            rejected: (answers.len() == 2).then(|| side(1)).transpose()?,
        })
    }

    /// The pairs as the objective is given them.
    pub(super) fn enter(&self, pairs: &PairLogps, divergences: &Divergences) -> Result<PairLogps> {
        let mut entered = pairs.clone();
        let Some(rejected) = &divergences.rejected else {
            return Ok(entered);
        };
        let chosen = match self.role {
            DivergenceRole::MarginOfBoth => divergences.chosen.clone(),
            DivergenceRole::Margin | DivergenceRole::Penalty => divergences.chosen.detach(),
        };
        let add = |score: &Tensor, divergence: &Tensor| -> diptych_tensor::Result<Tensor> {
            Ok((score + (divergence.to_dtype(score.dtype())? * self.weight)?)?)
        };
        entered.chosen.policy = add(&pairs.chosen.policy, &chosen)?;
        entered.rejected.policy = add(&pairs.rejected.policy, rejected)?;
        Ok(entered)
    }

    /// What stands beside the objective, with what is logged in every role.
    pub(super) fn add_to(&self, divergences: &Divergences, step: &mut StepOutput) -> Result<()> {
        step.metrics.insert("kl/chosen", host(&divergences.chosen)?);
        if let Some(rejected) = &divergences.rejected {
            step.metrics.insert("kl/rejected", host(rejected)?);
            return Ok(());
        }
        let dtype = step.losses.dtype();
        let term =
            || -> diptych_tensor::Result<Tensor> { Term::weighted(&divergences.chosen.to_dtype(dtype)?, self.weight) };
        Term {
            losses: term()?,
            metrics: [].into(),
            num_tokens: 0.0,
        }
        .add_to(step)
    }
}

/// The divergence of every response, (M); 0 for those of sides that are not asked for.
fn sums(texts: &Texts<'_>, places: &[ResponsePlace], batch: &Batch, sides: &[usize]) -> Result<Tensor> {
    let is_asked = |at: &usize| sides.contains(&(at % 2));
    let tokens: Vec<usize> = (0..places.len())
        .filter(is_asked)
        .flat_map(|at| batch.arranged.responses[at].clone())
        .collect();
    let policy = texts.engine.network();
    let rows = |scored: &Scored| scored.predicting(&batch.arranged, tokens.iter().copied());
    let own = policy.language_model().token_head(&rows(&batch.policy)?)?;
    let other = rows(batch.reference.as_ref().ok_or(Error::NoDistributions)?)?;
    let divergences = texts.engine.reference.with_network(policy, |reference| {
        let other = reference.language_model().token_head(&other)?;
        Ok(ops::token_divergences(&own, &other)?)
    })?;
    let divergences = divergences.ok_or(Error::NoDistributions)?;
    let num = batch.arranged.targets.len();
    let per_token = spread(&divergences, &tokens, num)?;
    let masks: Vec<Vec<f32>> = places
        .iter()
        .zip(&batch.arranged.responses)
        .map(|(place, tokens)| texts.counted(*place, tokens.len()))
        .collect();
    let masks: Vec<Option<&[f32]>> = masks.iter().map(|mask| Some(mask.as_slice())).collect();
    Gathering::try_new(&batch.arranged, &masks, divergences.dtype(), divergences.device())?.sum(&per_token)
}

/// Values of some tokens among all N of a batch, 0 for the others.
fn spread(values: &Tensor, tokens: &[usize], num: usize) -> diptych_tensor::Result<Tensor> {
    let mut at = vec![tokens.len() as u32; num];
    for (place, token) in tokens.iter().enumerate() {
        at[*token] = place as u32;
    }
    let zero = Tensor::zeros(1, values.dtype(), values.device())?;
    let at = Tensor::new(at, values.device())?;
    Ok(Tensor::cat(&[values, &zero], 0)?.index_select(&at, 0)?)
}
