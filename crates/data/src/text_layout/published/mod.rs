//! Preference data about images, as its authors publish it: one file a layout.
//!
//! Questions become a user's message with the images before the words, which is where `LLaVA`'s code puts them, and answers
//! an assistant's. Folders of images lie beside the file, or are linked there.

pub(super) mod ha_dpo;
pub(super) mod llava;
pub(super) mod mia_dpo;
pub(super) mod re_align;
pub(super) mod rlaif_v;

use super::image_places::Words;
use super::{Form, Part};
use crate::error::Result;
use crate::row::Row;
use crate::{Content, ContentBlock, ImageSource, Message, Text, TextKind, TextPair};

/// Folders beside a file that its images may lie in, in the order in which they are tried: those that the authors' instructions
/// name for COCO, and one of no particular name.
pub(super) const FOLDERS: [&str; 6] = [
    "",
    "images",
    "train2014",
    "coco/train2014",
    "train2017",
    "coco/train2017",
];

const FORM: Form = Form {
    kind: TextKind::Conversational,
    part: Part::Apart,
};

/// A pair of single answers to a question about images; `words` may have placeholders, `key` is where they stand.
fn answered(
    row: &Row,
    key: &str,
    images: Vec<ImageSource>,
    words: String,
    [chosen, rejected]: [String; 2],
) -> Result<TextPair> {
    let prompt = vec![Message::new("user", words)];
    let sides = [chosen, rejected].map(|answer| Text::Messages(vec![Message::new("assistant", answer)]));
    let [chosen, rejected] = sides;
    let mut pair = TextPair::new(String::new(), prompt, chosen, rejected);
    pair.images = images;
    place(row, key, &mut pair)?;
    Ok(pair)
}

/// Puts the images of a pair before the words of its first question, or where the words say.
fn place(row: &Row, key: &str, pair: &mut TextPair) -> Result<()> {
    row.place_images(
        pair.images.len(),
        Words::Llava,
        (key, &mut pair.prompt),
        &mut [("chosen", &mut pair.chosen), ("rejected", &mut pair.rejected)],
    )
}

/// What a user says about one image.
fn shown(words: &str) -> Vec<Message> {
    let mut message = Message::new("user", "");
    message.content = Some(Content::Blocks(vec![ContentBlock::Image, ContentBlock::new(words)]));
    vec![message]
}

/// An answer, as blocks.
fn answer(words: String) -> Text {
    Text::from(vec![Message::new("assistant", words)]).into_blocks()
}
