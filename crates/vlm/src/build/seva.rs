//! `SeVa`: what the model says of a noisy image is rejected, what it says of the image itself is chosen.
//!
//! # Paper
//! Zhu et al., "Self-Supervised Visual Preference Alignment" (`SeVa`), ACM MM 2024, arXiv:2404.10501. Reference code: Kevinz-code/SeVa `data/step2` and
//! `data/step3`: both answers greedy; noise of VCD's schedule at step 500 or 800 on the pixels that the tower reads; equal answers are dropped; of
//! the pairs of step 800 a random part of 6500 is kept, so that there are about as many as of step 500 (`max_pairs`).
//!
//! Differences: the released program takes line breaks out of both answers, which joins words; here answers stay as they are.

use std::ops::Range;

use diptych_llm::method::{Spoil, SpoilKey};
use diptych_tensor::DType;
use serde::{Deserialize, Serialize};

use super::skip::Skip;
use super::speaker::{Ask, Seen};
use super::workshop::{OpenRow, Outcome, Wanted, Workshop};
use crate::corruption::{Corruption, DiffusionNoise};
use crate::spoil::Corrupted;
use crate::{Error, Result};

/// What is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seva {
    /// Step of the noise, 0 to 999. Default 500; the paper also uses 800.
    pub step: u32,
}

impl Default for Seva {
    fn default() -> Self {
        Self { step: 500 }
    }
}

impl Seva {
    pub(super) fn validate(self) -> Result<()> {
        let noise = Corruption::DiffusionNoise(DiffusionNoise { step: self.step });
        noise.validate().map_err(|error| match error {
            Error::Setting { found, expected, .. } => Error::Setting {
                key: "step".to_owned(),
                found,
                expected,
            },
            error => error,
        })
    }

    pub(super) fn make(self, shop: &Workshop<'_>, rows: Range<usize>) -> Result<Vec<Outcome>> {
        let noise = Corrupted(Corruption::DiffusionNoise(DiffusionNoise { step: self.step }));
        let mut opened = Vec::new();
        for index in rows {
            let open = shop.open(index, Wanted::Some)?;
            let seen = open.map(|open| looked_at(shop, &noise, open)).transpose()?;
            opened.push(seen);
        }
        let asks: Vec<Ask<'_>> = opened
            .iter()
            .flatten()
            .flat_map(|both| {
                let ask = |number, images| Workshop::ask(both.row.index, number, &both.row.row.prompt, images);
                // One key: the same choices, so that only the image makes the difference.
                [ask(0, &both.clean), ask(0, &both.noisy)]
            })
            .collect();
        let mut said = shop.speaker.answers(&asks)?.into_iter();
        let mut outcomes = Vec::with_capacity(opened.len());
        for both in &opened {
            let Some(both) = both else {
                outcomes.push(Outcome::skipped(Skip::BadRow));
                continue;
            };
            let mut outcome = Outcome::default();
            if let (Some(chosen), Some(rejected)) = (said.next(), said.next()) {
                let row = both.row.row;
                outcome.add(shop.pair(row.id(), &row.prompt, [&chosen, &rejected])?);
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

struct Both<'a> {
    row: OpenRow<'a>,
    clean: Vec<Seen>,
    noisy: Vec<Seen>,
}

fn looked_at<'a>(shop: &Workshop<'_>, noise: &Corrupted, row: OpenRow<'a>) -> Result<Both<'a>> {
    let clean = shop.speaker.look_at_all(&row.images)?;
    let mut noisy = Vec::with_capacity(clean.len());
    for (at, source) in row.row.images().iter().enumerate() {
        let key = SpoilKey {
            seed: shop.seed,
            record: row.index as u64,
            image: at as u64,
            epoch: 0,
        };
        let pixels = noise.spoil(source, shop.speaker.processor(), key)?;
        debug_assert_eq!(pixels.pixels.dtype(), DType::F32, "processors give f32");
        noisy.push(shop.speaker.look_at_pixels(&pixels)?);
    }
    Ok(Both { row, clean, noisy })
}
