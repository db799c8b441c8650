//! The rows that data is built from.

use diptych_data::{DataFiles, ImageSource, OnError, ReadReport, Text, TextDataset, TextPrompt, TextRow};

use super::problem::BuildProblem;
use crate::Result;

/// A row: a prompt that shows images, and the answer that the data has for it, if it has one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SourceRow {
    /// What is asked; its images in the order of their places.
    pub(super) prompt: TextPrompt,
    /// The preferred answer, or the only one.
    pub(super) answer: Option<Text>,
}

impl SourceRow {
    /// Names the row in messages.
    pub(super) fn id(&self) -> &str {
        &self.prompt.id
    }

    pub(super) fn images(&self) -> &[ImageSource] {
        &self.prompt.images
    }
}

/// The rows of any layout of text, and what was passed over.
///
/// # Errors
/// Rows that cannot be read, unless they are to be skipped; [`BuildProblem::NoPrompt`].
pub(super) fn read_sources(files: &DataFiles, on_error: OnError) -> Result<(Vec<SourceRow>, ReadReport)> {
    let (dataset, report) = match on_error {
        OnError::Fail => TextDataset::read_with(files, OnError::Fail)?,
        // Images are looked at when their turn comes: they may be many.
        OnError::Skip => TextDataset::read_rows(files)?,
    };
    let rows = match &dataset {
        TextDataset::Pairs(records) => rows_of(records, Answers::First)?,
        TextDataset::Unpaired(records) => rows_of(records, Answers::None)?,
        TextDataset::Ranked(records) => rows_of(records, Answers::None)?,
        TextDataset::Samples(records) => rows_of(records, Answers::First)?,
        TextDataset::Prompts(records) => rows_of(records, Answers::None)?,
    };
    Ok((rows, report))
}

/// Which of a record's answers is a good one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    First,
    None,
}

fn rows_of<R: TextRow>(records: &[R], answers: Answers) -> Result<Vec<SourceRow>> {
    let row = |record: &R| {
        let parts = record.parts();
        let prompt = parts.prompt.ok_or_else(|| BuildProblem::NoPrompt {
            id: parts.id.to_owned(),
        })?;
        let answer = match answers {
            Answers::First => parts.completions.first().map(|part| part.text.clone()),
            Answers::None => None,
        };
        Ok(SourceRow {
            prompt: TextPrompt {
                id: parts.id.to_owned(),
                prompt: prompt.clone(),
                images: parts.images.to_vec(),
                tools: parts.tools.to_vec(),
                chat_template_kwargs: parts.chat_template_kwargs.clone(),
            },
            answer,
        })
    };
    records.iter().map(row).collect()
}
