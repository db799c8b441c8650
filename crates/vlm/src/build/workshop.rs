//! What every recipe works with: rows whose images are open, and a model to ask.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use diptych_data::{ImageSource, OnError, Text, TextPair, TextPrompt};
use diptych_tensor::random::{Generator, Stream, generator};
use image::RgbImage;

use super::problem::BuildProblem;
use super::retrieval::Gallery;
use super::skip::Skip;
use super::source::SourceRow;
use super::speaker::{Ask, Said, Seen, Speaker};
use super::{BuildConfig, UnfinishedAnswers};
use crate::{Error, Result};

/// Questions that a row may ask at most, among which random choices are told apart.
pub(super) const MAX_ASKS: u64 = 1 << 20;

/// A model, rows and a seed.
pub(super) struct Workshop<'a> {
    pub(super) speaker: &'a Speaker,
    /// Who judges, where that is another model.
    judge: Option<&'a Speaker>,
    pub(super) rows: &'a [SourceRow],
    pub(super) seed: u64,
    pub(super) on_error: OnError,
    unfinished: UnfinishedAnswers,
    /// The name of the recipe, for messages.
    pub(super) recipe: &'static str,
    /// Which image is like which, where the recipe looks for similar ones.
    pub(super) gallery: Option<Gallery>,
    /// See [`different_images`](Self::different_images).
    different: OnceCell<DifferentImages<'a>>,
    /// What a judge reads in the place of images, by the ids of rows.
    pub(super) captions: BTreeMap<String, String>,
}

/// The different images of all rows, by number.
pub(super) struct DifferentImages<'a> {
    /// Where each is first: row and number among its images.
    places: Vec<(usize, usize)>,
    numbers: BTreeMap<&'a ImageSource, usize>,
}

impl<'a> DifferentImages<'a> {
    fn of(rows: &'a [SourceRow]) -> Self {
        let (mut places, mut numbers) = (Vec::new(), BTreeMap::new());
        for (index, row) in rows.iter().enumerate() {
            for (at, image) in row.images().iter().enumerate() {
                numbers.entry(image).or_insert_with(|| {
                    places.push((index, at));
                    places.len() - 1
                });
            }
        }
        Self { places, numbers }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Where each is first: row and number among its images.
    pub(super) fn places(&self) -> &[(usize, usize)] {
        &self.places
    }

    /// The number of an image of a row.
    pub(super) fn number(&self, image: &ImageSource) -> Option<usize> {
        self.numbers.get(image).copied()
    }
}

/// How many images a row must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    One,
    Some,
    /// Frames in their order.
    Several,
}

impl Wanted {
    fn fits(self, num: usize) -> bool {
        match self {
            Self::One => num == 1,
            Self::Some => num > 0,
            Self::Several => num > 1,
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Some => "at least one",
            Self::Several => "at least two, the frames of a video",
        }
    }
}

/// A row whose images are open.
pub(super) struct OpenRow<'a> {
    pub(super) index: usize,
    pub(super) row: &'a SourceRow,
    pub(super) images: Vec<RgbImage>,
}

/// A pair with the stage that it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Made {
    pub(super) pair: TextPair,
    pub(super) stage: usize,
}

/// What became of a row.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) made: Vec<Made>,
    pub(super) skipped: Vec<Skip>,
}

impl Outcome {
    pub(super) fn skipped(skip: Skip) -> Self {
        Self {
            made: Vec::new(),
            skipped: vec![skip],
        }
    }

    /// Adds a pair of the first stage, or why there is none.
    pub(super) fn add(&mut self, made: Result<TextPair, Skip>) {
        self.add_staged(0, made);
    }

    /// Adds why another pair was not made.
    #[must_use]
    pub(super) fn and(mut self, skip: Skip) -> Self {
        self.skipped.push(skip);
        self
    }

    pub(super) fn add_staged(&mut self, stage: usize, made: Result<TextPair, Skip>) {
        match made {
            Ok(pair) => self.made.push(Made { pair, stage }),
            Err(skip) => self.skipped.push(skip),
        }
    }
}

