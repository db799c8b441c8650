//! TPO by topics: an answer with the best that was said on each of its topics is chosen over the same with the worst.
//!
//! # Paper
//! He et al., "A Topic-level Self-Correctional Approach to Mitigate Hallucinations in MLLMs" (TPO), arXiv:2411.17265: several answers to a prompt are taken apart into
//! claims; claims are grouped into topics; each is scored by whether the model says yes to it; in an answer every claim is overwritten with the best
//! claim of its topic, and for the rejected side with the worst.
//!
//! Differences: claims are sentences or clauses, and a topic is what shares words with content (Jaccard above `likeness`, joined in chains), where the paper
//! extracts claims with a language model, groups them by CLIP and Louvain's method, asks for alternatives topic by topic and has a language
//! model write the answers together. Here a claim takes the place of the other word for word, so that both sides keep form and length.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::checks::setting;
use super::claims::{ClaimSettings, Verdicts, part};
use super::sampled::{Sampled, check_num_answers};
use super::skip::Skip;
use super::words::{Word, words};
use super::workshop::{Outcome, Wanted, Workshop, pair};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tpo {
    /// Answers to each prompt. Default 10.
    pub num_answers: usize,
    /// Two claims are of one topic if they share this part of their words with content. Default 0.3.
    pub likeness: f64,
    /// Best and worst claim of a topic must differ by this in score, probability of yes minus that of no, to be exchanged. Default 0.1.
    pub min_gap: f64,
    /// How answers are taken apart and judged.
    pub claims: ClaimSettings,
}

impl Default for Tpo {
    fn default() -> Self {
        Self {
            num_answers: 10,
            likeness: 0.3,
            min_gap: 0.1,
            claims: ClaimSettings::default(),
        }
    }
}

impl Tpo {
    pub(super) fn validate(&self) -> Result<()> {
        check_num_answers(self.num_answers)?;
        if !(self.likeness > 0.0 && self.likeness <= 1.0) {
            return Err(setting("likeness", self.likeness, "a share above 0, up to 1"));
        }
        if !(0.0..=2.0).contains(&self.min_gap) {
            return Err(setting("min_gap", self.min_gap, "a difference, 0 to 2"));
        }
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
        let claims: Vec<Vec<Range<usize>>> = answers.iter().map(|answer| self.claims.split(answer)).collect();
        let all: Vec<String> = answers
            .iter()
            .zip(&claims)
            .flat_map(|(answer, claims)| claims.iter().map(|claim| part(answer, claim)))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        // The first answer is the one that is overwritten.
        if claims.first().is_none_or(Vec::is_empty) {
            return Ok(outcome.and(Skip::NoClaims));
        }
        let topics = topics(&all, self.likeness);
        let seen = shop.judge_sees(&open, seen)?;
        let verdicts = Verdicts::ask(&self.claims, shop, (&open, &seen), all.iter().cloned())?;
        let overwritten = |side: Side| {
            overwrite(&answers[0], &claims[0], |claim, used| {
                self.exchanged(side, claim, (&all, &topics), &verdicts, used)
            })
        };
        let (chosen, rejected) = (overwritten(Side::Chosen), overwritten(Side::Rejected));
        outcome.add(pair(open.row.id().to_owned(), &open.row.prompt, [&chosen, &rejected])?);
        Ok(outcome)
    }

    /// What stands in the place of a claim on one side: what is best or worst on its topic and not said yet.
    fn exchanged(
        &self,
        side: Side,
        claim: &str,
        (all, topics): (&[String], &[usize]),
        verdicts: &Verdicts,
        used: &BTreeSet<String>,
    ) -> String {
        let Some(topic) = all.iter().position(|other| other == claim).map(|at| topics[at]) else {
            return claim.to_owned();
        };
        let of_topic = all.iter().zip(topics).filter(|(_, other)| **other == topic);
        let scored: Vec<(&String, f64)> = of_topic.map(|(claim, _)| (claim, verdicts.score(claim))).collect();
        let highest = scored.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let lowest = scored.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
        if highest - lowest < self.min_gap {
            return claim.to_owned();
        }
        let free = scored.into_iter().filter(|(other, _)| !used.contains(*other));
        let best = match side {
            Side::Chosen => free.max_by(|first, second| first.1.total_cmp(&second.1)),
            Side::Rejected => free.min_by(|first, second| first.1.total_cmp(&second.1)),
        };
        best.map_or_else(|| claim.to_owned(), |(best, _)| best.clone())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Chosen,
    Rejected,
}

/// The answer with each claim exchanged; everything between claims stays.
fn overwrite(answer: &str, claims: &[Range<usize>], exchange: impl Fn(&str, &BTreeSet<String>) -> String) -> String {
    let letters: Vec<char> = answer.chars().collect();
    let (mut text, mut from, mut used) = (String::new(), 0, BTreeSet::new());
    for claim in claims {
        text.extend(&letters[from..claim.start]);
        let exchanged = exchange(&part(answer, claim), &used);
        text.push_str(&exchanged);
        used.insert(exchanged);
        from = claim.end;
    }
    text.extend(&letters[from..]);
    text
}

/// The topic of each claim: claims that share enough of their words, and those that share enough with these.
fn topics(claims: &[String], likeness: f64) -> Vec<usize> {
    let content = |claim: &String| -> BTreeSet<String> {
        let words = words(claim).into_iter();
        words.filter(Word::has_content).map(|word| word.text).collect()
    };
    let contents: Vec<BTreeSet<String>> = claims.iter().map(content).collect();
    let mut topics: Vec<usize> = (0..claims.len()).collect();
    for first in 0..claims.len() {
        for second in 0..first {
            let shared = contents[first].intersection(&contents[second]).count();
            let either = contents[first].union(&contents[second]).count();
            if shared > 0 && shared as f64 >= likeness * either as f64 {
                let (from, to) = (topics[first], topics[second]);
                topics
                    .iter_mut()
                    .filter(|topic| **topic == from)
                    .for_each(|topic| *topic = to);
            }
        }
    }
    topics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_that_share_words_are_of_one_topic() {
        let claims = ["a red dog", "a blue dog", "a blue car", "two cats"].map(str::to_owned);
        let found = topics(&claims, 0.3);
        assert!(
            found[0] == found[1] && found[1] == found[2] && found[2] != found[3],
            "{found:?}"
        );
        let found = topics(&claims, 0.5);
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn claims_are_exchanged_in_their_places() {
        let text = "A dog. Two cats!";
        let claims = ClaimSettings::default().split(text);
        let shouted = overwrite(text, &claims, |claim, used| {
            format!("{}{}", claim.to_uppercase(), used.len())
        });
        assert_eq!(shouted, "A DOG0. TWO CATS1!");
    }
}
