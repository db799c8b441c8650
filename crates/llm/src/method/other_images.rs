//! Answers under other images than those of their rows.

use std::fmt::Debug;
use std::sync::Arc;

use diptych_data::ImageSource;
use diptych_models::vlm::{ProcessedImage, VlmImageProcessor};
use diptych_train::{Item, MicroBatch};
use serde::{Deserialize, Serialize};

use super::texts::Texts;
use crate::arrangement::{Arranged, PlacedImage, Sequence};
use crate::network::Network;
use crate::records::EncodedResponse;
use crate::reference::ResponsePlace;
use crate::vision::MadeImages;
use crate::{Error, Result};

/// When an image is spoiled: what its random choices depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoilKey {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the record's row.
    pub record: u64,
    /// Number of the image in its record, from 0.
    pub image: u64,
    /// Which time the record comes, from 0.
    pub epoch: u64,
}

/// Makes other images of a record's own.
pub trait Spoil: Debug + Send + Sync {
    /// The spoiled image as the tower reads it; its layout is that of the image itself.
    ///
    /// # Errors
    /// When the image cannot be read.
    fn spoil(&self, image: &ImageSource, processor: &VlmImageProcessor, key: SpoilKey) -> Result<ProcessedImage>;
}

/// Which network's draw of spoiled images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    /// That of the policy, and of everything that has to see the same.
    Policy,
    /// Another one, for a reference that sees other ones.
    Reference,
}

/// Whether the reference sees the same spoiled images as the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceDraw {
    /// Yes, so that the log-ratio is one of a common condition.
    #[default]
    Same,
    /// No: they are drawn once more, as mDPO's released program does.
    Own,
}

/// The chosen answers of a micro batch under other images.
pub(super) struct OtherAnswers<'a> {
    /// As the networks take them.
    pub(super) arranged: Arranged,
    /// Of each record the answer with its own tokens.
    pub(super) responses: Vec<&'a EncodedResponse>,
}

/// Lays out the chosen answers of a micro batch under images that `spoil` makes of their own, or without it under the other images that
/// the records bring along.
pub(super) fn under_other_images<'a>(
    texts: &'a Texts<'_>,
    batch: &MicroBatch,
    spoil: Option<&dyn Spoil>,
    draw: Draw,
) -> Result<OtherAnswers<'a>> {
    let engine = texts.engine;
    let Network::Vision(network) = &engine.policy.model else {
        return Err(Error::NoVision);
    };
    let images = network.images();
    let mut made = Vec::new();
    let mut placed: Vec<Vec<PlacedImage>> = Vec::with_capacity(batch.items.len());
    for item in &batch.items {
        let record = &engine.records[item.index];
        let Some(spoil) = spoil else {
            placed.push(Vec::new());
            continue;
        };
        let mut own = texts.response(chosen(item)).images.clone();
        let epoch = epoch(batch, item, engine.records.len());
        for (number, image) in own.iter_mut().enumerate() {
            let key = SpoilKey {
                seed: batch.seed,
                record: record.row as u64,
                image: number as u64,
                epoch: match draw {
                    Draw::Policy => epoch,
                    // No run has as many epochs.
                    Draw::Reference => u64::MAX - epoch,
                },
            };
            made.push(spoil.spoil(images.source(image.index), images.processor(), key)?);
            image.index = images.len() + made.len() - 1;
        }
        placed.push(own);
    }
    let mut sequences = Vec::with_capacity(batch.items.len());
    let mut responses = Vec::with_capacity(batch.items.len());
    for (item, placed) in batch.items.iter().zip(&placed) {
        let record = &engine.records[item.index];
        let (response, images) = match (&record.other_images, spoil) {
            (Some(other), None) => (other, other.images.as_slice()),
            _ => (texts.response(chosen(item)), placed.as_slice()),
        };
        sequences.push(Sequence {
            id: &record.id,
            prompt: &response.prompt,
            response: &response.ids,
            images,
        });
        responses.push(response);
    }
    let mut arranged = engine.arranged(&sequences)?;
    arranged.made = (!made.is_empty()).then(|| Arc::new(MadeImages::new(made)));
    Ok(OtherAnswers { arranged, responses })
}

impl OtherAnswers<'_> {
    /// Tokens of these texts, prompts included.
    pub(super) fn num_tokens(&self) -> f64 {
        let len = |response: &&EncodedResponse| response.prompt.len() + response.ids.len();
        self.responses.iter().map(len).sum::<usize>() as f64
    }
}

fn chosen(item: &Item) -> ResponsePlace {
    ResponsePlace {
        record: item.index,
        response: 0,
    }
}

/// Which time a record comes.
pub(super) fn epoch(batch: &MicroBatch, item: &Item, num_records: usize) -> u64 {
    let before = (batch.step - 1) * batch.step_items.len() as u64 + item.position;
    before / num_records as u64
}
