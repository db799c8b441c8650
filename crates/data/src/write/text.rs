//! Records of text as JSON lines, in TRL's names, so that reading them back gives the same records.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Map, Value};

use super::image_rows::WrittenImage;
use super::write_rows;
use crate::error::{Error, Result};
use crate::json::Object;
use crate::row::Row;
use crate::text_layout::TextRecord;
use crate::{
    CharSpan, ImageSource, RankedText, SampleBody, Text, TextDataset, TextPair, TextPrompt, TextSample, UnpairedText,
};

type Fields = Map<String, Value>;

/// Writes one JSON lines file of the layout of its records: `preference`, `unpaired`, `ranked`, `sft` or `prompt-only`, images
/// embedded. An existing file is replaced.
///
/// # Errors
/// [`Error::NothingToWrite`] without records; [`Error::InvalidRecord`] for a record that would not read back as it is: an
/// empty id, a number that is not finite, sides of different kinds, spans outside of their completion, …; a file that
/// cannot be written. In each case nothing changes at `path`.
pub fn write_text(path: &Path, dataset: &TextDataset) -> Result<()> {
    match dataset {
        TextDataset::Pairs(records) => write_rows(path, records, embedded_row),
        TextDataset::Unpaired(records) => write_rows(path, records, embedded_row),
        TextDataset::Ranked(records) => write_rows(path, records, embedded_row),
        TextDataset::Samples(records) => write_rows(path, records, embedded_row),
        TextDataset::Prompts(records) => write_rows(path, records, embedded_row),
    }
}

/// The row of a record with its images embedded, after reading it back.
fn embedded_row<T: TextRecord + Clone + PartialEq>(record: &T) -> Result<Fields> {
    checked_row(record, |_, image| {
        let bytes = STANDARD.encode(image.encoded()?);
        Ok(WrittenImage::Embedded { bytes })
    })
}

