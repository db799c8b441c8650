//! Which layout a row is of, told from its keys.

use crate::json::{Object, Value};
use crate::row::Row;
use crate::{Layout, RecordKind};

/// The layout that a first row is of by itself, and what the records are.
///
/// Where layouts share their keys, TRL's reading wins: `openrlhf` and `hh` rows look like `preference` rows and are read
/// as such unless the layout is named.
pub(crate) fn guess(row: &Row) -> Option<(Layout, RecordKind)> {
    let order = [
        Layout::PickAPic,
        Layout::Hpdv2,
        Layout::ImageRewardDb,
        Layout::RichHf,
        Layout::SpoPrompts,
        Layout::Ranked,
        Layout::ReAlign,
        Layout::HaDpo,
        Layout::Povid,
        Layout::Llava,
        Layout::RlaifV,
        Layout::RlhfV,
        Layout::MiaDpo,
        Layout::MsSwift,
        Layout::LlamaFactory,
        Layout::Axolotl,
        Layout::Preference,
        Layout::Unpaired,
        Layout::ImageCaption,
        Layout::Sft,
        Layout::PromptOnly,
    ];
    order.into_iter().find_map(|layout| {
        let records = records(layout, row)?;
        is_typical(layout, row).then_some((layout, records))
    })
}

/// What the records are if the layout is this one; none where the row cannot be of it.
pub(crate) fn records(layout: Layout, row: &Row) -> Option<RecordKind> {
    let has = |key: &str| has(row, key);
    let any = |keys: &[&str]| keys.iter().any(|key| has(key));
    let pair = any(&["chosen", "rejected"]);
    match layout {
        Layout::Auto | Layout::LatentPairs => None,
        Layout::Preference if any(&["chosen_image", "rejected_image"]) => Some(RecordKind::ImagePair),
        Layout::Preference => (pair || any(&["chosen_ids", "rejected_ids"])).then_some(RecordKind::TextPair),
        // An image with a conversation about it is text.
        Layout::ImageCaption if is_about_images(row) => None,
        Layout::ImageCaption => has("image").then_some(RecordKind::ImageCaption),
        Layout::Unpaired if has("label") && has("image") && !is_about_images(row) => Some(RecordKind::ImageLabel),
        Layout::Unpaired => any(&["label", "completion", "completion_ids"]).then_some(RecordKind::UnpairedText),
        Layout::Ranked if is_of_images(row) => Some(RecordKind::RankedImages),
        Layout::Ranked => has("responses").then_some(RecordKind::RankedText),
        Layout::PickAPic => any(&["jpg_0", "jpg_1"]).then_some(RecordKind::ImagePair),
        Layout::Hpdv2 if has("image_path") && has("rank") => Some(RecordKind::RankedImages),
        Layout::Hpdv2 => any(&["file_path", "human_preference"]).then_some(RecordKind::ImagePair),
        Layout::ImageRewardDb => (has("prompt_id") && has("rank")).then_some(RecordKind::RankedImages),
        Layout::RichHf => {
            any(&["overall_score", "artifact_score", "misalignment_score"]).then_some(RecordKind::ImageLabel)
        }
        Layout::SpoPrompts => has("caption").then_some(RecordKind::ImagePrompt),
        Layout::Sft => {
            let body = ["text", "messages", "completion", "input_ids", "completion_ids"];
            any(&body).then_some(RecordKind::TextSample)
        }
        Layout::PromptOnly => any(&["prompt", "prompt_ids"]).then_some(RecordKind::TextPrompt),
        Layout::LlamaFactory => match () {
            () if pair => Some(RecordKind::TextPair),
            () if has("kto_tag") => Some(RecordKind::UnpairedText),
            () => any(&["instruction", "output", "conversations", "messages"]).then_some(RecordKind::TextSample),
        },
        Layout::MsSwift => match () {
            () if any(&["rejected_response", "rejected_messages"]) => Some(RecordKind::TextPair),
            () if has("label") => Some(RecordKind::UnpairedText),
            () => any(&["messages", "conversations", "query", "response"]).then_some(RecordKind::TextSample),
        },
        Layout::Axolotl => (pair || any(&["chosen_response", "rejected_response"])).then_some(RecordKind::TextPair),
        Layout::Llava => has("conversations").then_some(RecordKind::TextSample),
        Layout::Povid => has("rejected_conversations").then_some(RecordKind::TextPair),
        Layout::RlhfV => has("text").then_some(RecordKind::TextPair),
        Layout::RlaifV => (pair && has("question")).then_some(RecordKind::TextPair),
        Layout::HaDpo => has("image_id").then_some(RecordKind::TextPair),
        Layout::ReAlign | Layout::MiaDpo | Layout::Openrlhf | Layout::Hh => pair.then_some(RecordKind::TextPair),
    }
}

