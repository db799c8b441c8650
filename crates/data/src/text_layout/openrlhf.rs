//! `OpenRLHF`: `chosen`, `rejected`, and with `--data.prompt_key` `prompt`.
//!
//! Source: `OpenRLHF`, `openrlhf/datasets/reward_dataset.py`. Without a prompt, all messages but the last are the prompt
//! (TRL takes what both sides share), and strings have an empty prompt: the whole text is scored.

use super::{Form, MEDIA_AND_IMAGES, Part, check_repeated_prompt, same_kind, split_last, trl};
use crate::error::Result;
use crate::row::Row;
use crate::{Message, Text, TextPair};

const KEYS: [&str; 16] = [
    "prompt",
    "chosen",
    "rejected",
    "margin",
    "chosen_score",
    "rejected_score",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_spans",
    "rejected_spans",
    "tools",
    "chat_template_kwargs",
    "id",
    "image",
    "images",
    "videos",
];

pub(super) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    row.check_keys(&KEYS)?;
    row.take_no_media(&MEDIA_AND_IMAGES)?;
    let prompt = row.take_text("prompt", "prompt_ids")?;
    let chosen = row.take_completion("chosen", "chosen_ids")?;
    let rejected = row.take_completion("rejected", "rejected_ids")?;
    same_kind(row, "rejected", &rejected, "chosen", &chosen)?;
    let kind = chosen.kind();
    let (prompt, chosen, rejected, part) = match (prompt, chosen, rejected) {
        (Some(Text::Plain(text)), Text::Messages(chosen), Text::Messages(rejected)) => {
            let sides = without_prompt(row, chosen, rejected)?;
            check_repeated_prompt(row, &text, &sides.0)?;
            (sides.0, sides.1, sides.2, Part::Implicit)
        }
        (None, Text::Messages(chosen), Text::Messages(rejected)) => {
            let (prompt, chosen, rejected) = without_prompt(row, chosen, rejected)?;
            (prompt, chosen, rejected, Part::Implicit)
        }
        (None, chosen, rejected) => (Text::Plain(String::new()), chosen, rejected, Part::Whole),
        (Some(prompt), chosen, rejected) => {
            same_kind(row, "prompt", &prompt, "chosen", &chosen)?;
            (prompt, chosen, rejected, Part::Apart)
        }
    };
    let mut pair = TextPair::new(String::new(), prompt, chosen, rejected);
    trl::finish(row, &mut pair, part)?;
    Ok((pair, Form::new(kind, part)))
}

fn without_prompt(row: &Row, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<(Text, Text, Text)> {
    let (prompt, chosen) = split_last(row, "chosen", chosen)?;
    let (other, rejected) = split_last(row, "rejected", rejected)?;
    if prompt != other {
        return Err(row.turns("rejected", "differs from `chosen` before the last message"));
    }
    Ok((prompt.into(), chosen.into(), rejected.into()))
}
