//! The images of a row, and their places in its texts.
//!
//! Source: TRL 1.16, `data_utils.py` (`prepare_multimodal_messages`): of a row with images every message's content becomes a list
//! of blocks, and where no block is an image, all of them are put before the words of the first user message. Other trainers
//! write `<image>` into the words; such a text is split there.

use super::Part;
use crate::error::{Result, RowProblem};
use crate::row::Row;
use crate::{Content, ContentBlock, IMAGE_PLACEHOLDERS, ImageSource, Message, Text};

/// What stands for an image in the words of a conversation.
const PLACEHOLDER: &str = IMAGE_PLACEHOLDERS[0];

/// What becomes of the words around a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// They stay as they are, with the image at its place between them.
    Kept,
    /// Of a message with one image it comes first and the words are trimmed, as `LLaVA`'s code does (`preprocess_multimodal`): the line
    /// break between them is a separator, which chat templates write themselves. With several images they stay.
    Llava,
}

/// What a user says about images, perhaps after what the system says, as chat templates of vision-language models read it: each `<image>`
/// in the words is the place of one image, and where there is none all of them come before the words. Whether there are as many
/// places as images is for the [`Encoder`](crate::Encoder) to check.
pub fn conversation(system: Option<&str>, words: &str, num_images: usize) -> Text {
    let system = system.map(|system| Message::new("system", system));
    let user = Message::new("user", words);
    let mut messages: Vec<Message> = system.into_iter().chain([user]).collect();
    if num_images == 0 {
        return Text::Messages(messages);
    }
    place(&mut messages, num_images, Words::Kept);
    Text::Messages(messages).into_blocks()
}

impl Row {
    /// The images at `images` or the one at `image`.
    pub(super) fn take_shown(&mut self) -> Result<Vec<ImageSource>> {
        if self.has("image") && self.has("images") {
            return Err(self.error(RowProblem::Conflict {
                key: "image".to_owned(),
                reason: "stands beside `images`; keep one of them".to_owned(),
            }));
        }
        let key = if self.has("image") { "image" } else { "images" };
        self.take_images(key)
    }

    /// Images that take the places of the `num_images` of the row: those that the rejected side sees, or others to compare with.
    pub(super) fn take_shown_instead(
        &mut self,
        key: &'static str,
        num_images: usize,
    ) -> Result<Option<Vec<ImageSource>>> {
        let images = self.take_images(key)?;
        match images.len() {
            0 => Ok(None),
            found if found == num_images => Ok(Some(images)),
            found => Err(self.error(RowProblem::Conflict {
                key: key.to_owned(),
                reason: format!(
                    "has {found} images, but `images` has {num_images}; they take the same places, so that both must be as many"
                ),
            })),
        }
    }

    /// Gives the images of a row their places in what comes before the completions, which have none.
    pub(super) fn place_images(
        &self,
        num_images: usize,
        words: Words,
        (key, prompt): (&str, &mut Text),
        completions: &mut [(&str, &mut Text)],
    ) -> Result<()> {
        for (key, text) in completions.iter() {
            self.refuse_places(key, text, num_images)?;
        }
        if num_images > 0 {
            for (_, text) in completions.iter_mut() {
                into_blocks(text);
            }
        }
        let places = match prompt {
            Text::Plain(_) if num_images == 0 => 0,
            Text::Messages(messages) if num_images > 0 => place(messages, num_images, words),
            ref text => text.num_images().unwrap_or(num_images),
        };
        if places != num_images {
            return Err(self.error(RowProblem::ImageCount {
                key: key.to_owned(),
                places,
                images: num_images,
            }));
        }
        if num_images > 0 {
            into_blocks(prompt);
        }
        Ok(())
    }

    /// An answer shows no image, and its words may not look like one.
    fn refuse_places(&self, key: &str, text: &Text, num_images: usize) -> Result<()> {
        let is_shown = match text {
            Text::Messages(messages) => messages
                .iter()
                .any(|message| message.num_images() > 0 || num_images > 0 && message.text().contains(PLACEHOLDER)),
            text => num_images > 0 && text.num_images().unwrap_or(0) > 0,
        };
        if !is_shown {
            return Ok(());
        }
        Err(self.error(RowProblem::Conflict {
            key: key.to_owned(),
            reason: "shows an image; the images of a row belong before its answers".to_owned(),
        }))
    }
}

impl Part {
    /// The key of the text that images of a pair or of a sample are placed in.
    pub(super) fn image_key(self) -> &'static str {
        match self {
            Self::Apart => "prompt",
            Self::Implicit => "chosen",
            Self::Whole => "messages",
        }
    }
}

fn into_blocks(text: &mut Text) {
    let taken = std::mem::replace(text, Text::Ids(Vec::new()));
    *text = taken.into_blocks();
}

/// Puts images into messages; returns how many have a place.
fn place(messages: &mut [Message], num_images: usize, words: Words) -> usize {
    let num_blocks: usize = messages.iter().map(Message::num_images).sum();
    if num_blocks > 0 {
        return num_blocks;
    }
    let num_words = messages
        .iter()
        .map(|message| message.text().matches(PLACEHOLDER).count())
        .sum();
    if num_words > 0 {
        for message in messages {
            split(message, words);
        }
        return num_words;
    }
    let first = messages
        .iter_mut()
        .filter(|message| message.role == "user")
        .find_map(|message| match &mut message.content {
            Some(content @ Content::Text(_)) => Some(content),
            _ => None,
        });
    let Some(content) = first else { return 0 };
    let mut blocks = vec![ContentBlock::Image; num_images];
    if let Content::Text(text) = content {
        blocks.push(ContentBlock::new(std::mem::take(text)));
    }
    *content = Content::Blocks(blocks);
    num_images
}

/// Makes image blocks of the placeholders in a message.
fn split(message: &mut Message, words: Words) {
    let old = match message.content.take() {
        None => return,
        Some(Content::Text(text)) => vec![ContentBlock::Text { text }],
        Some(Content::Blocks(blocks)) => blocks,
    };
    let num_images: usize = old
        .iter()
        .filter_map(ContentBlock::text)
        .map(|text| text.matches(PLACEHOLDER).count())
        .sum();
    let mut blocks = Vec::new();
    for block in old {
        match block {
            ContentBlock::Text { text } if num_images == 1 && words == Words::Llava && text.contains(PLACEHOLDER) => {
                let rest = text.replace(PLACEHOLDER, "");
                blocks.insert(0, ContentBlock::Image);
                blocks.push(ContentBlock::new(rest.trim()));
            }
            ContentBlock::Text { text } => split_text(&text, &mut blocks),
            ContentBlock::Image => blocks.push(block),
        }
    }
    message.content = Some(Content::Blocks(blocks));
}

fn split_text(text: &str, blocks: &mut Vec<ContentBlock>) {
    let is_split = text.contains(PLACEHOLDER);
    for (at, piece) in text.split(PLACEHOLDER).enumerate() {
        if at > 0 {
            blocks.push(ContentBlock::Image);
        }
        // A message that says nothing keeps its empty words.
        if !piece.is_empty() || !is_split {
            blocks.push(ContentBlock::new(piece));
        }
    }
}
