//! From rows to records of text, one file a layout or family of layouts.
//!
//! What TRL or the trainer that a layout comes from does with a row is done here, too, where it is sensible; where that
//! trainer would skip a row, guess, or fail late, the row is an error.

mod axolotl;
pub(crate) mod extract_prompt;
mod hh;
pub(crate) mod image_places;
mod llama_factory;
mod message_json;
mod ms_swift;
mod openrlhf;
mod published;
mod row_text;
mod samples;
mod trl;
mod unread_keys;
pub(crate) mod video_frames;

use std::fmt;

use serde_json::Map;

use self::published::{ha_dpo, llava, mia_dpo, re_align, rlaif_v};
pub(crate) use self::unread_keys::{is_ignored, left_out};
use crate::error::{Error, Result, RowProblem};
use crate::row::Row;
use crate::{
    ImageSource, Layout, Message, RankedText, SampleBody, Text, TextKind, TextPair, TextPrompt, TextRow, TextSample,
    UnpairedText,
};

/// What must be the same in every row of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    kind: TextKind,
    part: Part,
}

/// How prompt and completion are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Apart.
    Apart,
    /// Both sides begin with the prompt.
    Implicit,
    /// There is no prompt: all is learned.
    Whole,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Apart => "with a prompt of their own",
            Part::Implicit => "that contain their prompt",
            Part::Whole => "without a prompt",
        };
        write!(f, "{} {part}", self.kind.name())
    }
}

impl Form {
    fn new(kind: TextKind, part: Part) -> Self {
        Self { kind, part }
    }
}

/// A record that rows of text are read as.
pub(crate) trait TextRecord: TextRow + Sized {
    /// Takes what the record needs out of a row.
    fn read(row: &mut Row, layout: Layout) -> Result<(Self, Form)>;

    /// The record of a row, of which every key must have been read, but for those a layout is known to carry.
    fn from_row(mut row: Row, layout: Layout) -> Result<(Self, Form)> {
        row.fields.retain(|(key, _)| !is_ignored(layout, key));
        video_frames::unfold(&mut row, layout, None)?;
        let read = Self::read(&mut row, layout)?;
        row.refuse_rest()?;
        Ok(read)
    }

    fn id(&self) -> &str {
        self.parts().id
    }

    /// Its lists of images and their keys; no empty ones.
    fn images(&self) -> Vec<(&'static str, &[ImageSource])> {
        let parts = self.parts();
        let lists = [
            ("images", parts.images),
            ("rejected_images", parts.rejected_images.unwrap_or_default()),
            ("other_images", parts.other_images.unwrap_or_default()),
        ];
        lists.into_iter().filter(|(_, images)| !images.is_empty()).collect()
    }

    /// All lists of its images.
    fn image_lists(&mut self) -> Vec<&mut Vec<ImageSource>>;

    /// The same record with each image replaced.
    #[must_use]
    fn map_images(mut self, map: &dyn Fn(&ImageSource) -> ImageSource) -> Self {
        for image in self.image_lists().into_iter().flatten() {
            *image = map(image);
        }
        self
    }

