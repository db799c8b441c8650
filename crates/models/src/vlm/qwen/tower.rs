//! The tower, and the layers that merge patches.
//!
//! N patches of all images in one row, D width, E width of the decoder.

use std::sync::Arc;

use diptych_tensor::{CheckpointPolicy, DType, Device, Result as TensorResult, Tensor, checkpoint, ops};

use super::QwenVisionConfig;
use super::block::{Context, Norm, QwenBlock, linear};
use super::layout::PatchLayout;
use crate::layers::Linear;
use crate::vlm::images::{ImageLayout, ProcessedImage};
use crate::vlm::model::{Graph, TowerTraining, VisionFeatures};
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// Patches that are computed together, unless one image has more: it bounds the scores on devices that hold all of them.
const MAX_PATCHES: usize = 4096;

/// Tower and merger.
#[derive(Debug)]
pub(in crate::vlm) struct QwenVision {
    /// (D, 3, F, P, P).
    patch_embed: Tensor,
    blocks: Vec<Arc<QwenBlock>>,
    merger_norm: Norm,
    merger: [Linear; 2],
    config: QwenVisionConfig,
    dtype: DType,
    device: Device,
    switch: AdapterSwitch,
    gradient_checkpointing: CheckpointPolicy,
}

impl QwenVision {
    /// `model` is the place above the tower.
    pub(in crate::vlm) fn load(
        model: &Builder<'_>,
        config: &QwenVisionConfig,
        training: TowerTraining,
    ) -> Result<Self> {
        let visual = model.child("visual");
        let tower = training.place(&visual);
        let side = config.patch_size;
        let patch = [config.width, 3, config.temporal_patch_size, side, side];
        let block = |i: usize| QwenBlock::load(&tower.child(format!("blocks.{i}")), config).map(Arc::new);
        let merger = visual.child("merger");
        let merged = config.width * config.merge_size.pow(2);
        Ok(Self {
            patch_embed: tower.child("patch_embed.proj").get(
                "weight",
                &patch,
                Init::kaiming_uniform(config.patch_len()),
            )?,
            blocks: (0..config.depth).map(block).collect::<Result<_>>()?,
            merger_norm: Norm::load(&merger.child("ln_q"), config)?,
            merger: [
                linear(&merger.child("mlp.0"), (merged, merged))?,
                linear(&merger.child("mlp.2"), (merged, config.out_size))?,
            ],
            config: config.clone(),
            dtype: model.dtype(),
            device: model.device().clone(),
            switch: model.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    pub(in crate::vlm) fn checkpoint_gradients(&mut self, policy: CheckpointPolicy) {
        self.gradient_checkpointing = policy;
    }

    /// (N, D) of each image, in the order in which patches are merged.
    pub(in crate::vlm) fn features(&self, images: &[&ProcessedImage], graph: Graph) -> Result<Vec<VisionFeatures>> {
        let grids = images
            .iter()
            .map(|image| self.grid(image))
            .collect::<Result<Vec<_>>>()?;
        let count = |grid: &[usize; 3]| grid.iter().product::<usize>();
        let mut features = Vec::with_capacity(images.len());
        let mut start = 0;
        while start < images.len() {
            let (mut end, mut patches) = (start + 1, count(&grids[start]));
            while end < images.len() && patches + count(&grids[end]) <= MAX_PATCHES {
                patches += count(&grids[end]);
                end += 1;
            }
            let all = self.run(&images[start..end], &grids[start..end], graph)?;
            let mut first = 0;
            for (image, grid) in images[start..end].iter().zip(&grids[start..end]) {
                let own = all.narrow(0, first, count(grid)).map_err(diptych_tensor::Error::from)?;
                first += count(grid);
                features.push(VisionFeatures {
                    features: own,
                    layout: image.layout,
                });
            }
            start = end;
        }
        Ok(features)
    }

    /// Frames, rows and columns of patches, checked against the pixels.
    fn grid(&self, image: &ProcessedImage) -> Result<[usize; 3]> {
        let ImageLayout::Grid { thw } = image.layout else {
            return Err(crate::vlm::config::foreign_layout());
        };
        self.config.merged_grid(thw)?;
        let expected = [thw.iter().product(), self.config.patch_len()];
        if image.pixels.dims() == expected {
            return Ok(thw);
        }
        Err(Error::Shape {
            what: "patches of an image",
            found: image.pixels.dims().to_vec(),
            expected: format!("{expected:?}"),
        })
    }

    /// (N, D) of several images.
    fn run(&self, images: &[&ProcessedImage], grids: &[[usize; 3]], graph: Graph) -> TensorResult<Tensor> {
        let layout = PatchLayout::new(&self.config, grids)?;
        let pixels: Vec<&Tensor> = images.iter().map(|image| &image.pixels).collect();
        let pixels = Tensor::cat(&pixels, 0)?.to_dtype(self.dtype)?.to_device(&self.device)?;
        let weight = self.patch_embed.to_dtype(self.dtype)?.flatten_from(1)?;
        let mut x_nd = ops::linear(&pixels, &weight, None)?;
        if let Some(order) = &layout.order {
            x_nd = x_nd.index_select(&Tensor::new(order.as_slice(), &self.device)?, 0)?;
        }
        // Angles are not rounded to half precision, as in transformers.
        let dtype = if self.dtype == DType::F64 {
            DType::F64
        } else {
            DType::F32
        };
        let place = |table: &Tensor| -> TensorResult<Tensor> { Ok(table.to_dtype(dtype)?.to_device(&self.device)?) };
        let tables = [place(&layout.tables[0])?, place(&layout.tables[1])?];
        let mut x = graph.cut(x_nd.unsqueeze(0)?);
        for (index, block) in self.blocks.iter().enumerate() {
            let visible = match (&layout.windowed, &self.config.windows) {
                (Some(windowed), Some(windows)) if !windows.full_attention_layers.contains(&index) => windowed,
                _ => &layout.whole,
            };
            let context = Context {
                tables: tables.clone(),
                visible: visible.clone(),
            };
            x = match graph {
                Graph::Kept => self.run_block((index, block), &x, context)?,
                Graph::Detached => graph.cut(block.forward(&x, &context)?),
            };
        }
        let x_nd = x.squeeze(0)?;
        match &layout.inverse {
            None => Ok(x_nd),
            Some(inverse) => Ok(x_nd.index_select(&Tensor::new(inverse.as_slice(), &self.device)?, 0)?),
        }
    }

    fn run_block(
        &self,
        (index, block): (usize, &Arc<QwenBlock>),
        x: &Tensor,
        context: Context,
    ) -> TensorResult<Tensor> {
        if !self.gradient_checkpointing.recomputes(index) {
            return block.forward(x, &context);
        }
        let (block, switch, enabled) = (block.clone(), self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            block.forward(&inputs[0], &context)
        })
    }

    /// (M, E) of each image: its tokens of the decoder.
    pub(in crate::vlm) fn merge(&self, features: &[&VisionFeatures]) -> Result<Vec<Tensor>> {
        let merged = || -> TensorResult<Vec<Tensor>> {
            let all: Vec<&Tensor> = features.iter().map(|image| &image.features).collect();
            let all_nd = self.merger_norm.forward(&Tensor::cat(&all, 0)?)?;
            let unit = self.config.merge_size.pow(2);
            let (patches, width) = all_nd.dims2()?;
            let groups = all_nd.reshape((patches / unit, unit * width))?;
            let h = ops::gelu(&self.merger[0].forward(&groups)?)?;
            let tokens_me = self.merger[1].forward(&h)?;
            let mut start = 0;
            let mut images = Vec::with_capacity(all.len());
            for image in all {
                let count = image.dim(0)? / unit;
                images.push(tokens_me.narrow(0, start, count)?);
                start += count;
            }
            Ok(images)
        };
        Ok(merged()?)
    }
}
