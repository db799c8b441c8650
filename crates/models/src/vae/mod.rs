//! The image autoencoder of Stable Diffusion: diffusers' `AutoencoderKL`.
//!
//! Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv:2112.10752. Images are in
//! `[-1, 1]`. Latents leave [`AutoencoderKl::encode`] unscaled; the denoiser works on [`AutoencoderKl::scale`]d ones.
//!
//! B batch, C channels, Y x X spatial.

mod coder;
mod config;
mod posterior;

use diptych_tensor::autograd::{BlockCounter, CheckpointPolicy};
use diptych_tensor::{DType, Tensor};

use self::coder::{Decoder, Encoder};
pub use self::config::AutoencoderKlConfig;
pub use self::posterior::Posterior;
use crate::layers::{Conv2d, Conv2dConfig};
use crate::{Builder, Error, Result};

/// An autoencoder from images to a distribution over latents, and back.
#[derive(Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    decoder: Decoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    config: AutoencoderKlConfig,
    dtype: DType,
    /// Whether the backward pass computes the activations inside residual blocks again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl AutoencoderKl {
    /// The network at the builder's place. Weight files with the attention names of 2022 (`query`, `proj_attn`, ...) load too.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &AutoencoderKlConfig) -> Result<Self> {
        let latents = config.latent_channels;
        let pointwise = |name, channels| Conv2d::load(&builder.child(name), Conv2dConfig::new(channels, channels, 1));
        Ok(Self {
            encoder: Encoder::load(&builder.child("encoder"), config)?,
            decoder: Decoder::load(&builder.child("decoder"), config)?,
            quant_conv: config
                .use_quant_conv
                .then(|| pointwise("quant_conv", 2 * latents))
                .transpose()?,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| pointwise("post_quant_conv", latents))
                .transpose()?,
            config: config.clone(),
            dtype: builder.dtype(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The type of the activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Image pixels per latent pixel, along each side.
    pub fn downscale(&self) -> usize {
        self.config.downscale()
    }

    /// The distribution of an image's latents, unscaled.
    ///
    /// # Shape
    /// (B, 3, Y, X) in `[-1, 1]`, sides multiples of [`Self::downscale`], to mean and log variance (B, C, Y/8, X/8).
    ///
    /// # Errors
    /// [`Error::Shape`] when the image does not fit.
    pub fn encode(&self, image: &Tensor) -> Result<Posterior> {
        let (channels, factor) = (self.config.in_channels, self.downscale());
        match *image.dims() {
            [_, c, y, x] if c == channels && y > 0 && x > 0 && y.is_multiple_of(factor) && x.is_multiple_of(factor) => {
            }
            _ => {
                let expected = format!("(B, {channels}, Y, X) with Y and X multiples of {factor}");
                return Err(Error::Shape {
                    what: "image",
                    found: image.dims().to_vec(),
                    expected,
                });
            }
        }
        let mut moments = self
            .encoder
            .forward(image, &BlockCounter::new(self.gradient_checkpointing))?;
        if let Some(conv) = &self.quant_conv {
            moments = conv.forward(&moments)?;
        }
        Ok(Posterior::from_moments(&moments)?)
    }

    /// The image of unscaled latents; values can leave `[-1, 1]` a little.
    ///
    /// # Shape
    /// (B, C, Y, X) to (B, 3, 8Y, 8X).
    ///
    /// # Errors
    /// [`Error::Shape`] when the latents do not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        match *latents.dims() {
            [_, c, y, x] if c == self.config.latent_channels && y * x > 0 => {}
            _ => {
                let expected = format!("(B, {}, Y, X)", self.config.latent_channels);
                return Err(Error::Shape {
                    what: "latents",
                    found: latents.dims().to_vec(),
                    expected,
                });
            }
        }
        let mut z = latents.clone();
        if let Some(conv) = &self.post_quant_conv {
            z = conv.forward(&z)?;
        }
        Ok(self
            .decoder
            .forward(&z, &BlockCounter::new(self.gradient_checkpointing))?)
    }

    /// Latents as the denoiser sees them: `(latents - shift_factor) * scaling_factor`.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn scale(&self, latents: &Tensor) -> Result<Tensor> {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift_factor.unwrap_or(0.0));
        Ok(affine(latents, scale, -shift * scale)?)
    }

    /// The inverse of [`Self::scale`], before decoding.
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn unscale(&self, latents: &Tensor) -> Result<Tensor> {
        let (scale, shift) = (self.config.scaling_factor, self.config.shift_factor.unwrap_or(0.0));
        Ok(affine(latents, 1.0 / scale, shift)?)
    }
}

fn affine(x: &Tensor, mul: f64, add: f64) -> diptych_tensor::Result<Tensor> {
    Ok(x.affine(mul, add)?)
}
