//! How like its images every word of a text is, in the space of a CLIP: what token perturbation goes by.

use std::collections::{BTreeMap, BTreeSet};

use diptych_data::{Content, ContentBlock, IMAGE_PLACEHOLDERS, Prompt, SpecialTokens, TextDataset, Tokenizer};
use diptych_llm::method::Likeness;
use diptych_llm::records::{EncodedRecord, EncodedResponse};
use diptych_llm::vision::RunImages;
use diptych_models::text_encoder::ClipTokenizer;

use crate::clip::{AT_ONCE, Clip};
use crate::records::LoadedRecords;
use crate::{Error, Result};

/// A CLIP with its tokenizer.
pub(crate) struct WordClip {
    pub(crate) clip: Clip,
    pub(crate) tokenizer: ClipTokenizer,
}

/// What a CLIP makes of words and images: unit vectors.
struct Vectors {
    /// By the token that is the word.
    words: BTreeMap<u32, Vec<f32>>,
    /// By the number of the image.
    images: BTreeMap<usize, Vec<f32>>,
}

impl Vectors {
    /// Looks at words, and at images of a run.
    fn of(
        WordClip { clip, tokenizer }: &WordClip,
        (pieces, images): (&BTreeMap<u32, String>, &RunImages),
        shown: &BTreeSet<usize>,
        mut advance: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<Self> {
        let mut vectors = Self {
            words: BTreeMap::new(),
            images: BTreeMap::new(),
        };
        let (words, shown): (Vec<_>, Vec<_>) = (pieces.iter().collect(), shown.iter().copied().collect());
        let total = words.len() + shown.len();
        for some in words.chunks(AT_ONCE) {
            let texts: Vec<&String> = some.iter().map(|(_, text)| *text).collect();
            let ids = some.iter().map(|(id, _)| **id);
            vectors.words.extend(ids.zip(clip.texts(tokenizer, &texts)?));
            advance(vectors.words.len(), total)?;
        }
        for some in shown.chunks(AT_ONCE) {
            let decoded = some.iter().map(|index| images.source(*index).decode());
            let decoded = decoded.collect::<diptych_data::Result<Vec<_>>>()?;
            vectors.images.extend(some.iter().copied().zip(clip.images(&decoded)?));
            advance(words.len() + vectors.images.len(), total)?;
        }
        Ok(vectors)
    }

    /// How like a word is to the likest image of a text; none for a token that is no word.
    fn cosine(&self, token: u32, text: &EncodedResponse) -> Option<f64> {
        let word = self.words.get(&token)?;
        let of = |image: &Vec<f32>| word.iter().zip(image).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let images = text.images.iter().filter_map(|image| self.images.get(&image.index));
        Some(images.map(of).fold(f64::NEG_INFINITY, f64::max))
    }
}

/// Of every record, and of each of its responses, the words of prompt and response with their likeness to the images that are shown; of
/// several images the likest one counts. Words are tokens with a letter or a digit; of the prompt those that the user wrote.
///
/// `advance` is told how many words and images of how many were looked at.
///
/// # Errors
/// When an image cannot be read; those of `advance`.
pub(crate) fn likenesses(
    clip: &WordClip,
    LoadedRecords { records, dataset }: &LoadedRecords,
    tokenizer: &Tokenizer,
    images: &RunImages,
    advance: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Vec<Vec<Vec<Likeness>>>> {
    let pieces = pieces(tokenizer, records)?;
    let placed = texts(records).flat_map(|text| &text.images);
    let shown: BTreeSet<usize> = placed.map(|image| image.index).collect();
    let vectors = Vectors::of(clip, (&pieces, images), &shown, advance)?;
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
                let cosine = vectors.cosine(ids[at], text)?;
                Some(Likeness { at, cosine })
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
