//! Flux: one CLIP encoder for the pooled vector, T5 for the text, and a transformer over packed latents.
//!
//! As diffusers' `FluxPipeline` puts it together.
//!
//! B batch, T tokens, C channels, Y x X spatial.

use diptych_models::diffusers::PipelineDir;
use diptych_models::flux::{FluxConditions, FluxPositions, FluxTransformer2DModel, pack_latents, unpack_latents};
use diptych_models::t5::{T5EncoderModel, T5Tokenizer};
use diptych_models::text_encoder::{ClipTextModel, ClipTokenizer};
use diptych_tensor::{DType, Device, Tensor};

use super::components::NetworkOptions;
use super::network::DenoiserConfig;
use super::sd3::{clip, encode_t5, t5};
use super::{Conditioning, required};
use crate::Result;

/// Tokens of T5, diffusers' default.
const T5_LEN: usize = 512;

/// Height and width of latents where nothing else is asked for, diffusers' default.
pub(super) const DEFAULT_LATENT_SIDE: usize = 128;

/// Strength of guidance for a network that takes it as an input, where nothing else is asked for: the default of diffusers' pipeline and training
/// scripts.
pub(super) const DEFAULT_GUIDANCE: f32 = 3.5;

/// The network is told a thousandth of the timestep.
const TIME_SCALE: f64 = 1000.0;

/// The tokenizers and frozen text encoders of Flux.
#[derive(Debug)]
pub struct FluxConditioner {
    clip: (ClipTokenizer, ClipTextModel),
    t5: (T5Tokenizer, T5EncoderModel),
    device: Device,
}

impl FluxConditioner {
    pub(super) fn load(pipeline: &PipelineDir, options: &NetworkOptions) -> Result<Self> {
        Ok(Self {
            clip: clip(pipeline, options, ["text_encoder", "tokenizer"])?,
            t5: t5(pipeline, options, ["text_encoder_2", "tokenizer_2"])?,
            device: options.device.clone(),
        })
    }

    pub(super) fn encode(&self, prompts: &[&str]) -> Result<Conditioning> {
        let (tokenizer, encoder) = &self.clip;
        let pooled = encoder
            .forward(&tokenizer.encode_batch(prompts, &self.device)?)?
            .pooler_output;
        let text = encode_t5(&self.t5.0, &self.t5.1, prompts, (T5_LEN, &self.device))?;
        Ok(Conditioning::new(text).with_pooled(pooled))
    }

    /// Tokens and width of an encoded prompt, and width of its pooled vector.
    pub(super) fn shape(pipeline: &PipelineDir) -> Result<[usize; 3]> {
        let config = DenoiserConfig::read(pipeline)?;
        Ok([T5_LEN, config.text_dim().0, config.pooled_dim().unwrap_or(0)])
    }
}

/// The transformer's answer; see [`super::Denoiser::predict`].
pub(super) fn predict(
    network: &FluxTransformer2DModel,
    (noisy_latents, timesteps): (&Tensor, &Tensor),
    conditioning: &Conditioning,
    dtype: DType,
) -> Result<Tensor> {
    let pooled = crate::tensors::cast(required(conditioning.pooled.as_ref(), "pooled")?, dtype)?;
    let text = crate::tensors::cast(&conditioning.encoder_hidden_states, dtype)?;
    let tokens = pack_latents(noisy_latents)?;
    let (height, width) = (noisy_latents.dims()[2], noisy_latents.dims()[3]);
    let (timestep, guidance) = numbers(timesteps, conditioning.guidance.unwrap_or(DEFAULT_GUIDANCE))?;
    let conditions = FluxConditions {
        timestep: &timestep,
        guidance: network.config().guidance_embeds.then_some(&guidance),
        encoder_hidden_states: &text,
        pooled_projections: &pooled,
    };
    let positions = FluxPositions::text_and_image(text.dims()[1], (height / 2, width / 2));
    unpack_latents(&network.forward(&tokens, conditions, &positions)?, (height, width)).map_err(Into::into)
}

/// Timesteps as the network takes them, and one strength of guidance for each.
fn numbers(timesteps: &Tensor, guidance: f32) -> diptych_tensor::Result<(Tensor, Tensor)> {
    let timestep = (timesteps / TIME_SCALE)?;
    let guidance = Tensor::full(guidance, timesteps.dims(), timesteps.device())?;
    Ok((timestep, guidance))
}
