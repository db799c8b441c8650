//! A dataset of images in memory: every record, with images still encoded, or still in their files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rayon::prelude::*;

use crate::error::{Error, Result, RowProblem};
use crate::images::image_layout::{ImageRow, Member, unread_keys};
use crate::row::Row;
use crate::rows::Rows;
use crate::{
    DataFiles, ImageCaption, ImageLabel, ImagePair, ImagePrompt, LatentPairs, Layout, LeftOut, OnError, PairSelection,
    RankedImages, ReadPolicy, ReadReport, RecordKind, TiePolicy,
};

/// All records of a dataset of images or latents. Text is a [`crate::TextDataset`].
///
/// Images of a Parquet table stay in it: a record holds its text and the places of its images.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a run holds one of these")]
pub enum Dataset {
    /// From the `preference`, `pick-a-pic` and `hpdv2` (train) layouts.
    Pairs(Vec<ImagePair>),
    /// From the `image-caption` layout.
    Captions(Vec<ImageCaption>),
    /// From the `ranked`, `hpdv2` (test) and `image-reward-db` layouts.
    Ranked(Vec<RankedImages>),
    /// From the `unpaired` and `rich-hf` layouts.
    Labels(Vec<ImageLabel>),
    /// From the `prompt-only` and `spo-prompts` layouts.
    Prompts(Vec<ImagePrompt>),
    /// From the `latent-pairs` layout.
    LatentPairs(LatentPairs),
}

impl Dataset {
    /// Reads the records behind `paths`, as [`DataFiles::find`] understands them, and leaves out ties. Image files are checked to
    /// exist and decoded later, one record at a time.
    ///
    /// # Errors
    /// The first thing that is wrong, with its file and row; [`Error::EmptyDataset`] when there is no record.
    /// [`Error::OtherRecords`] for text. [`crate::inspect()`] lists everything that is wrong.
    pub fn load(paths: &[PathBuf], layout: Layout) -> Result<Self> {
        Self::read(&DataFiles::find(paths, layout)?)
    }

    /// Reads files that were found before.
    ///
    /// # Errors
    /// As [`Dataset::load`].
    pub fn read(files: &DataFiles) -> Result<Self> {
        Ok(Self::read_with(files, ReadPolicy::default())?.0)
    }

    /// Reads files that were found before, and tells what became of every row.
    ///
    /// With [`crate::OnError::Skip`] every image is decoded once, so that a record whose image cannot be read is left out here and
    /// not missed in the middle of the work; images are not kept. Otherwise such a record is an error where its image is decoded.
    ///
    /// # Errors
    /// As [`Dataset::load`], but for rows that the policy passes over; [`Error::NothingLeft`] when there are rows and none gave
    /// a record.
    pub fn read_with(files: &DataFiles, policy: ReadPolicy) -> Result<(Self, ReadReport)> {
        if files.records() == RecordKind::LatentPair {
            let pairs = LatentPairs::read(files.files())?;
            let report = ReadReport {
                num_rows: pairs.len(),
                num_records: pairs.len(),
                ..ReadReport::default()
            };
            return Ok((Self::LatentPairs(pairs), report));
        }
        let mut reading = Reading {
            policy,
            report: ReadReport::default(),
            records: match files.records() {
                RecordKind::ImagePair => Self::Pairs(vec![]),
                RecordKind::ImageCaption => Self::Captions(vec![]),
                RecordKind::RankedImages => Self::Ranked(vec![]),
                RecordKind::ImageLabel => Self::Labels(vec![]),
                RecordKind::ImagePrompt | RecordKind::TextPrompt => Self::Prompts(vec![]),
                _ => return Err(files.not("records of images, prompts or latent pairs")),
            },
            groups: BTreeMap::new(),
        };
        for path in files.files() {
            for row in Rows::open(path)? {
                reading.take(row, files)?;
            }
        }
        reading.finish(files)
    }

    /// What the records are.
    pub fn records(&self) -> RecordKind {
        match self {
            Self::Pairs(_) => RecordKind::ImagePair,
            Self::Captions(_) => RecordKind::ImageCaption,
            Self::Ranked(_) => RecordKind::RankedImages,
            Self::Labels(_) => RecordKind::ImageLabel,
            Self::Prompts(_) => RecordKind::ImagePrompt,
            Self::LatentPairs(_) => RecordKind::LatentPair,
        }
    }

