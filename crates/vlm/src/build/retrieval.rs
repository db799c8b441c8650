//! The nearest other image of each image, by what a tower makes of them.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_data::{ImageSource, OnError};
use diptych_tensor::{DType, Tensor, Weights, save_tensors};
use diptych_train::Reporter;

use super::embedder::Embedder;
use super::problem::BuildProblem;
use super::source::SourceRow;
use super::workshop::{Workshop, decode};
use crate::{Error, Result};

/// Images whose vectors are kept in a file together.
const TOGETHER: usize = 256;

/// The name of the vectors in a file.
const VECTORS: &str = "vectors";

/// The images of all rows as unit vectors.
#[derive(Debug, Clone)]
pub(super) struct Gallery {
    /// Where each is: row and number among its images.
    places: Vec<(usize, usize)>,
    vectors: Vec<Vec<f32>>,
}

impl Gallery {
    /// Looks at the different images of all rows. What was seen is kept in `folder`, so that a stopped build does not look again.
    ///
    pub(super) fn open(
        shop: &Workshop<'_>,
        embedder: &Embedder<'_>,
        folder: &Path,
        reporter: &mut Reporter<'_>,
    ) -> Result<Self> {
        let all = shop.different_images().to_vec();
        let (mut places, mut vectors) = (Vec::new(), Vec::new());
        for (number, part) in all.chunks(TOGETHER).enumerate() {
            let told = reporter.advance("images", (number * TOGETHER) as u64, all.len() as u64);
            told.map_err(|stopped| Error::from(diptych_llm::Error::from(stopped)))?;
            let path = folder.join(format!("images-{number:06}.safetensors"));
            let found = if path.exists() {
                read(&path)?
            } else {
                let found = look(shop, embedder, part)?;
                write(&path, &found)?;
                found
            };
            // An image that cannot be read has a vector of length 0 and is nobody's neighbor.
            for (place, vector) in part.iter().zip(found) {
                if vector.iter().any(|value| *value != 0.0) {
                    places.push(*place);
                    vectors.push(vector);
                }
            }
        }
        normalize(&mut vectors);
        Ok(Self { places, vectors })
    }

    /// Different images.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The image with the largest cosine to one of a row that does not look the same; none where there is no other.
    pub(super) fn nearest(&self, rows: &[SourceRow], image: &ImageSource) -> Option<(usize, usize)> {
        let is_it = |(row, at): &(usize, usize)| rows[*row].images()[*at] == *image;
        self.nearest_to(self.places.iter().position(is_it)?)
    }

    fn nearest_to(&self, own: usize) -> Option<(usize, usize)> {
        let mut best: Option<(f32, usize)> = None;
        for other in (0..self.places.len()).filter(|other| *other != own) {
            // Copies of one image under two names have the same vector.
            if self.vectors[other] == self.vectors[own] {
                continue;
            }
            let pairs = self.vectors[own].iter().zip(&self.vectors[other]);
            let cosine: f32 = pairs.map(|(a, b)| a * b).sum();
            if best.is_none_or(|(nearest, _)| cosine > nearest) {
                best = Some((cosine, other));
            }
        }
        best.map(|(_, other)| self.places[other])
    }
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
    let tensor = Tensor::from_vec(all, (vectors.len(), width), &diptych_tensor::Device::Cpu);
    let tensor = tensor.map_err(diptych_tensor::Error::from)?;
    let tensors = BTreeMap::from([(VECTORS.to_owned(), tensor)]);
    Ok(save_tensors(path, &tensors, &BTreeMap::new())?)
}

fn read(path: &Path) -> Result<Vec<Vec<f32>>> {
    let weights = Weights::open(path)?;
    let tensor = weights.read(VECTORS, DType::F32, &diptych_tensor::Device::Cpu)?;
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
        let gallery = Gallery {
            places: vec![(0, 0), (1, 0), (2, 0), (2, 1)],
            vectors,
        };
        assert_eq!(gallery.len(), 4);
        let nearest = |own| gallery.nearest_to(own);
        assert_eq!(
            [nearest(0), nearest(1), nearest(2), nearest(3)],
            [Some((2, 0)), Some((2, 0)), Some((0, 0)), Some((2, 0))]
        );
        let copies = Gallery {
            places: vec![(0, 0), (1, 0)],
            vectors: vec![vec![1.0, 0.0]; 2],
        };
        assert_eq!(copies.nearest_to(0), None);
    }
}
