//! The denoiser of Flux dev and schnell: diffusers' `FluxTransformer2DModel`.
//!
//! Black Forest Labs, "FLUX", 2024; there is no paper of the architecture, whose blocks of two streams are those of Esser et al.,
//! arXiv:2403.03206, and whose blocks of one stream are those of Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters",
//! arXiv:2302.05442. Names, configuration and conventions are those of diffusers' `transformer_flux.py`: latents are packed, and
//! timesteps and guidance are one thousandth of what the sinusoids see.
//!
//! B batch, S text tokens, T image tokens, C channels, D width.

mod config;
mod positions;
mod single;

use std::sync::Arc;

use diptych_tensor::autograd::{BlockCounter, CheckpointPolicy};
use diptych_tensor::{DType, Result as TensorResult, Tensor, ops};

pub use self::config::FluxTransformer2DConfig;
pub use self::positions::{FluxPositions, pack_latents, unpack_latents};
use self::single::SingleBlock;
use crate::dit::{AdaLayerNormContinuous, CombinedEmbedding, JointBlock, JointBlockConfig, expect_shape, run_block};
use crate::layers::{Linear, LinearConfig};
use crate::{AdapterSwitch, Builder, Error, Result};

/// Timesteps and guidance are multiplied by this before their sinusoids are taken.
const TIME_SCALE: f64 = 1000.0;

/// What the denoiser looks at beside the latents.
#[derive(Debug, Clone, Copy)]
pub struct FluxConditions<'a> {
    /// (B,) in f32, from 0 to 1.
    pub timestep: &'a Tensor,
    /// Strength of guidance, (B,) in f32, for a network with `guidance_embeds`.
    pub guidance: Option<&'a Tensor>,
    /// (B, S, `joint_attention_dim`).
    pub encoder_hidden_states: &'a Tensor,
    /// (B, `pooled_projection_dim`).
    pub pooled_projections: &'a Tensor,
}

/// A denoiser: packed noisy latents and conditions to a prediction of the same tokens.
#[derive(Debug)]
pub struct FluxTransformer2DModel {
    x_embedder: Linear,
    time_text_embed: CombinedEmbedding,
    context_embedder: Linear,
    blocks: Vec<Arc<JointBlock>>,
    single_blocks: Vec<Arc<SingleBlock>>,
    norm_out: AdaLayerNormContinuous,
    proj_out: Linear,
    config: FluxTransformer2DConfig,
    switch: AdapterSwitch,
    /// Whether the backward pass computes the activations inside blocks again instead of keeping them.
    pub gradient_checkpointing: CheckpointPolicy,
}

