//! Text as preference data has it: a plain string, the messages of a conversation, or tokens.

use serde::Serialize;
use serde_json::{Map, Value};

/// What stands in a plain text for an image: `LLaVA`'s placeholder, and the token of Qwen2-VL and Qwen2.5-VL.
pub const IMAGE_PLACEHOLDERS: [&str; 2] = ["<image>", "<|image_pad|>"];

/// One side of a record: a prompt or a completion.
#[derive(Debug, Clone, PartialEq)]
pub enum Text {
    /// Text to be tokenized as it is (TRL: *standard*).
    Plain(String),
    /// Messages to be rendered by a chat template (TRL: *conversational*). May be empty: a conversation that the
    /// completion begins.
    Messages(Vec<Message>),
    /// Token ids, to be used as given.
    Ids(Vec<u32>),
}

/// What an answer is given to: [`Text`] that is not scored.
pub type Prompt = Text;

/// An answer: [`Text`] that is scored.
pub type Completion = Text;

/// Which kind of [`Text`] the sides of a record are; all rows of a dataset are of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TextKind {
    /// Plain strings.
    Standard,
    /// Lists of messages.
    Conversational,
    /// Token ids.
    Tokenized,
}

/// One turn of a conversation. Serializes to the object that a chat template sees.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said; none where the turn only calls tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// Every other key as it stands in the file (`tool_calls`, `name`, `tool_call_id`, `reasoning_content`, …), except
    /// that a null is the same as no key.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// A string.
    Text(String),
    /// A list of blocks.
    Blocks(Vec<ContentBlock>),
}

/// A block of a message, which serializes to what chat templates of transformers read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ContentBlock {
    /// `{"type": "text", "text": ..}`.
    Text {
        /// The text.
        text: String,
    },
    /// `{"type": "image"}`: the place of the record's next image.
    Image,
}

/// A weight on part of a completion.
///
/// Offsets count characters (Unicode scalar values, as Python's `str` does) of [`Text::content`], from 0, end exclusive.
/// Characters in no span have weight 1; spans of one completion are in order and do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CharSpan {
    /// First character.
    pub start: usize,
    /// One past the last character; larger than `start`.
    pub end: usize,
    /// What the log-probabilities of its tokens are multiplied by; finite. 0 leaves the span out.
    pub weight: f64,
}

impl Text {
    /// Which kind it is.
    pub fn kind(&self) -> TextKind {
        match self {
            Self::Plain(_) => TextKind::Standard,
            Self::Messages(_) => TextKind::Conversational,
            Self::Ids(_) => TextKind::Tokenized,
        }
    }

    /// The characters that spans count: the string, or the text of the messages one after the other. Empty for tokens.
    pub fn content(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Messages(messages) => messages.iter().map(Message::text).collect(),
            Self::Ids(_) => String::new(),
        }
    }

    /// Number of characters of [`Text::content`].
    pub fn num_chars(&self) -> usize {
        match self {
            Self::Plain(text) => text.chars().count(),
            Self::Messages(messages) => messages.iter().map(Message::num_chars).sum(),
            Self::Ids(_) => 0,
        }
    }

    /// Whether there is nothing to score: no character but white space, no tool call, no token.
    pub fn is_blank(&self) -> bool {
        match self {
            Self::Plain(text) => text.trim().is_empty(),
            Self::Messages(messages) => messages.iter().all(Message::is_blank),
            Self::Ids(ids) => ids.is_empty(),
        }
    }

    /// Places for images: image blocks, or how often a plain text has one of [`IMAGE_PLACEHOLDERS`]. None where it cannot be told,
    /// since only the tokenizer knows which token is an image's.
    pub fn num_images(&self) -> Option<usize> {
        match self {
            Self::Plain(text) => Some(IMAGE_PLACEHOLDERS.iter().map(|name| text.matches(name).count()).sum()),
            Self::Messages(messages) => Some(messages.iter().map(Message::num_images).sum()),
            Self::Ids(_) => None,
        }
    }

    /// The same text with the content of every message as blocks, which is how chat templates of vision-language models read
    /// conversations; a message without content stays as it is.
    #[must_use]
    pub fn into_blocks(self) -> Self {
        match self {
            Self::Messages(messages) => Self::Messages(messages.into_iter().map(Message::into_blocks).collect()),
            other => other,
        }
    }

    /// The messages of a conversation.
    pub fn messages(&self) -> Option<&[Message]> {
        match self {
            Self::Messages(messages) => Some(messages),
            Self::Plain(_) | Self::Ids(_) => None,
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Plain(text.to_owned())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Plain(text)
    }
}