/// Whether a row says something about images, rather than being an image and its prompt.
fn is_about_images(row: &Row) -> bool {
    let texts = [
        "chosen",
        "rejected",
        "completion",
        "responses",
        "messages",
        "conversations",
        "question",
        "text",
    ];
    texts.iter().any(|key| has(row, key)) || matches!(row.peek("prompt"), Some(Value::Array(_)))
}

/// Whether the responses of a ranked row are images.
fn is_of_images(row: &Row) -> bool {
    let Some(Value::Array(responses)) = row.peek("responses") else {
        return false;
    };
    let is_image =
        |value: &Value| matches!(value, Value::Object(Object(fields)) if fields.iter().any(|(key, _)| key == "image"));
    responses.iter().any(is_image)
}

/// Whether a row that can be of the layout is more likely of it than of TRL's.
fn is_typical(layout: Layout, row: &Row) -> bool {
    let has = |key: &str| has(row, key);
    let any = |keys: &[&str]| keys.iter().any(|key| has(key));
    match layout {
        Layout::MsSwift => {
            has("rejected_messages")
                || has("rejected_response") && (has("messages") || has("response"))
                || has("label") && has("messages")
                || has("query") && has("response")
        }
        Layout::LlamaFactory => {
            has("conversations")
                || has("kto_tag")
                || has("instruction") && (has("output") || has("input") && has("chosen"))
                || has("instruction") && has("chosen")
        }
        Layout::Axolotl => {
            has("chosen_response")
                || !has("prompt") && (has("question") || has("input"))
                || has("system") && has("prompt")
                || has("messages") && !is_conversation(row, "chosen")
        }
        Layout::Unpaired => has("label"),
        Layout::Llava => has("image") && !any(&["chosen", "rejected", "kto_tag", "rejected_response", "label"]),
        Layout::RlhfV => has("image") && any(&["ds_name", "dataset_name", "origin_dataset", "origin_split"]),
        Layout::RlaifV => any(&["image", "image_path"]),
        Layout::MiaDpo => has("image") && has("gt"),
        Layout::ReAlign => has("retrieved_image"),
        Layout::HaDpo => any(&["chosen", "reject"]),
        Layout::Hpdv2 => !has("prompt_id"),
        Layout::ImageRewardDb => any(&["image_path", "image"]),
        Layout::RichHf => has("image"),
        Layout::SpoPrompts => !has("image"),
        Layout::Auto
        | Layout::Preference
        | Layout::ImageCaption
        | Layout::LatentPairs
        | Layout::Ranked
        | Layout::Sft
        | Layout::PromptOnly
        | Layout::Openrlhf
        | Layout::Hh
        | Layout::Povid
        | Layout::PickAPic => true,
    }
}

/// A null is no value, except of the images of a pair, which nothing else is named for: it is an error to report.
fn has(row: &Row, key: &str) -> bool {
    match row.peek(key) {
        None => false,
        Some(Value::Null) => ["chosen_image", "rejected_image"].contains(&key),
        Some(_) => true,
    }
}

/// Two or more messages, so that the prompt is among them.
fn is_conversation(row: &Row, key: &str) -> bool {
    matches!(row.peek(key), Some(Value::Array(elements)) if elements.len() > 1 && matches!(elements[0], Value::Object(_)))
}
