//! A vision-language model with the images of a run: each is encoded once a batch for every network that looks at it, and where the
//! tower never changes its features are computed once a run and kept, as far as memory is allowed for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use diptych_data::ImageSource;
use diptych_models::lm::{GenerateConfig, Generated};
use diptych_models::vlm::{
    ImageEmbeddings, ImageLayout, ProcessedImage, VisionFeatures, VisionLanguageModel, VlmImageProcessor, VlmPrompt,
};
use diptych_tensor::{DType, Device, Params, Tensor};
use sha2::{Digest, Sha256};

use crate::arrangement::Arranged;
use crate::network::PromptRef;
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
}

impl RunImages {
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

    fn pixels(&self, index: usize) -> Result<ProcessedImage> {
        let image = &self.images[index];
        match &image.pixels {
            Some(pixels) => Ok(pixels.clone()),
            None => Ok(self.processor.process(&image.source.decode()?)?),
        }
    }
}

/// Images that are no record's, made for one batch: the run's images are counted before them.
#[derive(Debug)]
pub struct MadeImages {
    images: Vec<ProcessedImage>,
    /// Their features under one tower, which is named by its address.
    features: OnceLock<(usize, Vec<VisionFeatures>)>,
}

impl MadeImages {
    /// From images that are processed as the run's are.
    pub fn new(images: Vec<ProcessedImage>) -> Self {
        Self {
            images,
            features: OnceLock::new(),
        }
    }
}

/// What towers that never change made of the images: several networks with the same tower have it together.
#[derive(Debug, Default)]
pub struct KeptFeatures {
    features: Mutex<BTreeMap<usize, VisionFeatures>>,
    /// The last embeddings that were asked for, where the projector does not change either.
    recent: Mutex<Option<(Vec<usize>, Vec<ImageEmbeddings>)>>,
}

/// A vision-language model with the images of a run.
#[derive(Debug)]
pub struct VisionNetwork {
    pub(crate) model: VisionLanguageModel,
    images: Arc<RunImages>,
    /// Where the tower never changes.
    kept: Option<Arc<KeptFeatures>>,
    /// Whether the projector never changes either.
    is_projector_constant: bool,
}

/// Whether a backward pass will come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Graph {
    Kept,
    Detached,
}

impl VisionNetwork {
    /// A network of which `params` are trained. `kept` is what other networks with the same, unchanging tower know about it; it is not
    /// looked at where the tower is trained.
    pub fn new(
        model: VisionLanguageModel,
        params: &Params,
        images: Arc<RunImages>,
        kept: Option<Arc<KeptFeatures>>,
    ) -> Self {
        let config = model.config();
        let is_tower_trained = params.names().any(|name| config.is_tower_parameter(name));
        let is_vision_trained = params.names().any(|name| config.is_vision_parameter(name));
        Self {
            kept: (!is_tower_trained).then(|| kept.unwrap_or_default()),
            is_projector_constant: !is_vision_trained,
            model,
            images,
        }
    }

    /// The network.
    pub fn model(&self) -> &VisionLanguageModel {
        &self.model
    }

    /// The images of the run.
    pub fn images(&self) -> &Arc<RunImages> {
        &self.images
    }

    /// What is known about the images where the tower never changes.
    pub fn kept(&self) -> Option<Arc<KeptFeatures>> {
        self.kept.clone()
    }

    pub(crate) fn forward(&self, arranged: &Arranged) -> Result<Tensor> {
        let (distinct, embeddings) = self.encoded(&arranged.images, arranged.made.as_deref(), Graph::Kept)?;
        Ok(self
            .model
            .forward(&arranged.input, &in_order(&arranged.images, &distinct, &embeddings))?)
    }

    pub(crate) fn forward_detached(&self, arranged: &Arranged) -> Result<Tensor> {
        let (distinct, embeddings) = self.encoded(&arranged.images, arranged.made.as_deref(), Graph::Detached)?;
        Ok(self
            .model
            .forward_detached(&arranged.input, &in_order(&arranged.images, &distinct, &embeddings))?)
    }

