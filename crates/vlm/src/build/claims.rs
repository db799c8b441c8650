//! Claims of answers, and what a judge says of each.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use diptych_data::TextPrompt;
use serde::{Deserialize, Serialize};

use super::checks::{check_places, check_word};
use super::speaker::{Ask, Seen};
use super::workshop::{OpenRow, Workshop};
use crate::Result;

/// How answers are taken apart, and how a judge is asked about the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimSettings {
    /// Where claims part. Default: at the ends of sentences.
    pub split: ClaimSplit,
    /// What the judge is asked about a claim, which stands at `{}`; it says `yes` or `no`.
    pub question: String,
    /// The word for a claim that holds. Default `yes`.
    pub yes: String,
    /// The word for a claim that does not. Default `no`.
    pub no: String,
}

/// Where claims part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimSplit {
    /// At the ends of sentences and lines.
    #[default]
    Sentences,
    /// Also at commas, semicolons and `and`.
    Clauses,
}

impl Default for ClaimSettings {
    fn default() -> Self {
        Self {
            split: ClaimSplit::Sentences,
            question: "Does the following statement hold for the image? Answer with yes or no.\n{}".to_owned(),
            yes: "yes".to_owned(),
            no: "no".to_owned(),
        }
    }
}

impl ClaimSettings {
    pub(super) fn validate(&self) -> Result<()> {
        check_places("claims.question", &self.question, &["{}"])?;
        for (key, word) in [("claims.yes", &self.yes), ("claims.no", &self.no)] {
            check_word(key, word)?;
        }
        Ok(())
    }

    /// The words between which a judge decides.
    pub(super) fn verdicts(&self) -> [&str; 2] {
        [&self.yes, &self.no]
    }

    /// The claims of an answer: their characters, in order and apart, with no white space or end around them.
    pub(super) fn split(&self, text: &str) -> Vec<Range<usize>> {
        let letters: Vec<char> = text.chars().collect();
        let is_end = |at: usize| {
            let next_is_space = letters.get(at + 1).is_none_or(|next| next.is_whitespace());
            match letters[at] {
                '\n' => true,
                '.' | '!' | '?' => next_is_space,
                ',' | ';' => self.split == ClaimSplit::Clauses && next_is_space,
                _ => false,
            }
        };
        let is_and = |at: usize| {
            let word: String = letters[at..].iter().take(5).collect();
            self.split == ClaimSplit::Clauses && word == " and "
        };
        let (mut claims, mut start, mut at) = (Vec::new(), 0, 0);
        while at < letters.len() {
            let skipped = match () {
                () if is_end(at) => 1,
                () if is_and(at) => 5,
                () => 0,
            };
            if skipped > 0 {
                claims.push(start..at);
                start = at + skipped;
            }
            at += skipped.max(1);
        }
        claims.push(start..letters.len());
        let trimmed = |range: Range<usize>| {
            let is_word = |at: &usize| letters[*at].is_alphanumeric();
            let first = range.clone().find(is_word)?;
            let last = range.rev().find(is_word)?;
            Some(first..last + 1)
        };
        claims.into_iter().filter_map(trimmed).collect()
    }
}

/// What a judge said of claims about one row's images: each is asked about once.
pub(super) struct Verdicts(BTreeMap<String, [f64; 2]>);

impl Verdicts {
    /// Asks about the claims on a row whose images the judge has seen.
    pub(super) fn ask(
        settings: &ClaimSettings,
        shop: &Workshop<'_>,
        (open, seen): (&OpenRow<'_>, &[Seen]),
        claims: impl IntoIterator<Item = String>,
    ) -> Result<Self> {
        let different: BTreeSet<String> = claims.into_iter().collect();
        let prompts = different
            .iter()
            .map(|claim| shop.judge_prompt(open.row, &settings.question.replace("{}", claim), seen.len()))
            .collect::<Result<Vec<TextPrompt>>>()?;
        // Nothing is drawn: one key is as good as another.
        let asks: Vec<Ask<'_>> = prompts
            .iter()
            .map(|prompt| Workshop::ask(open.index, 0, prompt, seen))
            .collect();
        let said = shop.judge().word_probabilities(&asks, &settings.verdicts())?;
        let said = said.iter().map(|said| [said[0], said[1]]);
        Ok(Self(different.into_iter().zip(said).collect()))
    }

    /// Whether a claim is not found to hold: RLAIF-V takes what is as likely refused as accepted for refused.
    pub(super) fn is_refuted(&self, claim: &str) -> bool {
        self.0.get(claim).is_some_and(|[yes, no]| yes <= no)
    }

    /// How much rather a claim holds: the difference of both probabilities.
    pub(super) fn score(&self, claim: &str) -> f64 {
        self.0.get(claim).map_or(0.0, |[yes, no]| yes - no)
    }
}

/// Characters of a text.
pub(super) fn part(text: &str, range: &Range<usize>) -> String {
    text.chars().skip(range.start).take(range.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_part_at_sentences_and_clauses() {
        let text = "A dog, 2.5 years old, sits. It sleeps and dreams!\n- a cat";
        let parts = |split| {
            let settings = ClaimSettings {
                split,
                ..ClaimSettings::default()
            };
            let claims = settings.split(text);
            claims.iter().map(|claim| part(text, claim)).collect::<Vec<_>>()
        };
        let sentences = ["A dog, 2.5 years old, sits", "It sleeps and dreams", "a cat"];
        assert_eq!(parts(ClaimSplit::Sentences), sentences);
        let clauses = ["A dog", "2.5 years old", "sits", "It sleeps", "dreams", "a cat"];
        assert_eq!(parts(ClaimSplit::Clauses), clauses);
        assert!(ClaimSettings::default().split(" .\n!").is_empty());
    }
}
