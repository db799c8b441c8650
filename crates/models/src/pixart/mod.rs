//! The denoiser of `PixArt`-alpha and -sigma: diffusers' `PixArtTransformer2DModel`.
//!
//! Chen et al., "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic Text-to-Image Synthesis", ICLR 2024,
//! arXiv:2310.00426, and "PixArt-sigma", ECCV 2024, arXiv:2403.04692. Names and configuration are those of diffusers'
//! `pixart_transformer_2d.py`; differences: timesteps are always one per example, masks of text are numbers of tokens, and sizes that patches do not
//! fill are refused.
//!
//! B batch, S text tokens, C channels, Y x X spatial, D width.

mod block;
mod config;

use std::sync::Arc;

use diptych_tensor::{CheckpointPolicy, Result as TensorResult, Tensor, checkpoint, ops};

use self::block::Block;
pub use self::config::PixArtTransformer2DConfig;
use crate::dit::{
    PatchEmbed, PatchEmbedConfig, PlainNorm, PositionTable, ProjectionActivation, TextProjection, TimestepEmbedding,
    expect_shape, modulated, unpatchify,
};
use crate::layers::{Linear, LinearConfig};
use crate::{AdapterSwitch, Builder, Error, Init, Result};

/// What the denoiser looks at beside the latents.
#[derive(Debug, Clone, Copy)]
pub struct PixArtConditions<'a> {
    /// (B,) in f32, 0 to 1000.
    pub timesteps: &'a Tensor,
    /// (B, S, `caption_channels`).
    pub encoder_hidden_states: &'a Tensor,
    /// Tokens of each text that are not filling; all of them without a list.
    pub text_lens: Option<&'a [usize]>,
    /// Height and width in pixels (B, 2), and their quotient (B, 1), in f32, for a network with `use_additional_conditions`.
    pub size: Option<(&'a Tensor, &'a Tensor)>,
}

/// A denoiser: noisy latents and conditions to a prediction.
#[derive(Debug)]
pub struct PixArtTransformer2DModel {
    pos_embed: PatchEmbed,
    condition: Condition,
    caption_projection: Option<TextProjection>,
    blocks: Vec<Arc<Block>>,
    norm_out: PlainNorm,
    /// (2, D).
    scale_shift_table: Tensor,
    proj_out: Linear,
    config: PixArtTransformer2DConfig,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside blocks again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

/// diffusers' `AdaLayerNormSingle`: timestep, resolution and aspect ratio as one vector, and the modulation of all blocks.
#[derive(Debug)]
struct Condition {
    timestep: TimestepEmbedding,
    /// Of resolution and aspect ratio.
    size: Option<[TimestepEmbedding; 2]>,
    linear: Linear,
}

impl Condition {
    fn load(builder: &Builder<'_>, config: &PixArtTransformer2DConfig) -> Result<Self> {
        let dim = config.dim();
        let embedding = |name: &str, dim| TimestepEmbedding::load(&builder.child(format!("emb.{name}")), dim);
        let size = || {
            Ok::<_, Error>([
                embedding("resolution_embedder", dim / 3)?,
                embedding("aspect_ratio_embedder", dim / 3)?,
            ])
        };
        Ok(Self {
            timestep: embedding("timestep_embedder", dim)?,
            size: config.use_additional_conditions.then(size).transpose()?,
            linear: Linear::load(&builder.child("linear"), LinearConfig::new(dim, 6 * dim))?,
        })
    }

