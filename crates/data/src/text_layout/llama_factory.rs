//! LLaMA-Factory: *alpaca* rows (`instruction`, `input`, `output` or `chosen`/`rejected`) and *sharegpt* rows
//! (`conversations` of `from`/`value`, or `messages` of `role`/`content`).
//!
//! Source: LLaMA-Factory, `data/README.md` and `src/llamafactory/data/converter.py`. Its columns can be renamed in
//! `dataset_info.json`; the default names are read here, and the tags of both of its message styles. It skips rows whose
//! sides do not take turns with a warning; here they are errors.

use super::image_places::Words;
use super::{Form, MEDIA, Part, begin_with, check_alternation, split_last};
use crate::error::{Result, RowProblem};
use crate::json::Value;
use crate::row::Row;
use crate::text_layout::message_json::Dialect;
use crate::{Message, SampleBody, Text, TextKind, TextPair, TextSample, UnpairedText};

const KEYS: [&str; 24] = [
    "instruction",
    "input",
    "output",
    "chosen",
    "rejected",
    "kto_tag",
    "system",
    "history",
    "conversations",
    "messages",
    "tools",
    "chosen_score",
    "rejected_score",
    "margin",
    "id",
    "image",
    "images",
    "videos",
    "audios",
    "video",
    "audio",
    "objects",
    "rejected_images",
    "chat_template_kwargs",
];

const FORM: Form = Form {
    kind: TextKind::Conversational,
    part: Part::Apart,
};

pub(super) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let key = prompt_key(row);
    let prompt = start(row)?;
    refuse(row, &["output", "kto_tag"], "`chosen` and `rejected`")?;
    match prompt.last() {
        Some(message) if message.role != "assistant" && message.role != "system" => {}
        _ => {
            return Err(row.turns(key, "the prompt does not end with a message of the user or a tool"));
        }
    }
    let chosen = answer(row, "chosen")?;
    let rejected = answer(row, "rejected")?;
    let mut pair = TextPair::new(String::new(), prompt, chosen, rejected);
    pair.images = row.take_shown()?;
    row.place_images(
        pair.images.len(),
        Words::Kept,
        (key, &mut pair.prompt),
        &mut [("chosen", &mut pair.chosen), ("rejected", &mut pair.rejected)],
    )?;
    pair.chosen_score = row.take_number("chosen_score")?;
    pair.rejected_score = row.take_number("rejected_score")?;
    pair.margin = row.take_number("margin")?;
    let template = row.take_template_inputs(Dialect::Foreign)?;
    (pair.tools, pair.chat_template_kwargs) = (template.tools, template.kwargs);
    pair.id = row.take_id()?;
    Ok((pair, FORM))
}

pub(super) fn unpaired(row: &mut Row) -> Result<(UnpairedText, Form)> {
    let key = prompt_key(row);
    let (prompt, completion) = answered(row, "kto_tag")?;
    let label = row.take_bool("kto_tag")?;
    let mut record = UnpairedText::new(String::new(), prompt, completion, label);
    record.images = row.take_shown()?;
    row.place_images(
        record.images.len(),
        Words::Kept,
        (key, &mut record.prompt),
        &mut [("output", &mut record.completion)],
    )?;
    let template = row.take_template_inputs(Dialect::Foreign)?;
    (record.tools, record.chat_template_kwargs) = (template.tools, template.kwargs);
    record.id = row.take_id()?;
    Ok((record, FORM))
}

/// Every answer of a conversation is learned, as LLaMA-Factory does by default.
pub(super) fn sample(row: &mut Row) -> Result<(TextSample, Form)> {
    let key = prompt_key(row);
    let (mut messages, completion) = answered(row, "supervised rows")?;
    messages.extend(completion);
    let images = row.take_shown()?;
    let mut text = Text::Messages(messages);
    row.place_images(images.len(), Words::Kept, (key, &mut text), &mut [])?;
    let mut sample = TextSample::new(String::new(), SampleBody::Whole(text));
    sample.images = images;
    let template = row.take_template_inputs(Dialect::Foreign)?;
    (sample.tools, sample.chat_template_kwargs) = (template.tools, template.kwargs);
    sample.id = row.take_id()?;
    Ok((sample, Form::new(TextKind::Conversational, Part::Whole)))
}

