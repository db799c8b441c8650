//! The images of a run: each is decoded, processed and counted once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use diptych_data::ImageSource;
use diptych_models::vlm::{ImageLayout, ProcessedImage, VlmImageProcessor};
use diptych_tensor::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// An image of a run.
#[derive(Debug)]
struct RunImage {
    source: ImageSource,
    layout: ImageLayout,
    hash: [u8; 32],
    /// Numbers that the tower reads.
    num_elements: usize,
    /// What the tower reads, where it is kept.
    pixels: Option<ProcessedImage>,
}

/// The images of a run, by index. Images that look the same to the tower are one.
#[derive(Debug)]
pub struct RunImages {
    images: Vec<RunImage>,
    by_hash: BTreeMap<[u8; 32], usize>,
    processor: VlmImageProcessor,
    keeps_pixels: PixelMemory,
    budget: Budget,
}

/// An image as the tower reads it, before it is one of the run.
#[derive(Debug)]
pub struct ReadImage {
    processed: ProcessedImage,
    hash: [u8; 32],
}

/// Whether processed pixels stay in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelMemory {
    /// As far as memory is allowed for it: a tower that is trained reads them in every step.
    Kept,
    /// They are made again from the file when they are needed: of a frozen tower its features are kept.
    MadeAgain,
}

/// Bytes that may be kept, and those that are.
#[derive(Debug)]
struct Budget {
    limit: u64,
    used: Mutex<u64>,
}

impl Budget {
    /// Takes `bytes`, if they are left.
    fn take(&self, bytes: u64) -> bool {
        let mut used = guard(&self.used);
        let fits = used.saturating_add(bytes) <= self.limit;
        if fits {
            *used += bytes;
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        let mut used = guard(&self.used);
        *used = used.saturating_sub(bytes);
    }
}

impl RunImages {
    /// Whether so many bytes more may be kept, which are counted then.
    pub(super) fn may_keep(&self, bytes: u64) -> bool {
        self.budget.take(bytes)
    }

    /// None yet. `limit` is how many bytes of pixels and features may be kept in memory.
    pub fn new(processor: VlmImageProcessor, keeps_pixels: PixelMemory, limit: u64) -> Self {
        Self {
            images: Vec::new(),
            by_hash: BTreeMap::new(),
            processor,
            keeps_pixels,
            budget: Budget {
                limit,
                used: Mutex::new(0),
            },
        }
    }

    /// An image, decoded and processed.
    ///
    /// # Errors
    /// When it cannot be read or decoded; when the network does not read images of its size.
    pub fn read(&self, source: &ImageSource) -> Result<ReadImage> {
        let processed = self.processor.process(&source.decode()?)?;
        let hash = hash(&processed)?;
        Ok(ReadImage { processed, hash })
    }

    /// The index of an image that was [read](Self::read) from `source`.
    pub fn add(&mut self, source: &ImageSource, image: ReadImage) -> usize {
        let ReadImage { processed, hash } = image;
        if let Some(index) = self.by_hash.get(&hash) {
            return *index;
        }
        let index = self.images.len();
        let is_kept = self.keeps_pixels == PixelMemory::Kept && self.budget.take(num_bytes(&processed.pixels));
        self.images.push(RunImage {
            source: source.clone(),
            layout: processed.layout,
            hash,
            num_elements: processed.pixels.elem_count(),
            pixels: is_kept.then_some(processed),
        });
        self.by_hash.insert(hash, index);
        index
    }

    /// Forgets all images but the first `len`, and gives back what they took of the memory.
    pub fn truncate(&mut self, len: usize) {
        for image in self.images.drain(len.min(self.images.len())..) {
            self.by_hash.remove(&image.hash);
            if let Some(kept) = image.pixels {
                self.budget.give_back(num_bytes(&kept.pixels));
            }
        }
    }

    /// Bytes of the memory that are taken.
    pub fn memory_used(&self) -> u64 {
        *guard(&self.budget.used)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// How the features of an image are laid out.
    pub fn layout(&self, index: usize) -> ImageLayout {
        self.images[index].layout
    }

    /// How many numbers the tower reads of an image.
    pub fn num_elements(&self, index: usize) -> usize {
        self.images[index].num_elements
    }

    /// Where an image came from.
    pub fn source(&self, index: usize) -> &ImageSource {
        &self.images[index].source
    }

    /// How images are processed.
    pub fn processor(&self) -> &VlmImageProcessor {
        &self.processor
    }

    /// What an image's pixels are: equal for equal pixels.
    pub(crate) fn content(&self, index: usize) -> &[u8; 32] {
        &self.images[index].hash
    }

    pub(super) fn pixels(&self, index: usize) -> Result<ProcessedImage> {
        let image = &self.images[index];
        match &image.pixels {
            Some(pixels) => Ok(pixels.clone()),
            None => Ok(self.processor.process(&image.source.decode()?)?),
        }
    }
}

/// Bytes of a tensor's elements.
pub(super) fn num_bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

fn hash(image: &ProcessedImage) -> Result<[u8; 32]> {
    let read = || -> diptych_tensor::Result<Vec<f32>> {
        Ok(image
            .pixels
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1()?)
    };
    let mut hasher = Sha256::new();
    hasher.update(format!("{:?} {:?}", image.layout, image.pixels.dims()));
    for value in read().map_err(Error::from)? {
        hasher.update(value.to_le_bytes());
    }
    Ok(hasher.finalize().into())
}

/// What is behind a lock: whole in any case, as nothing is done while it is held but to read or replace values.
pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
