//! Several images of one prompt, with scores.

use image::RgbImage;

use crate::error::{Error, Result};
use crate::pair_rule::PairSelection;
use crate::row::Row;
use crate::{ImagePair, ImageSource};

pub(crate) const KEYS: [&str; 3] = ["prompt", "responses", "id"];

/// Two or more images of one prompt, each with a score: higher is better, and equal scores are a tie.
///
/// In a JSON lines file: `{"prompt": .., "responses": [{"image": .., "score": ..}, ..]}` and optionally `id`.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedImages {
    /// Names the record in messages; `file:row` where the file gives none.
    pub id: String,
    /// What the images were made for.
    pub prompt: String,
    /// The images, in the order of the data.
    pub responses: Vec<ScoredImage>,
}

/// An image and how good it is.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredImage {
    /// The image.
    pub image: ImageSource,
    /// Its score, finite; only differences inside one record mean something.
    pub score: f64,
}

impl RankedImages {
    /// Every image, in the order of [`RankedImages::responses`].
    ///
    /// # Errors
    /// [`Error::Record`] with the id and what is wrong with the image.
    pub fn decode(&self) -> Result<Vec<RgbImage>> {
        let decode = |response: &ScoredImage| {
            response.image.decode().map_err(|source| Error::Record {
                id: self.id.clone(),
                key: "responses",
                source: source.into(),
            })
        };
        self.responses.iter().map(decode).collect()
    }

    /// Places in [`RankedImages::responses`] from the best image to the worst; equal scores keep their order.
    pub fn ranking(&self) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.responses.len()).collect();
        places.sort_by(|&a, &b| self.responses[b].score.total_cmp(&self.responses[a].score));
        places
    }

    /// Pairs of these images, with their scores; `draw(n)` is a number below `n`, asked for only by
    /// [`crate::PairRule::Random`]. A second and further pair has the id of the record with its number behind.
    pub fn pairs(&self, selection: &PairSelection, draw: impl FnMut(usize) -> usize) -> Vec<ImagePair> {
        let scores: Vec<f64> = self.responses.iter().map(|response| response.score).collect();
        let pair = |(number, (chosen, rejected)): (usize, (usize, usize))| {
            let id = match number {
                0 => self.id.clone(),
                _ => format!("{}#{number}", self.id),
            };
            let (chosen, rejected) = (&self.responses[chosen], &self.responses[rejected]);
            ImagePair {
                chosen_score: Some(chosen.score),
                rejected_score: Some(rejected.score),
                ..ImagePair::new(id, &self.prompt, chosen.image.clone(), rejected.image.clone())
            }
        };
        let places = selection.select(&scores, draw);
        places.into_iter().enumerate().map(pair).collect()
    }

    pub(crate) fn from_row(mut row: Row) -> Result<Self> {
        row.check_keys(&KEYS)?;
        Ok(Self {
            prompt: row.take_string("prompt")?,
            responses: row.take_responses()?,
            id: row.take_id()?,
        })
    }
}
