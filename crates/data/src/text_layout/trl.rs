//! TRL's preference formats, `preference` and `unpaired`.
//!
//! Source: TRL 1.16, `data_utils.py` (`maybe_extract_prompt`, `unpair_preference_dataset`) and the docs page "Dataset
//! formats and types".

use super::image_places::Words;
use super::{Form, MEDIA, Part, check_repeated_prompt, same_kind};
use crate::error::{Result, RowProblem};
use crate::row::Row;
use crate::text_layout::extract_prompt::extract_prompt;
use crate::text_layout::message_json::Dialect;
use crate::{Text, TextKind, TextPair, UnpairedText};

const PAIR: [&str; 28] = [
    "prompt",
    "chosen",
    "rejected",
    "chosen_score",
    "rejected_score",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "margin",
    "rationale",
    "chosen_spans",
    "rejected_spans",
    "tools",
    "chat_template_kwargs",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "id",
    "score_chosen",
    "score_rejected",
    "chosen_rating",
    "rejected_rating",
    "messages",
    "image",
    "images",
    "rejected_images",
    "other_images",
    "videos",
    "audios",
];

const UNPAIRED: [&str; 14] = [
    "prompt",
    "completion",
    "label",
    "score",
    "ref_logps",
    "completion_spans",
    "tools",
    "chat_template_kwargs",
    "prompt_ids",
    "completion_ids",
    "id",
    "image",
    "images",
    "videos",
];

pub(super) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    row.check_keys(&PAIR)?;
    row.take_no_media(&MEDIA)?;
    drop_repeated_messages(row)?;
    let prompt = row.take_text("prompt", "prompt_ids")?;
    let chosen = row.take_completion("chosen", "chosen_ids")?;
    let rejected = row.take_completion("rejected", "rejected_ids")?;
    same_kind(row, "rejected", &rejected, "chosen", &chosen)?;
    let kind = chosen.kind();
    let (prompt, chosen, rejected, part) = match prompt {
        Some(prompt) if prompt.kind() == kind => (prompt, chosen, rejected, Part::Apart),
        Some(Text::Plain(text)) if kind == TextKind::Conversational => {
            let (prompt, chosen, rejected) = implicit(row, &chosen, &rejected)?;
            check_repeated_prompt(row, &text, &prompt)?;
            (prompt, chosen, rejected, Part::Implicit)
        }
        Some(prompt) => {
            same_kind(row, "prompt", &prompt, "chosen", &chosen)?;
            (prompt, chosen, rejected, Part::Apart)
        }
        None => {
            let (prompt, chosen, rejected) = implicit(row, &chosen, &rejected)?;
            (prompt, chosen, rejected, Part::Implicit)
        }
    };
    let mut pair = TextPair::new(String::new(), prompt, chosen, rejected);
    pair.images = row.take_shown()?;
    pair.rejected_images = row.take_shown_instead("rejected_images", pair.images.len())?;
    pair.other_images = row.take_shown_instead("other_images", pair.images.len())?;
    row.place_images(
        pair.images.len(),
        Words::Kept,
        (part.image_key(), &mut pair.prompt),
        &mut [("chosen", &mut pair.chosen), ("rejected", &mut pair.rejected)],
    )?;
    pair.rationale = row.take_optional_string("rationale")?;
    finish(row, &mut pair, part)?;
    Ok((pair, Form::new(kind, part)))
}

/// What every layout of pairs may carry: scores, margin, the reference's log-probabilities, spans, template inputs, id.
pub(super) fn finish(row: &mut Row, pair: &mut TextPair, part: Part) -> Result<()> {
    pair.chosen_score = row.take_number_of(&["chosen_score", "score_chosen", "chosen_rating"])?;
    pair.rejected_score = row.take_number_of(&["rejected_score", "score_rejected", "rejected_rating"])?;
    pair.reference_chosen_logps = row.take_number("ref_chosen_logps")?;
    pair.reference_rejected_logps = row.take_number("ref_rejected_logps")?;
    pair.margin = row.take_number("margin")?;
    for key in ["chosen_spans", "rejected_spans"] {
        if part == Part::Implicit && row.has(key) {
            return Err(row.error(RowProblem::Conflict {
                key: key.to_owned(),
                reason: "counts the characters of a completion, but no `prompt` says where it begins".to_owned(),
            }));
        }
    }
    pair.chosen_spans = row.take_spans("chosen_spans", &pair.chosen)?;
    pair.rejected_spans = row.take_spans("rejected_spans", &pair.rejected)?;
    let template = row.take_template_inputs(Dialect::Template)?;
    (pair.tools, pair.chat_template_kwargs) = (template.tools, template.kwargs);
    pair.id = row.take_id()?;
    Ok(())
}

/// The prompt that both sides begin with.
pub(super) fn implicit(row: &Row, chosen: &Text, rejected: &Text) -> Result<(Text, Text, Text)> {
    extract_prompt(chosen, rejected).ok_or_else(|| {
        let expected = match chosen {
            Text::Ids(_) => "`prompt_ids`, the tokens of the prompt",
            _ => "a prompt, since one of the sides is empty and cannot contain it",
        };
        row.missing("prompt", expected)
    })
}

/// `UltraFeedback` repeats the chosen conversation as `messages`, for supervised training.
fn drop_repeated_messages(row: &mut Row) -> Result<()> {
    let is_repeated = row.peek("messages") == row.peek("chosen");
    if row.take_value("messages").is_none() || is_repeated {
        return Ok(());
    }
    Err(row.error(RowProblem::Conflict {
        key: "messages".to_owned(),
        reason: "is not the same as `chosen`; name the layout (axolotl, sft) whose key it is, or leave it out"
            .to_owned(),
    }))
}

pub(super) fn unpaired(row: &mut Row) -> Result<(UnpairedText, Form)> {
    row.check_keys(&UNPAIRED)?;
    row.take_no_media(&MEDIA)?;
    let prompt = row
        .take_text("prompt", "prompt_ids")?
        .ok_or_else(|| row.missing("prompt", "a string or a list of messages"))?;
    let completion = row.take_completion("completion", "completion_ids")?;
    same_kind(row, "completion", &completion, "prompt", &prompt)?;
    let label = row.take_bool("label")?;
    let mut record = UnpairedText::new(String::new(), prompt, completion, label);
    record.images = row.take_shown()?;
    row.place_images(
        record.images.len(),
        Words::Kept,
        ("prompt", &mut record.prompt),
        &mut [("completion", &mut record.completion)],
    )?;
    record.score = row.take_number("score")?;
    record.reference_logps = row.take_number("ref_logps")?;
    record.completion_spans = row.take_spans("completion_spans", &record.completion)?;
    let template = row.take_template_inputs(Dialect::Template)?;
    (record.tools, record.chat_template_kwargs) = (template.tools, template.kwargs);
    record.id = row.take_id()?;
    let form = Form::new(record.kind(), Part::Apart);
    Ok((record, form))
}
