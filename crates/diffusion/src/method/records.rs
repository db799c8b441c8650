//! What training reads of its records, computed once: latents and text embeddings in host memory.
//!
//! Shape letters: N records, B batch, C channels, Y x X spatial, T tokens, D width.

use std::ops::Range;
use std::sync::Arc;

use diptych_data::{FramedImage, HostTensor, ImageSource, Mirror};
use diptych_models::vae::AutoencoderKl;
use diptych_tensor::{DType, Device, Tensor};
use image::RgbImage;
use rayon::prelude::*;

use super::config::PosteriorUse;
use crate::pipeline::sizes;
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
    /// None yet.
    pub(crate) fn empty() -> Self {
        Self {
            shape: [0; 3],
            means: Vec::new(),
            stds: None,
        }
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

    /// Adds latents of the same shape.
    ///
    /// # Errors
    /// [`Error::Shape`] for latents of another one, which only a damaged cache can hold.
    pub(crate) fn append(&mut self, other: Self) -> Result<()> {
        if !self.means.is_empty() && self.shape != other.shape {
            return Err(Error::Shape {
                name: "latents".into(),
                found: other.shape.to_vec(),
                expected: self.shape.to_vec(),
            });
        }
        self.shape = other.shape;
        self.means.extend(other.means);
        if let Some(stds) = other.stds {
            self.stds.get_or_insert_default().extend(stds);
        }
        Ok(())
    }

    /// (N, C, Y, X) of the posterior's means, and of its standard deviations where samples are wanted.
    pub(crate) fn to_tensors(&self) -> diptych_tensor::Result<(Tensor, Option<Tensor>)> {
        let [channels, y, x] = self.shape;
        let num = self.means.len() / (channels * y * x).max(1);
        let tensor = |values: &Vec<f32>| -> diptych_tensor::Result<Tensor> {
            Ok(Tensor::from_slice(values, (num, channels, y, x), &Device::Cpu)?)
        };
        Ok((tensor(&self.means)?, self.stds.as_ref().map(tensor).transpose()?))
    }

    /// What [`Latents::to_tensors`] gave.
    pub(crate) fn from_tensors(means: &Tensor, stds: Option<&Tensor>) -> Result<Self> {
        let &[_, channels, y, x] = means.dims() else {
            return Err(Error::Shape {
                name: "latents".into(),
                found: means.dims().to_vec(),
                expected: vec![0; 4],
            });
        };
        Ok(Self {
            shape: [channels, y, x],
            means: host_f32(means)?,
            stds: stds.map(host_f32).transpose()?,
        })
    }
}

/// The images of one side of some records.
#[derive(Clone, Copy)]
pub(crate) struct ImageSide<'a> {
    /// What a user calls each record.
    pub(crate) ids: &'a [String],
    /// What the records call the image.
    pub(crate) key: &'static str,
    pub(crate) images: &'a [ImageSource],
    pub(crate) mirrors: &'a [Mirror],
}

impl ImageSide<'_> {
    /// The image of a record as the network sees it.
    fn framed(&self, record: usize, size: (u32, u32)) -> Result<FramedImage> {
        let image = self.images[record]
            .decode()
            .map_err(|error| self.named(record, error))?;
        Ok(FramedImage::new(&image, size, self.mirrors[record])?)
    }

    /// The encoded bytes of a record's image.
    pub(crate) fn encoded(&self, record: usize) -> Result<Arc<[u8]>> {
        Ok(self.images[record]
            .encoded()
            .map_err(|error| self.named(record, error))?)
    }

    fn named(&self, record: usize, source: diptych_data::Error) -> diptych_data::Error {
        diptych_data::Error::Record {
            id: self.ids[record].clone(),
            key: self.key,
            source: Box::new(source),
        }
    }
}

/// What the autoencoder makes of images, and where in them it looked.
pub(crate) struct EncodedImages {
    pub(crate) latents: Latents,
    /// What SDXL is told about each: (N, 6).
    pub(crate) time_ids: Vec<f32>,
}

impl EncodedImages {
    pub(crate) fn empty() -> Self {
        Self {
            latents: Latents::empty(),
            time_ids: Vec::new(),
        }
    }

    pub(crate) fn append(&mut self, other: Self) -> Result<()> {
        self.time_ids.extend(other.time_ids);
        self.latents.append(other.latents)
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
    /// Encodes the images of some records. `done` is told how many are complete.
    pub(crate) fn encode_side(
        &self,
        side: ImageSide<'_>,
        records: Range<usize>,
        mut done: impl FnMut(usize) -> Result<()>,
    ) -> Result<EncodedImages> {
        let mut encoded = EncodedImages::empty();
        let mut first = records.start;
        while first < records.end {
            let end = (first + BATCH).min(records.end);
            // The network takes all cores, too, but one batch after the other: decoding is a small part of the time.
            let framed = (first..end)
                .into_par_iter()
                .map(|record| side.framed(record, self.size))
                .collect::<Result<Vec<_>>>()?;
            let target = [self.size.1 as usize, self.size.0 as usize];
            let ids = framed.iter().flat_map(|framed| {
                let (height, width) = framed.original_size;
                sizes::of_cropped([height as usize, width as usize], target)
            });
            encoded.time_ids.extend(ids);
            let images: Vec<RgbImage> = framed.into_iter().map(|framed| framed.image).collect();
            encoded.latents.append(self.encode(&images)?)?;
            first = end;
            done(end - records.start)?;
        }
        Ok(encoded)
    }

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
