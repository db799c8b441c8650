//! `LLaVA`'s conversations, and POVID's, which have a second one that is rejected.
//!
//! Sources: haotian-liu/LLaVA `docs/Finetune_Custom_Data.md` and `llava/train/train.py` (`preprocess_multimodal`); YiyangZhou/POVID
//! `llava/train/train_dpo.py` (Zhou et al., arXiv:2402.11411). `LLaVA`'s code passes over a first turn that is not of the human; here such a
//! row is an error. Rows without `image` are text.

use super::{FOLDERS, FORM, place};
use crate::error::{Result, RowProblem};
use crate::json::Value;
use crate::row::Row;
use crate::text_layout::extract_prompt::extract_prompt;
use crate::text_layout::image_places::Words;
use crate::text_layout::{Form, Part, check_alternation};
use crate::{ImageSource, Message, SampleBody, Text, TextKind, TextPair, TextSample};

pub(in crate::text_layout) const KEYS: [&str; 3] = ["id", "image", "conversations"];

pub(in crate::text_layout) const PAIR_KEYS: [&str; 4] = ["id", "image", "conversations", "rejected_conversations"];

/// Every answer of the conversation is learned, as `LLaVA`'s code does.
pub(in crate::text_layout) fn sample(row: &mut Row) -> Result<(TextSample, Form)> {
    let images = images(row)?;
    let mut text = Text::Messages(conversation(row, "conversations")?);
    row.place_images(images.len(), Words::Llava, ("conversations", &mut text), &mut [])?;
    let mut sample = TextSample::new(row.take_id()?, SampleBody::Whole(text));
    sample.images = images;
    Ok((sample, Form::new(TextKind::Conversational, Part::Whole)))
}

pub(in crate::text_layout) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let images = images(row)?;
    let chosen = Text::Messages(conversation(row, "conversations")?);
    let rejected = Text::Messages(conversation(row, "rejected_conversations")?);
    let parted = extract_prompt(&chosen, &rejected);
    let (prompt, chosen, rejected) = parted.ok_or_else(|| row.turns("conversations", "there is no message"))?;
    for (key, side) in [("conversations", &chosen), ("rejected_conversations", &rejected)] {
        if side
            .messages()
            .and_then(<[Message]>::first)
            .is_none_or(|first| first.role != "assistant")
        {
            return Err(row.turns(key, "the two conversations must part at an answer"));
        }
    }
    let mut pair = TextPair::new(row.take_id()?, prompt, chosen, rejected);
    pair.images = images;
    place(row, "conversations", &mut pair)?;
    Ok((pair, FORM))
}

fn images(row: &mut Row) -> Result<Vec<ImageSource>> {
    row.take_images_among("image", &FOLDERS)
}

/// A conversation that a human begins and an answer ends.
fn conversation(row: &mut Row, key: &str) -> Result<Vec<Message>> {
    let messages = row
        .take_foreign_messages(key)?
        .ok_or_else(|| row.missing(key, "a list of turns {\"from\": \"human\" | \"gpt\", \"value\": ..}"))?;
    check_alternation(row, key, &messages)?;
    match messages.last() {
        Some(last) if last.role == "assistant" => Ok(messages),
        Some(_) => Err(row.turns(key, "the last turn is not an answer")),
        None => Err(row.error(RowProblem::WrongType {
            key: key.to_owned(),
            found: Value::Array(Vec::new()).describe(),
            expected: "a conversation".to_owned(),
        })),
    }
}
