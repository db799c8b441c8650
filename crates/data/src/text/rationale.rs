//! The prompt behind which the rationale of a pair is learned.
//!
//! Just et al., "Data-Centric Human Preference with Rationales for Direct Preference Alignment", Conference on Language Modeling
//! 2025, arXiv:2407.14477: a model that learns why one answer is better is given the prompt and both answers, and says why.

use serde::{Deserialize, Serialize};

use super::encoding_problem::EncodingProblem;
use crate::{Content, ContentBlock, Message, SampleBody, Text, TextPair, TextSample};

/// How the prompt of a rationale is made of a pair: a text in which `{prompt}`, `{chosen}` and `{rejected}` stand for the pair's.
///
/// Plain pairs give plain text, which the rationale follows. Conversations give a user's message with that text, behind the system's
/// message if the prompt begins with one, and the rationale is the assistant's answer; of several messages each becomes a line
/// `role: text`. What the texts themselves have in braces stays as it is.
///
/// The default is that of the authors' code for the data they published (reds-lab/preference-learning-with-rationales
/// `dataloader.py`, `get_orcaratspec`). The chosen answer always stands first in it, so that the place gives the preference away.
///
/// ```
/// use diptych_data::{RationaleTemplate, SampleBody, Text, TextPair};
///
/// let template = RationaleTemplate::new("{prompt} Not{rejected} but{chosen}:");
/// assert_eq!(template.missing(), None);
/// let mut pair = TextPair::new("0", "Which?", " one", " {chosen}");
/// pair.rationale = Some(" It counts.".to_owned());
/// let SampleBody::Completed { prompt, .. } = template.sample(&pair).unwrap().unwrap().body else { unreachable!() };
/// assert_eq!(prompt, Text::from("Which? Not {chosen} but one:"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RationaleTemplate(String);

/// What a template must mention.
const PARTS: [&str; 3] = ["{prompt}", "{chosen}", "{rejected}"];

impl Default for RationaleTemplate {
    fn default() -> Self {
        Self::new(
            "Given the prompt:\n{prompt}\nWhich of the following assistant's response is more preferable and strictly follows with \
             the prompt question?\nResponse above:\"{chosen}\"\nor\nResponse below:\"{rejected}\"?\n",
        )
    }
}

impl RationaleTemplate {
    /// A template; [`RationaleTemplate::missing`] says whether it is one.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The first of `{prompt}`, `{chosen}` and `{rejected}` that it does not mention: a rationale would then explain what it is not
    /// shown.
    pub fn missing(&self) -> Option<&'static str> {
        PARTS.into_iter().find(|part| !self.0.contains(part))
    }

    /// The rationale behind its prompt, as something to learn; none where the pair has no rationale.
    ///
    /// # Errors
    /// [`EncodingProblem::TokenizedRationale`] for a pair whose sides are tokens.
    pub fn sample(&self, pair: &TextPair) -> Result<Option<TextSample>, EncodingProblem> {
        let Some(rationale) = &pair.rationale else {
            return Ok(None);
        };
        let (prompt, completion) = match &pair.prompt {
            Text::Ids(_) => return Err(EncodingProblem::TokenizedRationale),
            Text::Plain(prompt) => {
                let text = self.fill([prompt, &spoken(&pair.chosen), &spoken(&pair.rejected)]);
                (Text::Plain(text), Text::Plain(rationale.clone()))
            }
            Text::Messages(messages) => {
                let (system, rest) = match messages.split_first() {
                    Some((first, rest)) if first.role == "system" => (Some(first), rest),
                    _ => (None, messages.as_slice()),
                };
                let text = self.fill([&said(rest), &spoken(&pair.chosen), &spoken(&pair.rejected)]);
                let prompt: Vec<Message> = system
                    .cloned()
                    .into_iter()
                    .chain([showing(pair.images.len(), text)])
                    .collect();
                let answer = vec![Message::new("assistant", rationale.as_str())];
                (prompt.into(), answer.into())
            }
        };
        let body = SampleBody::Completed { prompt, completion };
        Ok(Some(TextSample {
            images: pair.images.clone(),
            chat_template_kwargs: pair.chat_template_kwargs.clone(),
            ..TextSample::new(pair.id.clone(), body)
        }))
    }

    /// Puts the texts in their places, in one go: what they have in braces is not looked at.
    fn fill(&self, texts: [&str; 3]) -> String {
        let mut filled = String::new();
        let mut rest = self.0.as_str();
        let next = |rest: &str| {
            let places = PARTS
                .iter()
                .zip(texts)
                .filter_map(|(part, text)| Some((rest.find(part)?, part.len(), text)));
            places.min_by_key(|(at, ..)| *at)
        };
        while let Some((at, len, text)) = next(rest) {
            filled.push_str(&rest[..at]);
            filled.push_str(text);
            rest = &rest[at + len..];
        }
        filled + rest
    }
}

