//! Messages from the JSON of a row.

use std::cell::Cell;

use serde_json::Map;

use crate::error::{Result, RowProblem};
use crate::json::{Object, Value};
use crate::nearest::nearest;
use crate::row::{Row, unknown_key};
use crate::{Content, ContentBlock, Message};

/// Keys of a message that chat templates read, beside `role` and `content`.
const KNOWN: [&str; 8] = [
    "role",
    "content",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
    "thinking",
    "function_call",
];

/// Keys of a message in the layouts of other trainers.
const FOREIGN: [&str; 8] = [
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "tool_call_id",
    "name",
    "reasoning_content",
];

const MESSAGE: &str = "a message {\"role\": .., \"content\": ..}";
const BLOCK: &str = "{\"type\": \"text\", \"text\": ..} or {\"type\": \"image\"}, whose image stands in `images`";

/// Which words the messages use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `role` and `content` as a chat template reads them; further keys are the template's.
    Template,
    /// `role` or `from`, `content` or `value`, and the role names of LLaMA-Factory and ms-swift.
    Foreign,
}

/// The messages of a list.
pub(crate) fn messages(row: &Row, key: &str, elements: Vec<Value>, dialect: Dialect) -> Result<Vec<Message>> {
    let shown = Shown::default();
    elements
        .into_iter()
        .enumerate()
        .map(|(at, element)| read(row, &format!("{key}[{at}]"), element, dialect, &shown))
        .collect()
}

/// One message. `key` is where it stands, for errors.
pub(crate) fn message(row: &Row, key: &str, value: Value, dialect: Dialect) -> Result<Message> {
    read(row, key, value, dialect, &Shown::default())
}

/// Image blocks of a list of messages so far.
#[derive(Default)]
struct Shown(Cell<u64>);

fn read(row: &Row, key: &str, value: Value, dialect: Dialect, shown: &Shown) -> Result<Message> {
    let Value::Object(Object(fields)) = value else {
        return Err(row.wrong_type(key, &value, MESSAGE));
    };
    let mut role = None;
    let mut content = None;
    let mut extra = Map::new();
    for (inner, value) in fields {
        let full = format!("{key}.{inner}");
        check_key(row, &full, &inner, dialect)?;
        let is_foreign = dialect == Dialect::Foreign;
        match (inner.as_str(), value) {
            // Tables fill absent keys with null.
            (_, Value::Null) => {}
            ("role", Value::String(value)) => set(row, &full, &mut role, value)?,
            ("from", Value::String(value)) if is_foreign => set(row, &full, &mut role, value)?,
            ("role", found) => return Err(row.wrong_type(&full, &found, "a string")),
            ("from", found) if is_foreign => return Err(row.wrong_type(&full, &found, "a string")),
            ("content", value) => set(row, &full, &mut content, self::content(row, &full, value, shown)?)?,
            ("value", value) if is_foreign => set(row, &full, &mut content, self::content(row, &full, value, shown)?)?,
            (_, value) => drop(extra.insert(inner, value.into())),
        }
    }
    let role = role.ok_or_else(|| row.missing(&format!("{key}.role"), "the speaker: user, assistant, system, tool"))?;
    if content.is_none() && extra.is_empty() {
        return Err(row.missing(&format!("{key}.content"), "a string or a list of blocks"));
    }
    let message = Message { role, content, extra };
    match dialect {
        Dialect::Template => Ok(message),
        Dialect::Foreign => translate(row, key, message),
    }
}

fn set<T>(row: &Row, key: &str, slot: &mut Option<T>, value: T) -> Result<()> {
    if slot.replace(value).is_none() {
        return Ok(());
    }
    Err(row.error(RowProblem::Conflict {
        key: key.to_owned(),
        reason: "says again what another key of this message says; keep one of them".to_owned(),
    }))
}

fn check_key(row: &Row, full: &str, key: &str, dialect: Dialect) -> Result<()> {
    let known = match dialect {
        Dialect::Template => KNOWN.as_slice(),
        Dialect::Foreign => FOREIGN.as_slice(),
    };
    // A template may read any key, but one that is nearly a known one is a slip.
    let is_fine = known.contains(&key) || dialect == Dialect::Template && nearest(key, known.iter().copied()).is_none();
    if is_fine {
        return Ok(());
    }
    Err(row.error(unknown_key(full, key, known)))
}

