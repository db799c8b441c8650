//! RLAIF-V: of several answers those with fewer refuted claims are chosen.
//!
//! # Paper
//! Yu et al., "RLAIF-V: Open-Source AI Feedback Leads to Super GPT-4V Trustworthiness", CVPR 2025, arXiv:2405.17220, section 3.1 and 3.2. Reference code: RLHF-V/RLAIF-V
//! `utils/pair_construction.py`, `utils/get_pairs_filter_shorten.py`: several answers to one prompt, sampled alike but for the seed; each is taken
//! apart into claims; a labeller is asked about each; the score is minus the number of claims for which the probability of yes, with a capital letter or
//! without, is not above that of no. All pairs of answers whose scores differ by at least 1 are made, and some are kept; then pairs whose chosen answer
//! is too much shorter are dropped, by the share (0, 0.02, ...) at which the mean lengths of both sides are nearest.
//!
//! Differences: claims are sentences or clauses of the answer and the judge is asked whether they hold; the paper has a language model extract them and
//! turn them into questions. The judge is the model itself or another local vision-language model.

use std::collections::BTreeSet;

use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checks::check_count;
use super::claims::{ClaimSettings, Verdicts, part};
use super::journal::StagedRow;
use super::sampled::{Sampled, check_num_answers};
use super::skip::Skip;
use super::workshop::{Outcome, Purpose, Wanted, Workshop, pair};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RlaifV {
    /// Answers to each prompt. Default 10.
    pub num_answers: usize,
    /// Refuted claims that one answer has more than the other, at least. Default 1.
    pub min_gap: usize,
    /// Pairs of a row, at most, drawn by seed. Default 2.
    pub max_pairs: usize,
    /// How answers are taken apart and judged.
    pub claims: ClaimSettings,
    /// What becomes of pairs whose chosen answer is much shorter. Default `balanced`.
    pub lengths: Lengths,
}

/// What becomes of pairs whose chosen answer is much shorter than the rejected one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// Those are dropped without which the mean lengths of both sides are nearest.
    #[default]
    Balanced,
    /// All are kept.
    Any,
}

impl Default for RlaifV {
    fn default() -> Self {
        Self {
            num_answers: 10,
            min_gap: 1,
            max_pairs: 2,
            claims: ClaimSettings::default(),
            lengths: Lengths::Balanced,
        }
    }
}

impl RlaifV {
    pub(super) fn validate(&self) -> Result<()> {
        check_num_answers(self.num_answers)?;
        check_count("min_gap", self.min_gap, 1)?;
        check_count("max_pairs", self.max_pairs, 1)?;
        self.claims.validate()
    }

    pub(super) fn outcome(&self, shop: &Workshop<'_>, index: usize) -> Result<Outcome> {
        let Some(open) = shop.open(index, Wanted::Some)? else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let Sampled {
            answers,
            seen,
            mut outcome,
        } = Sampled::of(shop, &open, self.num_answers)?;
        if answers.is_empty() {
            return Ok(outcome);
        }
        let claims: Vec<Vec<String>> = answers
            .iter()
            .map(|answer| {
                self.claims
                    .split(answer)
                    .iter()
                    .map(|claim| part(answer, claim))
                    .collect()
            })
            .collect();
        if claims.iter().all(Vec::is_empty) {
            return Ok(outcome.and(Skip::NoClaims));
        }
        let seen = shop.judge_sees(&open, seen)?;
        let verdicts = Verdicts::ask(&self.claims, shop, (&open, &seen), claims.iter().flatten().cloned())?;
        let refuted = |claims: &Vec<String>| claims.iter().filter(|claim| verdicts.is_refuted(claim)).count();
        let scores: Vec<usize> = claims.iter().map(refuted).collect();
        let mut sides: Vec<(usize, usize)> = (0..answers.len())
            .flat_map(|first| (0..answers.len()).map(move |second| (first, second)))
            .filter(|(chosen, rejected)| {
                !claims[*chosen].is_empty() && scores[*chosen] + self.min_gap <= scores[*rejected]
            })
            .collect();
        if sides.is_empty() {
            return Ok(outcome.and(Skip::NoGap));
        }
        // Samples that say the same make the same pair.
        let mut seen = BTreeSet::new();
        sides.retain(|(chosen, rejected)| seen.insert((&answers[*chosen], &answers[*rejected])));
        sides.shuffle(&mut shop.random(Purpose::Subset, index));
        for (number, (chosen, rejected)) in sides.into_iter().take(self.max_pairs).enumerate() {
            let id = format!("{}-{number}", open.row.id());
            let made = pair(id, &open.row.prompt, [&answers[chosen], &answers[rejected]])?;
            outcome.add(made.map(|mut pair| {
                pair.chosen_score = Some(-(scores[chosen] as f64));
                pair.rejected_score = Some(-(scores[rejected] as f64));
                pair
            }));
        }
        Ok(outcome)
    }

    /// Drops the pairs whose chosen answer is too much shorter. Says how many.
    pub(super) fn balance(&self, pairs: &mut Vec<&StagedRow>) -> usize {
        if self.lengths == Lengths::Any || pairs.is_empty() {
            return 0;
        }
        let lengths: Vec<[f64; 2]> = pairs.iter().map(|pair| lengths(&pair.row)).collect();
        let limit = balanced_share(&lengths);
        let before = pairs.len();
        let mut lengths = lengths.into_iter();
        pairs.retain(|_| lengths.next().is_some_and(|lengths| shorter_share(lengths) <= limit));
        before - pairs.len()
    }
}

/// By how much of the rejected answer the chosen one is shorter.
fn shorter_share([chosen, rejected]: [f64; 2]) -> f64 {
    (rejected - chosen) / rejected.max(1.0)
}

/// The share (0, 0.02, ...) that, as a limit, brings the mean lengths of both sides nearest.
fn balanced_share(lengths: &[[f64; 2]]) -> f64 {
    let mut best = (f64::INFINITY, 1.0);
    for step in 0..50 {
        let limit = f64::from(step) * 0.02;
        let kept = lengths.iter().filter(|lengths| shorter_share(**lengths) <= limit);
        let (mut total, mut count) = ([0.0, 0.0], 0.0);
        for [chosen, rejected] in kept {
            total = [total[0] + chosen, total[1] + rejected];
            count += 1.0;
        }
        if count > 0.0 {
            let difference = (total[0] - total[1]).abs() / total[1].max(1.0);
            if difference < best.0 {
                best = (difference, limit);
            }
        }
    }
    best.1
}

/// Words of both sides of a row.
fn lengths(row: &Map<String, Value>) -> [f64; 2] {
    ["chosen", "rejected"].map(|side| row.get(side).map_or(0, num_words) as f64)
}

fn num_words(text: &Value) -> usize {
    match text {
        Value::String(text) => text.split_whitespace().count(),
        Value::Array(messages) => messages
            .iter()
            .filter_map(|message| message.get("content"))
            .map(num_words)
            .sum(),
        Value::Object(block) => block.get("text").map_or(0, num_words),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_balanced_by_the_share_that_the_published_search_finds() {
        // RLAIF-V's `cal_pair_search_difflen` on these lengths, in NumPy: 0.2 leaves (9, 8), (8, 10) and (10, 9) with means 9 and 9.
        let lengths = [[9.0, 8.0], [8.0, 10.0], [10.0, 9.0], [2.0, 20.0], [5.0, 9.0]];
        assert!((balanced_share(&lengths) - 0.2).abs() < 1e-12);
        assert!((balanced_share(&[[1.0, 2.0]]) - 0.5).abs() < 1e-12);
    }
}
