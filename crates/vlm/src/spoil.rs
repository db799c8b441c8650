//! Other images of a record's own, for a preference between them.

use diptych_data::ImageSource;
use diptych_llm::Result;
use diptych_llm::method::{Spoil, SpoilKey};
use diptych_models::vlm::{ProcessedImage, VlmImageProcessor};

use crate::corruption::{Corruption, Draw};

/// Images spoiled by a corruption, before they are processed.
#[derive(Debug)]
pub(crate) struct Corrupted(pub(crate) Corruption);

impl Spoil for Corrupted {
    fn spoil(&self, image: &ImageSource, processor: &VlmImageProcessor, key: SpoilKey) -> Result<ProcessedImage> {
        let draw = Draw {
            seed: key.seed,
            record: key.record,
            image: key.image,
            epoch: key.epoch,
        };
        Ok(processor.process(&self.0.apply(&image.decode()?, draw))?)
    }
}