fn content(row: &Row, key: &str, value: Value, shown: &Shown) -> Result<Content> {
    let blocks = match value {
        Value::String(text) => return Ok(Content::Text(text)),
        Value::Array(blocks) => blocks,
        found => return Err(row.wrong_type(key, &found, "a string or a list of blocks")),
    };
    let block = |(at, value): (usize, Value)| block(row, &format!("{key}[{at}]"), &value, shown);
    Ok(Content::Blocks(
        blocks.into_iter().enumerate().map(block).collect::<Result<_>>()?,
    ))
}

fn block(row: &Row, key: &str, value: &Value, shown: &Shown) -> Result<ContentBlock> {
    let wrong = || row.wrong_type(key, value, BLOCK);
    let Value::Object(Object(fields)) = value else {
        return Err(wrong());
    };
    let (mut kind, mut text, mut index) = (None, None, None);
    for (inner, field) in fields {
        match (inner.as_str(), field) {
            ("text", Value::String(found)) => text = Some(found.as_str()),
            ("type", Value::String(found)) => kind = Some(found.as_str()),
            // Which image it is, as published data of TRL counts them.
            ("index", Value::Number(found)) => index = Some(found),
            // Tables fill absent keys with null.
            (_, Value::Null) => {}
            _ => return Err(wrong()),
        }
    }
    match (kind, text) {
        (Some("text"), Some(text)) => Ok(ContentBlock::new(text)),
        // A table may have an empty string where there is no text.
        (Some("image"), None | Some("")) => {
            let next = shown.0.replace(shown.0.get() + 1);
            match index {
                Some(index) if index.as_u64() != Some(next) => {
                    let found = Value::Number(index.clone());
                    let expected = format!("{next}: images are shown in their order in the list");
                    Err(row.wrong_type(&format!("{key}.index"), &found, &expected))
                }
                _ => Ok(ContentBlock::Image),
            }
        }
        _ => Err(wrong()),
    }
}

/// From the role names of other trainers to those of chat templates.
fn translate(row: &Row, key: &str, mut message: Message) -> Result<Message> {
    let role = match message.role.as_str() {
        "user" | "human" => "user",
        "assistant" | "gpt" | "bot" => "assistant",
        "system" => "system",
        "tool" | "observation" | "tool_response" => "tool",
        "function_call" | "tool_call" => return tool_call(row, key, &message),
        _ => {
            let known = [
                "user",
                "human",
                "assistant",
                "gpt",
                "bot",
                "system",
                "tool",
                "observation",
                "tool_response",
                "function_call",
                "tool_call",
            ];
            let found = Value::String(message.role.clone());
            let expected = format!("one of {}", known.join(", "));
            return Err(row.wrong_type(&format!("{key}.role"), &found, &expected));
        }
    };
    role.clone_into(&mut message.role);
    Ok(message)
}

/// A call written as JSON text, `{"name": .., "arguments": ..}` or a list of them, as chat templates read it.
fn tool_call(row: &Row, key: &str, message: &Message) -> Result<Message> {
    let text = message.text();
    let calls = match serde_json::from_str(&text) {
        Ok(serde_json::Value::Array(calls)) => calls,
        Ok(call @ serde_json::Value::Object(_)) => vec![call],
        _ => Vec::new(),
    };
    let is_call = |call: &serde_json::Value| call.get("name").is_some_and(serde_json::Value::is_string);
    if calls.is_empty() || !calls.iter().all(is_call) {
        let expected = "JSON of a call: {\"name\": .., \"arguments\": ..}";
        return Err(row.wrong_type(&format!("{key}.content"), &Value::String(text), expected));
    }
    let calls = calls
        .into_iter()
        .map(|call| serde_json::json!({"type": "function", "function": call}))
        .collect::<Vec<_>>();
    let mut extra = message.extra.clone();
    extra.insert("tool_calls".to_owned(), calls.into());
    Ok(Message {
        role: "assistant".to_owned(),
        content: None,
        extra,
    })
}