/// The row of a record, after reading it back: what was written is always what will be read. `write` says what stands for an image.
pub(crate) fn checked_row<T: TextRecord + Clone + PartialEq>(
    record: &T,
    mut write: impl FnMut(&'static str, &ImageSource) -> Result<WrittenImage>,
) -> Result<Fields> {
    let invalid = |reason: String| Error::InvalidRecord {
        id: record.id().to_owned(),
        reason,
    };
    check_text(record).map_err(|error| match error {
        Error::Row { problem, .. } => invalid(problem.to_string()),
        error => error,
    })?;
    let mut fields = record.to_row();
    for (key, images) in record.images() {
        let written = images
            .iter()
            .map(|image| {
                write(key, image).map_err(|source| Error::Record {
                    id: record.id().to_owned(),
                    key,
                    source: source.into(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        fields.insert(key.to_owned(), json(&written));
    }
    Ok(fields)
}

/// Reads the row of a record back, with an empty image for each of its images.
fn check_text<T: TextRecord + Clone + PartialEq>(record: &T) -> Result<()> {
    let invalid = |reason: String| Error::InvalidRecord {
        id: record.id().to_owned(),
        reason,
    };
    let blank = || ImageSource::Bytes(Arc::from([]));
    let blanked = record.clone().map_images(&|_| blank());
    let mut fields = record.to_row();
    for (key, images) in record.images() {
        let written: Vec<WrittenImage> = images
            .iter()
            .map(|_| WrittenImage::Embedded { bytes: String::new() })
            .collect();
        fields.insert(key.to_owned(), json(&written));
    }
    let line = serde_json::to_vec(&fields).map_err(|error| invalid(error.to_string()))?;
    let Object(read) = serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()))?;
    let row = Row {
        path: Arc::from(Path::new("")),
        number: 0,
        fields: read,
    };
    match T::from_row(row, T::own_layout())? {
        (back, _) if back == blanked => Ok(()),
        _ => Err(invalid(
            "it would read back as another record (a number that is not finite, or a null, or a key said twice)"
                .to_owned(),
        )),
    }
}

impl TextPair {
    pub(crate) fn row(&self) -> Fields {
        let mut row = begin(&self.id);
        put_text(&mut row, "prompt", "prompt_ids", &self.prompt);
        put_text(&mut row, "chosen", "chosen_ids", &self.chosen);
        put_text(&mut row, "rejected", "rejected_ids", &self.rejected);
        for (key, value) in [
            ("chosen_score", self.chosen_score),
            ("rejected_score", self.rejected_score),
            ("ref_chosen_logps", self.reference_chosen_logps),
            ("ref_rejected_logps", self.reference_rejected_logps),
            ("margin", self.margin),
        ] {
            put_number(&mut row, key, value);
        }
        if let Some(rationale) = &self.rationale {
            row.insert("rationale".to_owned(), rationale.as_str().into());
        }
        put_spans(&mut row, "chosen_spans", &self.chosen_spans);
        put_spans(&mut row, "rejected_spans", &self.rejected_spans);
        put_template(&mut row, &self.tools, &self.chat_template_kwargs);
        row
    }
}

impl UnpairedText {
    pub(crate) fn row(&self) -> Fields {
        let mut row = begin(&self.id);
        put_text(&mut row, "prompt", "prompt_ids", &self.prompt);
        put_text(&mut row, "completion", "completion_ids", &self.completion);
        row.insert("label".to_owned(), self.label.into());
        put_number(&mut row, "score", self.score);
        put_number(&mut row, "ref_logps", self.reference_logps);
        put_spans(&mut row, "completion_spans", &self.completion_spans);
        put_template(&mut row, &self.tools, &self.chat_template_kwargs);
        row
    }
}

impl RankedText {
    pub(crate) fn row(&self) -> Fields {
        let mut row = begin(&self.id);
        put_text(&mut row, "prompt", "prompt_ids", &self.prompt);
        let responses = self.responses.iter().map(|response| {
            let mut fields = Map::new();
            let key = match response.completion {
                Text::Plain(_) => "text",
                Text::Messages(_) | Text::Ids(_) => "messages",
            };
            put_text(&mut fields, key, "ids", &response.completion);
            put_number(&mut fields, "score", Some(response.score));
            Value::Object(fields)
        });
        row.insert("responses".to_owned(), responses.collect());
        put_template(&mut row, &self.tools, &self.chat_template_kwargs);
        row
    }
}

impl TextSample {
    pub(crate) fn row(&self) -> Fields {
        let mut row = begin(&self.id);
        match &self.body {
            SampleBody::Whole(text @ Text::Plain(_)) => put_text(&mut row, "text", "input_ids", text),
            SampleBody::Whole(text) => put_text(&mut row, "messages", "input_ids", text),
            SampleBody::Completed { prompt, completion } => {
                put_text(&mut row, "prompt", "prompt_ids", prompt);
                put_text(&mut row, "completion", "completion_ids", completion);
            }
        }
        put_spans(&mut row, "completion_spans", &self.completion_spans);
        put_template(&mut row, &self.tools, &self.chat_template_kwargs);
        row
    }
}

impl TextPrompt {
    pub(crate) fn row(&self) -> Fields {
        let mut row = begin(&self.id);
        put_text(&mut row, "prompt", "prompt_ids", &self.prompt);
        put_template(&mut row, &self.tools, &self.chat_template_kwargs);
        row
    }
}

fn begin(id: &str) -> Fields {
    Map::from_iter([("id".to_owned(), id.into())])
}

fn put_text(row: &mut Fields, key: &str, ids_key: &str, text: &Text) {
    match text {
        Text::Plain(text) => row.insert(key.to_owned(), text.as_str().into()),
        Text::Messages(messages) => row.insert(key.to_owned(), json(messages)),
        Text::Ids(ids) => row.insert(ids_key.to_owned(), ids.as_slice().into()),
    };
}

fn put_number(row: &mut Fields, key: &str, value: Option<f64>) {
    if let Some(value) = value {
        row.insert(key.to_owned(), value.into());
    }
}

fn put_spans(row: &mut Fields, key: &str, spans: &[CharSpan]) {
    if !spans.is_empty() {
        row.insert(key.to_owned(), json(spans));
    }
}

fn put_template(row: &mut Fields, tools: &[Value], kwargs: &Fields) {
    if !tools.is_empty() {
        row.insert("tools".to_owned(), tools.into());
    }
    if !kwargs.is_empty() {
        row.insert("chat_template_kwargs".to_owned(), kwargs.clone().into());
    }
}

/// Messages and spans have string keys and no map that could fail to serialize.
fn json<T: Serialize + ?Sized>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}
