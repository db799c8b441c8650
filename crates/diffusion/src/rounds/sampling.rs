//! Images of a round, sampled in parts that are kept one by one.

use std::path::{Path, PathBuf};

use diptych_data::{Dataset, ImageCaption, ImageSource, Layout, write_captions};
use diptych_tensor::random::{Stream, generator};
use diptych_train::Reporter;
use rand::Rng as _;

use super::config::RoundSampling;
use super::draws;
use super::place;
use super::policies::Policy;
use crate::Result;
use crate::pipeline::{NetworkOptions, Pipeline, generate_candidates};
use crate::stage::Stage;

/// Images of a part, about: so much is lost when sampling is interrupted.
const PART_LEN: usize = 64;

/// An image that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of which of the round's prompts, from 0.
    pub(super) prompt: usize,
    /// By which of the round's samplers.
    pub(super) sampler: usize,
}

/// Images that are made together, by one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) sampler: usize,
    /// Numbers of its images among all of the round.
    pub(super) images: Vec<usize>,
    /// Source of their noise.
    seed: u64,
    path: PathBuf,
}

/// `images_per_prompt` images of each prompt, one prompt's after the other's. Each is made by one of the samplers, drawn if there are
/// several.
pub(super) fn wanted(
    (seed, round): (u64, usize),
    num_prompts: usize,
    images_per_prompt: usize,
    num_samplers: usize,
) -> Vec<Wanted> {
    let mut rng = generator(seed, Stream::Rounds, round as u64, draws::MIXTURE);
    (0..num_prompts * images_per_prompt)
        .map(|image| Wanted {
            prompt: image / images_per_prompt,
            sampler: if num_samplers > 1 {
                rng.random_range(0..num_samplers)
            } else {
                0
            },
        })
        .collect()
}

/// The parts of a round's images, those of the first sampler first. A part is a whole number of batches, so that an image is computed
/// in the same company whether or not the round was interrupted.
pub(super) fn parts(
    (seed, round): (u64, usize),
    wanted: &[Wanted],
    num_samplers: usize,
    batch_size: usize,
    directory: &Path,
) -> Vec<Part> {
    let mut rng = generator(seed, Stream::Rounds, round as u64, draws::PARTS);
    let part_len = PART_LEN.div_ceil(batch_size) * batch_size;
    let mut parts = Vec::new();
    for sampler in 0..num_samplers {
        let own = wanted.iter().enumerate().filter(|(_, image)| image.sampler == sampler);
        let own: Vec<usize> = own.map(|(number, _)| number).collect();
        for images in own.chunks(part_len) {
            parts.push(Part {
                sampler,
                images: images.to_vec(),
                seed: rng.random(),
                path: directory.join(format!("part-{:05}.jsonl", parts.len())),
            });
        }
    }
    parts
}

/// Makes the parts that are not there yet.
pub(super) struct PartSampler<'a> {
    /// The recipe's model.
    pub(super) model: &'a Path,
    pub(super) options: &'a NetworkOptions,
    pub(super) samplers: &'a [Policy],
    pub(super) sampling: RoundSampling,
    pub(super) prompts: &'a [String],
    pub(super) wanted: &'a [Wanted],
}

impl Part {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl PartSampler<'_> {
    /// Samples every part that is missing. One policy is in memory at a time.
    pub(super) fn sample(&self, parts: &[Part], directory: &Path, reporter: &mut Reporter<'_>) -> Result<()> {
        place::create(directory)?;
        let mut loaded: Option<(usize, Pipeline)> = None;
        for part in parts {
            if self.read(part).is_some() {
                continue;
            }
            let pipeline = match loaded.take() {
                Some((sampler, pipeline)) if sampler == part.sampler => pipeline,
                other => {
                    // Before the next one takes its place.
                    drop(other);
                    self.samplers[part.sampler].load(self.model, self.options)?
                }
            };
            let sampling = self.sampling.with_seed(part.seed);
            let images = generate_candidates(&pipeline, &self.prompts_of(part), &sampling, reporter)?;
            let named = part.images.iter().zip(&images).map(|(&number, image)| {
                let prompt = &self.prompts[self.wanted[number].prompt];
                Ok(ImageCaption::new(
                    number.to_string(),
                    prompt,
                    ImageSource::from_image(image)?,
                ))
            });
            write_captions(&part.path, &named.collect::<Result<Vec<_>>>()?)?;
            loaded = Some((part.sampler, pipeline));
        }
        reporter.advance(Stage::Sampling, 1, 1)?;
        Ok(())
    }

    /// The images of a part; `None` when it is not there, or is not this part.
    pub(super) fn read(&self, part: &Part) -> Option<Vec<ImageCaption>> {
        let Ok(Dataset::Captions(images)) = Dataset::load(&[part.path.clone()], Layout::ImageCaption) else {
            return None;
        };
        let is_this = images.len() == part.images.len()
            && images.iter().zip(&part.images).all(|(image, &number)| {
                image.id == number.to_string() && image.prompt == self.prompts[self.wanted[number].prompt]
            });
        is_this.then_some(images)
    }

    fn prompts_of(&self, part: &Part) -> Vec<String> {
        let prompt = |&number: &usize| self.prompts[self.wanted[number].prompt].clone();
        part.images.iter().map(prompt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_in_one_part_with_a_seed_of_its_own() {
        for num_samplers in [1, 3] {
            let wanted = wanted((5, 2), 50, 4, num_samplers);
            let mut made: Vec<usize> = wanted.iter().map(|image| image.sampler).collect();
            made.sort_unstable();
            made.dedup();
            assert_eq!(made.len(), num_samplers);
            let parts = parts((5, 2), &wanted, num_samplers, 24, Path::new("x"));
            let mut images: Vec<usize> = parts.iter().flat_map(|part| part.images.clone()).collect();
            images.sort_unstable();
            assert_eq!(images, (0..200).collect::<Vec<_>>());
            for part in &parts {
                assert!(part.images.len() <= 72, "three batches of 24");
                assert!(part.images.iter().all(|&image| wanted[image].sampler == part.sampler));
            }
            let mut seeds: Vec<u64> = parts.iter().map(|part| part.seed).collect();
            seeds.sort_unstable();
            seeds.dedup();
            assert_eq!(seeds.len(), parts.len());
            assert_eq!(wanted, super::wanted((5, 2), 50, 4, num_samplers));
        }
        assert_ne!(wanted((5, 2), 50, 4, 3), wanted((5, 3), 50, 4, 3));
    }
}
