//! Re-Align: what the model completes under another, similar image is rejected.
//!
//! # Paper
//! Xing et al., "Re-Align: Aligning Vision Language Models via Retrieval-Augmented Direct Preference Optimization", EMNLP 2025, arXiv:2502.13146: segments of
//! the chosen answer are masked; of the other images the nearest by the cosine of a vision encoder is retrieved; the model completes the masked
//! answer while it is shown that image; the result is rejected if it is not too similar (0.95). The retrieved image comes along
//! (`other_images`), for the visual term of rDPO.
//!
//! Differences: the program that builds the data was not released. What is masked are runs of words, drawn by seed, that begin with one that is no
//! function word. Similarity is the cosine of counts of words and of pairs of words, where the paper has a sentence encoder. Images are compared by the
//! model's own tower, or by a CLIP. Beside the paper's way, a request to fill in marks, there is `in_place`, which needs no model that follows requests: each
//! masked run is continued by as many tokens, everything else is kept word for word.

use std::ops::Range;

use diptych_data::{ImageSource, SpecialTokens, TextPrompt};
use rand::Rng as _;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::checks::{check_count, check_places, check_share, setting, unused};
use super::skip::Skip;
use super::speaker::{Ask, Seen, Speaker};
use super::words::{Word, similarity, words};
use super::workshop::{MAX_ASKS, OpenRow, Outcome, Purpose, Wanted, Workshop, decode, pair};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReAlign {
    /// Share of the words with content that are masked, above 0, at least one of them. Default 0.3.
    pub mask: f64,
    /// Words that are masked together, at most. Default 3.
    pub max_segment: usize,
    /// How masked segments are completed. Default `request`, the paper's way.
    pub completion: MaskCompletion,
    /// Pairs that are more similar are dropped. Default 0.95.
    pub max_similarity: f64,
    /// What is asked, with the masked answer at `{}`. Only where it is asked: not with `in_place`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What stands for a masked segment. Default `[MASK]`. Only where it is asked: not with `in_place`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

/// What is asked where the settings do not say.
const REQUEST: &str = "Parts of the following text about the image are replaced by [MASK]. Write the text again with every [MASK] replaced by what fits this \
                       image, and leave everything else as it is. Write nothing but the text.\n\n{}";

/// What stands for a masked segment where the settings do not say.
const MARK: &str = "[MASK]";

/// How masked segments are completed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskCompletion {
    /// The model is asked to write the answer with its marks filled in.
    #[default]
    Request,
    /// The model continues the answer up to each segment by as many tokens as the segment had.
    InPlace,
}

impl Default for ReAlign {
    fn default() -> Self {
        Self {
            mask: 0.3,
            max_segment: 3,
            completion: MaskCompletion::Request,
            max_similarity: 0.95,
            request: None,
            mark: None,
        }
    }
}

impl ReAlign {
    pub(super) fn validate(&self) -> Result<()> {
        if !(self.mask > 0.0 && self.mask <= 1.0) {
            return Err(setting("mask", self.mask, "a share above 0, up to 1"));
        }
        check_count("max_segment", self.max_segment, 1)?;
        check_share("max_similarity", self.max_similarity)?;
        if self.completion == MaskCompletion::InPlace {
            let given = [("request", &self.request), ("mark", &self.mark)];
            return match given.into_iter().find(|(_, value)| value.is_some()) {
                Some((key, _)) => Err(unused(key, "with `in_place` nothing is asked in words")),
                None => Ok(()),
            };
        }
        if let Some(request) = &self.request {
            check_places("request", request, &["{}"])?;
        }
        match &self.mark {
            Some(mark) if mark.trim().is_empty() => Err(setting("mark", format!("{mark:?}"), "a mark")),
            _ => Ok(()),
        }
    }

    pub(super) fn outcome(&self, shop: &Workshop<'_>, index: usize) -> Result<Outcome> {
        let Some(open) = shop.open(index, Wanted::One)? else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let Some(chosen) = shop.answer_of(open.row)? else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let masked = self.masked(shop, &open, &chosen);
        if masked.is_empty() {
            return Ok(Outcome::skipped(Skip::NothingToMask));
        }
        let nearest = shop
            .gallery
            .as_ref()
            .and_then(|gallery| gallery.nearest(shop.different_images(), &open.row.images()[0]));
        let Some((row, at)) = nearest else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let retrieved = &shop.rows[row].images()[at];
        let seen = [shop.speaker.look(&decode(shop.rows[row].id(), at, retrieved)?)?];
        let completed = match self.completion {
            MaskCompletion::Request => self.asked(shop, &open, &seen, &chosen, &masked)?,
            MaskCompletion::InPlace => Some(in_place(shop.speaker, &open, &seen, &chosen, &masked)?),
        };
        let Some(rejected) = completed else {
            return Ok(Outcome::skipped(Skip::UnfinishedAnswer));
        };
        let mut outcome = Outcome::default();
        let made = pair(open.row.id().to_owned(), &open.row.prompt, [&chosen, &rejected])?;
        outcome.add(made.and_then(|mut pair| {
            if similarity(&chosen, &rejected) >= self.max_similarity {
                return Err(Skip::TooSimilar);
            }
            pair.other_images = Some(vec![ImageSource::clone(retrieved)]);
            Ok(pair)
        }));
        Ok(outcome)
    }

