//! A whole dataset's images scored into a file, which goes on where it was interrupted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use diptych_data::{Dataset, ImagePair, ImageSource};
use diptych_tensor::files::write_file;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::agreement::LabelledPair;
use crate::error::{Error, Result};
use crate::judge::hex;
use crate::{ImageRole, JudgeRequest, LoadedJudge};

/// A record's scores: one row of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoredImages {
    /// The record's.
    pub id: String,
    /// What the images were made for.
    pub prompt: String,
    /// Of a record with one image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Of a pair's preferred image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen_score: Option<f64>,
    /// Of a pair's other image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_score: Option<f64>,
    /// Whether the data calls the pair a tie: its own scores are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_is_tie: Option<bool>,
    /// Of an image in a ranked list: the list's id; the row's own is that, `#` and the image's place, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// The data's own score of an image in a ranked list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_score: Option<f64>,
    /// Name of the judge.
    pub judge: String,
    /// Its content hash.
    pub judge_hash: String,
    /// SHA-256 of prompt and encoded images: a row counts as scored only while these are what they were.
    pub row_hash: String,
}

/// Rows as pairs with labels, as [`Agreement`](crate::Agreement) reads them: each pair, and every two images of a ranked list.
pub fn labelled_pairs(rows: &[ScoredImages]) -> Vec<LabelledPair> {
    let mut pairs = Vec::new();
    let records = rows.chunk_by(|row, next| row.list.is_some() && row.list == next.list);
    for (record, list) in records.enumerate() {
        pairs.extend(list.iter().filter_map(|row| of_pair(record, row)));
        for (index, row) in list.iter().enumerate() {
            pairs.extend(list[index + 1..].iter().filter_map(|other| of_list(record, row, other)));
        }
    }
    pairs
}

fn of_pair(record: usize, row: &ScoredImages) -> Option<LabelledPair> {
    Some(LabelledPair {
        record,
        is_tie: row.label_is_tie.unwrap_or(false),
        margin: row.chosen_score? - row.rejected_score?,
    })
}

fn of_list(record: usize, row: &ScoredImages, other: &ScoredImages) -> Option<LabelledPair> {
    let (label, other_label) = (row.label_score?, other.label_score?);
    let margin = row.score? - other.score?;
    Some(LabelledPair {
        record,
        is_tie: label == other_label,
        margin: if label >= other_label { margin } else { -margin },
    })
}

/// A judge, and what tells its rows from those of others.
#[derive(Debug, Clone, Copy)]
pub struct ScoringJudge<'a> {
    /// The judge.
    pub judge: &'a LoadedJudge,
    /// [`Judge::content_hash`](crate::Judge::content_hash) of it.
    pub hash: &'a str,
    /// Records decoded and scored together.
    pub batch_size: usize,
}

/// What was scored.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredDataset {
    /// Every record, in the dataset's order.
    pub rows: Vec<ScoredImages>,
    /// How many of them were there already.
    pub num_kept: usize,
}