    /// Number of records; a loaded dataset has at least one.
    pub fn len(&self) -> usize {
        match self {
            Self::Pairs(records) => records.len(),
            Self::Captions(records) => records.len(),
            Self::Ranked(records) => records.len(),
            Self::Labels(records) => records.len(),
            Self::Prompts(records) => records.len(),
            Self::LatentPairs(pairs) => pairs.len(),
        }
    }

    /// Whether there is no record, which only a dataset put together in memory can be.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names record `index` in messages.
    ///
    /// # Panics
    /// For rows, when `index` is not below [`Dataset::len`].
    pub fn record_id(&self, index: usize) -> String {
        match self {
            Self::Pairs(records) => records[index].id.clone(),
            Self::Captions(records) => records[index].id.clone(),
            Self::Ranked(records) => records[index].id.clone(),
            Self::Labels(records) => records[index].id.clone(),
            Self::Prompts(records) => records[index].id.clone(),
            Self::LatentPairs(pairs) => pairs.record_id(index),
        }
    }

    /// The prompts, one a record; none for latents, whose prompts are encoded.
    pub fn prompts(&self) -> Vec<&str> {
        match self {
            Self::Pairs(records) => records.iter().map(|record| record.prompt.as_str()).collect(),
            Self::Captions(records) => records.iter().map(|record| record.prompt.as_str()).collect(),
            Self::Ranked(records) => records.iter().map(|record| record.prompt.as_str()).collect(),
            Self::Labels(records) => records.iter().map(|record| record.prompt.as_str()).collect(),
            Self::Prompts(records) => records.iter().map(|record| record.prompt.as_str()).collect(),
            Self::LatentPairs(_) => vec![],
        }
    }

    /// Leaves out records of which an image cannot be decoded, and counts them.
    fn drop_unreadable(&mut self, report: &mut ReadReport) -> Result<()> {
        match self {
            Self::Pairs(records) => keep_readable(records, report, |pair| pair.decode().map(drop)),
            Self::Captions(records) => keep_readable(records, report, |caption| caption.decode().map(drop)),
            Self::Ranked(records) => keep_readable(records, report, |list| list.decode().map(drop)),
            Self::Labels(records) => keep_readable(records, report, |label| label.decode().map(drop)),
            Self::Prompts(_) | Self::LatentPairs(_) => Ok(()),
        }
    }

    /// Ranked lists as pairs, anything else as it is; `draw(record, n)` is a number below `n`, asked for only by
    /// [`crate::PairRule::Random`].
    #[must_use]
    pub fn into_pairs(self, selection: &PairSelection, mut draw: impl FnMut(usize, usize) -> usize) -> Self {
        match self {
            Self::Ranked(lists) => {
                let pairs = lists.iter().enumerate();
                Self::Pairs(
                    pairs
                        .flat_map(|(record, list)| list.pairs(selection, |below| draw(record, below)))
                        .collect(),
                )
            }
            other => other,
        }
    }
}

/// Rows on their way to records.
struct Reading {
    policy: ReadPolicy,
    report: ReadReport,
    records: Dataset,
    /// The place of each group's list among the records.
    groups: BTreeMap<String, usize>,
}

impl Reading {
    fn take(&mut self, row: Result<Row>, files: &DataFiles) -> Result<()> {
        self.report.num_rows += 1;
        let report = &mut self.report;
        let read = row.and_then(|row| {
            for key in unread_keys(&row, files.layout()) {
                *report.ignored_keys.entry(key.to_owned()).or_default() += 1;
            }
            let place = (row.path.clone(), row.number);
            Ok((place, ImageRow::read(row, files.layout(), files.records())?))
        });
        let ((path, number), row) = match read {
            Ok(read) => read,
            Err(error) => return self.report.skip(self.policy.on_error, error),
        };
        let Err(problem) = self.add(row) else { return Ok(()) };
        let is_tie = problem == RowProblem::Tie;
        let (path, row) = (path.to_path_buf(), number);
        let error = Error::Row { path, row, problem };
        // Ties have a policy of their own.
        let policy = if is_tie { OnError::Fail } else { self.policy.on_error };
        self.report.skip(policy, error)
    }