    /// The modulation of blocks (B, 6, D), and the vector itself (B, 1, D), in the type of `like`.
    fn forward(&self, conditions: PixArtConditions<'_>, like: &Tensor) -> TensorResult<(Tensor, Tensor)> {
        let (batch, dtype) = (like.dim(0)?, like.dtype());
        let mut vector = self.timestep.forward(conditions.timesteps, dtype)?;
        if let (Some([resolution, ratio]), Some(size)) = (&self.size, conditions.size) {
            let each = |embedding: &TimestepEmbedding, numbers: &Tensor| -> TensorResult<Tensor> {
                Ok(embedding
                    .forward(&numbers.flatten_all()?, dtype)?
                    .reshape((batch, ()))?)
            };
            vector = (vector + Tensor::cat(&[each(resolution, size.0)?, each(ratio, size.1)?], 1)?)?;
        }
        let modulation = self.linear.forward(&ops::silu(&vector)?)?;
        Ok((modulation.reshape((batch, 6, ()))?, vector.unsqueeze(1)?))
    }
}

impl PixArtTransformer2DModel {
    /// The network at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &PixArtTransformer2DConfig) -> Result<Self> {
        let (dim, patch_size) = (config.dim(), config.patch_size);
        let patches = PatchEmbedConfig {
            patch_size,
            in_channels: config.in_channels,
            dim,
            positions: PositionTable::Interpolated {
                base: (config.sample_size / patch_size) as f64,
                scale: config.interpolation_scale,
            },
        };
        // Files written by old versions have the table, which is computed here.
        builder.ignore_unused("pos_embed.pos_embed");
        let caption = |channels| {
            let place = builder.child("caption_projection");
            TextProjection::load(&place, (channels, dim), ProjectionActivation::GeluTanh)
        };
        let block = |i| Block::load(&builder.child(format!("transformer_blocks.{i}")), config).map(Arc::new);
        let std = (dim as f64).powf(-0.5);
        let out = LinearConfig::new(dim, patch_size * patch_size * config.out_channels);
        Ok(Self {
            pos_embed: PatchEmbed::load(&builder.child("pos_embed"), patches)?,
            condition: Condition::load(&builder.child("adaln_single"), config)?,
            caption_projection: config.caption_channels.map(caption).transpose()?,
            blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            norm_out: PlainNorm::new(builder, dim)?,
            scale_shift_table: builder.get("scale_shift_table", &[2, dim], Init::Normal { std })?,
            proj_out: Linear::load(&builder.child("proj_out"), out)?,
            config: config.clone(),
            switch: builder.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &PixArtTransformer2DConfig {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The prediction for `sample`.
    ///
    /// # Shape
    /// `sample` (B, `in_channels`, Y, X) in the type of the activations, to (B, `out_channels`, Y, X).
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape does not fit, [`Error::Condition`] for a size where the network takes none or none where it does, or when a tensor operation fails.
    pub fn forward(&self, sample: &Tensor, conditions: PixArtConditions<'_>) -> Result<Tensor> {
        let config = &self.config;
        let tokens = self.pos_embed.forward(sample)?;
        let batch = Some(sample.dims()[0]);
        expect_shape("timesteps", conditions.timesteps, &[batch])?;
        let text_dim = config.caption_channels.unwrap_or(config.dim());
        let text = conditions.encoder_hidden_states;
        let text_len = expect_shape("encoder_hidden_states", text, &[batch, None, Some(text_dim)])?[1];
        if let Some(lens) = conditions.text_lens
            && (lens.len() != sample.dims()[0] || lens.iter().any(|len| !(1..=text_len).contains(len)))
        {
            return Err(Error::Shape {
                what: "the list of text lengths",
                found: lens.to_vec(),
                expected: format!("one from 1 to {text_len} for each text"),
            });
        }
        let name = "resolution and aspect_ratio";
        match (conditions.size, config.use_additional_conditions) {
            (Some((resolution, ratio)), true) => {
                expect_shape("resolution", resolution, &[batch, Some(2)])?;
                expect_shape("aspect_ratio", ratio, &[batch, Some(1)])?;
            }
            (None, false) => {}
            (Some(_), false) => {
                let problem = "are not taken by this network";
                return Err(Error::Condition { name, problem });
            }
            (None, true) => {
                let problem = "are missing: this network takes them";
                return Err(Error::Condition { name, problem });
            }
        }
        let tokens = self.run(tokens, conditions)?;
        let (height, width) = (sample.dims()[2], sample.dims()[3]);
        Ok(unpatchify(
            &tokens,
            (height, width),
            config.patch_size,
            config.out_channels,
        )?)
    }

    fn run(&self, mut x: Tensor, conditions: PixArtConditions<'_>) -> TensorResult<Tensor> {
        let (modulation, vector) = self.condition.forward(conditions, &x)?;
        let mut text = conditions.encoder_hidden_states.to_dtype(x.dtype())?;
        if let Some(projection) = &self.caption_projection {
            text = projection.forward(&text)?;
        }
        for (index, block) in self.blocks.iter().enumerate() {
            x = self.run_block((index, block), (&x, &modulation, &text), conditions.text_lens)?;
        }
        let table = self.scale_shift_table.to_dtype(x.dtype())?.unsqueeze(0)?;
        let all = vector.broadcast_add(&table)?;
        let (shift, scale) = (all.narrow(1, 0, 1)?, all.narrow(1, 1, 1)?);
        self.proj_out
            .forward(&modulated(&self.norm_out.forward(&x)?, &shift, &scale)?)
    }

    fn run_block(
        &self,
        (index, block): (usize, &Arc<Block>),
        (x, modulation, text): (&Tensor, &Tensor, &Tensor),
        text_lens: Option<&[usize]>,
    ) -> TensorResult<Tensor> {
        if !self.gradient_checkpointing.recomputes(index) {
            return block.forward(x, modulation, (text, text_lens));
        }
        let (block, lens) = (block.clone(), text_lens.map(<[usize]>::to_vec));
        let (switch, enabled) = (self.switch.clone(), self.switch.is_enabled());
        checkpoint(&[x, modulation, text], move |inputs| {
            let _as_in_the_forward_pass = switch.set(enabled);
            block.forward(&inputs[0], &inputs[1], (&inputs[2], lens.as_deref()))
        })
    }
}
