//! What a tokenizer makes of a dataset, and what is probably not meant: the library part of `diptych data lint`.

mod check;
mod duplicates;
mod report;

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use self::check::{RowReport, check_row};
use self::duplicates::Duplicates;
use super::encoding::{Encoder, SkipReason};
use super::encoding_config::EncodingConfig;
use super::rows::TextRow;
use super::tokenizer::Tokenizer;
use crate::ReadReport;
use crate::error::Result;

/// At most this many findings of one rule are kept; all are counted.
pub const MAX_FINDINGS: usize = 100;

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LintConfig {
    /// How training will encode the rows.
    pub encoding: EncodingConfig,
    /// Rows of every split that are shown token by token.
    pub num_shown: usize,
    /// A completion more than this many times as long as the other one is a finding; larger than 1.
    pub max_length_ratio: f64,
    /// An image with a longer side than this, in pixels, is a finding.
    pub max_image_side: u32,
}

impl Default for LintConfig {
    fn default() -> Self {
        Self {
            encoding: EncodingConfig::default(),
            num_shown: 3,
            max_length_ratio: 5.0,
            max_image_side: 4096,
        }
    }
}

/// A part of a dataset: `train`, `eval`.
#[derive(Debug, Clone, Copy)]
pub struct LintSplit<'a, R> {
    /// Its name in findings.
    pub name: &'a str,
    /// Its records.
    pub records: &'a [R],
}

/// Everything found. Serializes to JSON; `Display` is the text for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LintReport {
    /// One summary a split.
    pub splits: Vec<SplitSummary>,
    /// The first rows of every split, token by token.
    pub shown: Vec<ShownRow>,
    /// At most [`MAX_FINDINGS`] of every rule, by split and row.
    pub findings: Vec<Finding>,
    /// How often each rule was broken.
    pub counts: BTreeMap<LintRule, usize>,
    /// Findings that are errors.
    pub num_errors: usize,
    /// Findings that are warnings.
    pub num_warnings: usize,
}

/// Numbers of one split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitSummary {
    /// Its name.
    pub name: String,
    /// Records.
    pub num_rows: usize,
    /// Records that training would use.
    pub num_kept: usize,
    /// Tokens of prompts, before truncation.
    pub prompt_len: Option<TokenSummary>,
    /// Tokens of each side's completions, before truncation.
    pub completion_len: BTreeMap<String, TokenSummary>,
    /// Tokens of the rationales by themselves, where there are any.
    pub rationale_len: Option<TokenSummary>,
    /// For pairs: share of rows whose chosen completion has more tokens, ties counting one half.
    pub chosen_longer: Option<f64>,
    /// For pairs: median of chosen by rejected length, in tokens.
    pub median_length_ratio: Option<f64>,
}

/// Distribution of a length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenSummary {
    /// Smallest.
    pub min: usize,
    /// Middle of the sorted lengths, the upper one of two.
    pub median: usize,
    /// Largest.
    pub max: usize,
    /// Mean.
    pub mean: f64,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LintSeverity {
    /// Training would stop, or learn something wrong from the row.
    Error,
    /// Training would go on, and the row may be meant.
    Warning,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LintRule {
    /// The tokens of the prompt do not begin the tokens of the whole.
    PrefixViolation,
    /// The row cannot be encoded for another reason.
    CannotEncode,
    /// A sequence begins with BOS twice: template and tokenizer both add it.
    DoubledBos,
    /// A completion ends with EOS twice.
    DoubledEos,
    /// A completion has no EOS, so that the model does not learn to stop.
    MissingEos,
    /// There is nothing in a completion.
    EmptyAnswer,
    /// Two completions of a row are the same.
    EqualAnswers,
    /// Training leaves the row out.
    Skipped,
    /// A sequence is longer than `max_len`.
    OverLong,
    /// One completion is many times as long as the other.
    LengthRatio,
    /// Some rows of a split have a rationale and some do not.
    MissingRationale,
    /// Chosen completions are nearly always longer (or shorter): the length alone tells the sides apart.
    LengthBias,
    /// The same row again in its split.
    DuplicateRow,
    /// The same row in another split.
    SharedRow,
    /// The same prompt in another split.
    SharedPrompt,
    /// A row that cannot be read: a key, a missing image, or more or fewer images than places for them.
    UnreadableRow,
    /// An image is not an image, damaged or cut short.
    UnreadableImage,
    /// An image is huge: most of it is thrown away before a model sees it.
    HugeImage,
}

/// One thing that is wrong or doubtful.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: LintSeverity,
    /// Which rule.
    pub rule: LintRule,
    /// The split.
    pub split: String,
    /// Index of the record in it; none for findings about the split.
    pub row: Option<usize>,
    /// The record's id.
    pub id: Option<String>,
    /// What is wrong there.
    pub message: String,
}