    fn add(&mut self, row: ImageRow) -> std::result::Result<(), RowProblem> {
        match (row, &mut self.records) {
            (ImageRow::Pair(pair), Dataset::Pairs(pairs)) => pairs.push(pair),
            (ImageRow::Caption(caption), Dataset::Captions(captions)) => captions.push(caption),
            (ImageRow::Label(label), Dataset::Labels(labels)) => labels.push(label),
            (ImageRow::Ranked(list), Dataset::Ranked(lists)) => lists.push(list),
            (ImageRow::Prompt(prompt), Dataset::Prompts(prompts)) => prompts.push(prompt),
            (ImageRow::Member(member), Dataset::Ranked(lists)) => add_member(member, lists, &mut self.groups)?,
            (ImageRow::LeftOut(reason), _) => self.report.leave_out(reason, 1),
            (row @ (ImageRow::Tie(_) | ImageRow::UnclearLabel(_)), _) => self.add_tie(row)?,
            // One file may hold rows of train.json and one of test.json.
            (row, records) => {
                return Err(RowProblem::OtherForm {
                    found: row.describe().to_owned(),
                    expected: records.records().to_string(),
                });
            }
        }
        Ok(())
    }

    fn add_tie(&mut self, row: ImageRow) -> std::result::Result<(), RowProblem> {
        match (self.policy.ties, row, &mut self.records) {
            (TiePolicy::Fail, ..) => return Err(RowProblem::Tie),
            (TiePolicy::Keep, ImageRow::Tie(pair), Dataset::Pairs(pairs)) => {
                let score = pair.chosen_score.or(Some(UNDECIDED));
                pairs.push(ImagePair {
                    chosen_score: score,
                    rejected_score: score,
                    ..pair
                });
            }
            (TiePolicy::Both, ImageRow::Tie(pair), Dataset::Pairs(pairs)) => {
                let swapped = ImagePair {
                    id: format!("{}#swapped", pair.id),
                    chosen: pair.rejected.clone(),
                    rejected: pair.chosen.clone(),
                    chosen_score: pair.rejected_score,
                    rejected_score: pair.chosen_score,
                    ..pair.clone()
                };
                pairs.extend([pair, swapped]);
            }
            (TiePolicy::Both, ImageRow::UnclearLabel(label), Dataset::Labels(labels)) => {
                let other = ImageLabel {
                    id: format!("{}#swapped", label.id),
                    label: !label.label,
                    ..label.clone()
                };
                labels.extend([label, other]);
            }
            _ => self.report.leave_out(LeftOut::Tie, 1),
        }
        Ok(())
    }

    fn finish(mut self, files: &DataFiles) -> Result<(Dataset, ReadReport)> {
        if let Dataset::Ranked(lists) = &mut self.records {
            let all = lists.len();
            lists.retain(|list| list.responses.len() > 1);
            if lists.len() < all {
                self.report.leave_out(LeftOut::Single, all - lists.len());
            }
        }
        if self.policy.on_error == OnError::Skip {
            self.records.drop_unreadable(&mut self.report)?;
        }
        self.report.num_records = self.records.len();
        self.report.check(files.describe())?;
        Ok((self.records, self.report))
    }
}

/// Adds an image to the list of its group.
fn add_member(
    member: Member,
    lists: &mut Vec<RankedImages>,
    groups: &mut BTreeMap<String, usize>,
) -> std::result::Result<(), RowProblem> {
    let Member {
        group,
        prompt,
        response,
    } = member;
    match groups.get(&group) {
        Some(&at) if lists[at].prompt == prompt => lists[at].responses.push(response),
        Some(_) => {
            return Err(RowProblem::Conflict {
                key: "prompt".to_owned(),
                reason: format!("is not the prompt of the rows before with the `prompt_id` {group}"),
            });
        }
        None => {
            groups.insert(group.clone(), lists.len());
            lists.push(RankedImages {
                id: group,
                prompt,
                responses: vec![response],
            });
        }
    }
    Ok(())
}

/// The label of both sides of a tie, as Pick-a-Pic has it.
const UNDECIDED: f64 = 0.5;

/// Records that are decoded together: enough for every core, few enough to be small.
const DECODED_AT_ONCE: usize = 64;

fn keep_readable<T: Sync>(
    records: &mut Vec<T>,
    report: &mut ReadReport,
    decode: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let mut is_readable = Vec::with_capacity(records.len());
    for part in records.chunks(DECODED_AT_ONCE) {
        let decoded: Vec<Result<()>> = part.par_iter().map(&decode).collect();
        for decoded in decoded {
            is_readable.push(decoded.is_ok());
            if let Err(error) = decoded {
                report.skip(OnError::Skip, error)?;
            }
        }
    }
    let mut is_readable = is_readable.into_iter();
    records.retain(|_| is_readable.next().unwrap_or(true));
    Ok(())
}
