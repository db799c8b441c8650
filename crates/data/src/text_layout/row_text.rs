//! The typed reading of the keys that rows of text have.

use serde_json::Map;

use crate::error::{Result, RowProblem};
use crate::json::{Object, Value};
use crate::row::{Row, unknown_key};
use crate::text_layout::message_json::{self, Dialect};
use crate::{CharSpan, Content, Message, Text};

const TEXT: &str = "a string or a list of messages";
const SPAN: &str = "{\"start\": .., \"end\": .., \"weight\": ..}";
const TOOLS: &str = "a list of JSON schemas (objects), or such a list as a JSON string";

/// What a chat template gets beside the messages.
#[derive(Default)]
pub(crate) struct TemplateInputs {
    pub(crate) tools: Vec<serde_json::Value>,
    pub(crate) kwargs: Map<String, serde_json::Value>,
}

impl Row {
    /// Whether the row has a value at a key; null is none.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.peek(key).is_some_and(|value| *value != Value::Null)
    }

    /// The value at a key.
    pub(crate) fn peek(&self, key: &str) -> Option<&Value> {
        self.fields
            .iter()
            .find(|(known, _)| known == key)
            .map(|(_, value)| value)
    }

    /// The value at a key; null is none.
    pub(crate) fn take_value(&mut self, key: &str) -> Option<Value> {
        self.take(key).filter(|value| *value != Value::Null)
    }

    /// Drops keys that a layout is known to carry and that nothing reads.
    pub(crate) fn drop_keys(&mut self, ignored: &[&str]) {
        self.fields.retain(|(key, _)| !ignored.contains(&key.as_str()));
    }

    /// The string at a key that may be absent or null.
    pub(crate) fn take_optional_string(&mut self, key: &str) -> Result<Option<String>> {
        match self.take_value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(found) => Err(self.wrong_type(key, &found, "a string")),
        }
    }

    /// The number at the first of some keys that mean the same, of which at most one may be there.
    pub(crate) fn take_number_of(&mut self, keys: &[&str]) -> Result<Option<f64>> {
        let present: Vec<&str> = keys.iter().copied().filter(|key| self.has(key)).collect();
        match present.as_slice() {
            [] => Ok(None),
            [key] => self.take_number(key),
            [first, second, ..] => Err(self.error(RowProblem::Conflict {
                key: (*second).to_owned(),
                reason: format!("means the same as `{first}`; keep one of them"),
            })),
        }
    }

    /// The boolean at a key that must be there.
    pub(crate) fn take_bool(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            Some(Value::Bool(value)) => Ok(value),
            Some(found) => Err(self.wrong_type(key, &found, "true or false")),
            None => Err(self.missing(key, "true or false")),
        }
    }

    /// The text at `key`, or the tokens at `ids_key`; none where there is neither.
    pub(crate) fn take_text(&mut self, key: &str, ids_key: &str) -> Result<Option<Text>> {
        if self.has(key) && self.has(ids_key) {
            return Err(self.error(RowProblem::Conflict {
                key: ids_key.to_owned(),
                reason: format!("says in tokens what `{key}` says in words; keep one of them"),
            }));
        }
        match self.take_value(key) {
            None => self.take_ids(ids_key),
            Some(Value::String(text)) => Ok(Some(Text::Plain(text))),
            Some(Value::Array(elements)) => {
                message_json::messages(self, key, elements, Dialect::Template).map(|messages| Some(messages.into()))
            }
            Some(found) => Err(self.wrong_type(key, &found, TEXT)),
        }
    }

    /// As [`Row::take_text`], where it must be there and say something.
    pub(crate) fn take_completion(&mut self, key: &str, ids_key: &str) -> Result<Text> {
        match self.take_text(key, ids_key)? {
            Some(Text::Messages(messages)) if messages.is_empty() => {
                Err(self.wrong_type(key, &Value::Array(Vec::new()), TEXT))
            }
            Some(text) => Ok(text),
            None => Err(self.missing(key, TEXT)),
        }
    }

    fn take_ids(&mut self, key: &str) -> Result<Option<Text>> {
        let expected = "a list of token ids";
        let elements = match self.take_value(key) {
            None => return Ok(None),
            Some(Value::Array(elements)) => elements,
            Some(found) => return Err(self.wrong_type(key, &found, expected)),
        };
        let id = |(at, value): (usize, &Value)| {
            match value {
                Value::Number(number) => number.as_u64().and_then(|id| u32::try_from(id).ok()),
                _ => None,
            }
            .ok_or_else(|| self.wrong_type(&format!("{key}[{at}]"), value, "a token id, from 0"))
        };
        let ids = elements.iter().enumerate().map(id).collect::<Result<_>>()?;
        Ok(Some(Text::Ids(ids)))
    }

    /// The list of messages at a key, in another trainer's words; none where the key is absent.
    pub(crate) fn take_foreign_messages(&mut self, key: &str) -> Result<Option<Vec<Message>>> {
        match self.take_value(key) {
            None => Ok(None),
            Some(Value::Array(elements)) => message_json::messages(self, key, elements, Dialect::Foreign).map(Some),
            Some(found) => Err(self.wrong_type(key, &found, "a list of messages")),
        }
    }

    /// An answer that is a string, a message, or a list with one message, in another trainer's words.
    pub(crate) fn take_foreign_answer(&mut self, key: &str) -> Result<Vec<Message>> {
        match self.take_value(key) {
            Some(Value::String(text)) => Ok(vec![Message::new("assistant", text)]),
            Some(value @ Value::Object(_)) => Ok(vec![message_json::message(self, key, value, Dialect::Foreign)?]),
            Some(Value::Array(elements)) if !elements.is_empty() => {
                message_json::messages(self, key, elements, Dialect::Foreign)
            }
            Some(found) => Err(self.wrong_type(key, &found, "a string, a message or a list of messages")),
            None => Err(self.missing(key, "a string, a message or a list of messages")),
        }
    }

    /// The system prompt at a key; empty is none.
    pub(crate) fn take_system(&mut self, key: &str) -> Result<Option<Message>> {
        let text = self.take_optional_string(key)?.filter(|text| !text.is_empty());
        Ok(text.map(|text| Message::new("system", text)))
    }

    /// `tools` and `chat_template_kwargs`.
    pub(crate) fn take_template_inputs(&mut self, dialect: Dialect) -> Result<TemplateInputs> {
        let kwargs = match self.take_value("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(object)) => object.into(),
            Some(found) => return Err(self.wrong_type("chat_template_kwargs", &found, "an object")),
        };
        let tools = match self.take_value("tools") {
            None => Vec::new(),
            Some(found) => self.tools(&found, dialect)?,
        };
        Ok(TemplateInputs { tools, kwargs })
    }

    fn tools(&self, found: &Value, dialect: Dialect) -> Result<Vec<serde_json::Value>> {
        let wrong = |found: &Value| self.wrong_type("tools", found, TOOLS);
        let list = match found {
            Value::String(text) if text.trim().is_empty() && dialect == Dialect::Foreign => return Ok(Vec::new()),
            Value::String(text) => match serde_json::from_str(text) {
                Ok(serde_json::Value::Array(list)) => list,
                _ => return Err(wrong(found)),
            },
            Value::Array(list) => list.iter().cloned().map(Into::into).collect(),
            _ => return Err(wrong(found)),
        };
        list.into_iter()
            .map(|tool| match tool {
                // LLaMA-Factory and ms-swift leave the outer object out.
                tool @ serde_json::Value::Object(_) if dialect == Dialect::Foreign && tool.get("name").is_some() => {
                    Ok(serde_json::json!({"type": "function", "function": tool}))
                }
                tool @ serde_json::Value::Object(_) => Ok(tool),
                _ => Err(wrong(found)),
            })
            .collect()
    }

    /// Weights on parts of `text`.
    pub(crate) fn take_spans(&mut self, key: &str, text: &Text) -> Result<Vec<CharSpan>> {
        let elements = match self.take_value(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(elements)) => elements,
            Some(found) => return Err(self.wrong_type(key, &found, &format!("a list of {SPAN}"))),
        };
        let spans = elements
            .iter()
            .enumerate()
            .map(|(at, value)| self.span(&format!("{key}[{at}]"), value))
            .collect::<Result<Vec<_>>>()?;
        match CharSpan::check(&spans, text) {
            Ok(()) => Ok(spans),
            Err((at, found, expected)) => Err(self.error(RowProblem::WrongType {
                key: format!("{key}[{at}]"),
                found,
                expected,
            })),
        }
    }

    fn span(&self, key: &str, value: &Value) -> Result<CharSpan> {
        let Value::Object(Object(fields)) = value else {
            return Err(self.wrong_type(key, value, SPAN));
        };
        let (mut start, mut end, mut weight) = (None, None, None);
        for (inner, value) in fields {
            let full = format!("{key}.{inner}");
            let offset = || match value {
                Value::Number(number) => number.as_u64().map(|offset| offset as usize),
                _ => None,
            };
            match inner.as_str() {
                "start" => start = Some(offset().ok_or_else(|| self.wrong_type(&full, value, "characters, from 0"))?),
                "end" => end = Some(offset().ok_or_else(|| self.wrong_type(&full, value, "characters, from 0"))?),
                "weight" => match value {
                    Value::Number(number) => weight = number.as_f64(),
                    found => return Err(self.wrong_type(&full, found, "a number")),
                },
                _ => return Err(self.error(unknown_key(&full, inner, &["start", "end", "weight"]))),
            }
        }
        match (start, end, weight) {
            (Some(start), Some(end), Some(weight)) => Ok(CharSpan { start, end, weight }),
            _ => Err(self.wrong_type(key, value, SPAN)),
        }
    }

    /// Columns of videos and the like may be there, but must be empty: nothing here reads them.
    pub(crate) fn take_no_media(&mut self, keys: &[&str]) -> Result<()> {
        for key in keys {
            match self.take_value(key) {
                None => {}
                Some(Value::Array(elements)) if elements.is_empty() => {}
                Some(Value::Object(Object(fields))) if fields.is_empty() => {}
                Some(found) => return Err(self.wrong_type(key, &found, "nothing: this layout does not have it")),
            }
        }
        Ok(())
    }

    /// Whatever is still there was not read: nothing a row says is passed over in silence.
    pub(crate) fn refuse_rest(&self) -> Result<()> {
        let says_something = |value: &Value| match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(elements) => !elements.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::Object(_) | Value::Cell(_) => true,
        };
        match self.fields.iter().find(|(_, value)| says_something(value)) {
            None => Ok(()),
            Some((key, _)) => Err(self.error(RowProblem::Conflict {
                key: key.clone(),
                reason: "is a key of the layout, but not of rows like this one and those before it; leave it out"
                    .to_owned(),
            })),
        }
    }

    pub(crate) fn turns(&self, key: &str, reason: impl Into<String>) -> crate::Error {
        self.error(RowProblem::Turns {
            key: key.to_owned(),
            reason: reason.into(),
        })
    }
}

