//! MIA-DPO: questions about one of several images; an answer that looked elsewhere is rejected.
//!
//! # Paper
//! Liu et al., "MIA-DPO: Multi-Image Augmented Direct Preference Optimization For Large Vision-Language Models", ICLR 2025, arXiv:2410.17637. Reference code:
//! Liuziyu77/MIA-DPO `gen_data`: rows about one image get unrelated images as a sequence, in a collage with numbers, or as the picture that
//! stands around it. The model's answer is rejected against the row's own if it is another one, if the row's has fewer than 512 characters, if its
//! perplexity is above 1.1, and if no more than a share of its attention is on the image that was asked about: at a layer (16 of 32), the mean over
//! heads and tokens of the answer; of a sequence the mean over the image's tokens against the sum of the means of all images (0.8, 0.7, 0.6, 0.6 for
//! 2 to 5 images), of the others the sum over its part against the sum over the whole (collage 0.7, 0.6, 0.5, 0.4, 0.3 for 2, 3, 4, 6, 9 images;
//! picture in picture 0.8).
//!
//! Differences: collages and pictures in pictures are made square, so that no processor cuts them off, and the part is exactly where the image is;
//! the published programs divide the patches into equal blocks, labels and margins among them. Their later filters (length ratio, edit distance) are not
//! released with numbers and left out.

use std::ops::Range;

use diptych_data::{ImageSource, OnError, TextPrompt};
use diptych_models::lm::LmInput;
use diptych_tensor::random::Generator;
use image::RgbImage;
use rand::Rng as _;
use rand::seq::index::sample;
use serde::{Deserialize, Serialize};

use super::checks::{check_share, setting, unused};
use super::composition::{collage, grid, patches_in, picture_in_picture};
use super::pointing::{Labels, Pointing};
use super::problem::BuildProblem;
use super::skip::Skip;
use super::speaker::{Said, Seen};
use super::workshop::{OpenRow, Outcome, Purpose, Wanted, Workshop, decode, pair};
use crate::Result;

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MiaDpo {
    /// How images come together. Default `sequence`.
    pub kind: MultiImage,
    /// Images together, the one that is asked about among them. Default 2.
    pub num_images: usize,
    /// The layer whose attention is read, from 0. Default: the one in the middle, 16 of 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Answers with a larger share of attention on the image are dropped. Default: as published for the kind and the number of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attention: Option<f64>,
    /// Answers that are no more perplexing are dropped. Default 1.1.
    pub min_perplexity: f64,
    /// Rows whose own answer has as many characters or more are dropped. Default 512.
    pub max_answer: usize,
    /// Before each image. Default `Image{number}: `. Only of a sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Before the question. Default: `In Image{number}, `, of a picture in a picture `For the image in the middle, `.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Pixels of a side of a cell. Default 448. Only of a collage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell: Option<u32>,
    /// Share of the side that the inner picture takes. Default 0.7. Only of a picture in a picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

/// What stands before each image of a sequence where the settings do not say.
const LABEL: &str = "Image{number}: ";

/// Pixels of a side of a collage's cell where the settings do not say.
const CELL: u32 = 448;

/// Share of the side that a picture in a picture takes where the settings do not say.
const SHARE: f64 = 0.7;

/// How several images come together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MultiImage {
    /// One after another, each with its name.
    #[default]
    Sequence,
    /// In rows, as one image, with numbers.
    Collage,
    /// One in the middle of another.
    PictureInPicture,
}

impl Default for MiaDpo {
    fn default() -> Self {
        Self {
            kind: MultiImage::Sequence,
            num_images: 2,
            layer: None,
            max_attention: None,
            min_perplexity: 1.1,
            max_answer: 512,
            label: None,
            pointer: None,
            cell: None,
            share: None,
        }
    }
}

impl MiaDpo {
    pub(super) fn validate(&self) -> Result<()> {
        let (fits, expected) = match self.kind {
            MultiImage::Sequence => ((2..=16).contains(&self.num_images), "2 to 16"),
            MultiImage::Collage => (grid(self.num_images).is_some(), "2, 3, 4, 6 or 9"),
            MultiImage::PictureInPicture => (self.num_images == 2, "2 for a picture in a picture"),
        };
        if !fits {
            return Err(setting("num_images", self.num_images, expected));
        }
        match self.max_attention {
            Some(share) => check_share("max_attention", share)?,
            None if self.published_share().is_none() => {
                let expected = "a share: none is published for so many images";
                return Err(setting("max_attention", "nothing", expected));
            }
            None => {}
        }
        if !(self.min_perplexity >= 0.0 && self.min_perplexity.is_finite()) {
            return Err(setting("min_perplexity", self.min_perplexity, "a number from 0 on"));
        }
        match self.cell {
            Some(cell) if !(16..=4096).contains(&cell) => return Err(setting("cell", cell, "pixels, 16 to 4096")),
            _ => {}
        }
        match self.share {
            Some(share) if !(share > 0.0 && share < 1.0) => {
                return Err(setting("share", share, "a share above 0, below 1"));
            }
            _ => {}
        }
        self.refuse_unused()
    }

