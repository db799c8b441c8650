//! Rows with images to tokens.
//!
//! A row is encoded whole, with one image token an image. Then its images are read, every image token becomes as many as the image has
//! features, and only then the text is cut to `data.max_len`: completions are cut, and never within an image; a prompt that leaves no
//! room for an answer leaves its record out, and a warning says how many there were.

mod limit;
mod reader;

use diptych_data::{Encoder, EncodingConfig, OnError, SkippedRow, TextDataset, Tokenizer};
use diptych_llm::Language;
use diptych_llm::arrangement::PlacedImage;
use diptych_llm::method::{self, MAX_LEN, complete_records, load_dataset, warn_of_unused_rationales};
use diptych_llm::records::{EncodedRecord, EncodedResponse, add_rationales, encode_with_images, why_skipped};
use diptych_llm::vision::RunImages;
use diptych_models::vlm::{ImageLayout, VlmConfig};
use diptych_train::Recipe;

use self::limit::Limit;
use self::reader::{ReadImages, Reader, Shown};
use crate::modality::{VisionLanguage, as_text};
use crate::{Error, Result};

/// Records left out, and the first of them with what is wrong with it.
#[derive(Debug, Default)]
struct Left {
    num: usize,
    first: Option<String>,
}

impl Left {
    fn count(&mut self, why: impl FnOnce() -> String) {
        self.num += 1;
        self.first.get_or_insert_with(why);
    }

    fn warn(&self) {
        if let Some(first) = &self.first {
            tracing::warn!("{} records are left out; the first: {first}", self.num);
        }
    }
}

/// Records whose images are read at once.
const AT_ONCE: usize = 32;

/// The rows of a recipe and the records made of them.
#[derive(Debug)]
pub struct LoadedRecords {
    /// In tokens, images expanded.
    pub records: Vec<EncodedRecord>,
    /// What the `row` of a record counts.
    pub dataset: TextDataset,
}

/// Reads the rows of a recipe and their images, and gives the records that its method and objective can use, as the data has them:
/// what of them is learned is said later. `advance` is told how many records of how many are done.
///
/// # Errors
/// Files that are missing or damaged; the first record that cannot be used: with `data.on_error = "skip"` not where an image is the
/// reason; [`Error::NothingLeft`].
pub fn load_records(
    recipe: &Recipe<VisionLanguage>,
    config: &VlmConfig,
    tokenizer: &Tokenizer,
    images: &mut RunImages,
    mut advance: impl FnMut(usize, usize) -> Result<()>,
) -> Result<LoadedRecords> {
    let text = as_text(recipe);
    let on_error = recipe.data.on_error.unwrap_or_default();
    let dataset = load_dataset(&text, on_error, recipe.data.max_frames)?;
    let (records, odd) = encoded(&text, (config.image_token_id, on_error), &dataset, tokenizer)?;
    let (num, num_rows) = (records.len(), records.len() + odd.len());
    let mut loading = Loading {
        recipe,
        config,
        limit: Limit {
            max_len: recipe.data.max_len.unwrap_or(MAX_LEN),
            convention: recipe.data.encoding.unwrap_or_default().convention,
        },
        bad: Left::default(),
        long: Left::default(),
        unlike: Unlike::default(),
        kept: Vec::with_capacity(num),
    };
    for row in odd {
        let why = why_skipped(row.reason);
        loading.bad.count(|| format!("record {}: {why}", row.id));
    }
    let mut reader = Reader::new(&dataset, images);
    let mut left = records.into_iter();
    for done in (0..num).step_by(AT_ONCE) {
        let chunk: Vec<EncodedRecord> = left.by_ref().take(AT_ONCE).collect();
        let mut read = reader.read(&chunk);
        for record in chunk {
            loading.add(record, &mut reader, &mut read)?;
        }
        advance((done + AT_ONCE).min(num), num)?;
    }
    let records = loading.finish(&text, num_rows)?;
    Ok(LoadedRecords { records, dataset })
}

/// Records on their way.
struct Loading<'a> {
    recipe: &'a Recipe<VisionLanguage>,
    config: &'a VlmConfig,
    limit: Limit,
    bad: Left,
    long: Left,
    unlike: Unlike,
    kept: Vec<EncodedRecord>,
}

/// Records of which not everything is about the same images.
#[derive(Debug, Clone, Copy, Default)]
struct Unlike {
    /// Their rejected answers see others.
    num_divided: usize,
    /// They have others to compare with, which nothing looks at.
    num_unused: usize,
}