    pub(crate) fn generate(&self, prompts: &[PromptRef<'_>], config: &GenerateConfig) -> Result<Vec<Generated>> {
        let all: Vec<usize> = prompts.iter().flat_map(|prompt| prompt.images).copied().collect();
        let (distinct, embeddings) = self.encoded(&all, None, Graph::Detached)?;
        let own: Vec<Vec<&ImageEmbeddings>> = prompts
            .iter()
            .map(|prompt| in_order(prompt.images, &distinct, &embeddings))
            .collect();
        let inputs: Vec<VlmPrompt<'_>> = prompts
            .iter()
            .zip(&own)
            .map(|(prompt, images)| VlmPrompt {
                input_ids: prompt.input_ids,
                images,
                example: prompt.example,
            })
            .collect();
        Ok(self.model.generate(&inputs, config)?)
    }

    /// What the decoder reads of each different image, encoded once.
    fn encoded(
        &self,
        images: &[usize],
        made: Option<&MadeImages>,
        graph: Graph,
    ) -> Result<(Vec<usize>, Vec<ImageEmbeddings>)> {
        let distinct: BTreeSet<usize> = images.iter().copied().collect();
        let distinct: Vec<usize> = distinct.into_iter().collect();
        // Images that are made have no name to be remembered by.
        let is_remembered = self.is_projector_constant && made.is_none();
        let kept = self.kept.as_deref().filter(|_| is_remembered);
        if let Some(kept) = kept
            && let Some((known, embeddings)) = &*guard(&kept.recent)
            && *known == distinct
        {
            return Ok((distinct, embeddings.clone()));
        }
        let features = self.features(&distinct, made, graph)?;
        let mut embeddings = self.model.image_embeddings(&features.iter().collect::<Vec<_>>())?;
        if graph == Graph::Detached {
            embeddings = embeddings.iter().map(ImageEmbeddings::detach).collect();
        }
        if let Some(kept) = kept {
            *guard(&kept.recent) = Some((distinct.clone(), embeddings.clone()));
        }
        Ok((distinct, embeddings))
    }

    /// What the tower makes of images.
    fn features(&self, images: &[usize], made: Option<&MadeImages>, graph: Graph) -> Result<Vec<VisionFeatures>> {
        let num_own = self.images.len();
        let split = images.partition_point(|index| *index < num_own);
        let (own, others) = images.split_at(split);
        let Some(kept) = &self.kept else {
            let mut pixels = own
                .iter()
                .map(|index| self.images.pixels(*index))
                .collect::<Result<Vec<_>>>()?;
            pixels.extend(
                others
                    .iter()
                    .filter_map(|index| Some(made?.images[index - num_own].clone())),
            );
            let features = self.model.vision_features(&pixels.iter().collect::<Vec<_>>())?;
            return Ok(match graph {
                Graph::Kept => features,
                Graph::Detached => features.iter().map(VisionFeatures::detach).collect(),
            });
        };
        let mut features = self.kept_features(kept, own)?;
        if let Some(made) = made.filter(|_| !others.is_empty()) {
            let tower = Arc::as_ptr(kept) as usize;
            let of_made = match made.features.get() {
                Some((known, features)) if *known == tower => features.clone(),
                _ => {
                    let pixels: Vec<&ProcessedImage> = made.images.iter().collect();
                    let computed = self.model.vision_features(&pixels)?;
                    let computed: Vec<VisionFeatures> = computed.iter().map(VisionFeatures::detach).collect();
                    // Where another tower was first, its features stay.
                    let _ = made.features.set((tower, computed.clone()));
                    computed
                }
            };
            features.extend(others.iter().map(|index| of_made[index - num_own].clone()));
        }
        Ok(features)
    }

    /// Features of the run's own images, as kept, or computed and then kept while there is room.
    fn kept_features(&self, kept: &KeptFeatures, images: &[usize]) -> Result<Vec<VisionFeatures>> {
        let mut known: BTreeMap<usize, VisionFeatures> = {
            let all = guard(&kept.features);
            let found = |index: &usize| Some((*index, all.get(index)?.clone()));
            images.iter().filter_map(found).collect()
        };
        let missing: Vec<usize> = images
            .iter()
            .copied()
            .filter(|index| !known.contains_key(index))
            .collect();
        let pixels = missing
            .iter()
            .map(|index| self.images.pixels(*index))
            .collect::<Result<Vec<_>>>()?;
        let computed = self.model.vision_features(&pixels.iter().collect::<Vec<_>>())?;
        for (index, features) in missing.into_iter().zip(computed) {
            let features = features.detach();
            if self.images.budget.take(num_bytes(&features.features)) {
                let own = VisionFeatures {
                    // Otherwise it would hold the memory of all images of this pass.
                    features: features
                        .features
                        .force_contiguous()
                        .map_err(diptych_tensor::Error::from)?,
                    layout: features.layout,
                };
                guard(&kept.features).insert(index, own);
            }
            known.insert(index, features);
        }
        Ok(images.iter().filter_map(|index| known.remove(index)).collect())
    }
}

/// The embeddings of images, as often as these are read.
fn in_order<'a>(images: &[usize], distinct: &[usize], embeddings: &'a [ImageEmbeddings]) -> Vec<&'a ImageEmbeddings> {
    images
        .iter()
        .filter_map(|index| Some(&embeddings[distinct.binary_search(index).ok()?]))
        .collect()
}

fn num_bytes(tensor: &Tensor) -> u64 {
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
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
