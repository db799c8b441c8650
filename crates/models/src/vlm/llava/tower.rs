//! The tower, the projector, and how tiles are joined.
//!
//! P pictures, N features of a picture, D width of the tower, E width of the decoder, S side of a picture.

use diptych_tensor::CheckpointPolicy;
use diptych_tensor::{Result as TensorResult, Tensor};

use super::{FeatureSelection, LlavaVisionConfig, TowerConfig};
use crate::layers::{Linear, LinearConfig};
use crate::vision::layer::activate;
use crate::vision::{ClipVisionModel, SiglipVisionModel, VisionActivation};
use crate::vlm::images::{ImageLayout, ProcessedImage, unpadded};
use crate::vlm::model::{Graph, TowerTraining, VisionFeatures};
use crate::{Builder, Error, Init, Result};

/// Pictures that are computed together: it bounds the scores on devices that hold all of them.
const MAX_PICTURES: usize = 32;

#[derive(Debug)]
enum Tower {
    Clip(ClipVisionModel),
    Siglip(SiglipVisionModel),
}

/// Tower and projector.
#[derive(Debug)]
pub(in crate::vlm) struct LlavaVision {
    tower: Tower,
    projector: [Linear; 2],
    projector_act: VisionActivation,
    /// (E), at the end of each row of joined tiles.
    image_newline: Option<Tensor>,
    config: LlavaVisionConfig,
}

impl LlavaVision {
    /// `model` is the place above tower and projector, `text` the width and the initial deviation of the decoder.
    pub(in crate::vlm) fn load(
        model: &Builder<'_>,
        config: &LlavaVisionConfig,
        text: (usize, f64),
        training: TowerTraining,
    ) -> Result<Self> {
        let (text_width, std) = text;
        let place = training.place(&model.child("vision_tower"));
        let num_used = config.num_used_layers();
        let tower = match &config.tower {
            TowerConfig::Clip(tower) => Tower::Clip(ClipVisionModel::load_tower(&place, tower, Some(num_used))?),
            TowerConfig::Siglip(tower) => Tower::Siglip(SiglipVisionModel::load_tower(&place, tower, num_used)?),
        };
        let projector = model.child("multi_modal_projector");
        let linear = |name: &str, from: usize| {
            let layer = LinearConfig::new(from, text_width).init(Init::Normal { std }, Init::Zeros);
            let layer = if config.projector_bias {
                layer
            } else {
                layer.without_bias()
            };
            Linear::load(&projector.child(name), layer)
        };
        let newline_std = Init::Normal {
            std: (text_width as f64).powf(-0.5),
        };
        Ok(Self {
            tower,
            projector: [
                linear("linear_1", config.tower.width() * config.feature_layers.len())?,
                linear("linear_2", text_width)?,
            ],
            projector_act: config.projector_act,
            image_newline: config
                .grid_pinpoints
                .is_some()
                .then(|| model.get("image_newline", &[text_width], newline_std))
                .transpose()?,
            config: config.clone(),
        })
    }

    pub(in crate::vlm) fn checkpoint_gradients(&mut self, policy: CheckpointPolicy) {
        match &mut self.tower {
            Tower::Clip(tower) => tower.gradient_checkpointing = policy,
            Tower::Siglip(tower) => tower.gradient_checkpointing = policy,
        }
    }

    /// (P, N, L D) of each image, L layers side by side.
    pub(in crate::vlm) fn features(
        &self,
        images: &[&ProcessedImage],
        model: &Tensor,
        graph: Graph,
    ) -> Result<Vec<VisionFeatures>> {
        let mut counts = Vec::with_capacity(images.len());
        for image in images {
            counts.push(self.num_pictures(image)?);
        }
        let joined = || -> TensorResult<Tensor> {
            let pixels: Vec<&Tensor> = images.iter().map(|image| &image.pixels).collect();
            Ok(Tensor::cat(&pixels, 0)?.to_device(model.device())?)
        };
        let pixels = joined()?;
        let num_pictures: usize = counts.iter().sum();
        let mut parts = Vec::new();
        for start in (0..num_pictures).step_by(MAX_PICTURES) {
            let count = MAX_PICTURES.min(num_pictures - start);
            let pixels = pixels.narrow(0, start, count).map_err(diptych_tensor::Error::from)?;
            let states = match &self.tower {
                Tower::Clip(tower) => tower.states(&pixels, &self.config.feature_layers, |x| graph.cut(x))?,
                Tower::Siglip(tower) => tower.states(&pixels, &self.config.feature_layers, |x| graph.cut(x))?,
            };
            parts.push(Tensor::cat(&states, 2).map_err(diptych_tensor::Error::from)?);
        }
        let split = || -> TensorResult<Vec<VisionFeatures>> {
            let mut all = Tensor::cat(&parts, 0)?;
            if self.config.selection == FeatureSelection::WithoutFirst {
                all = all.narrow(1, 1, all.dim(1)? - 1)?.contiguous()?;
            }
            let mut start = 0;
            let mut features = Vec::with_capacity(images.len());
            for (image, count) in images.iter().zip(counts) {
                features.push(VisionFeatures {
                    features: all.narrow(0, start, count)?,
                    layout: image.layout,
                });
                start += count;
            }
            Ok(features)
        };
        Ok(split()?)
    }

