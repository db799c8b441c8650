//! What becomes of rows that are no clear preference, or no record at all; and what became of them.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::RecordKind;
use crate::error::{Error, Result};
use crate::inspect::MAX_PROBLEMS;

/// What becomes of a row that prefers neither side: Pick-a-Pic's labels of one half, two equal preferences of HPD v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TiePolicy {
    /// It is left out and counted, as the Diffusion-DPO authors do.
    #[default]
    Drop,
    /// It becomes two records, each image chosen once. The mean of their two losses is the loss with the soft label ½, whatever the
    /// objective: `PickScore` trains on ties like this.
    Both,
    /// It is an error.
    Fail,
    /// A pair is one record whose scores are equal, for those who compare a judge with labels. No recipe has it: nothing is learned from it.
    #[serde(skip)]
    Keep,
}

impl FromStr for TiePolicy {
    type Err = String;

    /// # Errors
    /// The name is none of a recipe's; the message says which was found and which are expected.
    fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
        match name {
            "drop" => Ok(Self::Drop),
            "both" => Ok(Self::Both),
            "fail" => Ok(Self::Fail),
            _ => Err(format!("unknown policy `{name}`; expected one of drop, both, fail")),
        }
    }
}

/// What becomes of a row that is wrong, or of a record whose image cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The first one is the error that ends the reading.
    #[default]
    Fail,
    /// It is passed over, counted and named.
    Skip,
}

impl FromStr for OnError {
    type Err = String;

    /// # Errors
    /// The name is none of a recipe's; the message says which was found and which are expected.
    fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
        match name {
            "fail" => Ok(Self::Fail),
            "skip" => Ok(Self::Skip),
            _ => Err(format!("unknown policy `{name}`; expected one of fail, skip")),
        }
    }
}

/// How the rows of a dataset of images are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadPolicy {
    /// Rows without a preference.
    pub ties: TiePolicy,
    /// Rows that are wrong.
    pub on_error: OnError,
}

/// Why a well-formed row gave no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeftOut {
    /// Neither side is preferred, and ties are dropped.
    Tie,
    /// The data says that nobody judged it (`has_label` is false).
    NoLabel,
    /// The data says that the two images are the same (`are_different` is false).
    SameImages,
    /// The answer was right, so that there is no other one (`correct` is true).
    NothingCorrected,
    /// The only image of its prompt, which can be compared with none.
    Single,
}

impl LeftOut {
    /// Why, in words that follow a number.
    pub fn description(self) -> &'static str {
        match self {
            Self::Tie => "without a preferred side (ties)",
            Self::NoLabel => "without a label (`has_label` is false)",
            Self::SameImages => "whose images are the same (`are_different` is false)",
            Self::NothingCorrected => "whose answer was right and not corrected (`correct` is true)",
            Self::Single => "alone with their prompt",
        }
    }
}

/// What reading a dataset came to. Serializes to JSON; `Display` is the text for people.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ReadReport {
    /// Rows that were read.
    pub num_rows: usize,
    /// Records they gave.
    pub num_records: usize,
    /// Well-formed rows that gave none, by reason.
    pub left_out: BTreeMap<LeftOut, usize>,
    /// Rows that could not be read and were passed over.
    pub num_unreadable: usize,
    /// What was wrong with the first of them, up to [`MAX_PROBLEMS`]: file, row and reason.
    pub unreadable: Vec<String>,
    /// Columns of a published layout that nothing reads, with the number of rows that have them.
    pub ignored_keys: BTreeMap<String, usize>,
}

impl ReadReport {
    /// Whether every row gave its record.
    pub fn is_complete(&self) -> bool {
        self.left_out.is_empty() && self.num_unreadable == 0
    }

    /// Rows that were left out, for all reasons; unreadable ones are not among them.
    pub fn num_left_out(&self) -> usize {
        self.left_out.values().sum()
    }

    /// Counts a row or record that is wrong, or gives it back as the error that it is.
    ///
    /// # Errors
    /// The error itself with [`OnError::Fail`], and with either policy what is no row's fault: [`Error::Io`] of a record file.
    pub fn skip(&mut self, policy: OnError, error: Error) -> Result<()> {
        if policy == OnError::Fail || !error.is_of_one_record() {
            return Err(error);
        }
        self.num_unreadable += 1;
        if self.unreadable.len() < MAX_PROBLEMS {
            self.unreadable.push(error.to_string());
        }
        Ok(())
    }

    pub(crate) fn leave_out(&mut self, reason: LeftOut, num_rows: usize) {
        *self.left_out.entry(reason).or_default() += num_rows;
    }

    /// Refuses a dataset of which nothing is left.
    pub(crate) fn check(&self, paths: String) -> Result<()> {
        match (self.num_rows, self.num_records) {
            (0, _) => Err(Error::EmptyDataset { paths }),
            (_, 0) => Err(Error::NothingLeft {
                paths,
                report: self.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// The report with what the records are called.
    pub fn of(&self, records: RecordKind) -> String {
        format!("{} rows: {} {records}{}", self.num_rows, self.num_records, self.rest())
    }

    fn rest(&self) -> String {
        let mut text = String::new();
        for (reason, count) in &self.left_out {
            // Writing to a string cannot fail.
            let _ = write!(text, "; left out {count} {}", reason.description());
        }
        if self.num_unreadable > 0 {
            let _ = write!(text, "; skipped {} unreadable", self.num_unreadable);
            if let Some(first) = self.unreadable.first() {
                let _ = write!(text, ", the first: {first}");
            }
        }
        text
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows: {} records{}", self.num_rows, self.num_records, self.rest())
    }
}
