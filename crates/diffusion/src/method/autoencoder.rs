//! Training of the autoencoder: reconstruction plus a small pull of the posterior towards the standard normal distribution.
//!
//! Kingma and Welling, "Auto-Encoding Variational Bayes", arXiv:1312.6114, Eq. 10, with the terms averaged over pixels and over latent
//! components instead of summed, and the second one weighted:
//!
//! ```text
//! L = mean |image - decode(z)|^p + kl_weight mean KL(q(z | image) || N(0, 1)),   z ~ q(z | image)
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_core::{Objective, Responses};
use diptych_data::{ImageSource, resize_and_crop};
use diptych_models::diffusers::{Library, save_component};
use diptych_models::vae::{AutoencoderKl, Posterior};
use diptych_tensor::random::Stream;
use diptych_tensor::{DType, Device, Params, Tensor};
use diptych_train::{Item, Method, MicroBatch, StepOutput};
use image::RgbImage;

use super::complete::complete;
use super::config::{AutoencoderConfig, Reconstruction};
use super::trained::read_all;
use crate::tensors::{cast, host_f64, negated};
use crate::{Error, Result, denoising, images};

/// Images whose latents say how large latents are.
const NUM_MEASURED: usize = 512;
/// Images encoded together for that.
const BATCH: usize = 16;
/// Reconstructions shown.
const NUM_SHOWN: usize = 4;

/// The method `autoencoder`.
#[derive(Debug)]
pub struct Autoencoder {
    pub(crate) vae: AutoencoderKl,
    pub(crate) params: Params,
    /// The pipeline the autoencoder is part of.
    pub(crate) model: PathBuf,
    pub(crate) objective: Objective,
    pub(crate) config: AutoencoderConfig,
    pub(crate) images: Vec<(String, ImageSource)>,
    /// Width and height that images are brought to.
    pub(crate) size: (u32, u32),
    pub(crate) device: Device,
}

impl Autoencoder {
    fn image(&self, index: usize) -> Result<RgbImage> {
        Ok(resize_and_crop(
            &self.images[index].1.decode()?,
            self.size.0,
            self.size.1,
        )?)
    }

    fn pixels(&self, indices: impl Iterator<Item = usize>) -> Result<Tensor> {
        let images = indices.map(|index| self.image(index)).collect::<Result<Vec<_>>>()?;
        images::to_tensor(&images, &self.device)
    }

    fn encode(&self, pixels: &Tensor) -> Result<Posterior> {
        Ok(self.vae.encode(&cast(pixels, self.vae.dtype())?)?)
    }

    /// The factor that gives the latents of the data unit variance: `scaling_factor` of the finished autoencoder.
    pub(crate) fn scaling_factor(&self) -> Result<f64> {
        let (mut count, mut sum, mut sum_of_squares) = (0.0, 0.0, 0.0);
        let indices: Vec<usize> = (0..self.images.len().min(NUM_MEASURED)).collect();
        for batch in indices.chunks(BATCH) {
            let posterior = self.encode(&self.pixels(batch.iter().copied())?)?;
            for (mean, logvar) in host_f64(&posterior.mean)?.into_iter().zip(host_f64(&posterior.logvar)?) {
                count += 1.0;
                sum += mean;
                sum_of_squares += mean * mean + logvar.exp();
            }
        }
        let mean = sum / count;
        Ok((sum_of_squares / count - mean * mean).sqrt().recip())
    }

    fn write(&self, config: &diptych_models::vae::AutoencoderKlConfig, directory: &Path) -> Result<()> {
        let tensors = self.params.snapshot()?;
        Ok(save_component(
            directory.join("vae"),
            Library::Diffusers,
            &config.to_json(),
            (&tensors, DType::F32),
        )?)
    }

    /// Per-image reconstruction errors, (B,).
    fn errors(&self, pixels: &Tensor, decoded: &Tensor) -> Result<Tensor> {
        match self.config.reconstruction {
            Reconstruction::Mse => denoising::denoising_errors(decoded, pixels),
            Reconstruction::L1 => Ok(mean_absolute(decoded, pixels)?),
        }
    }
}

impl Method for Autoencoder {
    type Error = Error;

    fn params(&self) -> &Params {
        &self.params
    }

    fn num_records(&self) -> usize {
        self.images.len()
    }

    fn record_id(&self, index: usize) -> String {
        self.images[index].0.clone()
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        let pixels = self.pixels(batch.items.iter().map(|item| item.index))?;
        let posterior = self.encode(&pixels)?;
        let positions: Vec<u64> = batch.items.iter().map(|Item { position, .. }| *position).collect();
        let shape = &posterior.mean.dims()[1..];
        let draws = denoising::noise(
            batch.seed,
            Stream::Posterior,
            batch.step,
            &positions,
            shape,
            &self.device,
        )?;
        let decoded = self.vae.decode(&posterior.sample(&cast(&draws, self.vae.dtype())?)?)?;
        let errors = self.errors(&pixels, &decoded)?;
        let divergence = per_component(&posterior.kl()?, shape.iter().product())?;
        let metrics = BTreeMap::from([("reconstruction", host_f64(&errors)?), ("kl", host_f64(&divergence)?)]);
        let total = weighted(&errors, &divergence, self.config.kl_weight)?;
        Ok(StepOutput::new(
            self.objective.chosen_losses(&Responses::new(negated(&total)?))?,
            metrics,
        ))
    }

    fn save(&self, directory: &Path) -> Result<()> {
        self.write(self.vae.config(), directory)
    }

    /// A whole pipeline, whose autoencoder has a scaling factor that fits the data.
    fn save_final(&self, directory: &Path) -> Result<()> {
        let config = diptych_models::vae::AutoencoderKlConfig {
            scaling_factor: self.scaling_factor()?,
            ..self.vae.config().clone()
        };
        self.write(&config, directory)?;
        complete(&self.model, directory)
    }

    fn load(&self, directory: &Path) -> Result<()> {
        Ok(self.params.load(&read_all(&directory.join("vae"), "")?)?)
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        let pixels = self.pixels(0..self.images.len().min(NUM_SHOWN))?;
        let decoded = images::from_tensor(&self.vae.decode(&self.encode(&pixels)?.mean)?)?;
        let rows: Vec<_> = images::from_tensor(&pixels)?
            .into_iter()
            .zip(decoded)
            .map(|(a, b)| vec![a, b])
            .collect();
        let path = stem.with_extension("png");
        images::save(&images::grid(&rows), &path)?;
        Ok(Some(path))
    }
}

fn mean_absolute(a: &Tensor, b: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?
        .abs()?
        .flatten_from(1)?
        .mean(1)?)
}

fn per_component(divergence: &Tensor, num_components: usize) -> diptych_tensor::Result<Tensor> {
    Ok((divergence.to_dtype(DType::F32)? / num_components as f64)?)
}

fn weighted(errors: &Tensor, divergence: &Tensor, weight: f64) -> diptych_tensor::Result<Tensor> {
    Ok((errors + (divergence * weight)?)?)
}
