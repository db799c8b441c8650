//! Inspection of rows of text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::rows::{count_fields, summarize_prompts, summarize_scores, summarize_sizes};
use super::{FieldSummary, Inspection, LengthSummary, MAX_PREVIEWS, RecordPreview};
use crate::convert::{DropReason, uselessness};
use crate::error::{Error, Result};
use crate::row::Row;
use crate::rows::Rows;
use crate::text_layout::{Form, TextRecord, check_form, is_ignored, left_out};
use crate::{DataFiles, ImageSource, RankedText, RecordKind, Text, TextPair, TextPrompt, TextSample, UnpairedText};

/// Characters of a text that a preview shows.
const PREVIEW_CHARS: usize = 80;

pub(super) fn inspect(files: &DataFiles, inspection: &mut Inspection) -> Result<()> {
    match files.records() {
        RecordKind::TextPair => run::<TextPair>(files, inspection),
        RecordKind::UnpairedText => run::<UnpairedText>(files, inspection),
        RecordKind::RankedText => run::<RankedText>(files, inspection),
        RecordKind::TextSample => run::<TextSample>(files, inspection),
        _ => run::<TextPrompt>(files, inspection),
    }
}

/// What only some kinds of records have.
pub(super) trait Judged {
    /// Chosen and rejected score.
    fn scores(&self) -> [Option<f64>; 2] {
        [None, None]
    }

    /// Why the chosen completion is better.
    fn rationale(&self) -> Option<&str> {
        None
    }

    /// Whether the completion is desirable.
    fn label(&self) -> Option<bool> {
        None
    }
}

impl Judged for TextPair {
    fn scores(&self) -> [Option<f64>; 2] {
        [self.chosen_score, self.rejected_score]
    }

    fn rationale(&self) -> Option<&str> {
        self.rationale.as_deref()
    }
}

impl Judged for UnpairedText {
    fn label(&self) -> Option<bool> {
        Some(self.label)
    }
}

impl Judged for RankedText {}
impl Judged for TextSample {}
impl Judged for TextPrompt {}