impl FluxTransformer2DModel {
    /// The network at the builder's place.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(builder: &Builder<'_>, config: &FluxTransformer2DConfig) -> Result<Self> {
        let (dim, num_heads) = (config.dim(), config.num_attention_heads);
        let block = JointBlockConfig {
            dim,
            num_heads,
            qk_norm: true,
            has_dual_attention: false,
            is_last_of_text: false,
        };
        let double = |i| JointBlock::load(&builder.child(format!("transformer_blocks.{i}")), block).map(Arc::new);
        let single = |i| {
            let place = builder.child(format!("single_transformer_blocks.{i}"));
            SingleBlock::load(&place, dim, num_heads).map(Arc::new)
        };
        let linear = |name: &str, from, to| Linear::load(&builder.child(name), LinearConfig::new(from, to));
        Ok(Self {
            x_embedder: linear("x_embedder", config.in_channels, dim)?,
            time_text_embed: CombinedEmbedding::load(
                &builder.child("time_text_embed"),
                (config.pooled_projection_dim, dim),
                config.guidance_embeds.then_some("guidance_embedder"),
            )?,
            context_embedder: linear("context_embedder", config.joint_attention_dim, dim)?,
            blocks: (0..config.num_layers).map(double).collect::<Result<_>>()?,
            single_blocks: (0..config.num_single_layers).map(single).collect::<Result<_>>()?,
            norm_out: AdaLayerNormContinuous::load(&builder.child("norm_out"), dim)?,
            proj_out: linear("proj_out", dim, config.out_channels)?,
            config: config.clone(),
            switch: builder.switch(),
            gradient_checkpointing: CheckpointPolicy::Off,
        })
    }

    /// The configuration the network was built from.
    pub fn config(&self) -> &FluxTransformer2DConfig {
        &self.config
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(&self) -> &AdapterSwitch {
        &self.switch
    }

    /// The prediction for packed latents.
    ///
    /// # Shape
    /// `hidden_states` (B, T, `in_channels`) in the type of the activations, to (B, T, `out_channels`).
    ///
    /// # Errors
    /// [`Error::Shape`] when a shape does not fit, [`Error::Condition`] for a guidance where the network takes none or none where it
    /// does, or when a tensor operation fails.
    pub fn forward(
        &self,
        hidden_states: &Tensor,
        conditions: FluxConditions<'_>,
        positions: &FluxPositions,
    ) -> Result<Tensor> {
        let config = &self.config;
        let (texts, images) = (Some(positions.text_len()), Some(positions.image_len()));
        let shape = [None, images, Some(config.in_channels)];
        let batch = Some(expect_shape("hidden_states", hidden_states, &shape)?[0]);
        expect_shape("timestep", conditions.timestep, &[batch])?;
        let text_shape = [batch, texts, Some(config.joint_attention_dim)];
        expect_shape("encoder_hidden_states", conditions.encoder_hidden_states, &text_shape)?;
        let pooled_shape = [batch, Some(config.pooled_projection_dim)];
        expect_shape("pooled_projections", conditions.pooled_projections, &pooled_shape)?;
        if let Some(guidance) = conditions.guidance {
            expect_shape("guidance", guidance, &[batch])?;
        }
        let problem = match (conditions.guidance, self.time_text_embed.has_guidance()) {
            (None, true) => Some("is missing: this network takes the strength of guidance as an input"),
            (Some(_), false) => Some("is not taken by this network"),
            (Some(_), true) | (None, false) => None,
        };
        if let Some(problem) = problem {
            let name = "guidance";
            return Err(Error::Condition { name, problem });
        }
        Ok(self.run(hidden_states, conditions, positions)?)
    }

    fn run(&self, x: &Tensor, conditions: FluxConditions<'_>, positions: &FluxPositions) -> TensorResult<Tensor> {
        let dtype = x.dtype();
        let scaled = |number: &Tensor| -> TensorResult<Tensor> { Ok((number.to_dtype(DType::F32)? * TIME_SCALE)?) };
        let guidance = conditions.guidance.map(scaled).transpose()?;
        let pooled = conditions.pooled_projections.to_dtype(dtype)?;
        let time = scaled(conditions.timestep)?;
        let condition = self.time_text_embed.forward(&time, guidance.as_ref(), &pooled)?;
        let condition = ops::silu(&condition)?;
        let text = self
            .context_embedder
            .forward(&conditions.encoder_hidden_states.to_dtype(dtype)?)?;
        let text_len = text.dim(1)?;
        let rope = Arc::new(positions.rope(self.config.axes_dims_rope, x.device())?);
        let blocks = BlockCounter::new(self.gradient_checkpointing);
        let mut joint = Tensor::cat(&[&text, &self.x_embedder.forward(x)?], 1)?;
        for block in &self.blocks {
            let rope = rope.clone();
            joint = run_block(
                blocks.recomputes_next().then_some(&self.switch),
                block,
                (&joint, &condition),
                move |block, joint, condition| clamped(block.forward(joint, condition, (text_len, Some(&rope)))?),
            )?;
        }
        for block in &self.single_blocks {
            let rope = rope.clone();
            joint = run_block(
                blocks.recomputes_next().then_some(&self.switch),
                block,
                (&joint, &condition),
                move |block, joint, condition| block.forward(joint, condition, &rope),
            )?;
        }
        let image = joint.narrow(1, text_len, positions.image_len())?;
        self.proj_out.forward(&self.norm_out.forward(&image, &condition)?)
    }
}

/// In f16, what has grown beyond its range is brought back to its edge, as diffusers does.
fn clamped(x: Tensor) -> TensorResult<Tensor> {
    const LARGEST: f32 = 65504.0;
    if x.dtype() == DType::F16 {
        Ok(x.clamp(-LARGEST, LARGEST)?)
    } else {
        Ok(x)
    }
}