impl CharSpan {
    /// Whether spans are what [`CharSpan`] promises: else which is not, what it is and what it should be.
    pub(crate) fn check(spans: &[Self], text: &Text) -> std::result::Result<(), (usize, String, String)> {
        if spans.is_empty() {
            return Ok(());
        }
        if let Text::Ids(_) = text {
            let expected = "no spans: tokens have no characters";
            return Err((0, "a span".to_owned(), expected.to_owned()));
        }
        let num_chars = text.num_chars();
        let mut free = 0;
        for (at, span) in spans.iter().enumerate() {
            let found = format!("characters {} to {} with weight {}", span.start, span.end, span.weight);
            let expected = if !span.weight.is_finite() {
                "a finite weight".to_owned()
            } else if span.start >= span.end {
                "an end after the start".to_owned()
            } else if span.end > num_chars {
                format!("an end of at most {num_chars}, the characters of the completion")
            } else if span.start < free {
                format!("a start of at least {free}, where the span before ends")
            } else {
                free = span.end;
                continue;
            };
            return Err((at, found, expected));
        }
        Ok(())
    }
}

/// Whether some message says a text, but for white space around it.
pub(crate) fn some_message_says(messages: &[Message], text: &str) -> bool {
    messages.iter().any(|message| match &message.content {
        Some(Content::Text(content)) => content.trim() == text.trim(),
        Some(Content::Blocks(_)) => message.text().trim() == text.trim(),
        None => false,
    })
}