impl Loading<'_> {
    /// Expands and cuts a record with its images, which are the next ones that were read. Those of one that is left out are forgotten.
    fn add(&mut self, mut record: EncodedRecord, reader: &mut Reader<'_>, read: &mut ReadImages) -> Result<()> {
        let mark = reader.mark();
        let expanded = reader.shown(&record, read).and_then(|shown| {
            let shown = other_sides(self.recipe, &mut record, shown)?;
            expand_record(self.config, reader.images, &mut record, &shown)?;
            Ok(shown)
        });
        match expanded {
            Ok(shown) if self.limit.keep(&mut record) => {
                self.unlike.num_divided += usize::from(shown.rejected.is_some());
                self.unlike.num_unused += usize::from(shown.others.is_some() && record.other_images.is_none());
                self.kept.push(record);
                return Ok(());
            }
            Ok(_) => self.long.count(|| self.limit.describe(&record)),
            Err(error) if self.skips() && error.is_of_one_record() => self.bad.count(|| error.to_string()),
            Err(error) => return Err(error),
        }
        reader.forget(mark);
        Ok(())
    }

    fn skips(&self) -> bool {
        self.recipe.data.on_error == Some(OnError::Skip)
    }

    /// The records, after a word on those that are not among them.
    fn finish(mut self, text: &Recipe<Language>, num_rows: usize) -> Result<Vec<EncodedRecord>> {
        self.bad.warn();
        self.long.warn();
        if self.kept.is_empty() {
            return Err(Error::NothingLeft {
                num: num_rows,
                num_bad: self.bad.num,
                num_long: self.long.num,
            });
        }
        finish(text, self.unlike, &mut self.kept)?;
        Ok(self.kept)
    }
}

/// The rows as whole texts in tokens, with one image token an image, and those of which that does not hold.
fn encoded(
    text: &Recipe<Language>,
    (image_token_id, on_error): (u32, OnError),
    dataset: &TextDataset,
    tokenizer: &Tokenizer,
) -> Result<(Vec<EncodedRecord>, Vec<SkippedRow>)> {
    let whole = EncodingConfig {
        max_len: None,
        ..text.data.encoding.unwrap_or_default()
    };
    let encoder = Encoder::try_new(tokenizer, whole)?
        .with_image_token_id(image_token_id)
        .with_on_error(on_error);
    let (mut records, odd) = encode_with_images(dataset, &encoder)?;
    if let TextDataset::Pairs(pairs) = dataset {
        match text.method.rationale() {
            Some(config) => add_rationales(&mut records, pairs, &encoder, &config.template)?,
            None => warn_of_unused_rationales(pairs),
        }
    }
    Ok((records, odd))
}

/// What is said of records, and done to them, when nothing of them will be cut any more.
fn finish(text: &Recipe<Language>, unlike: Unlike, kept: &mut [EncodedRecord]) -> Result<()> {
    let Unlike {
        num_divided,
        num_unused,
    } = unlike;
    if num_divided > 0 {
        tracing::warn!(
            "the rejected answers of {num_divided} records are scored under `rejected_images`; \
             `[method.offline_pairs.image_preference]` without a corruption scores the chosen answer under them instead"
        );
    }
    if num_unused > 0 {
        tracing::warn!(
            "the `other_images` of {num_unused} records are not used; `[method.offline_pairs.image_preference]` without a corruption \
             compares the chosen answer under them"
        );
    }
    if text.method.rationale().is_some() {
        check_rationales(kept)?;
    }
    Ok(complete_records(text, kept)?)
}

/// Says which rationales `data.max_len` left nothing of.
fn check_rationales(kept: &[EncodedRecord]) -> Result<()> {
    let mut without = kept.iter().filter(|record| record.rationale.is_none());
    let Some(first) = without.next() else { return Ok(()) };
    let num = 1 + without.count();
    if num == kept.len() {
        return Err(diptych_llm::Error::NoRationale { num }.into());
    }
    tracing::warn!(
        "the rationales of {num} records are left out, {} first: nothing of them is left within `data.max_len`",
        first.id
    );
    Ok(())
}

/// Makes the tokens of the prompts learned ones too, where the recipe says so: all but those of images.
pub(crate) fn learn(text: &Recipe<Language>, image_token_id: u32, records: &mut [EncodedRecord]) {
    method::learn(text, records);
    for response in records.iter_mut().flat_map(|record| &mut record.responses) {
        read_only_images(image_token_id, response);
    }
}

impl Error {
    /// Whether one record or its images are the cause, so that the others can be used without it.
    fn is_of_one_record(&self) -> bool {
        match self {
            Self::Image { .. }
            | Self::Placeholders { .. }
            | Self::MissingImages { .. }
            | Self::NoImage { .. }
            | Self::BothOthers { .. } => true,
            Self::Setting { .. } | Self::Llm(_) | Self::Build(_) | Self::NothingLeft { .. } => false,
        }
    }
}