    /// Refuses what only images have that come together in another way.
    fn refuse_unused(&self) -> Result<()> {
        let keys = [
            (
                "label",
                self.label.is_some(),
                MultiImage::Sequence,
                "there are no images one after another",
            ),
            ("cell", self.cell.is_some(), MultiImage::Collage, "there is no collage"),
            (
                "share",
                self.share.is_some(),
                MultiImage::PictureInPicture,
                "there is no picture in a picture",
            ),
        ];
        let is_unused = |(_, is_given, kind, _): &(&str, bool, MultiImage, &str)| *is_given && *kind != self.kind;
        match keys.into_iter().find(is_unused) {
            Some((key, _, _, why)) => Err(unused(key, why)),
            None => Ok(()),
        }
    }

    fn published_share(&self) -> Option<f64> {
        match (self.kind, self.num_images) {
            (MultiImage::Sequence, 2) | (MultiImage::PictureInPicture, _) => Some(0.8),
            (MultiImage::Sequence, 3) | (MultiImage::Collage, 2) => Some(0.7),
            (MultiImage::Sequence, 4 | 5) | (MultiImage::Collage, 3) => Some(0.6),
            (MultiImage::Collage, 4) => Some(0.5),
            (MultiImage::Collage, 6) => Some(0.4),
            (MultiImage::Collage, 9) => Some(0.3),
            _ => None,
        }
    }

    pub(super) fn make(&self, shop: &Workshop<'_>, rows: Range<usize>) -> Result<Vec<Outcome>> {
        let mut composed = Vec::new();
        for index in rows {
            composed.push(self.compose(shop, index)?);
        }
        let asks: Vec<_> = composed
            .iter()
            .flatten()
            .map(|asked| Workshop::ask(asked.index, 0, &asked.prompt, &asked.seen))
            .collect();
        let mut said = shop.speaker.answers(&asks)?.into_iter();
        let mut outcomes = Vec::with_capacity(composed.len());
        for asked in &composed {
            outcomes.push(match asked {
                Err(skip) => Outcome::skipped(*skip),
                Ok(asked) => match said.next() {
                    Some(said) => self.judged(shop, asked, &said)?,
                    None => Outcome::default(),
                },
            });
        }
        Ok(outcomes)
    }

    /// The question of a row about one of several images.
    fn compose(&self, shop: &Workshop<'_>, index: usize) -> Result<Result<Asked, Skip>> {
        let Some(open) = shop.open(index, Wanted::One)? else {
            return Ok(Err(Skip::BadRow));
        };
        let Some(chosen) = shop.answer_of(open.row)? else {
            return Ok(Err(Skip::BadRow));
        };
        if chosen.chars().count() >= self.max_answer {
            return Ok(Err(Skip::LongAnswer));
        }
        let mut rng = shop.random(Purpose::Companions, index);
        let target = match self.kind {
            MultiImage::PictureInPicture => 0,
            MultiImage::Sequence | MultiImage::Collage => rng.random_range(0..self.num_images),
        };
        let Some(others) = companions(shop, &open, (self.num_images - 1, &mut rng))? else {
            return Ok(Err(Skip::BadRow));
        };
        let prompt = &open.row.prompt;
        let rewritten = self
            .pointing(target)
            .rewrite(&prompt.prompt)
            .ok_or_else(|| BuildProblem::NumImages {
                id: prompt.id.clone(),
                recipe: shop.recipe,
                found: 0,
                expected: "one place for an image in its prompt",
            })?;
        let (sources, pictures, part) = self.together(&open, others, target)?;
        let seen = shop.speaker.look_at_all(&pictures)?;
        Ok(Ok(Asked {
            index,
            prompt: TextPrompt {
                prompt: rewritten,
                images: sources,
                ..prompt.clone()
            },
            seen,
            target: part.map_or(Target::Image(target), Target::Part),
            chosen,
        }))
    }

