//! What training reads of its records, computed once: latents and text embeddings in host memory.
//!
//! Shape letters: N records, B batch, C channels, Y x X spatial, T tokens, D width.

use diptych_data::{HostTensor, resize_and_crop};
use diptych_models::vae::AutoencoderKl;
use diptych_tensor::{DType, Device, Tensor};
use image::RgbImage;

use super::config::PosteriorUse;
use diptych_train::Reporter;

use crate::stage::Stage;
use crate::tensors::{cast, host_f32};
use crate::{Error, Result, images};

/// Images encoded together.
const BATCH: usize = 16;

/// Scaled latents of images: the posterior's means and, where samples are wanted, standard deviations.
#[derive(Debug, Clone)]
pub(crate) struct Latents {
    /// (C, Y, X).
    shape: [usize; 3],
    means: Vec<f32>,
    stds: Option<Vec<f32>>,
}

impl Latents {
    /// Encodes `num_images` images, each brought to `size` (width, height).
    pub(crate) fn encode(
        encoder: &LatentEncoder<'_>,
        num_images: usize,
        image: impl Fn(usize) -> Result<RgbImage>,
        reporter: &mut Reporter<'_>,
        (done, total): (usize, usize),
    ) -> Result<Self> {
        let mut latents = Self {
            shape: [0; 3],
            means: Vec::new(),
            stds: None,
        };
        let mut first = 0;
        while first < num_images {
            let end = (first + BATCH).min(num_images);
            let batch = (first..end)
                .map(|index| Ok(resize_and_crop(&image(index)?, encoder.size.0, encoder.size.1)?))
                .collect::<Result<Vec<_>>>()?;
            latents.append(encoder.encode(&batch)?);
            first = end;
            reporter.advance(Stage::Latents, (done + end) as u64, total as u64)?;
        }
        Ok(latents)
    }

    /// Latents given as they are, already scaled.
    pub(crate) fn from_host(tensor: HostTensor) -> Result<Self> {
        let (shape, means) = tensor.into_parts();
        let &[_, channels, y, x] = shape.as_slice() else {
            return Err(Error::Shape {
                name: "latents".into(),
                found: shape,
                expected: vec![0, 0, 0, 0],
            });
        };
        Ok(Self {
            shape: [channels, y, x],
            means,
            stds: None,
        })
    }

    /// (C, Y, X).
    pub(crate) fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Whether samples need draws of the standard normal distribution.
    pub(crate) fn is_sampled(&self) -> bool {
        self.stds.is_some()
    }

    /// Latents of the images at `rows`, (B, C, Y, X) in f32; `draws` as many standard normal numbers where samples are wanted.
    pub(crate) fn gather(&self, rows: &[usize], draws: &[f32], device: &Device) -> diptych_tensor::Result<Tensor> {
        let [channels, y, x] = self.shape;
        let len = channels * y * x;
        let mut values = Vec::with_capacity(rows.len() * len);
        for (place, &row) in rows.iter().enumerate() {
            let means = &self.means[row * len..(row + 1) * len];
            match &self.stds {
                None => values.extend_from_slice(means),
                Some(stds) => {
                    let stds = &stds[row * len..(row + 1) * len];
                    let draws = &draws[place * len..(place + 1) * len];
                    values.extend(
                        means
                            .iter()
                            .zip(stds)
                            .zip(draws)
                            .map(|((mean, std), draw)| mean + std * draw),
                    );
                }
            }
        }
        Ok(Tensor::from_vec(values, (rows.len(), channels, y, x), device)?)
    }

    fn append(&mut self, other: Self) {
        self.shape = other.shape;
        self.means.extend(other.means);
        if let Some(stds) = other.stds {
            self.stds.get_or_insert_default().extend(stds);
        }
    }
}

/// The autoencoder's part in preparing records.
pub(crate) struct LatentEncoder<'a> {
    pub(crate) vae: &'a AutoencoderKl,
    pub(crate) device: &'a Device,
    /// Width and height that images are brought to.
    pub(crate) size: (u32, u32),
    pub(crate) posterior: PosteriorUse,
}

impl LatentEncoder<'_> {
    fn encode(&self, batch: &[RgbImage]) -> Result<Latents> {
        let pixels = cast(&images::to_tensor(batch, self.device)?, self.vae.dtype())?;
        let posterior = self.vae.encode(&pixels)?;
        let &[_, channels, y, x] = posterior.mean.dims() else {
            return Err(Error::Shape {
                name: "latents".into(),
                found: posterior.mean.dims().to_vec(),
                expected: vec![0; 4],
            });
        };
        let means = host_f32(&self.vae.scale(&cast(&posterior.mean, DType::F32)?)?)?;
        let stds = match self.posterior {
            PosteriorUse::Mean => None,
            PosteriorUse::Sample => Some(host_f32(&deviation(
                &posterior.logvar,
                self.vae.config().scaling_factor,
            )?)?),
        };
        Ok(Latents {
            shape: [channels, y, x],
            means,
            stds,
        })
    }
}

/// Standard deviations of scaled latents.
fn deviation(logvar: &Tensor, scale: f64) -> diptych_tensor::Result<Tensor> {
    Ok(((logvar.to_dtype(DType::F32)? * 0.5)?.exp()? * scale.abs())?)
}

#[cfg(test)]
impl Latents {
    /// `num_records` images of one pixel with the posterior N(0, 1), so that a sample is the draw itself.
    pub(crate) fn standard_normal(num_records: usize) -> Self {
        Self {
            shape: [1, 1, 1],
            means: vec![0.0; num_records],
            stds: Some(vec![1.0; num_records]),
        }
    }
}
