//! CLIP: texts and images in one space.
//!
//! Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020.
//!
//! B batch, T tokens, E width of the joint space.

use diptych_tensor::{Result as TensorResult, Tensor};

use super::ClipConfig;
use crate::layers::{Linear, LinearConfig};
use crate::text_encoder::{ClipTextConfig, ClipTextModel};
use crate::vision::ClipVisionModel;
use crate::{Builder, Error, Init, Result};

/// transformers' `CLIPModel`.
#[derive(Debug)]
pub struct ClipModel {
    /// The text half.
    pub text: ClipTextModel,
    /// The image half.
    pub vision: ClipVisionModel,
    visual_projection: Linear,
    logit_scale: Tensor,
}

impl ClipModel {
    /// The network at the builder's place, under the names of transformers: `text_model`, `vision_model`, `text_projection`,
    /// `visual_projection`, `logit_scale`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &ClipConfig) -> Result<Self> {
        let width = config.vision.hidden_size;
        let std = (width as f64).powf(-0.5);
        let visual = LinearConfig::new(width, config.projection_dim).without_bias();
        let visual = visual.init(Init::Normal { std }, Init::Zeros);
        let text = ClipTextConfig {
            has_projection: true,
            projection_dim: config.projection_dim,
            ..config.text.clone()
        };
        let value = config.logit_scale_init_value;
        Ok(Self {
            text: ClipTextModel::load(builder, &text)?,
            vision: ClipVisionModel::load(builder, &config.vision)?,
            visual_projection: Linear::load(&builder.child("visual_projection"), visual)?,
            logit_scale: builder.get("logit_scale", &[], Init::Constant { value })?,
        })
    }

    /// Texts in the joint space, not normalized.
    ///
    /// # Shape
    /// (B, T) in u32, to (B, E).
    ///
    /// # Errors
    /// As [`ClipTextModel::forward`].
    pub fn text_features(&self, input_ids: &Tensor) -> Result<Tensor> {
        self.text.forward(input_ids)?.text_embeds.ok_or(Error::Condition {
            name: "text_projection",
            problem: "is missing: the text encoder was built without it",
        })
    }

    /// Images in the joint space, not normalized.
    ///
    /// # Shape
    /// (B, 3, S, S) to (B, E).
    ///
    /// # Errors
    /// As [`ClipVisionModel::forward`].
    pub fn image_features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.project_image(&self.vision.forward(pixel_values)?.pooler_output)
    }

    /// The vision tower's pooled output in the joint space.
    pub(crate) fn project_image(&self, pooled: &Tensor) -> Result<Tensor> {
        Ok(self.visual_projection.forward(pooled)?)
    }

    /// The factor of cosines, a scalar: the exponential of the learned parameter.
    ///
    /// # Errors
    /// Those of candle.
    pub fn logit_scale(&self) -> Result<Tensor> {
        Ok(self.logit_scale.exp().map_err(diptych_tensor::Error::from)?)
    }

    /// Cosines of every image with every text, times [`Self::logit_scale`].
    ///
    /// # Shape
    /// (B, 3, S, S) and (B', T), to (B, B').
    ///
    /// # Errors
    /// As those of the two halves.
    pub fn logits_per_image(&self, pixel_values: &Tensor, input_ids: &Tensor) -> Result<Tensor> {
        let images = normalized(&self.image_features(pixel_values)?)?;
        let texts = normalized(&self.text_features(input_ids)?)?;
        let scale = self.logit_scale()?;
        let logits = || -> TensorResult<Tensor> {
            let cosines = images.matmul(&texts.t()?.contiguous()?)?;
            Ok(cosines.broadcast_mul(&scale.to_dtype(cosines.dtype())?)?)
        };
        Ok(logits()?)
    }
}

/// Each row over its Euclidean norm.
///
/// # Shape
/// (B, E), unchanged.
///
/// # Errors
/// Those of candle.
pub fn normalized(x: &Tensor) -> TensorResult<Tensor> {
    Ok(x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?)?)
}
