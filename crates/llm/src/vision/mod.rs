//! A vision-language model with the images of a run: each is encoded once a batch for every network that looks at it, and where the
//! tower never changes its features are computed once a run and kept, as far as memory is allowed for it; or on disk, once for all runs.

mod cache;
mod images;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};

use diptych_models::lm::{GenerateConfig, Generated};
use diptych_models::vlm::{ImageEmbeddings, ProcessedImage, VisionFeatures, VisionLanguageModel, VlmPrompt};
use diptych_tensor::{Params, Tensor};

pub use self::cache::{CacheCounts, FeatureCache};
pub use self::images::{PixelMemory, ReadImage, RunImages};
use self::images::{guard, num_bytes};
use crate::Result;
use crate::arrangement::Arranged;
use crate::network::PromptRef;

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
    /// Where features are kept for other runs too.
    cache: Option<FeatureCache>,
}

impl KeptFeatures {
    /// None yet, with a place for them on disk.
    pub fn with_cache(cache: FeatureCache) -> Self {
        Self {
            cache: Some(cache),
            ..Self::default()
        }
    }

    /// The place on disk, if there is one.
    pub fn cache(&self) -> Option<&FeatureCache> {
        self.cache.as_ref()
    }
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

    /// What the decoder reads, images in the places of their tokens.
    pub(crate) fn embeddings(&self, arranged: &Arranged) -> Result<Tensor> {
        let (distinct, embeddings) = self.encoded(&arranged.images, arranged.made.as_deref(), Graph::Kept)?;
        Ok(self
            .model
            .embed(&arranged.input, &in_order(&arranged.images, &distinct, &embeddings))?)
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
        let mut answers = self.model.generate(&inputs, config)?;
        let image = self.model.config().image_token_id;
        for answer in &mut answers {
            end_before_image(answer, image, config.eos_token_ids.first().copied());
        }
        Ok(answers)
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
            let pixels: Vec<&ProcessedImage> = pixels.iter().collect();
            return Ok(match graph {
                Graph::Kept => self.model.vision_features(&pixels)?,
                Graph::Detached => self.model.vision_features_detached(&pixels)?,
            });
        };
        let mut features = self.kept_features(kept, own)?;
        if let Some(made) = made.filter(|_| !others.is_empty()) {
            let tower = Arc::as_ptr(kept) as usize;
            let of_made = match made.features.get() {
                Some((known, features)) if *known == tower => features.clone(),
                _ => {
                    let pixels: Vec<&ProcessedImage> = made.images.iter().collect();
                    let computed = self.model.vision_features_detached(&pixels)?;
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
        for &index in images {
            if known.contains_key(&index) {
                continue;
            }
            let Some(features) = self.one(kept.cache.as_ref(), index)? else {
                continue;
            };
            if self.images.may_keep(num_bytes(&features.features)) {
                guard(&kept.features).insert(index, features.clone());
            }
            known.insert(index, features);
        }
        Ok(images.iter().filter_map(|index| known.remove(index)).collect())
    }
}

impl VisionNetwork {
    /// Computes the features of all images that a [`FeatureCache`] does not have, and keeps them there. `advance` is told how many are done.
    ///
    /// # Errors
    /// Images or files that cannot be read or written; those of `advance`. Without a cache nothing is done.
    pub fn fill_cache(&self, mut advance: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let Some(cache) = self.kept.as_ref().and_then(|kept| kept.cache.as_ref()) else {
            return Ok(());
        };
        for index in 0..self.images.len() {
            self.one(Some(cache), index)?;
            advance(index + 1)?;
        }
        Ok(())
    }

    /// Features of one of the run's own images, from the cache where it has them.
    fn one(&self, cache: Option<&FeatureCache>, index: usize) -> Result<Option<VisionFeatures>> {
        let content = self.images.content(index);
        if let Some(cache) = cache
            && let Some(features) = cache.read(content, self.model.dtype(), self.model.device())?
        {
            let layout = self.images.layout(index);
            return Ok(Some(VisionFeatures { features, layout }));
        }
        // Each by itself: in the company of others its numbers would depend on which of them were kept already, and a resumed run
        // would not be the same to the last bit.
        let pixels = self.images.pixels(index)?;
        let computed = self.model.vision_features_detached(&[&pixels])?.pop();
        if let (Some(cache), Some(computed)) = (cache, &computed) {
            cache.write(content, &computed.features)?;
        }
        Ok(computed)
    }
}

/// Nothing can be read in the place of an image token that a network gives itself: the answer ends there.
fn end_before_image(answer: &mut Generated, image: u32, end: Option<u32>) {
    let Some(at) = answer.tokens.iter().position(|token| *token == image) else {
        return;
    };
    let kept = at + usize::from(end.is_some());
    if let Some(end) = end {
        answer.tokens[at] = end;
    }
    answer.tokens.truncate(kept);
    answer.logps.truncate(kept);
    answer.is_finished = end.is_some();
}

/// The embeddings of images, as often as these are read.
fn in_order<'a>(images: &[usize], distinct: &[usize], embeddings: &'a [ImageEmbeddings]) -> Vec<&'a ImageEmbeddings> {
    images
        .iter()
        .filter_map(|index| Some(&embeddings[distinct.binary_search(index).ok()?]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_it_would_show_an_image() {
        let ended = |tokens: &[u32], end| {
            let mut answer = Generated {
                tokens: tokens.to_vec(),
                logps: vec![-1.0; tokens.len()],
                is_finished: false,
            };
            end_before_image(&mut answer, 9, end);
            assert_eq!(answer.logps.len(), answer.tokens.len());
            (answer.tokens, answer.is_finished)
        };
        assert_eq!(ended(&[4, 5], Some(2)), (vec![4, 5], false));
        assert_eq!(ended(&[4, 9, 5], Some(2)), (vec![4, 2], true));
        assert_eq!(ended(&[9, 9], Some(2)), (vec![2], true));
        assert_eq!(ended(&[4, 9, 5], None), (vec![4], false));
    }
}