impl<'a> Workshop<'a> {
    pub(super) fn new(
        config: &BuildConfig,
        rows: &'a [SourceRow],
        (speaker, judge): (&'a Speaker, Option<&'a Speaker>),
    ) -> Self {
        Self {
            speaker,
            judge,
            rows,
            seed: config.answers.seed,
            on_error: config.on_error,
            unfinished: config.unfinished,
            recipe: config.recipe.name(),
            gallery: None,
            different: OnceCell::new(),
            captions: BTreeMap::new(),
        }
    }

    /// Opens the images of a row. None for a row that cannot be used, where such rows are passed over.
    pub(super) fn open(&self, index: usize, wanted: Wanted) -> Result<Option<OpenRow<'a>>> {
        let row = &self.rows[index];
        match self.try_open(index, row, wanted) {
            Ok(open) => Ok(Some(open)),
            Err(_) if self.on_error == OnError::Skip => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_open(&self, index: usize, row: &'a SourceRow, wanted: Wanted) -> Result<OpenRow<'a>> {
        if !wanted.fits(row.images().len()) {
            return Err(BuildProblem::NumImages {
                id: row.id().to_owned(),
                recipe: self.recipe,
                found: row.images().len(),
                expected: wanted.expected(),
            }
            .into());
        }
        if matches!(row.prompt.prompt, Text::Ids(_)) {
            return Err(BuildProblem::TokenIds {
                id: row.id().to_owned(),
            }
            .into());
        }
        let images = row
            .images()
            .iter()
            .enumerate()
            .map(|(at, image)| decode(row.id(), at, image))
            .collect::<Result<Vec<_>>>()?;
        let layouts = images
            .iter()
            .map(|image| {
                let processor = self.speaker.processor();
                Ok(processor.layout(image.width() as usize, image.height() as usize)?)
            })
            .collect::<Result<Vec<_>>>()?;
        // Places that do not fit the images show here and not in the middle of a batch.
        self.speaker.tokens(&row.prompt, &layouts)?;
        Ok(OpenRow { index, row, images })
    }

    /// The answer that the data has for a row; none for a row that cannot be used, where such rows are passed over.
    pub(super) fn answer_of(&self, row: &SourceRow) -> Result<Option<String>> {
        match &row.answer {
            Some(answer) => Ok(Some(answer.content().trim().to_owned())),
            None if self.on_error == OnError::Skip => Ok(None),
            None => Err(BuildProblem::NoAnswer {
                id: row.id().to_owned(),
                recipe: self.recipe,
            }
            .into()),
        }
    }

    /// Who judges.
    pub(super) fn judge(&self) -> &'a Speaker {
        self.judge.unwrap_or(self.speaker)
    }

    /// What the judge sees of a row's images, of which the model that answers has `seen` its own.
    pub(super) fn judge_sees(&self, open: &OpenRow<'_>, seen: Vec<Seen>) -> Result<Vec<Seen>> {
        match self.judge {
            None => Ok(seen),
            Some(judge) => judge.look_at_all(&open.images),
        }
    }

    /// What the judge is asked about the first images of a row, in its own format. Tools and the like of the row are for the model that answers.
    pub(super) fn judge_prompt(&self, row: &SourceRow, words: &str, num_images: usize) -> Result<TextPrompt> {
        Ok(TextPrompt {
            images: row.images()[..num_images].to_vec(),
            ..TextPrompt::new(row.id(), self.judge().request(words, num_images)?)
        })
    }

    /// Whether an answer was cut off and is not to be used.
    pub(super) fn is_cut(&self, said: &Said) -> bool {
        self.unfinished == UnfinishedAnswers::Skip && !said.is_finished
    }

    /// A pair of two answers of the model, as [`pair`] makes it.
    pub(super) fn pair(&self, id: &str, prompt: &TextPrompt, sides: [&Said; 2]) -> Result<Result<TextPair, Skip>> {
        if sides.iter().any(|said| self.is_cut(said)) {
            return Ok(Err(Skip::UnfinishedAnswer));
        }
        pair(id.to_owned(), prompt, sides.map(|said| said.text.as_str()))
    }

    /// Random choices of a row: a function of seed, row and purpose.
    pub(super) fn random(&self, purpose: Purpose, index: usize) -> Generator {
        generator(self.seed, Stream::Records, purpose as u64, index as u64)
    }

    /// A question about images of a row, the `number`-th of it.
    pub(super) fn ask<'b>(index: usize, number: u64, prompt: &'b TextPrompt, images: &'b [Seen]) -> Ask<'b> {
        Ask {
            prompt,
            images: images.iter().collect(),
            begun: &[],
            key: index as u64 * MAX_ASKS + number,
        }
    }

    /// The different images of all rows.
    pub(super) fn different_images(&self) -> &DifferentImages<'a> {
        self.different.get_or_init(|| DifferentImages::of(self.rows))
    }
}