/// Says which texts of a record see which images. A preference between images without a corruption compares with `other_images`, or else
/// with the images that the rejected answer would see.
fn other_sides(recipe: &Recipe<VisionLanguage>, record: &mut EncodedRecord, shown: Shown) -> Result<Shown> {
    let looks = recipe.method.own_answer().is_some() || recipe.method.token_perturbation().is_some();
    if looks && shown.images.is_empty() {
        return Err(Error::NoImage { id: record.id.clone() });
    }
    let Some(config) = recipe.method.image_preference() else {
        return Ok(shown);
    };
    let id = || record.id.clone();
    if shown.images.is_empty() {
        return Err(Error::NoImage { id: id() });
    }
    if config.corruption.is_some() {
        return Ok(shown);
    }
    let others = match (shown.others, shown.rejected) {
        (Some(_), Some(_)) => return Err(Error::BothOthers { id: id() }),
        (None, None) => return Err(Error::MissingImages { id: id() }),
        (Some(others), None) | (None, Some(others)) => others,
    };
    record.other_images = Some(record.responses[0].clone());
    Ok(Shown {
        images: shown.images,
        rejected: None,
        others: Some(others),
    })
}

/// Gives the image tokens of a record's texts their number.
fn expand_record(config: &VlmConfig, images: &RunImages, record: &mut EncodedRecord, shown: &Shown) -> Result<()> {
    let failed = |id: &str| {
        let id = id.to_owned();
        move |source| Error::Placeholders {
            id,
            source: Box::new(source),
        }
    };
    for (side, response) in record.responses.iter_mut().enumerate() {
        let own = match &shown.rejected {
            Some(rejected) if side == 1 => rejected,
            _ => &shown.images,
        };
        expand(config, images, response, own).map_err(failed(&record.id))?;
    }
    if let (Some(other), Some(others)) = (&mut record.other_images, &shown.others) {
        expand(config, images, other, others).map_err(failed(&record.id))?;
    }
    if let Some(rationale) = &mut record.rationale {
        expand(config, images, rationale, &shown.images).map_err(failed(&record.id))?;
    }
    Ok(())
}

/// Puts as many image tokens as an image has features in the place of its one, in prompt and response. Image tokens have no weight.
fn expand(
    config: &VlmConfig,
    images: &RunImages,
    response: &mut EncodedResponse,
    own: &[usize],
) -> diptych_models::Result<()> {
    let prompt_len = response.prompt.len();
    let ids = [response.prompt.as_slice(), &response.ids].concat();
    let layouts: Vec<ImageLayout> = own.iter().map(|image| images.layout(*image)).collect();
    let text = config.expand(&ids, &layouts)?;
    let before = |token: usize| text.sources.partition_point(|source| (*source as usize) < token);
    let boundary = before(prompt_len);
    let mut weights = vec![0.0; prompt_len];
    match &response.weights {
        Some(own) => weights.extend_from_slice(own),
        None => weights.resize(ids.len(), 1.0),
    }
    let weights = text.expand(&weights, &0.0)?.split_off(boundary);
    if let Some(own) = &response.is_answer {
        let is_answer = [vec![false; prompt_len], own.clone()].concat();
        response.is_answer = Some(text.expand(&is_answer, &false)?.split_off(boundary));
    }
    response.prompt_tail = before(prompt_len + response.prompt_tail) - boundary;
    response.prompt = text.input_ids[..boundary].to_vec();
    response.ids = text.input_ids[boundary..].to_vec();
    response.weights = weights.iter().any(|weight| *weight != 1.0).then_some(weights);
    response.images = own
        .iter()
        .zip(text.images)
        .map(|(index, tokens)| PlacedImage { index: *index, tokens })
        .collect();
    Ok(())
}

/// Takes the weight of image tokens, also where everything else is learned.
fn read_only_images(image_token_id: u32, response: &mut EncodedResponse) {
    if !response.ids.contains(&image_token_id) {
        return;
    }
    let weights = response.weights.get_or_insert_with(|| vec![1.0; response.ids.len()]);
    for (weight, id) in weights.iter_mut().zip(&response.ids) {
        if *id == image_token_id {
            *weight = 0.0;
        }
    }
    if let Some(is_answer) = &mut response.is_answer {
        for (is_answer, id) in is_answer.iter_mut().zip(&response.ids) {
            *is_answer &= *id != image_token_id;
        }
    }
}
