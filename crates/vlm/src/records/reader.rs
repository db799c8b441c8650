//! The images of rows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use diptych_data::{ImageSource, TextDataset, TextRow as _};
use diptych_llm::records::EncodedRecord;
use diptych_llm::vision::{ReadImage, RunImages};
use rayon::prelude::*;

use crate::{Error, Result};

/// The images of a row: what its prompt shows, what the rejected answer sees where that is something else, and what the prompt's are
/// compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) images: Vec<usize>,
    pub(super) rejected: Option<Vec<usize>>,
    pub(super) others: Option<Vec<usize>>,
}

/// Where the images of a row are, list by list, with their keys.
struct Sources<'a> {
    images: &'a [ImageSource],
    rejected: Option<&'a [ImageSource]>,
    others: Option<&'a [ImageSource]>,
}

impl<'a> Sources<'a> {
    fn lists(&self) -> [(&'static str, &'a [ImageSource]); 3] {
        [
            ("images", self.images),
            ("rejected_images", self.rejected.unwrap_or_default()),
            ("other_images", self.others.unwrap_or_default()),
        ]
    }
}

/// Images in the order of their records; none where one was known already.
pub(super) type ReadImages = std::vec::IntoIter<Option<diptych_llm::Result<ReadImage>>>;

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

    /// Reads the images of the rows of some records.
    pub(super) fn read(&self, records: &[EncodedRecord]) -> ReadImages {
        let sources: Vec<(&ImageSource, bool)> = records
            .iter()
            .flat_map(|record| self.sources(record).lists())
            .flat_map(|(_, list)| list)
            .map(|source| (source, self.index_of(source).is_some()))
            .collect();
        let images = &*self.images;
        let read = |(source, is_known): &(&ImageSource, bool)| (!is_known).then(|| images.read(source));
        sources.par_iter().map(read).collect::<Vec<_>>().into_iter()
    }

    /// How many images there are now, for [`forget`](Self::forget).
    pub(super) fn mark(&self) -> usize {
        self.images.len()
    }

    /// Forgets the images that came after a mark: those of a record that is left out take no memory.
    pub(super) fn forget(&mut self, mark: usize) {
        self.images.truncate(mark);
        self.by_path.retain(|_, index| *index < mark);
    }

    /// What a record's row shows, from images that were read in this order.
    pub(super) fn shown(&mut self, record: &EncodedRecord, read: &mut ReadImages) -> Result<Shown> {
        let sources = self.sources(record);
        // All of them are taken from what was read, also after one that is damaged.
        let mut taken: Vec<Result<usize>> = Vec::new();
        for (key, list) in sources.lists() {
            for (place, source) in list.iter().enumerate() {
                taken.push(self.take(source, read.next().flatten()).map_err(|error| Error::Image {
                    id: record.id.clone(),
                    key,
                    place,
                    image: source.clone(),
                    source: Box::new(error),
                }));
            }
        }
        let mut images = taken.into_iter().collect::<Result<Vec<usize>>>()?;
        let mut rest = images.split_off(sources.images.len());
        let others = rest.split_off(sources.rejected.unwrap_or_default().len());
        Ok(Shown {
            images,
            rejected: sources.rejected.map(|_| rest),
            others: sources.others.map(|_| others),
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

    /// Where the images of a record's row are.
    fn sources(&self, record: &EncodedRecord) -> Sources<'a> {
        let parts = match self.dataset {
            TextDataset::Pairs(rows) => rows[record.row].parts(),
            TextDataset::Unpaired(rows) => rows[record.row].parts(),
            TextDataset::Ranked(rows) => rows[record.row].parts(),
            TextDataset::Samples(rows) => rows[record.row].parts(),
            TextDataset::Prompts(rows) => rows[record.row].parts(),
        };
        Sources {
            images: parts.images,
            rejected: parts.rejected_images,
            others: parts.other_images,
        }
    }
}