/// A row token by token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownRow {
    /// The split.
    pub split: String,
    /// Index of the record in it.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// One sequence a completion.
    pub sequences: Vec<ShownSequence>,
}

/// Prompt and one completion, before truncation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownSequence {
    /// `chosen`, `rejected`, `completion`, `text` or `responses[i]`.
    pub side: String,
    /// Its tokens.
    pub tokens: Vec<ShownToken>,
}

/// A token as training sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownToken {
    /// Its id.
    pub id: u32,
    /// As the vocabulary writes it.
    pub token: String,
    /// Weight of its log-probability; 0 is not learned.
    pub weight: f32,
    /// Whether it is cut off by `max_len`.
    pub is_cut: bool,
}

/// Encodes all rows as training would and reports what looks wrong. Rows are checked in parallel; the report does not
/// depend on the number of threads.
///
/// # Errors
/// [`crate::Error::EncodingConfig`]; whatever is wrong with rows is in the report.
pub fn lint<R: TextRow>(tokenizer: &Tokenizer, config: &LintConfig, splits: &[LintSplit<R>]) -> Result<LintReport> {
    let encoder = Encoder::try_new(tokenizer, config.encoding)?;
    let mut report = LintReport {
        splits: Vec::new(),
        shown: Vec::new(),
        findings: Vec::new(),
        counts: BTreeMap::new(),
        num_errors: 0,
        num_warnings: 0,
    };
    let mut duplicates = Duplicates::default();
    for split in splits {
        let rows: Vec<RowReport> = split
            .records
            .par_iter()
            .enumerate()
            .map(|(row, record)| check_row(&encoder, config, record, row < config.num_shown))
            .collect();
        for (row, (checked, record)) in rows.iter().zip(split.records).enumerate() {
            let id = record.parts().id.to_owned();
            for (rule, message) in &checked.findings {
                report.add(*rule, split.name, Some((row, &id)), message.clone());
            }
            for (rule, message) in duplicates.check(split.name, row, &id, &checked.digests) {
                report.add(rule, split.name, Some((row, &id)), message);
            }
            if row < config.num_shown {
                report.shown.push(ShownRow {
                    split: split.name.to_owned(),
                    row,
                    id,
                    sequences: checked.shown.clone(),
                });
            }
        }
        if let Some((row, message)) = missing_rationale(&rows) {
            let id = split.records[row].parts().id.to_owned();
            report.add(LintRule::MissingRationale, split.name, Some((row, &id)), message);
        }
        let summary = summarize(split.name, &rows);
        if let Some(message) = length_bias(&summary) {
            report.add(LintRule::LengthBias, split.name, None, message);
        }
        report.splits.push(summary);
    }
    Ok(report)
}

impl LintReport {
    /// Counts the rows of a split that could not be read, which are not among its records.
    pub fn add_unreadable(&mut self, split: &str, read: &ReadReport) {
        for problem in &read.unreadable {
            self.add(LintRule::UnreadableRow, split, None, problem.clone());
        }
        for _ in read.unreadable.len()..read.num_unreadable {
            self.add(
                LintRule::UnreadableRow,
                split,
                None,
                "a row that is not named here".to_owned(),
            );
        }
    }

    fn add(&mut self, rule: LintRule, split: &str, row: Option<(usize, &String)>, message: String) {
        let count = self.counts.entry(rule).or_default();
        *count += 1;
        match rule.severity() {
            LintSeverity::Error => self.num_errors += 1,
            LintSeverity::Warning => self.num_warnings += 1,
        }
        if *count <= MAX_FINDINGS {
            self.findings.push(Finding {
                severity: rule.severity(),
                rule,
                split: split.to_owned(),
                row: row.map(|(row, _)| row),
                id: row.map(|(_, id)| id.clone()),
                message,
            });
        }
    }
}