/// Scores every image of a dataset and writes `out`, a JSONL file of [`ScoredImages`]. Until it is complete, rows stand in a hidden file
/// beside it; called again, with the same judge and unchanged records, it goes on from there, and from `out` itself.
/// `advance` is told how many records are done, and may stop the work by an error, which is passed on.
///
/// # Errors
/// [`Error::ScoredByOther`] when `out` holds rows of another judge, [`Error::NotImages`] for latents, images that cannot be read; those of
/// the judge.
pub fn score_dataset<E: From<Error>>(
    dataset: &Dataset,
    scoring: ScoringJudge<'_>,
    out: &Path,
    mut advance: impl FnMut(usize, usize) -> std::result::Result<(), E>,
) -> std::result::Result<ScoredDataset, E> {
    let records = records(dataset)?;
    let aside = journal_path(out);
    let mut known = BTreeMap::new();
    for path in [out, &aside] {
        for row in read_rows(path, scoring.hash)? {
            known.insert((row.id.clone(), row.row_hash.clone()), row);
        }
    }
    let mut journal = Journal::open(&aside, known.values())?;
    let (mut rows, mut num_kept): (Vec<ScoredImages>, usize) = (Vec::with_capacity(records.len()), 0);
    for batch in records.chunks(scoring.batch_size.max(1)) {
        let hashed = batch
            .iter()
            .map(|record| Ok((record, record.hash()?)))
            .collect::<Result<Vec<_>>>()?;
        let known_row = |(record, hash): &(&Record<'_>, String)| known.get(&(record.id.clone(), hash.clone()));
        let num_known = hashed.iter().filter_map(known_row).count();
        // Networks round by the company an image is in: a batch of which any row is missing is scored as it was before, whole.
        let fresh = if num_known < hashed.len() {
            score_batch(&hashed, scoring)?
        } else {
            Vec::new()
        };
        let mut fresh = fresh.into_iter();
        for one in &hashed {
            let scored = fresh.next();
            match (known_row(one), scored) {
                (Some(row), _) => rows.push(one.0.labelled(row.clone())),
                (None, Some(row)) => {
                    journal.append(std::slice::from_ref(&row))?;
                    rows.push(row);
                }
                (None, None) => {}
            }
        }
        num_kept += num_known;
        advance(rows.len(), records.len())?;
    }
    write_file(out, lines(&rows)?.as_bytes())
        .map_err(diptych_models::Error::from)
        .map_err(Error::from)?;
    drop(journal);
    // The whole is in place: what is left aside is of no use, and no harm.
    let _ = std::fs::remove_file(&aside);
    Ok(ScoredDataset { rows, num_kept })
}

/// Where rows stand until all are there.
pub fn journal_path(out: &Path) -> PathBuf {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    out.with_file_name(format!(".{name}.scored"))
}

/// One record's images.
struct Record<'a> {
    id: String,
    prompt: &'a str,
    images: Vec<(ImageRole, &'a ImageSource)>,
    label_is_tie: Option<bool>,
    list: Option<(&'a str, f64)>,
}

impl<'a> Record<'a> {
    fn single(id: &str, prompt: &'a str, image: &'a ImageSource) -> Self {
        Self {
            id: id.to_owned(),
            prompt,
            images: vec![(ImageRole::Single, image)],
            label_is_tie: None,
            list: None,
        }
    }
}

impl Record<'_> {
    /// A row with what the data says now: labels may have changed since it was scored.
    fn labelled(&self, row: ScoredImages) -> ScoredImages {
        ScoredImages {
            label_is_tie: self.label_is_tie,
            list: self.list.map(|(list, _)| list.to_owned()),
            label_score: self.list.map(|(_, score)| score),
            ..row
        }
    }

    fn hash(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} {}\n", self.prompt.len(), self.prompt));
        for (role, image) in &self.images {
            let bytes = image.encoded()?;
            hasher.update(format!("{role:?} {}\n", bytes.len()));
            hasher.update(&bytes);
        }
        Ok(hex(hasher))
    }
}

fn records(dataset: &Dataset) -> Result<Vec<Record<'_>>> {
    let is_tie = |pair: &ImagePair| -> Option<bool> { Some(pair.chosen_score? == pair.rejected_score?) };
    Ok(match dataset {
        Dataset::Pairs(pairs) => pairs
            .iter()
            .map(|pair| Record {
                images: vec![(ImageRole::Chosen, &pair.chosen), (ImageRole::Rejected, &pair.rejected)],
                label_is_tie: is_tie(pair),
                ..Record::single(&pair.id, &pair.prompt, &pair.chosen)
            })
            .collect(),
        Dataset::Captions(captions) => captions
            .iter()
            .map(|caption| Record::single(&caption.id, &caption.prompt, &caption.image))
            .collect(),
        Dataset::Labels(labels) => labels
            .iter()
            .map(|label| Record::single(&label.id, &label.prompt, &label.image))
            .collect(),
        Dataset::Ranked(lists) => lists
            .iter()
            .flat_map(|list| {
                list.responses.iter().enumerate().map(|(index, response)| Record {
                    list: Some((&*list.id, response.score)),
                    ..Record::single(&format!("{}#{index}", list.id), &list.prompt, &response.image)
                })
            })
            .collect(),
        other => {
            return Err(Error::NotImages {
                records: other.records().to_string(),
            });
        }
    })
}

