//! How like its images every word of a text is, in the space of a CLIP: what token perturbation goes by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diptych_data::{Content, ContentBlock, IMAGE_PLACEHOLDERS, Prompt, SpecialTokens, TextDataset, Tokenizer};
use diptych_llm::method::Likeness;
use diptych_llm::records::{EncodedRecord, EncodedResponse};
use diptych_llm::vision::RunImages;
use diptych_models::clip::{ClipConfig, ClipModel, normalized};
use diptych_models::text_encoder::ClipTokenizer;
use diptych_models::vision::ImageProcessor;
use diptych_models::{Builder, BuilderConfig};
use diptych_tensor::{DType, Device, Tensor, Weights};

use crate::{Error, Result};

/// Texts and images of a pass.
const AT_ONCE: usize = 32;

/// A CLIP in transformers' layout.
pub(crate) struct Clip {
    network: ClipModel,
    tokenizer: ClipTokenizer,
    processor: ImageProcessor,
    device: Device,
}

impl Clip {
    /// # Errors
    /// When a file is missing or damaged.
    pub(crate) fn load(path: &Path, device: &Device) -> Result<Self> {
        let weights = Weights::open(&path.join("model.safetensors"))?;
        let builder = Builder::new(BuilderConfig {
            device: device.clone(),
            dtype: DType::F32,
            ..BuilderConfig::new(Some(&weights))
        })?;
        let network = ClipModel::load(&builder, &ClipConfig::from_file(path.join("config.json"))?)?;
        builder.finish()?;
        Ok(Self {
            network,
            tokenizer: ClipTokenizer::from_dir(path)?,
            processor: ImageProcessor::from_dir(path)?,
            device: device.clone(),
        })
    }

    fn texts(&self, texts: &[&String]) -> Result<Vec<Vec<f32>>> {
        let mut features = Vec::with_capacity(texts.len());
        for texts in texts.chunks(AT_ONCE) {
            let ids = self.tokenizer.encode_batch(texts, &self.device)?;
            features.extend(rows(&self.network.text_features(&ids)?)?);
        }
        Ok(features)
    }

    fn images(&self, images: &RunImages, indices: &[usize]) -> Result<Vec<Vec<f32>>> {
        let mut features = Vec::with_capacity(indices.len());
        for indices in indices.chunks(AT_ONCE) {
            let decoded = indices.iter().map(|index| images.source(*index).decode());
            let decoded = decoded.collect::<diptych_data::Result<Vec<_>>>()?;
            let pixels = self.processor.images(&decoded, &self.device)?;
            features.extend(rows(&self.network.image_features(&pixels)?)?);
        }
        Ok(features)
    }
}

/// Rows of norm 1.
fn rows(features: &Tensor) -> Result<Vec<Vec<f32>>> {
    let read = || -> diptych_tensor::Result<Vec<Vec<f32>>> {
        let features = normalized(&features.detach().to_dtype(DType::F32)?)?;
        Ok(features.to_device(&Device::Cpu)?.to_vec2()?)
    };
    Ok(read()?)
}

/// Of every record, and of each of its responses, the words of prompt and response with their likeness to the images that are shown; of
/// several images the likest one counts. Words are tokens with a letter or a digit; of the prompt those that the user wrote.
///
/// # Errors
/// When an image cannot be read.
pub(crate) fn likenesses(
    clip: &Clip,
    dataset: &TextDataset,
    tokenizer: &Tokenizer,
    images: &RunImages,
    records: &[EncodedRecord],
) -> Result<Vec<Vec<Vec<Likeness>>>> {
    let pieces = pieces(tokenizer, records)?;
    let words: Vec<&String> = pieces.values().collect();
    let of_words: BTreeMap<u32, Vec<f32>> = pieces.keys().copied().zip(clip.texts(&words)?).collect();
    let shown: BTreeSet<usize> = texts(records)
        .flat_map(|text| &text.images)
        .map(|image| image.index)
        .collect();
    let shown: Vec<usize> = shown.into_iter().collect();
    let of_images: BTreeMap<usize, Vec<f32>> = shown.iter().copied().zip(clip.images(images, &shown)?).collect();
    let cosine = |word: &[f32], text: &EncodedResponse| {
        let of = |image: &[f32]| word.iter().zip(image).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let cosines = text
            .images
            .iter()
            .filter_map(|image| Some(of(of_images.get(&image.index)?)));
        cosines.fold(f64::NEG_INFINITY, f64::max)
    };
    let mut num_unfound = 0usize;
    let mut all = Vec::with_capacity(records.len());
    for record in records {
        let written = written(dataset, record.row);
        let mut of_record = Vec::with_capacity(record.responses.len());
        for text in &record.responses {
            if text.images.is_empty() {
                return Err(Error::NoImage { id: record.id.clone() });
            }
            let prompt_len = text.prompt.len() + text.prompt_tail;
            let ids: Vec<u32> = text.prompt.iter().chain(&text.ids).copied().collect();
            let question = written
                .as_ref()
                .and_then(|words| question(words, &ids[..prompt_len], &pieces));
            num_unfound += usize::from(written.is_some() && question.is_none());
            let is_open =
                |at: &usize| *at >= prompt_len || question.as_ref().is_none_or(|question| question.contains(at));
            let is_image = |at: &usize| text.images.iter().any(|image| image.tokens.contains(at));
            let places = (0..ids.len()).filter(|at| is_open(at) && !is_image(at));
            let words = places.filter_map(|at| {
                Some(Likeness {
                    at,
                    cosine: cosine(of_words.get(&ids[at])?, text),
                })
            });
            of_record.push(words.collect());
        }
        all.push(of_record);
    }
    if num_unfound > 0 {
        tracing::warn!(
            "in {num_unfound} texts the words of the question are not found as they were written: all words of their prompts may be \
             perturbed, those of the chat template too"
        );
    }
    Ok(all)
}

