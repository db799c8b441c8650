//! Prompts about one of several images.

use diptych_data::{Content, ContentBlock, IMAGE_PLACEHOLDERS, Text};

/// What stands for the number of an image, from 1.
const NUMBER: &str = "{number}";

/// How a prompt about one image becomes one about one of several.
pub(super) struct Pointing<'a> {
    /// Before each image; none where the images are one.
    pub(super) labels: Option<Labels<'a>>,
    /// Before the question.
    pub(super) pointer: &'a str,
    /// The image that is asked about, from 0.
    pub(super) target: usize,
}

/// Names of images in a row.
pub(super) struct Labels<'a> {
    pub(super) text: &'a str,
    pub(super) num_images: usize,
}

impl Pointing<'_> {
    /// The prompt with its one place for an image made several, and the question pointed at one of them. None where there is no place.
    pub(super) fn rewrite(&self, prompt: &Text) -> Option<Text> {
        match prompt {
            Text::Plain(text) => self.plain(text).map(Text::Plain),
            Text::Messages(messages) => {
                let mut messages = messages.clone();
                let content = messages
                    .iter_mut()
                    .find_map(|message| message.content.as_mut().filter(has_image))?;
                if let Content::Blocks(blocks) = content {
                    *blocks = self.blocks(blocks);
                }
                Some(Text::Messages(messages))
            }
            Text::Ids(_) => None,
        }
    }

    fn pointer(&self) -> String {
        numbered(self.pointer, self.target)
    }

    fn plain(&self, text: &str) -> Option<String> {
        let place = IMAGE_PLACEHOLDERS.into_iter().find(|place| text.contains(place))?;
        let (before, question) = text.split_once(place)?;
        let (space, question) = question.split_at(question.len() - question.trim_start().len());
        let images = match &self.labels {
            None => format!("{place}{space}"),
            Some(labels) => {
                let named = |number| format!("{}{place}\n", numbered(labels.text, number));
                (0..labels.num_images).map(named).collect::<Vec<_>>().concat()
            }
        };
        Some(format!("{before}{images}{}{question}", self.pointer()))
    }

    fn blocks(&self, blocks: &[ContentBlock]) -> Vec<ContentBlock> {
        let text = |text: String| ContentBlock::Text { text };
        let mut rewritten = Vec::with_capacity(blocks.len());
        for block in blocks {
            match (block, &self.labels) {
                (ContentBlock::Image, Some(labels)) => {
                    for number in 0..labels.num_images {
                        rewritten.extend([text(numbered(labels.text, number)), ContentBlock::Image]);
                    }
                }
                (block, _) => rewritten.push(block.clone()),
            }
        }
        let last_image = rewritten
            .iter()
            .rposition(|block| *block == ContentBlock::Image)
            .unwrap_or(0);
        let is_words = |block: &ContentBlock| matches!(block, ContentBlock::Text { .. });
        let behind = rewritten
            .iter()
            .skip(last_image)
            .position(is_words)
            .map(|at| at + last_image);
        // Where the question comes before the image, it is its first words that point.
        let question = behind.or_else(|| {
            self.labels
                .is_none()
                .then(|| rewritten.iter().position(is_words))
                .flatten()
        });
        match question.and_then(|at| rewritten.get_mut(at)) {
            Some(ContentBlock::Text { text }) => *text = format!("{}{}", self.pointer(), text.trim_start()),
            _ => rewritten.push(text(self.pointer())),
        }
        rewritten
    }
}

fn has_image(content: &&mut Content) -> bool {
    matches!(&**content, Content::Blocks(blocks) if blocks.contains(&ContentBlock::Image))
}

fn numbered(text: &str, number: usize) -> String {
    text.replace(NUMBER, &(number + 1).to_string())
}

#[cfg(test)]
mod tests {
    use diptych_data::conversation;

    use super::*;

    #[test]
    fn questions_point_at_one_of_several_images() {
        let sequence = Pointing {
            labels: Some(Labels {
                text: "Image{number}: ",
                num_images: 3,
            }),
            pointer: "In Image{number}, ",
            target: 1,
        };
        let plain = Text::Plain("USER: <image>\nwhat is it? ASSISTANT:".to_owned());
        assert_eq!(
            sequence.rewrite(&plain),
            Some("USER: Image1: <image>\nImage2: <image>\nImage3: <image>\nIn Image2, what is it? ASSISTANT:".into())
        );
        let collage = Pointing {
            labels: None,
            ..sequence
        };
        assert_eq!(
            collage.rewrite(&plain),
            Some("USER: <image>\nIn Image2, what is it? ASSISTANT:".into())
        );
        let asked = collage.rewrite(&conversation(None, "what is it?", 1)).unwrap();
        assert_eq!(
            (asked.num_images(), asked.content().as_str()),
            (Some(1), "In Image2, what is it?")
        );
        let sequence = Pointing {
            labels: Some(Labels {
                text: "Image{number}: ",
                num_images: 2,
            }),
            ..collage
        };
        let asked = sequence
            .rewrite(&conversation(Some("be brief"), "what is it?", 1))
            .unwrap();
        assert_eq!(asked.num_images(), Some(2));
        assert_eq!(asked.content(), "be briefImage1: Image2: In Image2, what is it?");
        assert_eq!(sequence.rewrite(&"no place".into()), None);
    }
}
