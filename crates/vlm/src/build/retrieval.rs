//! The nearest other image of each image, by what a tower makes of them.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_data::{ImageSource, OnError};
use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use diptych_train::Reporter;

use super::embedder::Embedder;
use super::problem::BuildProblem;
use super::workshop::{DifferentImages, Workshop, decode};
use crate::Result;
use crate::progress::advance;

/// Images whose vectors are kept in a file together.
const TOGETHER: usize = 256;

/// The name of the vectors in a file.
const VECTORS: &str = "vectors";

/// Of each of the different images the nearest other one.
#[derive(Debug, Clone)]
pub(super) struct Gallery {
    /// Where the nearest other image is, by the number of an image; none for one that could not be read, or that has no other.
    nearest: Vec<Option<(usize, usize)>>,
    num_seen: usize,
}

impl Gallery {
    /// Looks at the different images of all rows. What was seen is kept in `folder`, so that a stopped build does not look again.
    pub(super) fn open(
        shop: &Workshop<'_>,
        embedder: &Embedder<'_>,
        folder: &Path,
        reporter: &mut Reporter<'_>,
    ) -> Result<Self> {
        let all = shop.different_images().places();
        let (mut numbers, mut vectors) = (Vec::new(), Vec::new());
        for (part, places) in all.chunks(TOGETHER).enumerate() {
            let first = part * TOGETHER;
            advance(reporter, "images", first, all.len())?;
            let path = folder.join(format!("images-{part:06}.safetensors"));
            let found = if path.exists() {
                read(&path)?
            } else {
                let found = look(shop, embedder, places)?;
                write(&path, &found)?;
                found
            };
            // An image that cannot be read has a vector of length 0 and is nobody's neighbor.
            for (at, vector) in found.into_iter().enumerate() {
                if vector.iter().any(|value| *value != 0.0) {
                    numbers.push(first + at);
                    vectors.push(vector);
                }
            }
        }
        normalize(&mut vectors);
        let mut nearest = vec![None; all.len()];
        for (own, other) in nearest_others(&vectors)?.into_iter().enumerate() {
            nearest[numbers[own]] = other.map(|other| all[numbers[other]]);
        }
        Ok(Self {
            nearest,
            num_seen: numbers.len(),
        })
    }

    /// Different images that could be read.
    pub(super) fn len(&self) -> usize {
        self.num_seen
    }

    /// Row and number of the image with the largest cosine to one of a row that does not look the same; none where there is no other.
    pub(super) fn nearest(&self, images: &DifferentImages<'_>, image: &ImageSource) -> Option<(usize, usize)> {
        self.nearest[images.number(image)?]
    }
}

/// Of each unit vector the other one with the largest product, in products of many at once.
fn nearest_others(vectors: &[Vec<f32>]) -> Result<Vec<Option<usize>>> {
    let (num, width) = (vectors.len(), vectors.first().map_or(0, Vec::len));
    let mut nearest = Vec::with_capacity(num);
    let products = |first: usize, all: &Tensor| -> diptych_tensor::Result<Vec<Vec<f32>>> {
        let some = all.narrow(0, first, TOGETHER.min(num - first))?;
        Ok(some.matmul(&all.t()?)?.to_vec2()?)
    };
    let all = Tensor::from_vec(vectors.concat(), (num, width), &Device::Cpu).map_err(diptych_tensor::Error::from)?;
    for first in (0..num).step_by(TOGETHER) {
        for (own, cosines) in (first..).zip(products(first, &all)?) {
            nearest.push(nearest_other(vectors, own, &cosines));
        }
    }
    Ok(nearest)
}

fn nearest_other(vectors: &[Vec<f32>], own: usize, cosines: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (other, cosine) in cosines.iter().enumerate() {
        let is_nearer = best.is_none_or(|best| *cosine > cosines[best]);
        // Copies of one image under two names have the same vector, and so has an image itself.
        if is_nearer && vectors[other] != vectors[own] {
            best = Some(other);
        }
    }
    best
}

fn look(shop: &Workshop<'_>, embedder: &Embedder<'_>, places: &[(usize, usize)]) -> Result<Vec<Vec<f32>>> {
    let mut vectors = Vec::with_capacity(places.len());
    for (row, at) in places {
        let row = &shop.rows[*row];
        let image = decode(row.id(), *at, &row.images()[*at]);
        vectors.push(match image.and_then(|image| embedder.vector(&image)) {
            Ok(vector) => vector,
            Err(_) if shop.on_error == OnError::Skip => Vec::new(),
            Err(error) => return Err(error),
        });
    }
    let width = vectors.iter().map(Vec::len).max().unwrap_or(0);
    for vector in &mut vectors {
        vector.resize(width, 0.0);
    }
    Ok(vectors)
}

fn write(path: &Path, vectors: &[Vec<f32>]) -> Result<()> {
    let width = vectors.first().map_or(0, Vec::len);
    let all: Vec<f32> = vectors.iter().flatten().copied().collect();
    let tensor = Tensor::from_vec(all, (vectors.len(), width), &Device::Cpu);
    let tensor = tensor.map_err(diptych_tensor::Error::from)?;
    let tensors = BTreeMap::from([(VECTORS.to_owned(), tensor)]);
    Ok(save_tensors(path, &tensors, &BTreeMap::new())?)
}

fn read(path: &Path) -> Result<Vec<Vec<f32>>> {
    let weights = Weights::open(path)?;
    let tensor = weights.read(VECTORS, DType::F32, &Device::Cpu)?;
    Ok(tensor.to_vec2().map_err(diptych_tensor::Error::from)?)
}

/// Brings vectors to length 1.
fn normalize(vectors: &mut [Vec<f32>]) {
    for vector in vectors {
        let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        for value in vector {
            *value /= norm;
        }
    }
}

/// Refuses data with too few images for a recipe that needs others.
pub(super) fn require(recipe: &'static str, found: usize, expected: usize) -> Result<()> {
    if found >= expected {
        return Ok(());
    }
    Err(BuildProblem::TooFewImages {
        recipe,
        found,
        expected,
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_other_image_is_found_and_copies_are_passed_over() {
        let mut vectors = vec![vec![5.0, 1.0], vec![5.0, 1.0], vec![50.0, 12.0], vec![1.0, 5.0]];
        normalize(&mut vectors);
        let nearest = nearest_others(&vectors).unwrap();
        assert_eq!(nearest, [Some(2), Some(2), Some(0), Some(2)]);
        assert_eq!(nearest_others(&vec![vec![1.0, 0.0]; 2]).unwrap(), [None, None]);
        assert!(nearest_others(&[]).unwrap().is_empty());
        // More than are multiplied at once: points on an arc, each nearest to a neighbor.
        let arc: Vec<Vec<f32>> = (0..TOGETHER * 2 + 3)
            .map(|at| {
                let angle = at as f32 * 0.002 + (at % 2) as f32 * 0.0005;
                vec![angle.cos(), angle.sin()]
            })
            .collect();
        for (at, nearest) in nearest_others(&arc).unwrap().into_iter().enumerate() {
            let expected = if at % 2 == 1 || at == 0 { at + 1 } else { at - 1 };
            assert_eq!(nearest, Some(expected), "{at}");
        }
    }
}