    fn pointing(&self, target: usize) -> Pointing<'_> {
        let pointer = match self.kind {
            MultiImage::PictureInPicture => "For the image in the middle, ",
            MultiImage::Sequence | MultiImage::Collage => "In Image{number}, ",
        };
        Pointing {
            labels: (self.kind == MultiImage::Sequence).then_some(Labels {
                text: self.label.as_deref().unwrap_or(LABEL),
                num_images: self.num_images,
            }),
            pointer: self.pointer.as_deref().unwrap_or(pointer),
            target,
        }
    }

    /// The images as they are shown, and the part that is asked about where they are one.
    fn together(&self, open: &OpenRow<'_>, others: Vec<Other>, target: usize) -> Result<Together> {
        let own = (open.row.images()[0].clone(), open.images[0].clone());
        if self.kind == MultiImage::PictureInPicture {
            let back = others.first().map_or(&own.1, |other| &other.1);
            let made = picture_in_picture(&own.1, back, self.share.unwrap_or(SHARE));
            return Ok((
                vec![ImageSource::from_image(&made.image)?],
                vec![made.image],
                Some(made.target),
            ));
        }
        let mut all = others;
        all.insert(target, own);
        let (sources, pictures): (Vec<_>, Vec<_>) = all.into_iter().unzip();
        match grid(self.num_images).filter(|_| self.kind == MultiImage::Collage) {
            None => Ok((sources, pictures, None)),
            Some(rows) => {
                let made = collage(&pictures, rows, target, self.cell.unwrap_or(CELL));
                Ok((
                    vec![ImageSource::from_image(&made.image)?],
                    vec![made.image],
                    Some(made.target),
                ))
            }
        }
    }

    fn judged(&self, shop: &Workshop<'_>, asked: &Asked, said: &Said) -> Result<Outcome> {
        if shop.is_cut(said) {
            return Ok(Outcome::skipped(Skip::UnfinishedAnswer));
        }
        let mut outcome = Outcome::default();
        let made = pair(asked.prompt.id.clone(), &asked.prompt, [&asked.chosen, &said.text])?;
        let num = said.logps.len().max(1) as f64;
        let perplexity = (-said.logps.iter().sum::<f64>() / num).exp();
        let mut skip = (perplexity <= self.min_perplexity).then_some(Skip::Confident);
        if made.is_ok() && skip.is_none() {
            let limit = self.max_attention.or(self.published_share()).unwrap_or(1.0);
            let share = attention_share(shop, self.layer, asked, said)?;
            skip = (share > limit).then_some(Skip::AttendsToTarget);
        }
        outcome.add(made.and_then(|pair| skip.map_or(Ok(pair), Err)));
        Ok(outcome)
    }
}

type Other = (ImageSource, RgbImage);
type Together = (Vec<ImageSource>, Vec<RgbImage>, Option<[f64; 4]>);

/// A question about one of several images.
struct Asked {
    index: usize,
    prompt: TextPrompt,
    seen: Vec<Seen>,
    target: Target,
    chosen: String,
}

/// What is asked about.
enum Target {
    /// One of several images.
    Image(usize),
    /// A part of the only image, as shares of its sides.
    Part([f64; 4]),
}

/// So many other images than the row's own, drawn by seed; none where one cannot be read and such rows are passed over.
fn companions(
    shop: &Workshop<'_>,
    open: &OpenRow<'_>,
    (num, rng): (usize, &mut Generator),
) -> Result<Option<Vec<Other>>> {
    let images = shop.different_images();
    let own = images.number(&open.row.images()[0]).unwrap_or(images.len());
    let mut others = Vec::with_capacity(num);
    for drawn in sample(rng, images.len() - 1, num) {
        let (row, at) = images.places()[drawn + usize::from(drawn >= own)];
        let row = &shop.rows[row];
        let source = &row.images()[at];
        match decode(row.id(), at, source) {
            Ok(image) => others.push((source.clone(), image)),
            Err(_) if shop.on_error == OnError::Skip => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(others))
}

/// How much of what an answer attends to in images is what it was asked about.
fn attention_share(shop: &Workshop<'_>, layer: Option<usize>, asked: &Asked, said: &Said) -> Result<f64> {
    let speaker = shop.speaker;
    let layouts: Vec<_> = asked.seen.iter().map(Seen::layout).collect();
    let tokens = speaker.tokens(&asked.prompt, &layouts)?;
    let mut ids = tokens.ids;
    let first = ids.len();
    // Tokens that were read to say the next one: of the answer all but the last.
    ids.extend(&said.tokens[..said.tokens.len().saturating_sub(1)]);
    let queries: Vec<usize> = if ids.len() > first {
        (first..ids.len()).collect()
    } else {
        vec![first - 1]
    };
    let model = speaker.model();
    let layer = layer.unwrap_or(model.config().text.layers.len() / 2);
    let input = LmInput::padded(&[&ids], 0, model.device())?;
    let images: Vec<_> = asked.seen.iter().map(Seen::embeddings).collect();
    let weights = model.attention_weights(&input, &images, layer, &queries)?;
    let mean = || -> diptych_tensor::Result<Vec<f32>> { Ok(weights.mean(0)?.to_vec1()?) };
    let mean = mean()?;
    let sum = |places: &mut dyn Iterator<Item = usize>| places.map(|at| f64::from(mean[at])).sum::<f64>();
    let (target, all) = match &asked.target {
        Target::Image(target) => {
            let mean_of = |range: &Range<usize>| sum(&mut range.clone()) / range.len().max(1) as f64;
            let means: Vec<f64> = tokens.images.iter().map(mean_of).collect();
            (means[*target], means.iter().sum())
        }
        Target::Part(part) => {
            let grid = speaker.patch_grid(layouts[0])?;
            let start = tokens.images[0].start;
            let whole = (0..grid.rows * grid.columns).map(|at| start + grid.first + at);
            let inside = patches_in(grid, *part);
            (
                sum(&mut inside.into_iter().map(|at| start + at)),
                sum(&mut whole.into_iter()),
            )
        }
    };
    Ok(if all > 0.0 { target / all } else { 0.0 })
}
