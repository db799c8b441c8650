//! The conditional denoiser of Stable Diffusion 1.x, 2.x and XL: diffusers' `UNet2DConditionModel`.
//!
//! Ronneberger et al., "U-Net", arXiv:1505.04597; Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models",
//! CVPR 2022, arXiv:2112.10752; Podell et al., "SDXL", arXiv:2307.01952. Names and configuration are those of diffusers' `unet_2d_condition.py`; differences: timesteps are
//! always one per example, dropout is 0, there are no class embeddings, and added embeddings are SDXL's alone.
//!
//! B batch, T text tokens, D text width, P pooled width, N sizes and crops, C channels, Y x X spatial.

mod blocks;
mod config;
mod depth;
mod time;
mod transformer;
mod users;

use std::sync::Arc;

use diptych_tensor::autograd::{BlockCounter, CheckpointPolicy};
use diptych_tensor::{Tensor, ops};

use self::blocks::{BlockConfig, DownBlock, MidBlock, Pass, UpBlock, Users, Way};
pub use self::config::{DownBlockType, MidBlockType, TextTimeConfig, UNet2DConditionConfig, UpBlockType};
pub use self::depth::BlockDepth;
use self::time::{TextTimeEmbedding, TimestepEmbedding};
pub use self::users::{CrossAttention, UserAttention, UserAttentionOptions};
use crate::layers::{Conv2d, Conv2dConfig, GroupNorm};
use crate::{AdapterSwitch, Builder, Error, Result};

/// What SDXL's denoiser is told besides the text's states; see [`UNet2DConditionModel::forward_added`].
#[derive(Debug, Clone)]
pub struct AddedConditions {
    /// One vector a text, of the second text encoder, (B, P).
    pub text_embeds: Tensor,
    /// Original height and width, top and left of the crop, target height and width, pixels, (B, 6); the refiner has the aesthetic
    /// score in place of the target size, (B, 5).
    pub time_ids: Tensor,
}