    /// Pictures that an image is made of, checked against its layout.
    fn num_pictures(&self, image: &ProcessedImage) -> Result<usize> {
        let expected = match image.layout {
            ImageLayout::Whole if self.config.grid_pinpoints.is_none() => 1,
            ImageLayout::Tiles { size } if self.config.grid_pinpoints.is_some() => {
                1 + self.config.tile_grid(size)?.iter().product::<usize>()
            }
            _ => return Err(crate::vlm::config::foreign_layout()),
        };
        let side = self.config.tower.image_size();
        if image.pixels.dims() == [expected, 3, side, side] {
            return Ok(expected);
        }
        Err(Error::Shape {
            what: "pixels of an image",
            found: image.pixels.dims().to_vec(),
            expected: format!("({expected}, 3, {side}, {side})"),
        })
    }

    /// (M, E) of each image, its M features in the order of image tokens.
    pub(in crate::vlm) fn project(&self, features: &[&VisionFeatures]) -> Result<Vec<Tensor>> {
        let projected = || -> TensorResult<Tensor> {
            let all: Vec<&Tensor> = features.iter().map(|image| &image.features).collect();
            let h = self.projector[0].forward(&Tensor::cat(&all, 0)?)?;
            self.projector[1].forward(&activate(self.projector_act, &h)?)
        };
        let all_pne = projected()?;
        let mut start = 0;
        let mut images = Vec::with_capacity(features.len());
        for image in features {
            let count = image.features.dim(0).map_err(diptych_tensor::Error::from)?;
            let own = all_pne.narrow(0, start, count).map_err(diptych_tensor::Error::from)?;
            start += count;
            images.push(match (image.layout, &self.image_newline) {
                (ImageLayout::Tiles { size }, Some(newline)) => self.join(&own, size, newline)?,
                _ => own.flatten(0, 1).map_err(diptych_tensor::Error::from)?,
            });
        }
        Ok(images)
    }

    /// The whole picture, then the tiles side by side without the bars around the image, each row with a vector at its end.
    fn join(&self, pictures_pne: &Tensor, size: [usize; 2], newline: &Tensor) -> Result<Tensor> {
        let [rows, columns] = self.config.tile_grid(size)?;
        let patches = self.config.tower.patches_per_side();
        let [top, bottom, left, right] = unpadded(size, [rows * patches, columns * patches]);
        let joined = || -> TensorResult<Tensor> {
            let width = pictures_pne.dim(2)?;
            let whole = pictures_pne.narrow(0, 0, 1)?.squeeze(0)?;
            let tiles = pictures_pne.narrow(0, 1, rows * columns)?.contiguous()?;
            let tiles = tiles.reshape(&[rows, columns, patches, patches, width][..])?;
            let grid_yxe = tiles
                .permute([0, 2, 1, 3, 4])?
                .contiguous()?
                .reshape((rows * patches, columns * patches, width))?
                .narrow(0, top, bottom - top)?
                .narrow(1, left, right - left)?;
            let newline = newline.to_dtype(pictures_pne.dtype())?.reshape((1, 1, width))?;
            let ends = newline.broadcast_as((bottom - top, 1, width))?;
            let rows = Tensor::cat(&[&grid_yxe, &ends], 1)?.flatten(0, 1)?;
            Ok(Tensor::cat(&[&whole, &rows], 0)?)
        };
        Ok(joined()?)
    }
}
