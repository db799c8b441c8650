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

use super::checks::{check_places, setting, unused};
use super::skip::Skip;
use super::speaker::{Ask, Said, Seen, Speaker};
use super::words::words;
use super::workshop::{OpenRow, Outcome, Wanted, Workshop};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelfCorrection {
    /// What is asked after the first answer.
    pub request: String,
    /// When an answer is right. Default `contains`.
    pub check: AnswerCheck,
    /// What a judge is asked, with the prompt's words at `{question}` and the answer at `{answer}`; it says `yes` or `no`. Only with `check = "judge"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judgment: Option<String>,
}

/// What a judge is asked where the settings do not say.
const JUDGMENT: &str = "Question: {question}\nAnswer: {answer}\nIs this answer right for the image? Say yes or no.";

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
            judgment: None,
        }
    }
}

impl SelfCorrection {
    /// What a judge says of a right answer, and of a wrong one.
    pub(super) const VERDICTS: [&str; 2] = ["yes", "no"];

    pub(super) fn validate(&self) -> Result<()> {
        if self.request.trim().is_empty() {
            return Err(setting("request", format!("{:?}", self.request), "words"));
        }
        match &self.judgment {
            Some(_) if self.check != AnswerCheck::Judge => {
                Err(unused("judgment", "answers are compared with those of the rows"))
            }
            Some(judgment) => check_places("judgment", judgment, &["{answer}"]),
            None => Ok(()),
        }
    }

    pub(super) fn outcome(&self, shop: &Workshop<'_>, index: usize) -> Result<Outcome> {
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
        let seen = shop.speaker.look_at_all(&open.images)?;
        let first = said(shop, &Workshop::ask(index, 0, &open.row.prompt, &seen))?;
        if shop.is_cut(&first) {
            return Ok(Outcome::skipped(Skip::UnfinishedAnswer));
        }
        let again = self.again(shop.speaker, &open.row.prompt, &first.text)?;
        let second = said(shop, &Workshop::ask(index, 1, &again, &seen))?;
        if shop.is_cut(&second) {
            return Ok(Outcome::skipped(Skip::UnfinishedAnswer));
        }
        let right = match gold {
            Some(gold) => [&first, &second].map(|said| self.says(&said.text, &gold)),
            None => self.judged(shop, &open, (seen, [&first, &second]))?,
        };
        let pair = |sides| shop.pair(open.row.id(), &open.row.prompt, sides);
        let made = match right {
            [true, true] => Err(Skip::BothRight),
            [false, false] => Err(Skip::BothWrong),
            [true, false] => pair([&first, &second])?,
            [false, true] => pair([&second, &first])?,
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
                // A row without roles stays one; of a format, only words around words fit into it.
                let again = match speaker.request(&self.request, 0)? {
                    Text::Plain(request) => request,
                    Text::Messages(_) | Text::Ids(_) => self.request.clone(),
                };
                Text::Plain(format!("{text} {answer}\n{again}"))
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

    fn judged(
        &self,
        shop: &Workshop<'_>,
        open: &OpenRow<'_>,
        (seen, said): (Vec<Seen>, [&Said; 2]),
    ) -> Result<[bool; 2]> {
        let seen = shop.judge_sees(open, seen)?;
        let question = question(&open.row.prompt.prompt);
        let judgment = self
            .judgment
            .as_deref()
            .unwrap_or(JUDGMENT)
            .replace("{question}", &question);
        let prompt = |said: &Said| {
            let words = judgment.replace("{answer}", &said.text);
            shop.judge_prompt(open.row, &words, seen.len())
        };
        let prompts = [prompt(said[0])?, prompt(said[1])?];
        let asks = prompts
            .each_ref()
            .map(|prompt| Workshop::ask(open.index, 0, prompt, &seen));
        let found = shop.judge().word_probabilities(&asks, &Self::VERDICTS)?;
        let is_right = |at: usize| found.get(at).is_some_and(|found| found[0] > found[1]);
        Ok([is_right(0), is_right(1)])
    }
}

fn said(shop: &Workshop<'_>, ask: &Ask<'_>) -> Result<Said> {
    Ok(shop.speaker.answers(std::slice::from_ref(ask))?.remove(0))
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
