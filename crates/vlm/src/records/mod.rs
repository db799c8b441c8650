//! Rows with images to tokens.
//!
//! A row is encoded whole, with one image token an image. Then its images are read, every image token becomes as many as the image has
//! features, and only then the text is cut to `data.max_len`: completions are cut, and never within an image; a prompt that leaves no
//! room for an answer leaves its record out, and a warning says how many there were.

mod reader;

use diptych_data::{Encoder, EncodingConfig, EncodingConvention, OnError, TextDataset, Tokenizer};
use diptych_llm::Language;
use diptych_llm::arrangement::PlacedImage;
use diptych_llm::method::{self, MAX_LEN, complete_records, load_dataset, warn_of_unused_rationales};
use diptych_llm::records::{EncodedRecord, EncodedResponse, add_rationales, encode_with_images};
use diptych_llm::vision::RunImages;
use diptych_models::vlm::{ImageLayout, VlmConfig};
use diptych_train::Recipe;

use self::reader::{Reader, Shown};
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
) -> Result<Vec<EncodedRecord>> {
    let text = as_text(recipe);
    let on_error = recipe.data.on_error.unwrap_or_default();
    let dataset = load_dataset(&text, on_error, recipe.data.max_frames)?;
    let records = encoded(&text, config.image_token_id, &dataset, tokenizer)?;
    let num = records.len();
    let (mut bad, mut long) = (Left::default(), Left::default());
    let mut num_divided = 0;
    let limit = Limit {
        max_len: recipe.data.max_len.unwrap_or(MAX_LEN),
        convention: recipe.data.encoding.unwrap_or_default().convention,
    };
    let mut reader = Reader::new(&dataset, images);
    let mut kept = Vec::with_capacity(num);
    let mut left = records.into_iter();
    for done in (0..num).step_by(AT_ONCE) {
        let chunk: Vec<EncodedRecord> = left.by_ref().take(AT_ONCE).collect();
        let shown = reader.read(&chunk);
        for (mut record, shown) in chunk.into_iter().zip(shown) {
            let expanded = shown
                .and_then(|shown| other_sides(recipe, &mut record, shown))
                .and_then(|shown| {
                    expand_record(config, reader.images, &mut record, &shown)?;
                    Ok(shown.rejected.is_some())
                });
            match expanded {
                Ok(is_divided) if limit.keep(&mut record) => {
                    num_divided += usize::from(is_divided);
                    kept.push(record);
                }
                Ok(_) => long.count(|| limit.describe(&record)),
                Err(error) if on_error == OnError::Skip && error.is_of_one_record() => bad.count(|| error.to_string()),
                Err(error) => return Err(error),
            }
        }
        advance((done + AT_ONCE).min(num), num)?;
    }
    bad.warn();
    long.warn();
    if kept.is_empty() {
        return Err(Error::NothingLeft {
            num,
            num_bad: bad.num,
            num_long: long.num,
        });
    }
    finish(&text, num_divided, &mut kept)?;
    Ok(kept)
}

/// The rows as whole texts in tokens, with one image token an image.
fn encoded(
    text: &Recipe<Language>,
    image_token_id: u32,
    dataset: &TextDataset,
    tokenizer: &Tokenizer,
) -> Result<Vec<EncodedRecord>> {
    let whole = EncodingConfig {
        max_len: None,
        ..text.data.encoding.unwrap_or_default()
    };
    let encoder = Encoder::try_new(tokenizer, whole)?.with_image_token_id(image_token_id);
    let mut records = encode_with_images(dataset, &encoder)?;
    if let TextDataset::Pairs(pairs) = dataset {
        match text.method.rationale() {
            Some(config) => add_rationales(&mut records, pairs, &encoder, &config.template)?,
            None => warn_of_unused_rationales(pairs),
        }
    }
    Ok(records)
}