/// The words among the tokens of all texts.
fn pieces(tokenizer: &Tokenizer, records: &[EncodedRecord]) -> Result<BTreeMap<u32, String>> {
    let ids: BTreeSet<u32> = texts(records)
        .flat_map(|text| text.prompt.iter().chain(&text.ids).copied())
        .collect();
    let mut pieces = BTreeMap::new();
    for id in ids {
        let piece = tokenizer.decode(&[id], SpecialTokens::Omit)?;
        let is_word = piece.chars().any(char::is_alphanumeric) && !piece.contains(char::REPLACEMENT_CHARACTER);
        if is_word {
            pieces.insert(id, piece.trim().to_owned());
        }
    }
    Ok(pieces)
}

fn texts(records: &[EncodedRecord]) -> impl Iterator<Item = &EncodedResponse> {
    records.iter().flat_map(|record| &record.responses)
}

/// What the user wrote last, letters and digits only; none of a prompt that is tokens.
fn written(dataset: &TextDataset, row: usize) -> Option<String> {
    let TextDataset::Pairs(pairs) = dataset else {
        return None;
    };
    let text = match &pairs[row].prompt {
        Prompt::Ids(_) => return None,
        Prompt::Plain(text) => IMAGE_PLACEHOLDERS
            .iter()
            .fold(text.clone(), |text, name| text.replace(name, "")),
        Prompt::Messages(messages) => {
            let last = messages.iter().rev().find(|message| message.role == "user")?;
            match last.content.as_ref()? {
                Content::Text(text) => text.clone(),
                Content::Blocks(blocks) => blocks
                    .iter()
                    .filter_map(|block| match block {
                        ContentBlock::Text { text } => Some(text.as_str()),
                        ContentBlock::Image => None,
                    })
                    .collect(),
            }
        }
    };
    Some(letters(&text))
}

fn letters(text: &str) -> String {
    text.chars().filter(|char| char.is_alphanumeric()).collect()
}

/// The places of the tokens that spell `written`, where they last do.
fn question(written: &str, prompt: &[u32], pieces: &BTreeMap<u32, String>) -> Option<BTreeSet<usize>> {
    let mut spelled = String::new();
    let mut ends = Vec::with_capacity(prompt.len());
    for id in prompt {
        spelled.extend(pieces.get(id).map(|piece| letters(piece)));
        ends.push(spelled.len());
    }
    let start = spelled.rfind(written)?;
    let within = |at: &usize| {
        let from = at.checked_sub(1).map_or(0, |before| ends[before]);
        from < ends[*at] && from >= start && ends[*at] <= start + written.len()
    };
    Some((0..prompt.len()).filter(within).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_question_are_told_from_those_of_the_template() {
        let words = ["User", "is", "a", "cat", "here", "Assistant"];
        let pieces: BTreeMap<u32, String> = (1..).zip(words.map(str::to_owned)).collect();
        // 0 is no word: an image, or punctuation.
        let prompt = [1, 0, 2, 3, 4, 5, 0, 6];
        let found = question("isacathere", &prompt, &pieces).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert!(question("isadoghere", &prompt, &pieces).is_none());
    }
}