/// Prompt and answer of a row with one answer.
fn answered(row: &mut Row, what: &str) -> Result<(Vec<Message>, Vec<Message>)> {
    let is_conversation = is_conversation(row);
    let key = prompt_key(row);
    let messages = start(row)?;
    refuse(row, &["chosen", "rejected"], what)?;
    if is_conversation {
        refuse(row, &["output"], "conversations")?;
        return split_last(row, key, messages);
    }
    Ok((messages, vec![Message::new("assistant", row.take_string("output")?)]))
}

/// Checks the keys and reads everything before the answers.
fn start(row: &mut Row) -> Result<Vec<Message>> {
    row.check_keys(&KEYS)?;
    row.take_no_media(&MEDIA)?;
    let system = row.take_system("system")?;
    let mut messages = if is_conversation(row) {
        refuse(row, &["instruction", "input", "history"], "conversations")?;
        if row.has("conversations") {
            refuse(row, &["messages"], "`conversations`")?;
        }
        let key = if row.has("conversations") {
            "conversations"
        } else {
            "messages"
        };
        let messages = row.take_foreign_messages(key)?.unwrap_or_default();
        check_alternation(row, key, &messages)?;
        messages
    } else {
        alpaca(row)?
    };
    begin_with(row, system, &mut messages)?;
    Ok(messages)
}

fn alpaca(row: &mut Row) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for (at, turn) in take_history(row)?.into_iter().enumerate() {
        let pair = match turn {
            Value::Array(pair) => <[Value; 2]>::try_from(pair).map_err(Value::Array),
            other => Err(other),
        };
        match pair {
            Ok([Value::String(user), Value::String(assistant)]) => {
                messages.push(Message::new("user", user));
                messages.push(Message::new("assistant", assistant));
            }
            Ok(pair) => return Err(row.wrong_type(&format!("history[{at}]"), &Value::Array(pair.to_vec()), TURN)),
            Err(found) => return Err(row.wrong_type(&format!("history[{at}]"), &found, TURN)),
        }
    }
    let instruction = row.take_optional_string("instruction")?;
    let input = row.take_optional_string("input")?;
    let parts: Vec<String> = [instruction, input]
        .into_iter()
        .flatten()
        .filter(|part| !part.is_empty())
        .collect();
    if parts.is_empty() {
        return Err(row.missing("instruction", "the user's words, in `instruction`, `input` or both"));
    }
    messages.push(Message::new("user", parts.join("\n")));
    Ok(messages)
}

const TURN: &str = "a list of two strings, what the user said and what was answered";

pub(super) fn take_history(row: &mut Row) -> Result<Vec<Value>> {
    match row.take_value("history") {
        None => Ok(Vec::new()),
        Some(Value::Array(turns)) => Ok(turns),
        Some(found) => Err(row.wrong_type("history", &found, "a list of turns")),
    }
}

fn answer(row: &mut Row, key: &str) -> Result<Vec<Message>> {
    let messages = row.take_foreign_answer(key)?;
    match messages.as_slice() {
        [message] if message.role == "assistant" => Ok(messages),
        [message] => Err(row.turns(
            key,
            format!("the answer is of `{}`, not of the assistant", message.role),
        )),
        _ => Err(row.turns(key, "expected one message, the answer to the conversation")),
    }
}

fn is_conversation(row: &Row) -> bool {
    row.has("conversations") || row.has("messages")
}

/// The key of the conversation, as long as it is not taken.
fn prompt_key(row: &Row) -> &'static str {
    let keys = ["conversations", "messages"];
    keys.into_iter().find(|key| row.has(key)).unwrap_or("instruction")
}

/// Keys that would say something else than what the row is read as.
fn refuse(row: &Row, keys: &[&str], beside: &str) -> Result<()> {
    match keys
        .iter()
        .find(|key| row.has(key) && *row.peek(key).unwrap_or(&Value::Null) != Value::String(String::new()))
    {
        None => Ok(()),
        Some(key) => Err(row.error(RowProblem::Conflict {
            key: (*key).to_owned(),
            reason: format!("is not read beside {beside}; leave it out"),
        })),
    }
}
