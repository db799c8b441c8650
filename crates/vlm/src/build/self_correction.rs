//! Self-correction learning: the model looks at its own answer again; of the two the right one is chosen where the other is wrong.
//!
//! # Paper
//! He et al., "Self-Correction is More than Refinement: A Learning Framework for Visual and Language Reasoning Tasks" (SCL), Findings of ACL 2025,
//! arXiv:2410.04055: the model answers, is asked to look at its answer again and corrects it; rows where exactly one of both is right become pairs of the right
//! and the wrong answer, whichever came first; rows with two right or two wrong answers are left out.
//!
//! Differences: an answer is right if it says what the row's answer says (`contains`, `equals`), or if a judge says yes to it (`judge`); the paper compares
//! options of multiple-choice questions.

use diptych_data::{Message, Text, TextPrompt};
use serde::{Deserialize, Serialize};

use super::skip::Skip;
use super::speaker::{Ask, Seen, Speaker};
use super::stic::setting;
use super::words::words;
use super::workshop::{OpenRow, Outcome, Wanted, Workshop, pair};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfCorrection {
    /// What is asked after the first answer.
    pub request: String,
    /// When an answer is right. Default `contains`.
    pub check: AnswerCheck,
    /// What a judge is asked, with the prompt's words at `{question}` and the answer at `{answer}`; it says `yes` or `no`.
    pub judgment: String,
}

/// When an answer is right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerCheck {
    /// The words of the row's answer stand in it, next to each other.
    #[default]
    Contains,
    /// It has the words of the row's answer and no others.
    Equals,
    /// A judge says yes rather than no; rows need no answer.
    Judge,
}

impl Default for SelfCorrection {
    fn default() -> Self {
        Self {
            request: "Look at the image once more and check your answer. If something in it is wrong, give the corrected answer; if not, give the same \
                      answer again."
                .to_owned(),
            check: AnswerCheck::Contains,
            judgment: "Question: {question}\nAnswer: {answer}\nIs this answer right for the image? Say yes or no.".to_owned(),
        }
    }
}

impl SelfCorrection {
    pub(super) fn validate(&self) -> Result<()> {
        if self.request.trim().is_empty() {
            return Err(setting("request", format!("{:?}", self.request), "words"));
        }
        if !self.judgment.contains("{answer}") {
            return Err(setting(
                "judgment",
                format!("{:?}", self.judgment),
                "{answer} where the answer is",
            ));
        }
        Ok(())
    }

    pub(super) fn make(&self, shop: &Workshop<'_>, rows: std::ops::Range<usize>) -> Result<Vec<Outcome>> {
        rows.map(|index| self.outcome(shop, index)).collect()
    }

    fn outcome(&self, shop: &Workshop<'_>, index: usize) -> Result<Outcome> {
        let Some(open) = shop.open(index, Wanted::Some)? else {
            return Ok(Outcome::skipped(Skip::BadRow));
        };
        let gold = match self.check {
            AnswerCheck::Judge => None,
            AnswerCheck::Contains | AnswerCheck::Equals => match shop.answer_of(open.row)? {
                None => return Ok(Outcome::skipped(Skip::BadRow)),
                gold => gold,
            },
        };
        let seen = open.images.iter().map(|image| shop.speaker.look(image));
        let seen = seen.collect::<Result<Vec<_>>>()?;
        let first = said(shop, &Workshop::ask(index, 0, &open.row.prompt, &seen))?;
        let again = self.again(shop.speaker, &open.row.prompt, &first)?;
        let second = said(shop, &Workshop::ask(index, 1, &again, &seen))?;
        let right = match gold {
            Some(gold) => [&first, &second].map(|answer| self.says(answer, &gold)),
            None => self.judged(shop, &open, [&first, &second])?,
        };
        let id = open.row.id().to_owned();
        let prompt = &open.row.prompt;
        let made = match right {
            [true, true] => Err(Skip::BothRight),
            [false, false] => Err(Skip::BothWrong),
            [true, false] => pair(id, prompt, [&first, &second])?,
            [false, true] => pair(id, prompt, [&second, &first])?,
        };
        let mut outcome = Outcome::default();
        outcome.add(made);
        Ok(outcome)
    }

    /// The conversation in which the model is asked again.
    fn again(&self, speaker: &Speaker, prompt: &TextPrompt, answer: &str) -> Result<TextPrompt> {
        let text = match &prompt.prompt {
            Text::Messages(messages) => {
                let mut messages = messages.clone();
                messages.extend([
                    Message::new("assistant", answer),
                    Message::new("user", self.request.as_str()),
                ]);
                Text::Messages(messages).into_blocks()
            }
            Text::Plain(text) => {
                let again = speaker.request(&self.request, 0)?;
                Text::Plain(format!("{text} {answer}\n{}", again.content()))
            }
            Text::Ids(ids) => Text::Ids(ids.clone()),
        };
        Ok(TextPrompt {
            prompt: text,
            ..prompt.clone()
        })
    }

    fn says(&self, answer: &str, gold: &str) -> bool {
        let texts = |text: &str| -> Vec<String> { words(text).into_iter().map(|word| word.text).collect() };
        let (answer, gold) = (texts(answer), texts(gold));
        match self.check {
            AnswerCheck::Equals => answer == gold,
            AnswerCheck::Contains | AnswerCheck::Judge => {
                !gold.is_empty() && answer.windows(gold.len()).any(|part| part == gold)
            }
        }
    }

    fn judged(&self, shop: &Workshop<'_>, open: &OpenRow<'_>, answers: [&str; 2]) -> Result<[bool; 2]> {
        let seen: Vec<Seen> = shop.judge_sees(open)?;
        let mut right = [false; 2];
        let question = question(&open.row.prompt.prompt);
        for (right, answer) in right.iter_mut().zip(answers) {
            let words = self
                .judgment
                .replace("{question}", &question)
                .replace("{answer}", answer);
            let prompt = TextPrompt {
                prompt: shop.judge().request(&words, seen.len())?,
                ..open.row.prompt.clone()
            };
            let asks = [Workshop::ask(open.index, 0, &prompt, &seen)];
            let said = shop.judge().word_probabilities(&asks, &["yes", "no"])?;
            *right = said.first().is_some_and(|said| said[0] > said[1]);
        }
        Ok(right)
    }
}

fn said(shop: &Workshop<'_>, ask: &Ask<'_>) -> Result<String> {
    let mut said = shop.speaker.answers(std::slice::from_ref(ask))?;
    Ok(said.pop().map(|said| said.text).unwrap_or_default())
}

/// What is asked, without places for images.
pub(super) fn question(prompt: &Text) -> String {
    let text = match prompt {
        Text::Messages(messages) => messages.last().map(Message::text).unwrap_or_default(),
        text => text.content(),
    };
    let mut text = text;
    for place in diptych_data::IMAGE_PLACEHOLDERS {
        text = text.replace(place, "");
    }
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_if_it_says_the_same() {
        let contains = SelfCorrection::default();
        assert!(contains.says("It is a Red circle.", "red circle"));
        assert!(!contains.says("a red large circle", "red circle"));
        assert!(!contains.says("anything", "..."));
        let equals = SelfCorrection {
            check: AnswerCheck::Equals,
            ..contains
        };
        assert!(equals.says("Yes.", "yes") && !equals.says("yes it is", "yes"));
        assert_eq!(question(&"<image>\nwhat is it?".into()), "what is it?");
    }
}
