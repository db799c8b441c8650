//! What can be said about one row by itself.

use std::sync::Arc;

use super::seen::{Key, Subject, Verdict, key};
use super::{ImageLintConfig, ImageLintRule, PromptWindow};
use crate::error::{Error, Result, RowProblem};
use crate::images::image_layout::ImageRow;
use crate::row::Row;
use crate::{DataFiles, ImageSource, LeftOut};

/// A row, and its images as they lie on disk.
pub(super) struct LoadedRow {
    number: usize,
    row: ImageRow,
    images: Vec<(String, Result<Arc<[u8]>>)>,
}

/// What reading a row came to.
pub(super) enum Loaded {
    /// A row to look at.
    Row(LoadedRow),
    /// One that cannot be read.
    Refused(CheckedRow),
}

/// One row, checked.
pub(super) struct CheckedRow {
    pub(super) number: usize,
    pub(super) id: Option<String>,
    pub(super) findings: Vec<(ImageLintRule, String)>,
    pub(super) num_images: usize,
    /// Whether training would use it.
    pub(super) is_kept: bool,
    pub(super) label: Option<bool>,
    /// What its prompt is known by.
    pub(super) prompt: Option<Key>,
    /// What it says about what; none where an image cannot be read.
    pub(super) subject: Option<Subject>,
}

/// Keys that say what is preferred.
const LABELS: [&str; 9] = [
    "label",
    "label_0",
    "label_1",
    "has_label",
    "human_preference",
    "rank",
    "overall_score",
    "responses",
    "score",
];

/// A row that cannot be read.
pub(super) fn refused(number: usize, error: Error) -> CheckedRow {
    let rule = match &error {
        Error::Row { problem, .. } => rule_of(problem),
        _ => ImageLintRule::UnreadableRow,
    };
    let (number, message) = match error {
        Error::Row { row, problem, .. } => (row, problem.to_string()),
        other => (number, other.to_string()),
    };
    CheckedRow {
        number,
        id: None,
        findings: vec![(rule, message)],
        num_images: 0,
        is_kept: false,
        label: None,
        prompt: None,
        subject: None,
    }
}

fn rule_of(problem: &RowProblem) -> ImageLintRule {
    // `responses[2].score` is about the responses.
    let is_label = |key: &str| LABELS.contains(&key.split('[').next().unwrap_or(key));
    match problem {
        RowProblem::MissingKey { key, .. } if is_label(key) => ImageLintRule::MissingLabel,
        RowProblem::Conflict { key, .. } | RowProblem::WrongType { key, .. } if is_label(key) => {
            ImageLintRule::AmbiguousLabel
        }
        RowProblem::MissingImage { .. } | RowProblem::ImagePath { .. } | RowProblem::Base64 { .. } => {
            ImageLintRule::UnreadableImage
        }
        _ => ImageLintRule::UnreadableRow,
    }
}

/// Reads a row and its images' bytes.
pub(super) fn load_row(row: Row, files: &DataFiles) -> Loaded {
    let number = row.number;
    let row = match ImageRow::read(row, files.layout(), files.records()) {
        Ok(row) => row,
        Err(error) => return Loaded::Refused(refused(number, error)),
    };
    let read = |(place, image): (usize, &ImageSource)| (image_key(&row, place), image.encoded());
    let images = row.images().into_iter().enumerate().map(read).collect();
    Loaded::Row(LoadedRow { number, row, images })
}

/// What messages call an image of a row.
fn image_key(row: &ImageRow, place: usize) -> String {
    match row {
        ImageRow::Pair(_) => ["chosen image", "rejected image"][place.min(1)].to_owned(),
        ImageRow::Tie(_) => format!("image {place}"),
        ImageRow::Ranked(_) => format!("responses[{place}]"),
        _ => "image".to_owned(),
    }
}

pub(super) fn check_row(config: &ImageLintConfig, window: PromptWindow<'_>, loaded: LoadedRow) -> CheckedRow {
    let LoadedRow { number, row, images } = loaded;
    let mut checked = CheckedRow {
        number,
        id: None,
        findings: vec![],
        num_images: 0,
        is_kept: true,
        label: None,
        prompt: None,
        subject: None,
    };
    let mut keys = Vec::new();
    for (name, bytes) in &images {
        keys.extend(checked.image(config, name, bytes));
    }
    checked.is_kept &= keys.len() == images.len();
    let is_complete = checked.is_kept;
    let Some((prompt, verdict)) = checked.verdict(&row) else {
        return checked;
    };
    checked.check_prompt(window, prompt);
    if let Some((first, second)) = same(&keys).filter(|_| is_complete) {
        let message = format!("{} and {} are the same", images[first].0, images[second].0);
        checked.findings.push((ImageLintRule::IdenticalImages, message));
    } else if is_complete {
        checked.subject = Some(Subject::new(prompt, &keys, verdict));
    }
    checked
}

/// The first two that are equal.
fn same(keys: &[Key]) -> Option<(usize, usize)> {
    let earlier = |second: usize| keys[..second].iter().position(|key| *key == keys[second]);
    (0..keys.len()).find_map(|second| Some((earlier(second)?, second)))
}

