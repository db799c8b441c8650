//! `diptych data lint`: what is wrong or probably not meant in data, and text as training sees it.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::bail;
use diptych_data::{
    DataFiles, LintConfig, LintReport, LintSplit, RankedText, ReadReport, RecordKind, RowParts, TextDataset, TextPair,
    TextPrompt, TextRow, TextSample, Tokenizer, UnpairedText, lint,
};
use serde::Serialize;

use crate::arguments::LintArguments;
use crate::command::{encoding, lint_images};
use crate::failure::usage;
use crate::output::print;

/// The split that --data names.
const TRAIN: &str = "train";

/// A row of any kind, so that splits of different kinds are looked at together.
enum AnyRow {
    Pair(TextPair),
    Unpaired(UnpairedText),
    Ranked(RankedText),
    Sample(TextSample),
    Prompt(TextPrompt),
}

impl TextRow for AnyRow {
    fn parts(&self) -> RowParts<'_> {
        match self {
            Self::Pair(row) => row.parts(),
            Self::Unpaired(row) => row.parts(),
            Self::Ranked(row) => row.parts(),
            Self::Sample(row) => row.parts(),
            Self::Prompt(row) => row.parts(),
        }
    }
}

pub(crate) fn run(arguments: &LintArguments) -> anyhow::Result<()> {
    let mut names = BTreeSet::from([TRAIN]);
    if let Some((name, _)) = arguments.splits.iter().find(|(name, _)| !names.insert(name)) {
        return Err(usage(format!("--split {name}: there are two splits of this name")));
    }
    let files = DataFiles::find(&arguments.data, arguments.layout)?;
    let is_pipeline = |path: &Path| path.join("model_index.json").is_file();
    // Rows with nothing but a prompt are for either.
    let is_for_images =
        files.records() == RecordKind::TextPrompt && arguments.model.as_deref().is_some_and(is_pipeline);
    let (num_errors, report) = if files.records().is_text() && !is_for_images {
        if let Some(option) = arguments.images.given().filter(|option| *option != "--max-side") {
            return Err(usage(format!("{option} is for images; {} are text", files.records())));
        }
        written(arguments, &lint_text(arguments)?, |report| report.num_errors)?
    } else {
        if let Some(option) = arguments.text.given() {
            return Err(usage(format!("{option} is for text; this data is {}", files.records())));
        }
        let report = lint_images::run(arguments, TRAIN, files)?;
        written(arguments, &report, |report| report.num_errors)?
    };
    print(report.trim_end())?;
    if num_errors > 0 {
        bail!("the data has {num_errors} errors");
    }
    Ok(())
}

/// The number of errors of a report, and what is printed of it.
fn written<R: Display + Serialize>(
    arguments: &LintArguments,
    report: &R,
    num_errors: impl Fn(&R) -> usize,
) -> anyhow::Result<(usize, String)> {
    let text = if arguments.json {
        serde_json::to_string_pretty(report)?
    } else {
        report.to_string()
    };
    Ok((num_errors(report), text))
}

fn lint_text(arguments: &LintArguments) -> anyhow::Result<LintReport> {
    let Some(model) = &arguments.model else {
        return Err(usage(
            "--model is missing: text is looked at as the tokenizer of a model sees it",
        ));
    };
    let ratio = arguments
        .text
        .max_length_ratio
        .unwrap_or(LintConfig::default().max_length_ratio);
    if !(ratio.is_finite() && ratio > 1.0) {
        return Err(usage(format!(
            "--max-length-ratio is {ratio}, expected a finite number above 1"
        )));
    }
    let config = LintConfig {
        encoding: encoding::config(&arguments.text.encoding)?,
        num_shown: arguments.text.show.unwrap_or(LintConfig::default().num_shown),
        max_length_ratio: ratio,
        max_image_side: arguments
            .images
            .max_side
            .unwrap_or(LintConfig::default().max_image_side),
    };
    let tokenizer = Tokenizer::from_dir(model)?;
    let mut splits = vec![(TRAIN, rows(&arguments.data, arguments)?)];
    for (name, path) in &arguments.splits {
        splits.push((name, rows(std::slice::from_ref(path), arguments)?));
    }
    let looked_at: Vec<LintSplit<'_, AnyRow>> = splits
        .iter()
        .map(|(name, (records, _))| LintSplit { name, records })
        .collect();
    let mut report = lint(&tokenizer, &config, &looked_at)?;
    for (name, (_, read)) in &splits {
        report.add_unreadable(name, read);
    }
    Ok(report)
}

fn rows(paths: &[PathBuf], arguments: &LintArguments) -> anyhow::Result<(Vec<AnyRow>, ReadReport)> {
    let (dataset, read) = TextDataset::read_rows(&DataFiles::find(paths, arguments.layout)?)?;
    let rows = match dataset {
        TextDataset::Pairs(rows) => rows.into_iter().map(AnyRow::Pair).collect(),
        TextDataset::Unpaired(rows) => rows.into_iter().map(AnyRow::Unpaired).collect(),
        TextDataset::Ranked(rows) => rows.into_iter().map(AnyRow::Ranked).collect(),
        TextDataset::Samples(rows) => rows.into_iter().map(AnyRow::Sample).collect(),
        TextDataset::Prompts(rows) => rows.into_iter().map(AnyRow::Prompt).collect(),
    };
    Ok((rows, read))
}