#[derive(Default)]
struct Tally {
    fields: Vec<FieldSummary>,
    first: Option<Form>,
    ids: BTreeSet<String>,
    prompts: BTreeSet<String>,
    prompt_lens: Vec<usize>,
    max_words: usize,
    records: BTreeSet<[u8; 32]>,
    lens: Vec<(&'static str, Vec<usize>)>,
    margins: Vec<f64>,
    sizes: BTreeMap<(u32, u32), usize>,
}

fn run<T: TextRecord + Judged>(files: &DataFiles, inspection: &mut Inspection) -> Result<()> {
    let mut tally = Tally::default();
    for path in files.files() {
        let before = inspection.num_records;
        for row in Rows::open(path)? {
            if !matches!(row, Err(Error::Io { .. })) {
                inspection.num_records += 1;
            }
            match row {
                Ok(row) => inspect_row::<T>(row, inspection, &mut tally),
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

fn inspect_row<T: TextRecord + Judged>(row: Row, inspection: &mut Inspection, tally: &mut Tally) {
    count_fields(&mut tally.fields, &row);
    if let Some(reason) = left_out(&row, inspection.layout) {
        return *inspection.left_out.entry(reason).or_default() += 1;
    }
    let (path, number) = (row.path.clone(), row.number);
    let read = T::from_row(row, inspection.layout)
        .and_then(|(record, form)| check_form(&mut tally.first, form, &path, number).map(|()| record));
    let record = match read {
        Ok(record) => record,
        Err(error) => return inspection.error(error.to_string()),
    };
    let Some(images) = decoded(&record, &place(&path, number), inspection, tally) else {
        return;
    };
    inspection.num_good_records += 1;
    check(&record, &place(&path, number), inspection, tally);
    let (prompt, completions) = record.texts();
    if let Some(prompt) = prompt {
        tally.count_prompt(prompt, &places(&record));
    }
    for (key, completion) in &completions {
        tally.count_len(key, len(completion));
    }
    if let Some(rationale) = record.rationale() {
        tally.count_len("rationale", rationale.chars().count());
    }
    if inspection.previews.len() < MAX_PREVIEWS {
        inspection.previews.push(RecordPreview {
            id: record.id().to_owned(),
            prompt: prompt.map_or_else(String::new, shown),
            images: images
                .into_iter()
                .chain(
                    completions
                        .iter()
                        .map(|(key, text)| format!("{key}: {:?}", shown(text))),
                )
                .collect(),
        });
    }
}

/// The images of a record in words, all decoded; none where one of them cannot be.
fn decoded<T: TextRecord>(
    record: &T,
    place: &str,
    inspection: &mut Inspection,
    tally: &mut Tally,
) -> Option<Vec<String>> {
    let mut described = Vec::new();
    let mut is_good = true;
    for (key, images) in record.images() {
        for (at, image) in images.iter().enumerate() {
            match image.decode() {
                Ok(pixels) => {
                    let (width, height) = pixels.dimensions();
                    *tally.sizes.entry((width, height)).or_default() += 1;
                    described.push(format!("{key}[{at}]: {image}, {width}x{height}"));
                }
                Err(error) => {
                    is_good = false;
                    inspection.error(format!("{place}: `{key}[{at}]`: {error}"));
                }
            }
        }
    }
    is_good.then_some(described)
}

/// Warns of what training would read, but hardly as meant.
fn check<T: TextRecord + Judged>(record: &T, place: &str, inspection: &mut Inspection, tally: &mut Tally) {
    if !tally.ids.insert(record.id().to_owned()) {
        inspection.num_duplicate_ids += 1;
        inspection.warning(format!("{place}: an earlier record has the id `{}`, too", record.id()));
    }
    match uselessness(record) {
        Some(DropReason::SameSides) => {
            inspection.num_identical_pairs += 1;
            inspection.warning(format!("{place}: all completions are the same"));
        }
        Some(DropReason::BlankCompletion) => {
            inspection.num_blank_completions += 1;
            inspection.warning(format!("{place}: a completion says nothing"));
        }
        Some(DropReason::Turns | DropReason::LeftOut) | None => {}
    }
    if record.texts().0.is_some_and(Text::is_blank) {
        inspection.warning(format!("{place}: the prompt is empty"));
    }
    let mut fields = record.to_row();
    fields.remove("id");
    for (key, images) in record.images() {
        fields.insert(key.to_owned(), images.iter().map(ImageSource::place).collect());
    }
    if !tally
        .records
        .insert(Sha256::digest(serde_json::Value::from(fields).to_string()).into())
    {
        inspection.num_duplicate_records += 1;
        inspection.warning(format!("{place}: an earlier record is the same but for its id"));
    }
    match record.scores() {
        [Some(chosen), Some(rejected)] => {
            tally.margins.push(chosen - rejected);
            if chosen < rejected {
                inspection.warning(format!(
                    "{place}: chosen_score {chosen} is below rejected_score {rejected}"
                ));
            }
        }
        [None, None] => {}
        _ => inspection.warning(format!("{place}: only one of chosen_score and rejected_score is given")),
    }
    match record.label() {
        Some(true) => inspection.num_desirable += 1,
        Some(false) => inspection.num_undesirable += 1,
        None => {}
    }
}

/// Names the images that a prompt shows.
fn places<T: TextRecord>(record: &T) -> String {
    let lists = record.images();
    let shown = lists.iter().filter(|(key, _)| *key == "images");
    shown
        .flat_map(|(_, images)| images.iter())
        .map(|image| image.place() + "\0")
        .collect()
}

fn place(path: &Path, row: usize) -> String {
    format!("{}, row {row}", path.display())
}

/// Characters, or tokens where the text is tokens.
fn len(text: &Text) -> usize {
    match text {
        Text::Ids(ids) => ids.len(),
        Text::Plain(_) | Text::Messages(_) => text.num_chars(),
    }
}

/// The beginning of a text.
fn shown(text: &Text) -> String {
    let whole = match text {
        Text::Plain(text) => text.clone(),
        Text::Messages(messages) => {
            let turns = messages
                .iter()
                .map(|message| format!("{}: {}", message.role, message.text()));
            turns.collect::<Vec<_>>().join("\n")
        }
        Text::Ids(ids) => format!("{} tokens", ids.len()),
    };
    match whole.char_indices().nth(PREVIEW_CHARS) {
        Some((at, _)) => format!("{}…", &whole[..at]),
        None => whole,
    }
}

impl Tally {
    fn count_prompt(&mut self, prompt: &Text, images: &str) {
        self.prompt_lens.push(len(prompt));
        self.max_words = self.max_words.max(prompt.content().split_whitespace().count());
        // Roles are part of a prompt: the same words of another speaker are another prompt.
        let words = match prompt {
            Text::Plain(text) => text.clone(),
            Text::Messages(messages) => serde_json::to_string(messages).unwrap_or_default(),
            Text::Ids(ids) => format!("{ids:?}"),
        };
        // The same question about another image is another prompt.
        self.prompts.insert(format!("{images}{words}"));
    }

    fn count_len(&mut self, key: &'static str, len: usize) {
        match self.lens.iter_mut().find(|(known, _)| *known == key) {
            Some((_, lens)) => lens.push(len),
            None => self.lens.push((key, vec![len])),
        }
    }

    fn finish(self, inspection: &mut Inspection) {
        inspection.ignored_keys = self
            .fields
            .iter()
            .map(|field| field.name.clone())
            .filter(|name| is_ignored(inspection.layout, name))
            .collect();
        inspection.fields = self.fields;
        inspection.form = self.first.map(|form| form.to_string());
        inspection.prompts = summarize_prompts(&self.prompt_lens, self.prompts.len(), self.max_words);
        inspection.score_margins = summarize_scores(&self.margins);
        inspection.image_sizes = summarize_sizes(self.sizes);
        inspection.completion_lengths = self
            .lens
            .into_iter()
            .map(|(key, lens)| LengthSummary {
                key,
                num_texts: lens.len(),
                min: lens.iter().copied().min().unwrap_or_default(),
                mean: lens.iter().sum::<usize>() as f64 / lens.len() as f64,
                max: lens.iter().copied().max().unwrap_or_default(),
            })
            .collect();
        // KTO's losses of the two labels are weighed against each other; of one alone there is nothing to weigh.
        if inspection.num_desirable + inspection.num_undesirable > 0
            && (inspection.num_desirable == 0 || inspection.num_undesirable == 0)
        {
            let label = inspection.num_desirable > 0;
            inspection.warning(format!("every label is {label}; unpaired objectives need both"));
        }
    }
}
