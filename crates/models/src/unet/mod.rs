//! The conditional denoiser of Stable Diffusion 1.x: diffusers' `UNet2DConditionModel`.
//!
//! Ronneberger et al., "U-Net", arXiv:1505.04597; Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
//! CVPR 2022, arXiv:2112.10752. Names and configuration are those of diffusers' `unet_2d_condition.py`; differences: timesteps are
//! always one per example, dropout is 0, and there are no class or added embeddings.
//!
//! B batch, T text tokens, D text width, C channels, Y x X spatial.

mod blocks;
mod config;
mod time;
mod transformer;

use diptych_tensor::{Tensor, ops};

use self::blocks::{BlockConfig, DownBlock, MidBlock, Pass, UpBlock};
pub use self::config::{DownBlockType, UNet2DConditionConfig, UpBlockType};
use self::time::TimestepEmbedding;
use crate::layers::{Conv2d, Conv2dConfig, GroupNorm};
use crate::{AdapterSwitch, Builder, Error, Result};

/// A denoiser: noisy latents, timesteps and text to a prediction of the latents' shape.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside residual and transformer blocks again instead of keeping them.
    pub gradient_checkpointing: bool,
}

impl UNet2DConditionModel {
    /// The network at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &UNet2DConditionConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let first = channels[0];
        let time_embedding = TimestepEmbedding::load(&builder.child("time_embedding"), config)?;
        let mut down_blocks = Vec::new();
        for (i, &kind) in config.down_block_types.iter().enumerate() {
            let in_channels = if i == 0 { first } else { channels[i - 1] };
            let block = BlockConfig::new(config, i, time_embedding.dim());
            let place = builder.child(format!("down_blocks.{i}"));
            down_blocks.push(DownBlock::load(&place, kind, in_channels, block)?);
        }
        let mid = BlockConfig::new(config, channels.len() - 1, time_embedding.dim());
        let mid_block = MidBlock::load(&builder.child("mid_block"), mid, config.mid_block_scale_factor)?;
        let mut up_blocks = Vec::new();
        for (i, &kind) in config.up_block_types.iter().enumerate() {
            // Up blocks go through the levels from the last to the first.
            let level = channels.len() - 1 - i;
            let block = BlockConfig::new(config, level, time_embedding.dim());
            let previous = channels[(level + 1).min(channels.len() - 1)];
            let skip = channels[level.saturating_sub(1)];
            up_blocks.push(UpBlock::load(
                &builder.child(format!("up_blocks.{i}")),
                kind,
                (previous, skip),
                block,
            )?);
        }
        Ok(Self {
            conv_in: Conv2d::load(
                &builder.child("conv_in"),
                Conv2dConfig::new(config.in_channels, first, config.conv_in_kernel),
            )?,
            time_embedding,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::load(
                &builder.child("conv_norm_out"),
                first,
                config.norm_num_groups,
                config.norm_eps,
            )?,
            conv_out: Conv2d::load(
                &builder.child("conv_out"),
                Conv2dConfig::new(first, config.out_channels, config.conv_out_kernel),
            )?,
            config: config.clone(),
            switch: builder.switch(),
            gradient_checkpointing: false,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The prediction for `sample` at `timesteps`, given the text.
    ///
    /// # Shape
    /// `sample` (B, `in_channels`, Y, X) in the type of the activations, `timesteps` (B,) in f32, `encoder_hidden_states` (B, T, D),
    /// to (B, `out_channels`, Y, X).
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape does not fit, or when a tensor operation fails.
    pub fn forward(&self, sample: &Tensor, timesteps: &Tensor, encoder_hidden_states: &Tensor) -> Result<Tensor> {
        self.check_shapes(sample, timesteps, encoder_hidden_states)?;
        Ok(self.run(sample, timesteps, encoder_hidden_states)?)
    }

    fn run(&self, sample: &Tensor, timesteps: &Tensor, text: &Tensor) -> diptych_tensor::Result<Tensor> {
        let sample = if self.config.center_input_sample {
            sample.affine(2.0, -1.0)?
        } else {
            sample.clone()
        };
        let time = self.time_embedding.forward(timesteps, sample.dtype())?;
        let pass = Pass {
            time_silu: ops::silu(&time)?,
            text: text.to_dtype(sample.dtype())?,
            checkpointing: self.gradient_checkpointing.then(|| self.switch.clone()),
        };
        let mut x = self.conv_in.forward(&sample)?;
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &mut skips, &pass)?;
        }
        x = self.mid_block.forward(&x, &pass)?;
        for block in &self.up_blocks {
            x = block.forward(x, &mut skips, &pass)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?)
    }

    fn check_shapes(&self, sample: &Tensor, timesteps: &Tensor, text: &Tensor) -> Result<()> {
        let wrong = |what, tensor: &Tensor, expected: String| {
            Err(Error::Shape {
                what,
                found: tensor.dims().to_vec(),
                expected,
            })
        };
        let batch = match *sample.dims() {
            [batch, channels, height, width] if channels == self.config.in_channels && height * width > 0 => batch,
            _ => return wrong("sample", sample, format!("(B, {}, Y, X)", self.config.in_channels)),
        };
        if timesteps.dims() != [batch] {
            return wrong("timesteps", timesteps, format!("({batch},)"));
        }
        let width = self.config.cross_attention_dim[0];
        match *text.dims() {
            [b, tokens, dim] if b == batch && tokens > 0 && dim == width => Ok(()),
            _ => wrong("encoder_hidden_states", text, format!("({batch}, T, {width})")),
        }
    }
}