    /// The row without its images that reads as this record in `own_layout`.
    fn to_row(&self) -> Map<String, serde_json::Value>;
    /// Our own layout of such records.
    fn own_layout() -> Layout;
    /// The prompt, where there is one, and what is scored, with its key.
    fn texts(&self) -> (Option<&Text>, Vec<(&'static str, &Text)>);
}

impl TextRecord for TextPair {
    fn read(row: &mut Row, layout: Layout) -> Result<(Self, Form)> {
        match layout {
            Layout::LlamaFactory => llama_factory::pair(row),
            Layout::MsSwift => ms_swift::pair(row),
            Layout::Axolotl => axolotl::pair(row),
            Layout::Openrlhf => openrlhf::pair(row),
            Layout::Hh => hh::pair(row),
            Layout::RlhfV => rlaif_v::pair_in_text(row),
            Layout::RlaifV => rlaif_v::pair(row),
            Layout::Povid => llava::pair(row),
            Layout::MiaDpo => mia_dpo::pair(row),
            Layout::ReAlign => re_align::pair(row),
            Layout::HaDpo => ha_dpo::pair(row),
            _ => trl::pair(row),
        }
    }

    fn image_lists(&mut self) -> Vec<&mut Vec<ImageSource>> {
        let instead = self.rejected_images.iter_mut().chain(&mut self.other_images);
        std::iter::once(&mut self.images).chain(instead).collect()
    }

    fn to_row(&self) -> Map<String, serde_json::Value> {
        self.row()
    }

    fn own_layout() -> Layout {
        Layout::Preference
    }

    fn texts(&self) -> (Option<&Text>, Vec<(&'static str, &Text)>) {
        (
            Some(&self.prompt),
            vec![("chosen", &self.chosen), ("rejected", &self.rejected)],
        )
    }
}

impl TextRecord for UnpairedText {
    fn read(row: &mut Row, layout: Layout) -> Result<(Self, Form)> {
        match layout {
            Layout::LlamaFactory => llama_factory::unpaired(row),
            Layout::MsSwift => ms_swift::unpaired(row),
            _ => trl::unpaired(row),
        }
    }

    fn image_lists(&mut self) -> Vec<&mut Vec<ImageSource>> {
        vec![&mut self.images]
    }

    fn to_row(&self) -> Map<String, serde_json::Value> {
        self.row()
    }

    fn own_layout() -> Layout {
        Layout::Unpaired
    }

    fn texts(&self) -> (Option<&Text>, Vec<(&'static str, &Text)>) {
        (Some(&self.prompt), vec![("completion", &self.completion)])
    }
}

impl TextRecord for RankedText {
    fn read(row: &mut Row, _layout: Layout) -> Result<(Self, Form)> {
        samples::ranked(row)
    }

    fn image_lists(&mut self) -> Vec<&mut Vec<ImageSource>> {
        vec![&mut self.images]
    }

    fn to_row(&self) -> Map<String, serde_json::Value> {
        self.row()
    }

    fn own_layout() -> Layout {
        Layout::Ranked
    }

    fn texts(&self) -> (Option<&Text>, Vec<(&'static str, &Text)>) {
        let responses = self.responses.iter().map(|response| ("response", &response.completion));
        (Some(&self.prompt), responses.collect())
    }
}

impl TextRecord for TextSample {
    fn read(row: &mut Row, layout: Layout) -> Result<(Self, Form)> {
        match layout {
            Layout::LlamaFactory => llama_factory::sample(row),
            Layout::MsSwift => ms_swift::sample(row),
            Layout::Llava => llava::sample(row),
            _ => samples::sample(row),
        }
    }

    fn image_lists(&mut self) -> Vec<&mut Vec<ImageSource>> {
        vec![&mut self.images]
    }

    fn to_row(&self) -> Map<String, serde_json::Value> {
        self.row()
    }

    fn own_layout() -> Layout {
        Layout::Sft
    }

    fn texts(&self) -> (Option<&Text>, Vec<(&'static str, &Text)>) {
        match &self.body {
            SampleBody::Whole(text) => (None, vec![("text", text)]),
            SampleBody::Completed { prompt, completion } => (Some(prompt), vec![("completion", completion)]),
        }
    }
}

impl TextRecord for TextPrompt {
    fn read(row: &mut Row, _layout: Layout) -> Result<(Self, Form)> {
        samples::prompt(row)
    }

    fn image_lists(&mut self) -> Vec<&mut Vec<ImageSource>> {
        vec![&mut self.images]
    }

    fn to_row(&self) -> Map<String, serde_json::Value> {
        self.row()
    }

    fn own_layout() -> Layout {
        Layout::PromptOnly
    }

    fn texts(&self) -> (Option<&Text>, Vec<(&'static str, &Text)>) {
        (Some(&self.prompt), Vec::new())
    }
}

/// Columns of other modalities, which must be empty.
const MEDIA: [&str; 5] = ["videos", "audios", "video", "audio", "objects"];

/// The same, in a layout that is text alone.
const MEDIA_AND_IMAGES: [&str; 9] = [
    "image",
    "images",
    "rejected_images",
    "other_images",
    "videos",
    "audios",
    "video",
    "audio",
    "objects",
];

/// Refuses a row whose two texts are of different kinds.
fn same_kind(row: &Row, key: &str, text: &Text, other_key: &str, other: &Text) -> Result<()> {
    if text.kind() == other.kind() {
        return Ok(());
    }
    Err(row.error(RowProblem::Conflict {
        key: key.to_owned(),
        reason: format!(
            "is of {}, but `{other_key}` is of {}; both must be of one kind",
            text.kind().name(),
            other.kind().name()
        ),
    }))
}

/// A prompt column beside conversations that contain their prompt, as `UltraFeedback` has it, must say what one of the
/// shared messages says: else it is not the prompt of these conversations.
fn check_repeated_prompt(row: &Row, text: &str, shared: &Text) -> Result<()> {
    let shared = shared.messages().unwrap_or_default();
    if row_text::some_message_says(shared, text) {
        return Ok(());
    }
    Err(row.error(RowProblem::Conflict {
        key: "prompt".to_owned(),
        reason:
            "is a string that no message shared by the conversations says; give it as a list of messages, or leave \
                 it out"
                .to_owned(),
    }))
}

/// Puts a system prompt that has a column of its own before a conversation, which must not begin with another one.
fn begin_with(row: &Row, system: Option<Message>, messages: &mut Vec<Message>) -> Result<()> {
    let Some(system) = system else { return Ok(()) };
    match messages.first() {
        Some(first) if *first == system => {}
        Some(first) if first.role == "system" => {
            return Err(row.error(RowProblem::Conflict {
                key: "system".to_owned(),
                reason: "says something else than the conversation's own system message; keep one of them".to_owned(),
            }));
        }
        _ => messages.insert(0, system),
    }
    Ok(())
}

/// The prompt before an assistant's last message, and that message.
fn split_last(row: &Row, key: &str, mut messages: Vec<Message>) -> Result<(Vec<Message>, Vec<Message>)> {
    match messages.pop() {
        Some(last) if last.role == "assistant" && !messages.is_empty() => Ok((messages, vec![last])),
        Some(last) if last.role == "assistant" => Err(row.turns(key, "there is no message before the answer")),
        Some(last) => Err(row.turns(
            key,
            format!("the last message is of `{}`, not of the assistant", last.role),
        )),
        None => Err(row.turns(key, "there is no message")),
    }
}

/// User (or tool) and assistant take turns after the system's message, as LLaMA-Factory and ms-swift need it.
fn check_alternation(row: &Row, key: &str, messages: &[Message]) -> Result<()> {
    let start = usize::from(messages.first().is_some_and(|message| message.role == "system"));
    for (at, message) in messages.iter().enumerate().skip(start) {
        let is_answer = (at - start) % 2 == 1;
        if is_answer != (message.role == "assistant") || message.role == "system" {
            let expected = if is_answer { "assistant" } else { "user or tool" };
            let reason = format!(
                "message {at} is of `{}`; expected {expected}: the sides take turns",
                message.role
            );
            return Err(row.turns(key, reason));
        }
    }
    Ok(())
}

/// Refuses a row that is of another form than the first one.
pub(crate) fn check_form(first: &mut Option<Form>, form: Form, path: &std::path::Path, row: usize) -> Result<()> {
    match first {
        None => *first = Some(form),
        Some(expected) if *expected != form => {
            return Err(Error::Row {
                path: path.to_path_buf(),
                row,
                problem: RowProblem::OtherForm {
                    found: form.to_string(),
                    expected: expected.to_string(),
                },
            });
        }
        Some(_) => {}
    }
    Ok(())
}
