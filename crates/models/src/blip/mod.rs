//! BLIP as a judge reads it: a text encoder that looks at an image.
//!
//! Li et al., "BLIP: Bootstrapping Language-Image Pre-training for Unified Vision-Language Understanding and Generation", ICML 2022,
//! arXiv:2201.12086.

mod config;
mod text;
mod tokenizer;
mod vision;

use diptych_tensor::{DType, Tensor};

pub use self::config::BlipConfig;
use self::text::BlipText;
pub use self::tokenizer::BertTokenizer;
use self::vision::BlipVision;
use crate::{Builder, Error, Result};

/// Image and text together to one vector.
///
/// B batch, T tokens, D width of the text half.
#[derive(Debug)]
pub struct BlipEncoder {
    vision: BlipVision,
    text: BlipText,
    config: BlipConfig,
    dtype: DType,
}

impl BlipEncoder {
    /// The network at the builder's place, under the names of the BLIP programs: `visual_encoder` and `text_encoder`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &BlipConfig) -> Result<Self> {
        // A buffer, and the halves of pretraining that compare image and text without looking at both.
        for unused in ["text_encoder.embeddings.position_ids", "vision_proj.", "text_proj."] {
            let place = builder.path();
            let dot = if place.is_empty() { "" } else { "." };
            builder.ignore_unused(format!("{place}{dot}{unused}"));
        }
        Ok(Self {
            vision: BlipVision::load(&builder.child("visual_encoder"), config)?,
            text: BlipText::load(&builder.child("text_encoder"), config)?,
            config: config.clone(),
            dtype: builder.dtype(),
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &BlipConfig {
        &self.config
    }

    /// The vector at the first token of each text, having looked at its image. Differentiable in the pixels.
    ///
    /// # Shape
    /// (B, 3, S, S), and (B, T) in u32 twice, to (B, D).
    ///
    /// # Errors
    /// [`Error::Shape`] for images of another size, or texts that are too long.
    pub fn forward(&self, pixel_values: &Tensor, input_ids: &Tensor, attention_mask: &Tensor) -> Result<Tensor> {
        let side = self.config.image_size;
        match *pixel_values.dims() {
            [_, 3, height, width] if (height, width) == (side, side) => {}
            ref found => {
                return Err(Error::Shape {
                    what: "pixel_values",
                    found: found.to_vec(),
                    expected: format!("(B, 3, {side}, {side})"),
                });
            }
        }
        let limit = self.config.max_position_embeddings;
        if !input_ids
            .dims()
            .get(1)
            .is_some_and(|tokens| (1..=limit).contains(tokens))
        {
            return Err(Error::Shape {
                what: "input_ids",
                found: input_ids.dims().to_vec(),
                expected: format!("(B, T) with T from 1 to {limit}"),
            });
        }
        let first = || -> diptych_tensor::Result<Tensor> {
            let image = self.vision.forward(&pixel_values.to_dtype(self.dtype)?)?;
            let hidden = self.text.forward(input_ids, attention_mask, &image)?;
            Ok(hidden.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)
        };
        Ok(first()?)
    }
}
