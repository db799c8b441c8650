//! Inspection of rows of images.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use image::RgbImage;

use super::{FieldSummary, Inspection, MAX_PREVIEWS, PromptSummary, RecordPreview, ScoreSummary, SizeCount};
use crate::error::{Error, Result};
use crate::images::image_layout::{ImageRow, read_keys};
use crate::row::Row;
use crate::rows::Rows;
use crate::{DataFiles, ImagePair, ImageSource, LeftOut, RankedImages, RecordKind};

/// What all records of images have in common.
struct Record {
    id: String,
    prompt: String,
    images: Vec<(String, ImageSource)>,
    scores: Option<(f64, f64)>,
    has_half_score: bool,
}

impl Record {
    fn of_pair(pair: ImagePair) -> Self {
        Self {
            scores: pair.chosen_score.zip(pair.rejected_score),
            has_half_score: pair.chosen_score.is_some() != pair.rejected_score.is_some(),
            id: pair.id,
            prompt: pair.prompt,
            images: vec![
                ("chosen_image".to_owned(), pair.chosen),
                ("rejected_image".to_owned(), pair.rejected),
            ],
        }
    }

    fn of_one(id: String, prompt: String, image: Option<ImageSource>) -> Self {
        Self {
            id,
            prompt,
            images: image.map(|image| ("image".to_owned(), image)).into_iter().collect(),
            scores: None,
            has_half_score: false,
        }
    }

    fn of_list(list: RankedImages) -> Self {
        let ranking = list.ranking();
        let score = |place: Option<&usize>| place.map(|&place| list.responses[place].score);
        let scores = score(ranking.first()).zip(score(ranking.last()));
        let images = list.responses.into_iter().enumerate();
        Self {
            images: images
                .map(|(number, response)| (format!("responses[{number}]"), response.image))
                .collect(),
            scores,
            ..Self::of_one(list.id, list.prompt, None)
        }
    }

    /// What a row holds, ties included; a reason where it holds nothing.
    fn new(row: ImageRow, place: &str, inspection: &mut Inspection) -> std::result::Result<Self, LeftOut> {
        Ok(match row {
            ImageRow::Pair(pair) => Self::of_pair(pair),
            ImageRow::Tie(_) | ImageRow::UnclearLabel(_) => return Err(LeftOut::Tie),
            ImageRow::Caption(caption) => Self::of_one(caption.id, caption.prompt, Some(caption.image)),
            ImageRow::Label(label) => {
                if label.label {
                    inspection.num_desirable += 1;
                } else {
                    inspection.num_undesirable += 1;
                }
                Self::of_one(label.id, label.prompt, Some(label.image))
            }
            ImageRow::Ranked(list) => Self::of_list(list),
            ImageRow::Member(member) => Self::of_one(place.to_owned(), member.prompt, Some(member.response.image)),
            ImageRow::Prompt(prompt) => Self::of_one(prompt.id, prompt.prompt, None),
            ImageRow::LeftOut(reason) => return Err(reason),
        })
    }
}

#[derive(Default)]
struct Tally {
    fields: Vec<FieldSummary>,
    sizes: BTreeMap<(u32, u32), usize>,
    ids: BTreeSet<String>,
    prompts: BTreeSet<String>,
    chars: Vec<usize>,
    max_words: usize,
    margins: Vec<f64>,
}

pub(super) fn inspect(files: &DataFiles, inspection: &mut Inspection) -> Result<()> {
    let mut tally = Tally::default();
    for path in files.files() {
        let before = inspection.num_records;
        for row in Rows::open(path)? {
            // A row that cannot be read counts as a record: training would meet it.
            if !matches!(row, Err(Error::Io { .. })) {
                inspection.num_records += 1;
            }
            match row {
                Ok(row) => inspect_row(row, inspection, &mut tally),
                Err(Error::Io { path, source }) => return Err(Error::Io { path, source }),
                Err(error) => inspection.error(error.to_string()),
            }
        }
        if inspection.num_records == before && files.files().len() > 1 {
            inspection.warning(format!("{}: no row in this file", path.display()));
        }
    }
    tally.finish(inspection);
    Ok(())
}

