//! LLaVA-Hound: answers about a video, judged by a reader of its caption.
//!
//! # Paper
//! Zhang et al., "Direct Preference Optimization of Video Large Multimodal Models from Language Model Reward" (LLaVA-Hound), NAACL 2025, arXiv:2404.01258: several
//! answers to a prompt about a video; a language model that sees a detailed caption in the place of the frames scores each from 1 to 5; an answer
//! with 3 or more is chosen over one with less.
//!
//! Differences: the judge is a local model, and the score is its expectation: the probabilities of the words of the scale as the next token, normalized,
//! times 1, 2, ...; the paper lets GPT-4V write the caption and `ChatGPT` an explanation and a number. Of a row the best answer is paired with the worst.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checks::{check_places, check_word, setting};
use super::journal::io;
use super::problem::BuildProblem;
use super::sampled::{Sampled, check_num_answers};
use super::self_correction::question;
use super::skip::Skip;
use super::workshop::{Outcome, Wanted, Workshop, pair};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LlavaHound {
    /// JSON lines with `id` and `caption`: what the judge reads in the place of the frames of a row. There is no default.
    pub captions: PathBuf,
    /// Answers to each prompt. Default 6.
    pub num_answers: usize,
    /// What the judge is asked, with the caption at `{caption}`, the prompt's words at `{question}` and the answer at `{answer}`.
    pub judgment: String,
    /// The words of the scale, from the worst to the best, which begin with different tokens. Default 1 to 5.
    pub scale: Vec<String>,
    /// The score that a chosen answer has, at least, and a rejected one has not. Default 3.
    pub limit: f64,
}

impl Default for LlavaHound {
    fn default() -> Self {
        Self {
            captions: PathBuf::new(),
            num_answers: 6,
            judgment: "You cannot see the video, but this is what it shows:\n{caption}\n\nQuestion: {question}\nAnswer: {answer}\n\nHow well does the \
                       answer agree with what the video shows, from 1 (not at all) to 5 (entirely)? Say only the number."
                .to_owned(),
            scale: ["1", "2", "3", "4", "5"].map(str::to_owned).to_vec(),
            limit: 3.0,
        }
    }
}

/// A line of a file of captions.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaptionRow {
    id: String,
    caption: String,
}

/// Captions by the ids of rows.
pub(super) fn read_captions(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).map_err(io("read", path))?;
    let mut captions = BTreeMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |reason: String| BuildProblem::Captions {
            path: path.to_owned(),
            line: at + 1,
            reason,
        };
        let row: CaptionRow = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        if captions.insert(row.id.clone(), row.caption).is_some() {
            return Err(wrong(format!("the id {:?} stands in a line before", row.id)).into());
        }
    }
    Ok(captions)
}

impl LlavaHound {
    /// With captions, and everything else as it is by default.
    pub fn new(captions: PathBuf) -> Self {
        Self {
            captions,
            ..Self::default()
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.captions.as_os_str().is_empty() {
            return Err(setting("captions", "nothing", "a JSON lines file with id and caption"));
        }
        check_num_answers(self.num_answers)?;
        check_places("judgment", &self.judgment, &["{caption}", "{answer}"])?;
        if self.scale.len() < 2 {
            return Err(setting("scale", format!("{:?}", self.scale), "two or more words"));
        }
        self.scale.iter().try_for_each(|word| check_word("scale", word))?;
        if !(1.0..=self.scale.len() as f64).contains(&self.limit) {
            return Err(setting("limit", self.limit, "a score of the scale"));
        }
        Ok(())
    }

    /// The words of the scale.
    pub(super) fn scale(&self) -> Vec<&str> {
        self.scale.iter().map(String::as_str).collect()
    }

    pub(super) fn outcome(&self, shop: &Workshop<'_>, index: usize) -> Result<Outcome> {
        let Some(open) = shop.open(index, Wanted::Some)? else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let Some(caption) = shop.captions.get(open.row.id()) else {
            return Ok(Outcome::skipped(Skip::NoCaption));
        };
        let Sampled {
            answers, mut outcome, ..
        } = Sampled::of(shop, &open, self.num_answers)?;
        if answers.is_empty() {
            return Ok(outcome);
        }
        let question = question(&open.row.prompt.prompt);
        let judgment = self
            .judgment
            .replace("{caption}", caption)
            .replace("{question}", &question);
        let prompts = answers
            .iter()
            .map(|answer| shop.judge_prompt(open.row, &judgment.replace("{answer}", answer), 0))
            .collect::<Result<Vec<_>>>()?;
        let asks: Vec<_> = prompts
            .iter()
            .map(|prompt| Workshop::ask(index, 0, prompt, &[]))
            .collect();
        let scores: Vec<f64> = shop
            .judge()
            .word_probabilities(&asks, &self.scale())?
            .iter()
            .map(|said| expected(said))
            .collect();
        let order = |first: &usize, second: &usize| scores[*first].total_cmp(&scores[*second]);
        let best = (0..scores.len()).max_by(order).filter(|at| scores[*at] >= self.limit);
        let worst = (0..scores.len()).min_by(order).filter(|at| scores[*at] < self.limit);
        let (Some(best), Some(worst)) = (best, worst) else {
            return Ok(outcome.and(Skip::NoGap));
        };
        let made = pair(
            open.row.id().to_owned(),
            &open.row.prompt,
            [&answers[best], &answers[worst]],
        )?;
        outcome.add(made.map(|mut pair| {
            (pair.chosen_score, pair.rejected_score) = (Some(scores[best]), Some(scores[worst]));
            pair
        }));
        Ok(outcome)
    }
}

/// The mean place on the scale, from 1.
fn expected(probabilities: &[f64]) -> f64 {
    let total: f64 = probabilities.iter().sum();
    let weighted = probabilities
        .iter()
        .enumerate()
        .map(|(at, probability)| (at + 1) as f64 * probability);
    weighted.sum::<f64>() / total.max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_expectations() {
        assert!((expected(&[0.0, 0.0, 0.2]) - 3.0).abs() < 1e-12);
        assert!((expected(&[0.1, 0.0, 0.1]) - 2.0).abs() < 1e-12);
    }

    #[test]
    fn captions_have_ids_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("captions.jsonl");
        let line = |id: &str| format!("{{\"id\": \"{id}\", \"caption\": \"a dog\"}}\n");
        std::fs::write(&path, [line("0"), line("1")].concat()).unwrap();
        assert_eq!(read_captions(&path).unwrap().len(), 2);
        std::fs::write(&path, [line("0"), "\n".to_owned(), line("0")].concat()).unwrap();
        let error = read_captions(&path).unwrap_err();
        assert!(error.to_string().contains("captions.jsonl, line 3"), "{error}");
        std::fs::write(&path, "{\"id\": \"0\"}").unwrap();
        assert!(read_captions(&path).unwrap_err().to_string().contains("line 1"));
        assert!(read_captions(&folder.path().join("none")).is_err());
    }
}
