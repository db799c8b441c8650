//! ms-swift: `messages` with `rejected_response` or `rejected_messages`, with `label`, or alone; and the older `query`,
//! `response`, `history`, `system`.
//!
//! Source: ms-swift, `docs/source_en/Customization/Custom-dataset.md` and `swift/llm/dataset/preprocessor/core.py`. It
//! drops rows whose rejected answer equals the chosen one; here `convert` drops them and `inspect` names them.

use super::image_places::Words;
use super::llama_factory::take_history;
use super::{Form, MEDIA, Part, begin_with, check_alternation, split_last};
use crate::error::{Result, RowProblem};
use crate::json::Value;
use crate::row::Row;
use crate::text_layout::extract_prompt::extract_prompt;
use crate::text_layout::message_json::Dialect;
use crate::{Message, SampleBody, Text, TextKind, TextPair, TextSample, UnpairedText};

const KEYS: [&str; 23] = [
    "messages",
    "rejected_response",
    "rejected_messages",
    "label",
    "margin",
    "system",
    "tools",
    "query",
    "response",
    "history",
    "conversations",
    "chosen_score",
    "rejected_score",
    "chat_template_kwargs",
    "id",
    "image",
    "images",
    "rejected_images",
    "videos",
    "audios",
    "video",
    "audio",
    "objects",
];

const FORM: Form = Form {
    kind: TextKind::Conversational,
    part: Part::Apart,
};

pub(super) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let messages = start(row)?;
    refuse(row, "label", "a rejected answer")?;
    let (prompt, chosen, rejected): (Text, Text, Text) = if row.has("rejected_messages") {
        refuse(row, "rejected_response", "`rejected_messages`")?;
        let rejected = row.take_foreign_messages("rejected_messages")?.unwrap_or_default();
        apart(row, messages, rejected)?
    } else {
        let (prompt, chosen) = split_last(row, "messages", messages)?;
        let rejected = row.take_foreign_answer("rejected_response")?;
        (prompt.into(), chosen.into(), rejected.into())
    };
    let mut pair = TextPair::new(String::new(), prompt, chosen, rejected);
    pair.images = row.take_shown()?;
    pair.rejected_images = row.take_shown_instead("rejected_images", pair.images.len())?;
    row.place_images(
        pair.images.len(),
        Words::Kept,
        ("messages", &mut pair.prompt),
        &mut [
            ("messages", &mut pair.chosen),
            ("rejected_response", &mut pair.rejected),
        ],
    )?;
    pair.chosen_score = row.take_number("chosen_score")?;
    pair.rejected_score = row.take_number("rejected_score")?;
    pair.margin = row.take_number("margin")?;
    let template = row.take_template_inputs(Dialect::Foreign)?;
    (pair.tools, pair.chat_template_kwargs) = (template.tools, template.kwargs);
    pair.id = row.take_id()?;
    Ok((pair, FORM))
}

/// Two conversations that part ways at an answer. The system's message may stand in the first one alone.
fn apart(row: &Row, chosen: Vec<Message>, mut rejected: Vec<Message>) -> Result<(Text, Text, Text)> {
    let is_system = |messages: &[Message]| messages.first().is_some_and(|message| message.role == "system");
    if is_system(&chosen) && !is_system(&rejected) {
        rejected.insert(0, chosen[0].clone());
    }
    check_alternation(row, "rejected_messages", &rejected)?;
    let (prompt, chosen, rejected) = extract_prompt(&chosen.into(), &rejected.into())
        .ok_or_else(|| row.turns("rejected_messages", "there is no message"))?;
    for (key, side) in [("messages", &chosen), ("rejected_messages", &rejected)] {
        let messages = side.messages().unwrap_or_default();
        let begins = messages.first().is_some_and(|message| message.role == "assistant");
        let ends = messages.last().is_some_and(|message| message.role == "assistant");
        if !begins || !ends {
            let reason = "the two conversations must part at an answer and end with one";
            return Err(row.turns(key, reason));
        }
    }
    Ok((prompt, chosen, rejected))
}

pub(super) fn unpaired(row: &mut Row) -> Result<(UnpairedText, Form)> {
    let messages = start(row)?;
    let (prompt, completion) = split_last(row, "messages", messages)?;
    let label = row.take_bool("label")?;
    let mut record = UnpairedText::new(String::new(), prompt, completion, label);
    record.images = row.take_shown()?;
    row.place_images(
        record.images.len(),
        Words::Kept,
        ("messages", &mut record.prompt),
        &mut [("messages", &mut record.completion)],
    )?;
    let template = row.take_template_inputs(Dialect::Foreign)?;
    (record.tools, record.chat_template_kwargs) = (template.tools, template.kwargs);
    record.id = row.take_id()?;
    Ok((record, FORM))
}

pub(super) fn sample(row: &mut Row) -> Result<(TextSample, Form)> {
    let messages = start(row)?;
    let (mut messages, answer) = split_last(row, "messages", messages)?;
    messages.extend(answer);
    let images = row.take_shown()?;
    let mut text = Text::Messages(messages);
    row.place_images(images.len(), Words::Kept, ("messages", &mut text), &mut [])?;
    let mut sample = TextSample::new(String::new(), SampleBody::Whole(text));
    sample.images = images;
    let template = row.take_template_inputs(Dialect::Foreign)?;
    (sample.tools, sample.chat_template_kwargs) = (template.tools, template.kwargs);
    sample.id = row.take_id()?;
    Ok((sample, Form::new(TextKind::Conversational, Part::Whole)))
}

/// Checks the keys and reads the conversation with its chosen or only answer.
fn start(row: &mut Row) -> Result<Vec<Message>> {
    row.check_keys(&KEYS)?;
    row.take_no_media(&MEDIA)?;
    let system = row.take_system("system")?;
    let key = if row.has("conversations") {
        "conversations"
    } else {
        "messages"
    };
    let mut messages = if row.has(key) {
        for other in ["query", "response", "history"] {
            refuse(row, other, &format!("`{key}`"))?;
        }
        if key == "conversations" {
            refuse(row, "messages", "`conversations`")?;
        }
        row.take_foreign_messages(key)?.unwrap_or_default()
    } else {
        query(row)?
    };
    begin_with(row, system, &mut messages)?;
    check_alternation(row, key, &messages)?;
    Ok(messages)
}

fn query(row: &mut Row) -> Result<Vec<Message>> {
    if !row.has("query") && !row.has("response") {
        return Err(row.missing("messages", "a list of messages"));
    }
    let mut messages = Vec::new();
    for (at, turn) in take_history(row)?.into_iter().enumerate() {
        match turn {
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(user), Value::String(assistant)] => {
                    messages.push(Message::new("user", user.as_str()));
                    messages.push(Message::new("assistant", assistant.as_str()));
                }
                _ => return Err(row.wrong_type(&format!("history[{at}]"), &Value::Array(pair), "two strings")),
            },
            found => return Err(row.wrong_type(&format!("history[{at}]"), &found, "two strings")),
        }
    }
    messages.push(Message::new("user", row.take_string("query")?));
    messages.push(Message::new("assistant", row.take_string("response")?));
    Ok(messages)
}

fn refuse(row: &Row, key: &str, beside: &str) -> Result<()> {
    if !row.has(key) {
        return Ok(());
    }
    Err(row.error(RowProblem::Conflict {
        key: key.to_owned(),
        reason: format!("is not read beside {beside}; leave it out"),
    }))
}