/// What is said of records, and done to them, when nothing of them will be cut any more. Of `num_divided` the rejected answer sees other
/// images than the chosen one.
fn finish(text: &Recipe<Language>, num_divided: usize, kept: &mut [EncodedRecord]) -> Result<()> {
    if num_divided > 0 {
        tracing::warn!(
            "the rejected answers of {num_divided} records are scored under `rejected_images`; \
             `[method.offline_pairs.image_preference]` without a corruption scores the chosen answer under them instead"
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
        matches!(self, Self::Image { .. } | Self::Placeholders { .. })
    }
}

/// Says which texts of a record see which images, where images are compared.
fn other_sides(recipe: &Recipe<VisionLanguage>, record: &mut EncodedRecord, shown: Shown) -> Result<Shown> {
    if recipe.method.own_answer().is_some() && shown.images.is_empty() {
        return Err(Error::NoImage { id: record.id.clone() });
    }
    let Some(config) = recipe.method.image_preference() else {
        return Ok(shown);
    };
    if shown.images.is_empty() {
        return Err(Error::NoImage { id: record.id.clone() });
    }
    if config.corruption.is_some() {
        return Ok(shown);
    }
    let Some(others) = shown.rejected else {
        return Err(Error::MissingImages { id: record.id.clone() });
    };
    record.other_images = Some(record.responses[0].clone());
    Ok(Shown {
        others: Some(others),
        rejected: None,
        ..shown
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

/// Tokens of the longest prompt of a record.
fn prompt_len(record: &EncodedRecord) -> usize {
    let len = |response: &EncodedResponse| response.prompt.len() + response.prompt_tail;
    let texts = record.responses.iter().chain(&record.other_images);
    texts.map(len).max().unwrap_or(0)
}

/// How long a text may be.
struct Limit {
    max_len: usize,
    convention: EncodingConvention,
}

impl Limit {
    /// Why nothing of a record is left.
    fn describe(&self, record: &EncodedRecord) -> String {
        let (id, max_len, prompt_len) = (&record.id, self.max_len, prompt_len(record));
        if prompt_len < max_len {
            return format!("record {id}: of an answer no token that counts is left within `data.max_len` = {max_len}");
        }
        format!("record {id}: its prompt has {prompt_len} tokens, images among them, of `data.max_len` = {max_len}")
    }

    /// Cuts the responses of a record, and says whether anything of each is left to learn from.
    fn keep(&self, record: &mut EncodedRecord) -> bool {
        let prompt_len = prompt_len(record);
        let max_len = match self.convention {
            EncodingConvention::Dpo if prompt_len >= self.max_len => return false,
            EncodingConvention::Dpo => self.max_len,
            // The answer gives way, the prompt stays even if it is longer.
            EncodingConvention::Cpo => self.max_len.max(prompt_len),
        };
        record.responses.iter_mut().for_each(|response| cut(response, max_len));
        if let Some(rationale) = &mut record.rationale {
            cut(rationale, max_len);
            if !rationale.is_scored() {
                record.rationale = None;
            }
        }
        if let Some(other) = &mut record.other_images {
            cut(other, max_len);
            even_out(&mut record.responses[0], other);
        }
        let mut texts = record.responses.iter().chain(&record.other_images);
        texts.all(EncodedResponse::is_scored)
    }
}

/// Leaves as much of an answer under some images as of the same answer under others.
fn even_out(own: &mut EncodedResponse, other: &mut EncodedResponse) {
    let len = |response: &EncodedResponse| response.ids.len() - response.prompt_tail.min(response.ids.len());
    let least = len(own).min(len(other));
    for response in [own, other] {
        cut(response, response.prompt.len() + response.prompt_tail + least);
    }
}

/// Leaves at most `max_len` tokens of a text, and no image of which a part would be missing.
fn cut(response: &mut EncodedResponse, max_len: usize) {
    let prompt_len = response.prompt.len();
    let mut end = prompt_len + response.ids.len();
    if end <= max_len {
        return;
    }
    end = max_len.max(prompt_len);
    if let Some(image) = response
        .images
        .iter()
        .find(|image| image.tokens.start < end && end < image.tokens.end)
    {
        end = image.tokens.start.max(prompt_len);
    }
    response.images.retain(|image| image.tokens.end <= end);
    response.ids.truncate(end - prompt_len);
    if let Some(weights) = &mut response.weights {
        weights.truncate(end - prompt_len);
    }
    response.is_cut = true;
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
}