impl From<Vec<Message>> for Text {
    fn from(messages: Vec<Message>) -> Self {
        Self::Messages(messages)
    }
}

impl Message {
    /// A message that says one string.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(Content::Text(content.into())),
            extra: Map::new(),
        }
    }

    /// What it says, blocks one after the other.
    pub fn text(&self) -> String {
        self.parts().collect()
    }

    /// Number of characters of [`Message::text`].
    pub fn num_chars(&self) -> usize {
        self.parts().map(|part| part.chars().count()).sum()
    }

    /// Number of its image blocks.
    pub fn num_images(&self) -> usize {
        match &self.content {
            Some(Content::Blocks(blocks)) => blocks.iter().filter(|block| **block == ContentBlock::Image).count(),
            Some(Content::Text(_)) | None => 0,
        }
    }

    fn into_blocks(mut self) -> Self {
        self.content = self.content.map(|content| match content {
            Content::Text(text) => Content::Blocks(vec![ContentBlock::Text { text }]),
            blocks @ Content::Blocks(_) => blocks,
        });
        self
    }

    fn is_blank(&self) -> bool {
        self.parts().all(|part| part.trim().is_empty()) && !self.extra.contains_key("tool_calls")
    }

    fn parts(&self) -> impl Iterator<Item = &str> {
        let (text, blocks) = match &self.content {
            None => (None, [].as_slice()),
            Some(Content::Text(text)) => (Some(text.as_str()), [].as_slice()),
            Some(Content::Blocks(blocks)) => (None, blocks.as_slice()),
        };
        text.into_iter().chain(blocks.iter().filter_map(ContentBlock::text))
    }
}

impl ContentBlock {
    /// A block of text.
    pub fn new(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// Its text; none for an image.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text } => Some(text),
            Self::Image => None,
        }
    }
}

impl TextKind {
    /// The word used in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "plain strings",
            Self::Conversational => "lists of messages",
            Self::Tokenized => "token ids",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_serializes_to_what_a_template_sees() {
        let mut message = Message::new("assistant", "Yes.");
        message.extra.insert("name".to_owned(), "guide".into());
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"role":"assistant","content":"Yes.","name":"guide"}"#
        );
        message.content = Some(Content::Blocks(vec![
            ContentBlock::new("é"),
            ContentBlock::Image,
            ContentBlock::new("b"),
        ]));
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"role":"assistant","content":[{"type":"text","text":"é"},{"type":"image"},{"type":"text","text":"b"}],"name":"guide"}"#
        );
        assert_eq!(Text::from(vec![message.clone()]).num_images(), Some(1));
        assert_eq!((message.text().as_str(), message.num_chars()), ("éb", 2));
        message.content = None;
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"role":"assistant","name":"guide"}"#
        );
    }

    #[test]
    fn a_tool_call_is_something_to_score() {
        let mut call = Message::new("assistant", " ");
        assert!(Text::Messages(vec![call.clone()]).is_blank());
        call.extra
            .insert("tool_calls".to_owned(), serde_json::json!([{"type": "function"}]));
        assert!(!Text::Messages(vec![call]).is_blank());
        assert!(Text::Ids(Vec::new()).is_blank() && Text::from("\n").is_blank());
    }
}
