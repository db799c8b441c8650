//! Our `ranked` rows, and TRL's `sft` and `prompt-only` rows.

use super::image_places::Words;
use super::{Form, MEDIA, Part, check_repeated_prompt, same_kind};
use crate::error::{Result, RowProblem};
use crate::json::{Object, Value};
use crate::row::Row;
use crate::text_layout::message_json::Dialect;
use crate::{RankedText, SampleBody, ScoredText, Text, TextPrompt, TextSample};

const RANKED: [&str; 8] = [
    "prompt",
    "responses",
    "tools",
    "chat_template_kwargs",
    "prompt_ids",
    "id",
    "image",
    "images",
];
const RESPONSE: [&str; 4] = ["text", "messages", "score", "ids"];
const SAMPLE: [&str; 14] = [
    "text",
    "messages",
    "prompt",
    "completion",
    "completion_spans",
    "tools",
    "chat_template_kwargs",
    "input_ids",
    "prompt_ids",
    "completion_ids",
    "id",
    "image",
    "images",
    "videos",
];
const PROMPT: [&str; 7] = [
    "prompt",
    "tools",
    "chat_template_kwargs",
    "prompt_ids",
    "id",
    "image",
    "images",
];

pub(super) fn ranked(row: &mut Row) -> Result<(RankedText, Form)> {
    row.check_keys(&RANKED)?;
    row.take_no_media(&MEDIA)?;
    let prompt = take_prompt(row)?;
    let expected = "a list of two or more {\"text\" | \"messages\": .., \"score\": ..}";
    let elements = match row.take_value("responses") {
        Some(Value::Array(elements)) if elements.len() > 1 => elements,
        Some(found) => return Err(row.wrong_type("responses", &found, expected)),
        None => return Err(row.missing("responses", expected)),
    };
    let responses = elements
        .into_iter()
        .enumerate()
        .map(|(at, value)| response(row, &format!("responses[{at}]"), value))
        .collect::<Result<Vec<_>>>()?;
    for (at, response) in responses.iter().enumerate() {
        same_kind(
            row,
            &format!("responses[{at}]"),
            &response.completion,
            "prompt",
            &prompt,
        )?;
    }
    let mut record = RankedText::new(String::new(), prompt, responses);
    record.images = row.take_shown()?;
    let mut responses: Vec<(String, &mut Text)> = record
        .responses
        .iter_mut()
        .enumerate()
        .map(|(at, response)| (format!("responses[{at}]"), &mut response.completion))
        .collect();
    let mut completions: Vec<(&str, &mut Text)> = responses
        .iter_mut()
        .map(|(key, text)| (key.as_str(), &mut **text))
        .collect();
    row.place_images(
        record.images.len(),
        Words::Kept,
        ("prompt", &mut record.prompt),
        &mut completions,
    )?;
    let template = row.take_template_inputs(Dialect::Template)?;
    (record.tools, record.chat_template_kwargs) = (template.tools, template.kwargs);
    record.id = row.take_id()?;
    let form = Form::new(record.kind(), Part::Apart);
    Ok((record, form))
}

fn response(row: &Row, key: &str, value: Value) -> Result<ScoredText> {
    let Value::Object(Object(fields)) = value else {
        return Err(row.wrong_type(key, &value, "an object with `text` or `messages`, and `score`"));
    };
    // Read as a row of its own, so that its keys are checked as those of rows are; errors name where it stands.
    let mut inner = Row {
        path: row.path.clone(),
        number: row.number,
        fields: fields
            .into_iter()
            .map(|(inner, value)| (format!("{key}.{inner}"), value))
            .collect(),
    };
    let full = |inner: &str| format!("{key}.{inner}");
    let known = RESPONSE.map(full);
    inner.check_keys(&known.each_ref().map(String::as_str))?;
    let [text, messages, score, ids] = known;
    let key = if inner.has(&messages) { &messages } else { &text };
    if inner.has(&messages) && inner.has(&text) {
        return Err(row.error(RowProblem::Conflict {
            key: messages,
            reason: "stands beside `text`; keep one of them".to_owned(),
        }));
    }
    let completion = inner.take_completion(key, &ids)?;
    let is_named_right = match completion {
        Text::Plain(_) => *key == text,
        Text::Messages(_) => *key == messages,
        Text::Ids(_) => true,
    };
    if !is_named_right {
        let reason = "holds the other kind: strings are `text`, lists of messages are `messages`".to_owned();
        return Err(row.error(RowProblem::Conflict {
            key: key.clone(),
            reason,
        }));
    }
    let score = inner
        .take_number(&score)?
        .ok_or_else(|| row.missing(&score, "a number, larger for better responses"))?;
    Ok(ScoredText { completion, score })
}