    /// The runs of characters that are masked, in order and apart.
    fn masked(&self, shop: &Workshop<'_>, open: &OpenRow<'_>, answer: &str) -> Vec<Range<usize>> {
        let words = words(answer);
        let mut starts: Vec<usize> = (0..words.len()).filter(|at| words[*at].has_content()).collect();
        let wanted = ((starts.len() as f64 * self.mask).round() as usize).max(1);
        let mut rng = shop.random(Purpose::Mask, open.index);
        starts.shuffle(&mut rng);
        let mut is_masked = vec![false; words.len()];
        for start in starts {
            let hidden = |(word, masked): (&Word, &bool)| *masked && word.has_content();
            if words.iter().zip(&is_masked).filter(|both| hidden(*both)).count() >= wanted {
                break;
            }
            let len = rng.random_range(1..=self.max_segment);
            is_masked
                .iter_mut()
                .skip(start)
                .take(len)
                .for_each(|masked| *masked = true);
        }
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut is_open = false;
        for (word, masked) in words.iter().zip(&is_masked) {
            match runs.last_mut() {
                Some(run) if *masked && is_open => run.end = word.chars.end,
                _ if *masked => runs.push(word.chars.clone()),
                _ => {}
            }
            is_open = *masked;
        }
        runs
    }

    /// What the model makes of the answer with marks in the places of its masked runs; none where it does not come to an end.
    fn asked(
        &self,
        shop: &Workshop<'_>,
        open: &OpenRow<'_>,
        seen: &[Seen],
        answer: &str,
        masked: &[Range<usize>],
    ) -> Result<Option<String>> {
        let mark = self.mark.as_deref().unwrap_or(MARK);
        let letters: Vec<char> = answer.chars().collect();
        let (mut text, mut from) = (String::new(), 0);
        for run in masked {
            text.extend(&letters[from..run.start]);
            text.push_str(mark);
            from = run.end;
        }
        text.extend(&letters[from..]);
        let request = self.request.clone().unwrap_or_else(|| REQUEST.replace(MARK, mark));
        let prompt = TextPrompt {
            prompt: shop.speaker.request(&request.replace("{}", &text), 1)?,
            ..open.row.prompt.clone()
        };
        let said = shop.speaker.answers(&[Workshop::ask(open.index, 0, &prompt, seen)])?;
        Ok(said.into_iter().find(|said| !shop.is_cut(said)).map(|said| said.text))
    }
}

/// The answer with each masked run continued under what is seen.
fn in_place(
    speaker: &Speaker,
    open: &OpenRow<'_>,
    seen: &[Seen],
    answer: &str,
    masked: &[Range<usize>],
) -> Result<String> {
    let prompt = &open.row.prompt;
    let text = Speaker::completion(prompt, answer)?.content();
    // The space before an answer to plain text.
    let shift = text.chars().count() - answer.chars().count();
    let tokens = speaker.tokenizer().encode(&text, SpecialTokens::Omit)?;
    let is_masked = |token: &Range<usize>| {
        let touches = |run: &Range<usize>| token.start < run.end + shift && run.start + shift < token.end;
        masked.iter().any(touches)
    };
    let flags: Vec<bool> = tokens.offsets.iter().map(is_masked).collect();
    let (mut said, mut at, mut number) = (Vec::with_capacity(tokens.ids.len()), 0, 0);
    while at < flags.len() {
        if !flags[at] {
            said.push(tokens.ids[at]);
            at += 1;
            continue;
        }
        let len = flags[at..].iter().take_while(|masked| **masked).count();
        let ask = Ask {
            prompt,
            images: seen.iter().collect(),
            begun: &said,
            key: open.index as u64 * MAX_ASKS + number,
        };
        let mut continued = speaker.go_on(&[ask], len)?;
        said.extend(continued.pop().map(|said| said.tokens).unwrap_or_default());
        (at, number) = (at + len, number + 1);
    }
    Ok(speaker
        .tokenizer()
        .decode(&said, SpecialTokens::Omit)?
        .trim()
        .to_owned())
}
