//! The images of rows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use diptych_data::{ImageSource, TextDataset, TextRow as _};
use diptych_llm::records::EncodedRecord;
use diptych_llm::vision::{ReadImage, RunImages};
use rayon::prelude::*;

use crate::{Error, Result};

/// The images of a row: what its prompt shows, and what the rejected answer sees where that is something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) images: Vec<usize>,
    pub(super) rejected: Option<Vec<usize>>,
    /// What the chosen answer sees for comparison.
    pub(super) others: Option<Vec<usize>>,
}

/// Reads the images of rows, several at once.
pub(super) struct Reader<'a> {
    dataset: &'a TextDataset,
    pub(super) images: &'a mut RunImages,
    /// Files that were read already.
    by_path: BTreeMap<PathBuf, usize>,
}

impl<'a> Reader<'a> {
    /// Of the rows of a data set.
    pub(super) fn new(dataset: &'a TextDataset, images: &'a mut RunImages) -> Self {
        Self {
            dataset,
            images,
            by_path: BTreeMap::new(),
        }
    }

    /// The images of the rows of some records.
    pub(super) fn read(&mut self, records: &[EncodedRecord]) -> Vec<Result<Shown>> {
        let sources: Vec<(&ImageSource, bool)> = records
            .iter()
            .flat_map(|record| {
                let (own, rejected) = self.sources(record);
                own.iter().chain(rejected.unwrap_or_default())
            })
            .map(|source| (source, self.index_of(source).is_some()))
            .collect();
        let images = &*self.images;
        let read = |(source, is_known): &(&ImageSource, bool)| (!is_known).then(|| images.read(source));
        let mut read: std::vec::IntoIter<Option<diptych_llm::Result<ReadImage>>> =
            sources.par_iter().map(read).collect::<Vec<_>>().into_iter();
        records.iter().map(|record| self.shown(record, &mut read)).collect()
    }

    /// What a record's row shows, from images that were read in this order.
    fn shown(
        &mut self,
        record: &EncodedRecord,
        read: &mut impl Iterator<Item = Option<diptych_llm::Result<ReadImage>>>,
    ) -> Result<Shown> {
        let (own, rejected) = self.sources(record);
        let sides = [own, rejected.unwrap_or_default()];
        // All of them are taken from what was read, also after one that is damaged.
        let taken: Vec<Result<usize>> = sides
            .into_iter()
            .flat_map(|side| side.iter().enumerate())
            .map(|(at, source)| {
                self.take(source, read.next().flatten()).map_err(|error| Error::Image {
                    id: record.id.clone(),
                    number: at + 1,
                    image: source.clone(),
                    source: Box::new(error),
                })
            })
            .collect();
        let mut images = taken.into_iter().collect::<Result<Vec<usize>>>()?;
        let others = images.split_off(own.len());
        Ok(Shown {
            images,
            rejected: rejected.map(|_| others),
            others: None,
        })
    }

    /// The index of an image. One that was not read, because it was known, is known.
    fn take(
        &mut self,
        source: &ImageSource,
        read: Option<diptych_llm::Result<ReadImage>>,
    ) -> diptych_llm::Result<usize> {
        if let Some(index) = self.index_of(source) {
            return Ok(index);
        }
        let image = read.unwrap_or_else(|| self.images.read(source))?;
        let index = self.images.add(source, image);
        if let ImageSource::Path(path) = source {
            self.by_path.insert(path.clone(), index);
        }
        Ok(index)
    }

    fn index_of(&self, source: &ImageSource) -> Option<usize> {
        match source {
            ImageSource::Path(path) => self.by_path.get(path).copied(),
            ImageSource::Bytes(_) | ImageSource::Cell(_) => None,
        }
    }

    /// What a record's row shows, and what the rejected answer sees instead.
    fn sources(&self, record: &EncodedRecord) -> (&'a [ImageSource], Option<&'a [ImageSource]>) {
        match self.dataset {
            TextDataset::Pairs(rows) => {
                let parts = rows[record.row].parts();
                (parts.images, parts.rejected_images)
            }
            TextDataset::Unpaired(rows) => (rows[record.row].parts().images, None),
            TextDataset::Ranked(rows) => (rows[record.row].parts().images, None),
            TextDataset::Samples(rows) => (rows[record.row].parts().images, None),
            TextDataset::Prompts(rows) => (rows[record.row].parts().images, None),
        }
    }
}
