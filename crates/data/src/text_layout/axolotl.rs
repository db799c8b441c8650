//! Axolotl's DPO strategies: `intel` (`system`, `question`), `argilla` (`instruction`, `chosen_response`), `icr`
//! (`system`, `input`), `prompt_pairs` (`system`, `prompt`), `ultra` and `argilla_chat` (conversations), and
//! `chat_template` (`messages`).
//!
//! Source: axolotl, `src/axolotl/prompt_strategies/dpo/`. Axolotl renders them with the template that the strategy is
//! named for (`chatml.intel`, `llama3.intel`); here they become messages, and the model's chat template does that.

use super::{Form, MEDIA_AND_IMAGES, Part, begin_with, check_repeated_prompt, trl};
use crate::error::{Result, RowProblem};
use crate::json::Value;
use crate::row::Row;
use crate::{Message, Text, TextKind, TextPair};

const KEYS: [&str; 26] = [
    "system",
    "prompt",
    "question",
    "instruction",
    "input",
    "messages",
    "chosen",
    "rejected",
    "chosen_response",
    "rejected_response",
    "chosen_score",
    "rejected_score",
    "score_chosen",
    "score_rejected",
    "chosen_rating",
    "rejected_rating",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "margin",
    "chosen_spans",
    "rejected_spans",
    "tools",
    "chat_template_kwargs",
    "id",
    "image",
    "images",
];

const QUESTIONS: [&str; 4] = ["prompt", "input", "question", "instruction"];

pub(super) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    // The data of the `intel` and `argilla` strategies carries this flag of its making.
    row.drop_keys(&["in_gsm8k_train"]);
    row.check_keys(&KEYS)?;
    row.take_no_media(&MEDIA_AND_IMAGES)?;
    let system = row.take_system("system")?;
    let question = take_question(row)?;
    let context = take_context(row)?;
    let chosen = take_answer(row, ["chosen", "chosen_response"])?;
    let rejected = take_answer(row, ["rejected", "rejected_response"])?;
    let (mut prompt, chosen, rejected) = match (context, question) {
        (Some(_), Some((key, _))) => {
            return Err(row.error(RowProblem::Conflict {
                key: key.to_owned(),
                reason: "stands beside `messages`; keep one of them".to_owned(),
            }));
        }
        (Some(context), None) => {
            let chosen = after(row, "chosen", chosen, &context)?;
            let rejected = after(row, "rejected", rejected, &context)?;
            (context, chosen, rejected)
        }
        (None, Some((_, question))) if chosen.len() == 1 && rejected.len() == 1 => {
            (vec![Message::new("user", question)], chosen, rejected)
        }
        (None, question) => {
            let shared = trl::implicit(row, &chosen.into(), &rejected.into())?;
            if let Some((_, question)) = question {
                check_repeated_prompt(row, &question, &shared.0)?;
            }
            match shared {
                (Text::Messages(prompt), Text::Messages(chosen), Text::Messages(rejected)) => {
                    (prompt, chosen, rejected)
                }
                _ => return Err(row.missing("chosen", "a list of messages")),
            }
        }
    };
    begin_with(row, system, &mut prompt)?;
    if prompt.iter().all(|message| message.role == "system") {
        return Err(row.missing(
            "prompt",
            "the user's words, in `prompt`, `input`, `question`, `instruction` or `messages`",
        ));
    }
    let mut pair = TextPair::new(String::new(), prompt, chosen, rejected);
    trl::finish(row, &mut pair, Part::Apart)?;
    Ok((pair, Form::new(TextKind::Conversational, Part::Apart)))
}

/// What the user asks, at the one of axolotl's keys that is there.
fn take_question(row: &mut Row) -> Result<Option<(&'static str, String)>> {
    // Tables with a column for a further input leave it empty where there is none.
    let is_empty = |key: &str| matches!(row.peek(key), Some(Value::String(text)) if text.is_empty());
    let present: Vec<&'static str> = QUESTIONS
        .into_iter()
        .filter(|key| row.has(key) && !is_empty(key))
        .collect();
    match present.as_slice() {
        [] => Ok(None),
        [key] => Ok(Some((*key, row.take_string(key)?))),
        [first, second, ..] => Err(row.error(RowProblem::Conflict {
            key: (*second).to_owned(),
            reason: format!("stands beside `{first}`; both are read as the prompt, keep one of them"),
        })),
    }
}

/// The conversation before the answers; a string is the user's only message.
fn take_context(row: &mut Row) -> Result<Option<Vec<Message>>> {
    match row.peek("messages") {
        Some(Value::String(_)) => {
            let text = row.take_string("messages")?;
            Ok(Some(vec![Message::new("user", text)]))
        }
        _ => row.take_foreign_messages("messages"),
    }
}

fn take_answer(row: &mut Row, keys: [&str; 2]) -> Result<Vec<Message>> {
    let [short, long] = keys;
    if row.has(short) && row.has(long) {
        return Err(row.error(RowProblem::Conflict {
            key: long.to_owned(),
            reason: format!("means the same as `{short}`; keep one of them"),
        }));
    }
    let key = if row.has(long) { long } else { short };
    let messages = row.take_foreign_answer(key)?;
    match messages.last() {
        Some(last) if last.role == "assistant" => Ok(messages),
        _ => Err(row.turns(key, "the last message is not of the assistant")),
    }
}

/// The answer alone. A list may repeat the conversation before it; axolotl reads only its last message.
fn after(row: &Row, key: &str, mut answer: Vec<Message>, context: &[Message]) -> Result<Vec<Message>> {
    if answer.len() == 1 {
        return Ok(answer);
    }
    if answer.len() == context.len() + 1 && answer.starts_with(context) {
        return Ok(answer.split_off(context.len()));
    }
    Err(row.turns(key, "is neither one message nor `messages` with an answer after them"))
}