/// A denoiser: noisy latents, timesteps and text to a prediction of the latents' shape.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_embedding: TimestepEmbedding,
    add_embedding: Option<TextTimeEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
    switch: AdapterSwitch,
    /// Of which residual and transformer blocks the backward pass computes the activations again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
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
        let added = |added| TextTimeEmbedding::load(&builder.child("add_embedding"), config, added);
        let add_embedding = config.addition_embed.map(added).transpose()?;
        let mut down_blocks = Vec::new();
        for (i, &kind) in config.down_block_types.iter().enumerate() {
            let in_channels = if i == 0 { first } else { channels[i - 1] };
            let block = BlockConfig::new(config, (Way::Down, i), time_embedding.dim());
            let place = builder.child(format!("down_blocks.{i}"));
            down_blocks.push(DownBlock::load(&place, kind, in_channels, &block)?);
        }
        let mid = BlockConfig::new(config, (Way::Down, channels.len() - 1), time_embedding.dim());
        let scale = config.mid_block_scale_factor;
        let mid_block = |kind| MidBlock::load(&builder.child("mid_block"), kind, &mid, scale);
        let mid_block = config.mid_block_type.map(mid_block).transpose()?;
        let mut up_blocks = Vec::new();
        for (i, &kind) in config.up_block_types.iter().enumerate() {
            // Up blocks go through the levels from the last to the first.
            let level = channels.len() - 1 - i;
            let block = BlockConfig::new(config, (Way::Up, level), time_embedding.dim());
            let previous = channels[(level + 1).min(channels.len() - 1)];
            let skip = channels[level.saturating_sub(1)];
            up_blocks.push(UpBlock::load(
                &builder.child(format!("up_blocks.{i}")),
                kind,
                (previous, skip),
                &block,
            )?);
        }
        Ok(Self {
            conv_in: Conv2d::load(
                &builder.child("conv_in"),
                Conv2dConfig::new(config.in_channels, first, config.conv_in_kernel),
            )?,
            time_embedding,
            add_embedding,
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
            gradient_checkpointing: CheckpointPolicy::Off,
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
    /// [`Error::Shape`] when a shape does not fit, [`Error::Condition`] when the network takes added conditions, or when a tensor
    /// operation fails.
    pub fn forward(&self, sample: &Tensor, timesteps: &Tensor, encoder_hidden_states: &Tensor) -> Result<Tensor> {
        self.forward_for(sample, timesteps, encoder_hidden_states, (None, None))
    }

    /// [`Self::forward`] of a network with an added embedding, as SDXL's.
    ///
    /// # Shape
    /// As [`Self::forward`], and `added` (B, P) and (B, N), where P and N times `addition_time_embed_dim` make
    /// `projection_class_embeddings_input_dim`.
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape does not fit, [`Error::Condition`] when the network takes no added conditions, or when a
    /// tensor operation fails.
    pub fn forward_added(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        encoder_hidden_states: &Tensor,
        added: &AddedConditions,
    ) -> Result<Tensor> {
        self.forward_for(sample, timesteps, encoder_hidden_states, (Some(added), None))
    }

    /// Either of the two, for users: their attention, and vectors of each example's user. With its adapters switched off the network knows no
    /// user.
    ///
    /// # Shape
    /// As [`Self::forward_added`], and users (B, S, dim) in any floating type.
    ///
    /// # Errors
    /// As [`Self::forward`] and [`Self::forward_added`].
    pub fn forward_for(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        encoder_hidden_states: &Tensor,
        (added, users): (Option<&AddedConditions>, Option<(&Arc<UserAttention>, &Tensor)>),
    ) -> Result<Tensor> {
        self.check_shapes(sample, timesteps, encoder_hidden_states)?;
        let batch = sample.dims()[0];
        match (added, self.config.addition_embed) {
            (None, None) => {}
            (Some(added), Some(config)) => check_added(added, batch, config)?,
            (None, Some(_)) => {
                return Err(Error::Condition {
                    name: "text_embeds",
                    problem: "and `time_ids` are missing: the network's `addition_embed_type` is \"text_time\"",
                });
            }
            (Some(_), None) => {
                return Err(Error::Condition {
                    name: "text_embeds",
                    problem: "and `time_ids` are not taken: the network has no `addition_embed_type`",
                });
            }
        }
        if let Some((attention, vectors)) = users {
            match *vectors.dims() {
                [b, num, dim] if b == batch && num > 0 && dim == attention.dim() => {}
                _ => {
                    return Err(Error::Shape {
                        what: "users",
                        found: vectors.dims().to_vec(),
                        expected: format!("({batch}, S, {})", attention.dim()),
                    });
                }
            }
        }
        let users = users.filter(|_| self.switch.is_enabled());
        Ok(self.run(sample, timesteps, encoder_hidden_states, (added, users))?)
    }

    fn run(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        text: &Tensor,
        (added, users): (Option<&AddedConditions>, Option<(&Arc<UserAttention>, &Tensor)>),
    ) -> diptych_tensor::Result<Tensor> {
        let sample = if self.config.center_input_sample {
            sample.affine(2.0, -1.0)?
        } else {
            sample.clone()
        };
        let mut time = self.time_embedding.forward(timesteps, sample.dtype())?;
        if let (Some(embedding), Some(added)) = (&self.add_embedding, added) {
            time = (time + embedding.forward(&added.text_embeds, &added.time_ids, sample.dtype())?)?;
        }
        let pass = Pass {
            time_silu: ops::silu(&time)?,
            text: text.to_dtype(sample.dtype())?,
            users: users
                .map(|(attention, vectors)| -> diptych_tensor::Result<Users> {
                    Ok(Users {
                        attention: attention.clone(),
                        vectors: vectors.to_dtype(sample.dtype())?,
                    })
                })
                .transpose()?,
            blocks: BlockCounter::new(self.gradient_checkpointing),
            switch: self.switch.clone(),
        };
        let mut x = self.conv_in.forward(&sample)?;
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &mut skips, &pass)?;
        }
        if let Some(block) = &self.mid_block {
            x = block.forward(&x, &pass)?;
        }
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

fn check_added(added: &AddedConditions, batch: usize, config: TextTimeConfig) -> Result<()> {
    let wrong = |what, tensor: &Tensor, expected: String| {
        Err(Error::Shape {
            what,
            found: tensor.dims().to_vec(),
            expected,
        })
    };
    let width = match *added.text_embeds.dims() {
        [b, width] if b == batch => width,
        _ => return wrong("text_embeds", &added.text_embeds, format!("({batch}, P)")),
    };
    match *added.time_ids.dims() {
        [b, numbers]
            if b == batch
                && width + numbers * config.addition_time_embed_dim == config.projection_class_embeddings_input_dim =>
        {
            Ok(())
        }
        _ => wrong(
            "time_ids",
            &added.time_ids,
            format!(
                "({batch}, N), where {width} values of `text_embeds` and N times {} make {}",
                config.addition_time_embed_dim, config.projection_class_embeddings_input_dim
            ),
        ),
    }
}