impl LintRule {
    /// How bad it is to break it.
    pub fn severity(self) -> LintSeverity {
        match self {
            Self::PrefixViolation
            | Self::CannotEncode
            | Self::DoubledBos
            | Self::EmptyAnswer
            | Self::EqualAnswers
            | Self::UnreadableRow
            | Self::UnreadableImage
            | Self::SharedRow => LintSeverity::Error,
            Self::DoubledEos
            | Self::MissingEos
            | Self::Skipped
            | Self::OverLong
            | Self::LengthRatio
            | Self::MissingRationale
            | Self::LengthBias
            | Self::DuplicateRow
            | Self::HugeImage
            | Self::SharedPrompt => LintSeverity::Warning,
        }
    }
}

impl TokenSummary {
    fn of(mut lengths: Vec<usize>) -> Option<Self> {
        lengths.sort_unstable();
        Some(Self {
            min: *lengths.first()?,
            median: lengths[lengths.len() / 2],
            max: *lengths.last()?,
            mean: lengths.iter().sum::<usize>() as f64 / lengths.len() as f64,
        })
    }
}

fn summarize(name: &str, rows: &[RowReport]) -> SplitSummary {
    let mut by_side: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let (mut ratios, mut chosen_longer) = (Vec::new(), 0.0);
    for row in rows {
        for (side, len) in &row.completion_lens {
            by_side.entry(side.clone()).or_default().push(*len);
        }
        if let [(side, chosen), (_, rejected)] = row.completion_lens.as_slice()
            && side == "chosen"
        {
            ratios.push(*chosen as f64 / (*rejected).max(1) as f64);
            chosen_longer += match chosen.cmp(rejected) {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            };
        }
    }
    ratios.sort_by(f64::total_cmp);
    SplitSummary {
        name: name.to_owned(),
        num_rows: rows.len(),
        num_kept: rows.iter().filter(|row| row.is_kept).count(),
        prompt_len: TokenSummary::of(rows.iter().filter_map(|row| row.prompt_len).collect()),
        completion_len: by_side
            .into_iter()
            .filter_map(|(side, lengths)| Some((side, TokenSummary::of(lengths)?)))
            .collect(),
        rationale_len: TokenSummary::of(rows.iter().filter_map(|row| row.rationale_len).collect()),
        chosen_longer: (!ratios.is_empty()).then(|| chosen_longer / ratios.len() as f64),
        median_length_ratio: ratios.get(ratios.len() / 2).copied(),
    }
}

/// The first row without a rationale, where others have one.
fn missing_rationale(rows: &[RowReport]) -> Option<(usize, String)> {
    let num = rows.iter().filter(|row| row.rationale_len.is_none()).count();
    let first = rows.iter().position(|row| row.rationale_len.is_none())?;
    (num < rows.len()).then(|| {
        let message = format!(
            "no `rationale`, as {num} of {} rows have none: `[method.offline_pairs.rationale]` needs one of every row",
            rows.len()
        );
        (first, message)
    })
}

/// Fewer rows than this say nothing about a split.
const MIN_ROWS_FOR_BIAS: usize = 20;

fn length_bias(summary: &SplitSummary) -> Option<String> {
    let (share, ratio) = (summary.chosen_longer?, summary.median_length_ratio?);
    let num_pairs = summary.num_rows;
    if num_pairs < MIN_ROWS_FOR_BIAS || (0.1..=0.9).contains(&share) {
        return None;
    }
    Some(format!(
        "the chosen completion is the longer one in {:.0} % of {num_pairs} rows (median ratio {ratio:.2}): a model can \
         tell the sides apart by length alone; a length-normalized objective, or balancing the data, helps",
        share * 100.0
    ))
}

impl SkipReason {
    /// For messages.
    fn describe(self, max_len: Option<usize>) -> String {
        match (self, max_len) {
            (Self::PromptTooLong { prompt_len }, Some(max_len)) => {
                format!("the prompt has {prompt_len} tokens and fills `max_len` = {max_len}: the row is left out")
            }
            (Self::PromptTooLong { prompt_len }, None) => format!("the prompt has {prompt_len} tokens"),
            (Self::NothingScored, _) => "no token of a completion is learned: the row is left out".to_owned(),
            (Self::ImageTokens { found, images }, _) => {
                format!("the prompt has {images} images, but {found} tokens of images once it is rendered")
            }
        }
    }
}