fn take_prompt(row: &mut Row) -> Result<Text> {
    row.take_text("prompt", "prompt_ids")?
        .ok_or_else(|| row.missing("prompt", "a string or a list of messages"))
}

pub(super) fn sample(row: &mut Row) -> Result<(TextSample, Form)> {
    row.check_keys(&SAMPLE)?;
    row.take_no_media(&MEDIA)?;
    let bodies: Vec<&str> = ["text", "messages", "completion", "input_ids", "completion_ids"]
        .into_iter()
        .filter(|key| row.has(key))
        .collect();
    let (body, part) = match bodies.as_slice() {
        ["completion" | "completion_ids"] => {
            let prompt = take_prompt(row)?;
            let completion = row.take_completion("completion", "completion_ids")?;
            same_kind(row, "completion", &completion, "prompt", &prompt)?;
            (SampleBody::Completed { prompt, completion }, Part::Apart)
        }
        [key] => (SampleBody::Whole(whole(row, key)?), Part::Whole),
        [] => return Err(row.missing("text", "one of text, messages, input_ids, or prompt and completion")),
        [first, second, ..] => {
            return Err(row.error(RowProblem::Conflict {
                key: (*second).to_owned(),
                reason: format!("stands beside `{first}`; a row is one of text, messages, or prompt and completion"),
            }));
        }
    };
    let mut sample = TextSample::new(String::new(), body);
    sample.images = row.take_shown()?;
    let num_images = sample.images.len();
    match &mut sample.body {
        SampleBody::Whole(text) => row.place_images(num_images, Words::Kept, (bodies[0], text), &mut [])?,
        SampleBody::Completed { prompt, completion } => row.place_images(
            num_images,
            Words::Kept,
            ("prompt", prompt),
            &mut [("completion", completion)],
        )?,
    }
    if let SampleBody::Completed { completion, .. } = &sample.body {
        sample.completion_spans = row.take_spans("completion_spans", completion)?;
    } else if row.has("completion_spans") {
        return Err(row.missing(
            "completion",
            "the completion whose characters `completion_spans` counts",
        ));
    }
    let template = row.take_template_inputs(Dialect::Template)?;
    (sample.tools, sample.chat_template_kwargs) = (template.tools, template.kwargs);
    sample.id = row.take_id()?;
    let form = Form::new(sample.kind(), part);
    Ok((sample, form))
}

fn whole(row: &mut Row, key: &str) -> Result<Text> {
    if key == "text" {
        return row.take_string("text").map(Text::Plain);
    }
    let text = row.take_completion("messages", "input_ids")?;
    if let Text::Plain(found) = text {
        return Err(row.wrong_type("messages", &Value::String(found), "a list of messages"));
    }
    // `ultrachat_200k` has the first message as a string besides.
    match row.take_value("prompt") {
        None => {}
        Some(Value::String(prompt)) => check_repeated_prompt(row, &prompt, &text)?,
        Some(_) => {
            return Err(row.error(RowProblem::Conflict {
                key: "prompt".to_owned(),
                reason: format!("stands beside `{key}`; a row is one of text, messages, or prompt and completion"),
            }));
        }
    }
    Ok(text)
}

pub(super) fn prompt(row: &mut Row) -> Result<(TextPrompt, Form)> {
    row.check_keys(&PROMPT)?;
    row.take_no_media(&MEDIA)?;
    let mut record = TextPrompt::new(String::new(), take_prompt(row)?);
    record.images = row.take_shown()?;
    row.place_images(
        record.images.len(),
        Words::Kept,
        ("prompt", &mut record.prompt),
        &mut [],
    )?;
    let template = row.take_template_inputs(Dialect::Template)?;
    (record.tools, record.chat_template_kwargs) = (template.tools, template.kwargs);
    record.id = row.take_id()?;
    let form = Form::new(record.kind(), Part::Apart);
    Ok((record, form))
}