impl CheckedRow {
    /// Looks at an image; gives what its pixels are known by.
    fn image(&mut self, config: &ImageLintConfig, name: &str, bytes: &Result<Arc<[u8]>>) -> Option<Key> {
        let unreadable = |error: &Error| match error {
            Error::Image { reason, .. } => format!("{name}: {reason}"),
            other => format!("{name}: {other}"),
        };
        let decoded = match bytes {
            Ok(bytes) => ImageSource::Bytes(Arc::clone(bytes)).decode(),
            Err(error) => {
                self.findings.push((ImageLintRule::UnreadableImage, unreadable(error)));
                return None;
            }
        };
        let image = match decoded {
            Ok(image) => image,
            Err(error) => {
                self.findings.push((ImageLintRule::UnreadableImage, unreadable(&error)));
                return None;
            }
        };
        self.num_images += 1;
        let (width, height) = image.dimensions();
        let (short, long) = (width.min(height), width.max(height));
        let mut odd = |rule, limit: String| {
            let message = format!("{name} is {width}x{height} pixels: {limit}");
            self.findings.push((rule, message));
        };
        if short < config.min_side {
            odd(
                ImageLintRule::TinyImage,
                format!("a side is shorter than {}", config.min_side),
            );
        }
        if long > config.max_side {
            odd(
                ImageLintRule::HugeImage,
                format!("a side is longer than {}", config.max_side),
            );
        }
        if f64::from(long) > config.max_aspect_ratio * f64::from(short) {
            let limit = format!("one side is more than {} times the other", config.max_aspect_ratio);
            odd(ImageLintRule::ExtremeAspect, limit);
        }
        let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
        Some(key(&[&size, image.as_raw()]))
    }

    /// The prompt of a row, and what it says of its images; none where it says nothing on purpose.
    fn verdict<'a>(&mut self, row: &'a ImageRow) -> Option<(&'a str, Verdict)> {
        let (id, prompt, verdict) = match row {
            ImageRow::Pair(pair) => {
                if let (Some(chosen), Some(rejected)) = (pair.chosen_score, pair.rejected_score)
                    && chosen < rejected
                {
                    let message = format!("chosen_score {chosen} is below rejected_score {rejected}");
                    self.findings.push((ImageLintRule::ScoreOrder, message));
                }
                (&pair.id, &pair.prompt, Verdict::Levels(vec![0, 1]))
            }
            ImageRow::Tie(pair) => {
                self.tie("neither image is preferred");
                (&pair.id, &pair.prompt, Verdict::None)
            }
            ImageRow::Caption(caption) => (&caption.id, &caption.prompt, Verdict::None),
            ImageRow::Label(label) => {
                self.label = Some(label.label);
                let level = usize::from(!label.label);
                (&label.id, &label.prompt, Verdict::Levels(vec![level]))
            }
            ImageRow::UnclearLabel(label) => {
                self.tie("the image is as desirable as not");
                (&label.id, &label.prompt, Verdict::None)
            }
            ImageRow::Ranked(list) => {
                let scores: Vec<f64> = list.responses.iter().map(|response| response.score).collect();
                let levels = levels(&scores);
                if levels.iter().all(|level| *level == 0) {
                    self.findings
                        .push((ImageLintRule::Tie, "all images are as good".to_owned()));
                }
                (&list.id, &list.prompt, Verdict::Levels(levels))
            }
            ImageRow::Member(member) => (&member.group, &member.prompt, Verdict::None),
            ImageRow::Prompt(prompt) => (&prompt.id, &prompt.prompt, Verdict::None),
            ImageRow::LeftOut(reason) => {
                self.left_out(*reason);
                return None;
            }
        };
        self.id = Some(id.clone());
        Some((prompt, verdict))
    }

    fn tie(&mut self, message: &str) {
        self.is_kept = false;
        self.findings.push((ImageLintRule::Tie, message.to_owned()));
    }

    fn left_out(&mut self, reason: LeftOut) {
        self.is_kept = false;
        let rule = match reason {
            LeftOut::NoLabel => ImageLintRule::Unlabeled,
            LeftOut::SameImages => ImageLintRule::MarkedIdentical,
            LeftOut::Tie | LeftOut::Single | LeftOut::NothingCorrected => ImageLintRule::Tie,
        };
        self.findings.push((rule, format!("a row {}", reason.description())));
    }

    fn check_prompt(&mut self, window: PromptWindow<'_>, prompt: &str) {
        self.prompt = Some(key(&[prompt.as_bytes()]));
        if prompt.trim().is_empty() {
            self.findings
                .push((ImageLintRule::EmptyPrompt, "the prompt is empty".to_owned()));
        }
        self.findings.extend(
            window
                .problem(prompt)
                .map(|message| (ImageLintRule::OverLongPrompt, message)),
        );
    }
}

/// For each score how many better ones there are, so that only their order counts.
fn levels(scores: &[f64]) -> Vec<usize> {
    let better = |score: &f64| scores.iter().filter(|other| *other > score).count();
    scores.iter().map(better).collect()
}