/// A side in words.
fn spoken(text: &Text) -> String {
    match text {
        Text::Messages(messages) => said(messages),
        Text::Plain(_) | Text::Ids(_) => text.content(),
    }
}

/// One message is its text; of several it is told who says what.
fn said(messages: &[Message]) -> String {
    if let [message] = messages {
        return message.text();
    }
    let line = |message: &Message| format!("{}: {}", message.role, message.text());
    messages.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What a user says about some images.
fn showing(num_images: usize, text: String) -> Message {
    let mut message = Message::new("user", text);
    if num_images > 0
        && let Some(Content::Text(text)) = message.content.take()
    {
        let images = std::iter::repeat_n(ContentBlock::Image, num_images);
        message.content = Some(Content::Blocks(images.chain([ContentBlock::Text { text }]).collect()));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(template: &RationaleTemplate, pair: &TextPair) -> (Text, Text) {
        match template.sample(pair).unwrap().unwrap().body {
            SampleBody::Completed { prompt, completion } => (prompt, completion),
            SampleBody::Whole(text) => panic!("{text:?}"),
        }
    }

    #[test]
    fn texts_are_put_in_their_places_once() {
        let mut pair = TextPair::new("0", "{rejected}", "A {prompt}", "B");
        assert!(RationaleTemplate::default().sample(&pair).unwrap().is_none());
        pair.rationale = Some("Because.".to_owned());
        let (prompt, completion) = completed(
            &RationaleTemplate::new("<{chosen}|{prompt}|{rejected}|{chosen}>"),
            &pair,
        );
        assert_eq!(prompt, Text::from("<A {prompt}|{rejected}|B|A {prompt}>"));
        assert_eq!(completion, Text::from("Because."));
        let Text::Plain(prompt) = completed(&RationaleTemplate::default(), &pair).0 else {
            panic!("of another kind")
        };
        assert!(prompt.starts_with("Given the prompt:\n{rejected}\nWhich of"));
        assert!(prompt.ends_with("Response above:\"A {prompt}\"\nor\nResponse below:\"B\"?\n"));
    }

    #[test]
    fn conversations_ask_as_the_user_and_answer_as_the_assistant() {
        let of = |role: &str, text: &str| Message::new(role, text);
        let long = vec![
            of("system", "Be brief."),
            of("user", "Hi"),
            of("assistant", "Yes?"),
            of("user", "Why?"),
        ];
        let answer = |text: &str| vec![of("assistant", text)];
        let mut pair = TextPair::new("0", long, answer("So."), answer("No."));
        pair.rationale = Some("It answers.".to_owned());
        let template = RationaleTemplate::new("{prompt}/{chosen}/{rejected}");
        let (prompt, completion) = completed(&template, &pair);
        let asked = "user: Hi\nassistant: Yes?\nuser: Why?/So./No.";
        assert_eq!(prompt, Text::from(vec![of("system", "Be brief."), of("user", asked)]));
        assert_eq!(completion, Text::from(answer("It answers.")));
        pair.prompt = vec![of("user", "Why?")].into();
        assert_eq!(
            completed(&template, &pair).0,
            Text::from(vec![of("user", "Why?/So./No.")])
        );
    }

    #[test]
    fn what_cannot_be_composed_is_named() {
        assert_eq!(RationaleTemplate::default().missing(), None);
        for (text, part) in [
            ("{chosen}{rejected}", "{prompt}"),
            ("{prompt}{choosen}{rejected}", "{chosen}"),
            ("{prompt}{chosen}", "{rejected}"),
        ] {
            assert_eq!(RationaleTemplate::new(text).missing(), Some(part));
        }
        let mut tokens = TextPair::new("0", Text::Ids(vec![1]), Text::Ids(vec![2]), Text::Ids(vec![3]));
        tokens.rationale = Some("Because.".to_owned());
        assert!(matches!(
            RationaleTemplate::default().sample(&tokens),
            Err(EncodingProblem::TokenizedRationale)
        ));
    }
}
