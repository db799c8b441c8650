//! The denoiser of Stable Diffusion 3 and 3.5: diffusers' `SD3Transformer2DModel`.
//!
//! Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", ICML 2024, arXiv:2403.03206. Names and
//! configuration are those of diffusers' `transformer_sd3.py`; differences: timesteps are always one per example, and sizes that patches do
//! not fill are refused.
//!
//! B batch, S text tokens, C channels, Y x X spatial, D width.

mod config;

use std::collections::BTreeMap;
use std::sync::Arc;

use diptych_tensor::CheckpointPolicy;
use diptych_tensor::{Result as TensorResult, Tensor, ops};

pub use self::config::SD3Transformer2DConfig;
use crate::dit::{
    AdaLayerNormContinuous, CombinedEmbedding, JointBlock, JointBlockConfig, PatchEmbed, PatchEmbedConfig,
    PositionTable, expect_shape, run_block, unpatchify,
};
use crate::layers::{Linear, LinearConfig};
use crate::{AdapterSwitch, Builder, Result};

/// A denoiser: noisy latents, timesteps and two forms of the text to a prediction of the latents' shape.
#[derive(Debug)]
pub struct SD3Transformer2DModel {
    pos_embed: PatchEmbed,
    time_text_embed: CombinedEmbedding,
    context_embedder: Linear,
    blocks: Vec<Arc<JointBlock>>,
    norm_out: AdaLayerNormContinuous,
    proj_out: Linear,
    config: SD3Transformer2DConfig,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside blocks again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl SD3Transformer2DModel {
    /// The network at the builder's place. The table of positions is the weight file's, or computed where the file has none.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &SD3Transformer2DConfig) -> Result<Self> {
        let dim = config.dim();
        let patches = PatchEmbedConfig {
            patch_size: config.patch_size,
            in_channels: config.in_channels,
            dim,
            positions: PositionTable::Cropped {
                side: config.pos_embed_max_size,
                base: (config.sample_size / config.patch_size) as f64,
            },
        };
        let block = |i| {
            let block = JointBlockConfig {
                dim,
                num_heads: config.num_attention_heads,
                qk_norm: config.has_qk_norm,
                has_dual_attention: config.dual_attention_layers.contains(&i),
                is_last_of_text: i + 1 == config.num_layers,
            };
            JointBlock::load(&builder.child(format!("transformer_blocks.{i}")), block).map(Arc::new)
        };
        let conditions = (config.pooled_projection_dim, dim);
        let text = LinearConfig::new(config.joint_attention_dim, dim);
        let out = LinearConfig::new(dim, config.patch_size * config.patch_size * config.out_channels);
        Ok(Self {
            pos_embed: PatchEmbed::load(&builder.child("pos_embed"), patches)?,
            time_text_embed: CombinedEmbedding::load(&builder.child("time_text_embed"), conditions, None)?,
            context_embedder: Linear::load(&builder.child("context_embedder"), text)?,
            blocks: (0..config.num_layers).map(block).collect::<Result<_>>()?,
            norm_out: AdaLayerNormContinuous::load(&builder.child("norm_out"), dim)?,
            proj_out: Linear::load(&builder.child("proj_out"), out)?,
            config: config.clone(),
            switch: builder.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &SD3Transformer2DConfig {
        &self.config
    }

    /// Tensors of the weight file that are no parameters: the table of positions, where the file has it.
    pub fn buffers(&self) -> BTreeMap<String, Tensor> {
        let table = self
            .pos_embed
            .table()
            .map(|table| ("pos_embed.pos_embed".to_owned(), table));
        table.into_iter().collect()
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The prediction for `sample` at `timesteps` (0 to 1000), given the text and its pooled form.
    ///
    /// # Shape
    /// `sample` (B, `in_channels`, Y, X) in the type of the activations, `timesteps` (B,) in f32, `encoder_hidden_states`
    /// (B, S, `joint_attention_dim`), `pooled_projections` (B, `pooled_projection_dim`), to (B, `out_channels`, Y, X).
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) when a shape does not fit, or when a tensor operation fails.
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        encoder_hidden_states: &Tensor,
        pooled_projections: &Tensor,
    ) -> Result<Tensor> {
        let config = &self.config;
        let image = self.pos_embed.forward(sample)?;
        let batch = Some(sample.dims()[0]);
        expect_shape("timesteps", timesteps, &[batch])?;
        let text_shape = [batch, None, Some(config.joint_attention_dim)];
        expect_shape("encoder_hidden_states", encoder_hidden_states, &text_shape)?;
        let pooled_shape = [batch, Some(config.pooled_projection_dim)];
        expect_shape("pooled_projections", pooled_projections, &pooled_shape)?;
        let tokens = self.run(&image, timesteps, (encoder_hidden_states, pooled_projections))?;
        let (height, width) = (sample.dims()[2], sample.dims()[3]);
        Ok(unpatchify(
            &tokens,
            (height, width),
            config.patch_size,
            config.out_channels,
        )?)
    }

    fn run(&self, image: &Tensor, timesteps: &Tensor, (text, pooled): (&Tensor, &Tensor)) -> TensorResult<Tensor> {
        let dtype = image.dtype();
        let condition = self
            .time_text_embed
            .forward(timesteps, None, &pooled.to_dtype(dtype)?)?;
        let condition = ops::silu(&condition)?;
        let text = self.context_embedder.forward(&text.to_dtype(dtype)?)?;
        let text_len = text.dim(1)?;
        let mut joint = Tensor::cat(&[&text, image], 1)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let checkpointing = self.gradient_checkpointing.recomputes(index);
            joint = run_block(
                checkpointing.then_some(&self.switch),
                block,
                (&joint, &condition),
                move |block, joint, condition| block.forward(joint, condition, (text_len, None)),
            )?;
        }
        // The last block returns the image alone.
        self.proj_out.forward(&self.norm_out.forward(&joint, &condition)?)
    }
}