fn inspect_row(row: Row, inspection: &mut Inspection, tally: &mut Tally) {
    count_fields(&mut tally.fields, &row);
    let (path, number) = (row.path.clone(), row.number);
    let place = place(&path, number);
    let row = match ImageRow::read(row, inspection.layout, inspection.records) {
        Ok(row) => row,
        Err(error) => return inspection.error(error.to_string()),
    };
    let record = match Record::new(row, &place, inspection) {
        Ok(record) => record,
        Err(reason) => return *inspection.left_out.entry(reason).or_default() += 1,
    };
    check_text(&record, &place, inspection, tally);
    let mut images: Vec<RgbImage> = Vec::new();
    let mut described = Vec::new();
    for (key, source) in &record.images {
        match source.decode() {
            Ok(image) => {
                let (width, height) = image.dimensions();
                *tally.sizes.entry((width, height)).or_default() += 1;
                described.push(format!("{key}: {source}, {width}x{height}"));
                images.push(image);
            }
            Err(error) => inspection.error(format!("{place}: `{key}`: {error}")),
        }
    }
    if images.len() < record.images.len() {
        return;
    }
    if let ([chosen, rejected], RecordKind::ImagePair) = (images.as_slice(), inspection.records) {
        if chosen == rejected {
            inspection.num_identical_pairs += 1;
            inspection.warning(format!(
                "{place}: chosen and rejected image are the same, pixel for pixel"
            ));
        } else if chosen.dimensions() != rejected.dimensions() {
            let (a, b) = (chosen.dimensions(), rejected.dimensions());
            inspection.warning(format!(
                "{place}: chosen is {}x{}, rejected is {}x{}",
                a.0, a.1, b.0, b.1
            ));
        }
    }
    inspection.num_good_records += 1;
    if inspection.previews.len() < MAX_PREVIEWS {
        inspection.previews.push(RecordPreview {
            id: record.id,
            prompt: record.prompt,
            images: described,
        });
    }
}

fn check_text(record: &Record, place: &str, inspection: &mut Inspection, tally: &mut Tally) {
    if !tally.ids.insert(record.id.clone()) {
        inspection.num_duplicate_ids += 1;
        inspection.warning(format!("{place}: an earlier record has the id `{}`, too", record.id));
    }
    if record.prompt.trim().is_empty() {
        inspection.warning(format!("{place}: the prompt is empty"));
    }
    if let Some((chosen, rejected)) = record.scores {
        tally.margins.push(chosen - rejected);
        if chosen < rejected {
            inspection.warning(format!(
                "{place}: chosen_score {chosen} is below rejected_score {rejected}"
            ));
        }
    }
    if record.has_half_score {
        inspection.warning(format!("{place}: only one of chosen_score and rejected_score is given"));
    }
    tally.chars.push(record.prompt.chars().count());
    tally.max_words = tally.max_words.max(record.prompt.split_whitespace().count());
    tally.prompts.insert(record.prompt.clone());
}

fn place(path: &Path, row: usize) -> String {
    format!("{}, row {row}", path.display())
}

impl Tally {
    fn finish(self, inspection: &mut Inspection) {
        if let Some(read) = read_keys(inspection.layout) {
            let names = self.fields.iter().map(|field| field.name.clone());
            inspection.ignored_keys = names
                .filter(|name| !read.contains(&name.as_str()) && name != "id")
                .collect();
        }
        inspection.fields = self.fields;
        inspection.image_sizes = summarize_sizes(self.sizes);
        inspection.prompts = summarize_prompts(&self.chars, self.prompts.len(), self.max_words);
        inspection.score_margins = summarize_scores(&self.margins);
    }
}

/// Counts the keys of a row.
pub(super) fn count_fields(fields: &mut Vec<FieldSummary>, row: &Row) {
    for (key, value) in &row.fields {
        let at = fields.iter().position(|field| field.name == *key).unwrap_or_else(|| {
            fields.push(FieldSummary {
                name: key.clone(),
                num_present: 0,
                kinds: BTreeMap::new(),
            });
            fields.len() - 1
        });
        fields[at].num_present += 1;
        *fields[at].kinds.entry(value.kind()).or_default() += 1;
    }
}

/// From the prompts' lengths, how many are different, and the most words of one.
pub(super) fn summarize_prompts(lens: &[usize], num_distinct: usize, max_words: usize) -> Option<PromptSummary> {
    Some(PromptSummary {
        num_distinct,
        num_duplicates: lens.len() - num_distinct,
        min_chars: *lens.iter().min()?,
        mean_chars: lens.iter().sum::<usize>() as f64 / lens.len() as f64,
        max_chars: *lens.iter().max()?,
        max_words,
    })
}

/// From the images of each size, most frequent first.
pub(super) fn summarize_sizes(sizes: BTreeMap<(u32, u32), usize>) -> Vec<SizeCount> {
    let count = |((width, height), num_images)| SizeCount {
        width,
        height,
        num_images,
    };
    let mut sizes: Vec<SizeCount> = sizes.into_iter().map(count).collect();
    sizes.sort_by_key(|size| std::cmp::Reverse(size.num_images));
    sizes
}

/// From chosen minus rejected scores.
pub(super) fn summarize_scores(margins: &[f64]) -> Option<ScoreSummary> {
    (!margins.is_empty()).then(|| ScoreSummary {
        num_scored: margins.len(),
        min: margins.iter().copied().fold(f64::INFINITY, f64::min),
        mean: margins.iter().sum::<f64>() / margins.len() as f64,
        max: margins.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    })
}
