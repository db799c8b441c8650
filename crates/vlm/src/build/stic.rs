//! STIC, stage 1: a careful description is chosen; one that was asked to imagine, or that is of a spoiled image, is rejected.
//!
//! # Paper
//! Deng et al., "Enhancing Large Vision Language Models with Self-Training on Image Comprehension" (STIC), `NeurIPS` 2024, arXiv:2405.19716. Reference code:
//! yihedeng9/STIC `stic/generate_pref.py`: of every image one pair, whose prompt is a short request; the chosen answer is to a detailed request; the
//! rejected one, by a coin, to a request for what is not there, or to the short request under a spoiled image: by another coin with its shorter
//! side at 20 pixels, or with jittered brightness (0.5) and hue (0.3).
//!
//! Differences: requests are the user's or in our words, of the published kinds. The released program never spoils an image, since the call for the
//! rejected answer leaves the switch out; here, as in the paper, it does.

use std::ops::Range;

use diptych_data::TextPrompt;
use rand::Rng as _;
use rand::seq::IndexedRandom as _;
use serde::{Deserialize, Serialize};

use super::checks::{check_share, setting};
use super::skip::Skip;
use super::speaker::{Ask, Seen};
use super::workshop::{OpenRow, Outcome, Purpose, Wanted, Workshop};
use crate::Result;
use crate::corruption::{ColorJitter, Corruption, Draw, LowResolution};

/// What is built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stic {
    /// Share of pairs whose rejected answer was asked to imagine; the others saw a spoiled image. Default 0.5.
    pub imagined: f64,
    /// Share of spoiled images that lose resolution; the others change colors. Default 0.5.
    pub low_resolution: f64,
    /// Pixels of the shorter side of an image without resolution. Default 20.
    pub side: u32,
    /// Strength of the jitter of brightness. Default 0.5.
    pub brightness: f64,
    /// Strength of the jitter of hue, in turns. Default 0.3.
    pub hue: f64,
    /// What is asked.
    pub requests: SticRequests,
}

/// What is asked for descriptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SticRequests {
    /// Short requests: one of them is the prompt of a pair.
    pub short: Vec<String>,
    /// Detailed requests: one of them gives the chosen answer.
    pub detailed: Vec<String>,
    /// Requests for what is not there: one of them gives the rejected answer.
    pub imagined: Vec<String>,
}

impl Default for Stic {
    fn default() -> Self {
        Self {
            imagined: 0.5,
            low_resolution: 0.5,
            side: 20,
            brightness: 0.5,
            hue: 0.3,
            requests: SticRequests::default(),
        }
    }
}

impl Default for SticRequests {
    fn default() -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            short: owned(&[
                "Describe this image.",
                "What does the picture show?",
                "Tell me what can be seen in the photo.",
                "Give an account of the scene in this picture.",
                "What is going on in this image?",
                "Put the content of the picture into words.",
            ]),
            detailed: owned(&[
                "Describe this image carefully and completely. Go through it step by step: first the people, animals and things that matter most and \
                 what they do; then the place and whether it is inside or outside; then light, weather and mood; then colors and how things are \
                 arranged; at last small details and writing. Name only what can clearly be seen.",
            ]),
            imagined: owned(&[
                "Describe this image and add things that are not in it but could well be there. State them as facts.",
                "Tell what the picture shows, together with people or animals that might just have walked into it, as if they were there.",
                "Give a description of the scene with several everyday objects that you make up but that would suit it.",
                "Describe the image and invent tools, vehicles or furniture that one would expect in such a place, without saying that they are invented.",
            ]),
        }
    }
}