/// What random choices are for. They are part of what a seed means: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Purpose {
    /// Which words are asked.
    Words = 1,
    /// Which way an answer is spoiled.
    Way = 2,
    /// Which other images come along, and in which order.
    Companions = 3,
    /// What is masked.
    Mask = 4,
    /// How frames are disturbed.
    Frames = 5,
    /// Which pairs are kept of more than are wanted.
    Subset = 6,
}

/// An image of a row, decoded.
pub(super) fn decode(id: &str, at: usize, image: &ImageSource) -> Result<RgbImage> {
    image.decode().map_err(|source| Error::Image {
        id: id.to_owned(),
        key: "images",
        place: at,
        image: image.clone(),
        source: Box::new(source.into()),
    })
}

/// A pair of two answers to a row's prompt under its own images, unless they teach nothing.
pub(super) fn pair(id: String, prompt: &TextPrompt, sides: [&str; 2]) -> Result<Result<TextPair, Skip>> {
    let [chosen, rejected] = sides.map(str::trim);
    if chosen.is_empty() || rejected.is_empty() {
        return Ok(Err(Skip::EmptyAnswer));
    }
    if chosen == rejected {
        return Ok(Err(Skip::EqualAnswers));
    }
    let [chosen, rejected] = [
        Speaker::completion(prompt, chosen)?,
        Speaker::completion(prompt, rejected)?,
    ];
    let texts = [prompt.prompt.clone(), chosen, rejected];
    // Conversations of rows with images are read as blocks.
    let [asked, chosen, rejected] = if prompt.images.is_empty() {
        texts
    } else {
        texts.map(Text::into_blocks)
    };
    let mut pair = TextPair::new(id, asked, chosen, rejected);
    pair.images.clone_from(&prompt.images);
    pair.tools.clone_from(&prompt.tools);
    pair.chat_template_kwargs.clone_from(&prompt.chat_template_kwargs);
    Ok(Ok(pair))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn images_are_known_by_what_they_are() {
        let bytes = |byte: u8| ImageSource::Bytes(Arc::from([byte]));
        let file = || ImageSource::Path(PathBuf::from("a.png"));
        let row = |images: Vec<ImageSource>| SourceRow {
            prompt: TextPrompt {
                images,
                ..TextPrompt::new("row", "<image>")
            },
            answer: None,
        };
        let rows = [
            row(vec![bytes(1)]),
            row(vec![bytes(1), file()]),
            row(vec![file(), bytes(2)]),
        ];
        let images = DifferentImages::of(&rows);
        assert_eq!(images.places(), [(0, 0), (1, 1), (2, 1)]);
        assert_eq!(images.len(), 3);
        // Also where it is shown again.
        let numbers = |row: usize| {
            rows[row]
                .images()
                .iter()
                .map(|image| images.number(image))
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), [Some(0), Some(1)]);
        assert_eq!(numbers(2), [Some(1), Some(2)]);
        assert_eq!(images.number(&bytes(3)), None);
    }
}