fn score_batch(batch: &[(&Record<'_>, String)], scoring: ScoringJudge<'_>) -> Result<Vec<ScoredImages>> {
    let mut images: Vec<(&str, ImageRole, &str, RgbImage)> = Vec::new();
    for (record, _) in batch {
        for (role, source) in &record.images {
            let image = source.decode().map_err(|source| Error::Image {
                id: record.id.clone(),
                source: source.into(),
            })?;
            images.push((&record.id, *role, record.prompt, image));
        }
    }
    let requests: Vec<JudgeRequest<'_>> = images
        .iter()
        .map(|(id, role, prompt, image)| JudgeRequest {
            id,
            role: *role,
            prompt,
            image,
        })
        .collect();
    let mut scores = scoring.judge.score(&requests)?.into_iter();
    let row = |(record, hash): &(&Record<'_>, String)| {
        let mut row = ScoredImages {
            id: record.id.clone(),
            prompt: record.prompt.to_owned(),
            score: None,
            chosen_score: None,
            rejected_score: None,
            label_is_tie: None,
            list: None,
            label_score: None,
            judge: scoring.judge.name().to_owned(),
            judge_hash: scoring.hash.to_owned(),
            row_hash: hash.clone(),
        };
        for (role, _) in &record.images {
            let score = scores.next();
            match role {
                ImageRole::Single => row.score = score,
                ImageRole::Chosen => row.chosen_score = score,
                ImageRole::Rejected => row.rejected_score = score,
            }
        }
        record.labelled(row)
    };
    Ok(batch.iter().map(row).collect())
}

/// The rows of an earlier call; none without the file. The last line may be cut off where the process ended, and is then scored again.
fn read_rows(path: &Path, judge_hash: &str) -> Result<Vec<ScoredImages>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(Error::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let mut rows = Vec::new();
    for (index, line) in bytes[..whole].split(|byte| *byte == b'\n').enumerate() {
        if line.is_empty() {
            continue;
        }
        match serde_json::from_slice::<ScoredImages>(line) {
            Ok(row) if row.judge_hash == judge_hash => rows.push(row),
            Ok(row) => {
                return Err(Error::ScoredByOther {
                    path: path.to_owned(),
                    judge: row.judge,
                });
            }
            Err(error) => {
                return Err(Error::StoredRow {
                    path: path.to_owned(),
                    row: index + 1,
                    reason: format!("not a row of scores: {error}"),
                });
            }
        }
    }
    Ok(rows)
}

/// Rows as they come.
struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new file with the rows known so far: what was cut off is gone.
    fn open<'a>(path: &Path, known: impl Iterator<Item = &'a ScoredImages>) -> Result<Self> {
        let known: Vec<ScoredImages> = known.cloned().collect();
        write_file(path, lines(&known)?.as_bytes()).map_err(diptych_models::Error::from)?;
        let file = OpenOptions::new().append(true).open(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    fn append(&mut self, rows: &[ScoredImages]) -> Result<()> {
        self.file
            .write_all(lines(rows)?.as_bytes())
            .map_err(|source| Error::Io {
                path: self.path.clone(),
                source,
            })
    }
}

fn lines(rows: &[ScoredImages]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        let line = serde_json::to_string(row).map_err(|error| Error::StoredRow {
            path: PathBuf::new(),
            row: 0,
            reason: error.to_string(),
        })?;
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}