impl Stic {
    pub(super) fn validate(&self) -> Result<()> {
        for (key, share) in [("imagined", self.imagined), ("low_resolution", self.low_resolution)] {
            check_share(key, share)?;
        }
        let requests = &self.requests;
        let lists = [
            ("requests.short", &requests.short),
            ("requests.detailed", &requests.detailed),
            ("requests.imagined", &requests.imagined),
        ];
        for (key, list) in lists {
            if list.is_empty() || list.iter().any(|text| text.trim().is_empty()) {
                return Err(setting(key, format!("{list:?}"), "one or more requests, none empty"));
            }
        }
        for corruption in [self.jitter(), self.small()] {
            corruption.validate()?;
        }
        Ok(())
    }

    fn jitter(&self) -> Corruption {
        Corruption::ColorJitter(ColorJitter {
            brightness: self.brightness,
            contrast: 0.0,
            saturation: 0.0,
            hue: self.hue,
        })
    }

    fn small(&self) -> Corruption {
        Corruption::LowResolution(LowResolution { side: self.side })
    }

    pub(super) fn make(&self, shop: &Workshop<'_>, rows: Range<usize>) -> Result<Vec<Outcome>> {
        let mut described = Vec::new();
        for index in rows {
            let open = shop.open(index, Wanted::Some)?;
            described.push(open.map(|open| self.requests(shop, &open)).transpose()?);
        }
        let asks: Vec<Ask<'_>> = described
            .iter()
            .flatten()
            .flat_map(|asked| {
                let rejected = asked.spoiled.as_ref().unwrap_or(&asked.clean);
                [
                    Workshop::ask(asked.index, 0, &asked.detailed, &asked.clean),
                    Workshop::ask(asked.index, 1, &asked.worse, rejected),
                ]
            })
            .collect();
        let mut said = shop.speaker.answers(&asks)?.into_iter();
        let mut outcomes = Vec::with_capacity(described.len());
        for asked in &described {
            let Some(asked) = asked else {
                outcomes.push(Outcome::skipped(Skip::BadRow));
                continue;
            };
            let mut outcome = Outcome::default();
            if let (Some(chosen), Some(rejected)) = (said.next(), said.next()) {
                outcome.add(shop.pair(&asked.short.id, &asked.short, [&chosen, &rejected])?);
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    fn requests(&self, shop: &Workshop<'_>, open: &OpenRow<'_>) -> Result<Requests> {
        let mut words = shop.random(Purpose::Words, open.index);
        let mut way = shop.random(Purpose::Way, open.index);
        let mut chosen = |list: &[String]| -> Result<TextPrompt> {
            let text = list.choose(&mut words).cloned().unwrap_or_default();
            Ok(TextPrompt {
                prompt: shop.speaker.request(&text, open.images.len())?,
                ..open.row.prompt.clone()
            })
        };
        let short = chosen(&self.requests.short)?;
        let detailed = chosen(&self.requests.detailed)?;
        let imagined = chosen(&self.requests.imagined)?;
        let is_imagined = way.random::<f64>() < self.imagined;
        let is_small = way.random::<f64>() < self.low_resolution;
        let corruption = if is_small { self.small() } else { self.jitter() };
        let spoiled = |(at, image)| {
            let draw = Draw {
                seed: shop.seed,
                record: open.index as u64,
                image: at as u64,
                epoch: 0,
            };
            shop.speaker.look(&corruption.apply(image, draw))
        };
        let clean = shop.speaker.look_at_all(&open.images)?;
        let spoiled = if is_imagined {
            None
        } else {
            Some(
                open.images
                    .iter()
                    .enumerate()
                    .map(spoiled)
                    .collect::<Result<Vec<_>>>()?,
            )
        };
        Ok(Requests {
            index: open.index,
            worse: if is_imagined { imagined } else { short.clone() },
            short,
            detailed,
            clean,
            spoiled,
        })
    }
}

/// What is asked about a row.
struct Requests {
    index: usize,
    short: TextPrompt,
    detailed: TextPrompt,
    /// What the rejected answer is to.
    worse: TextPrompt,
    clean: Vec<Seen>,
    /// What the rejected answer sees, where that is something else.
    spoiled: Option<Vec<Seen>>,
}
