//! Stable Diffusion 3 and 3.5: two CLIP encoders and T5, and what the transformer takes of them.
//!
//! Esser et al., arXiv:2403.03206, as diffusers' `StableDiffusion3Pipeline.encode_prompt` puts it together:
//!
//! ```text
//! encoder_hidden_states = [ penultimate states of both CLIPs side by side, zeros to the width of T5 ; states of T5 ]
//! pooled                = [ projected vectors of both CLIPs ]
//! ```
//!
//! B batch, T tokens, D width.

use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;
use diptych_models::mmdit::SD3Transformer2DModel;
use diptych_models::t5::{T5Config, T5EncoderModel, T5Tokenizer};
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use diptych_tensor::{DType, Device, Result as TensorResult, Tensor};

use super::components::NetworkOptions;
use super::network::DenoiserConfig;
use super::{Conditioning, required};
use crate::{Error, Result};

/// Tokens of T5, diffusers' default.
const T5_LEN: usize = 256;

/// The tokenizers and frozen text encoders of Stable Diffusion 3.
#[derive(Debug)]
pub struct Sd3Conditioner {
    clips: [(ClipTokenizer, ClipTextModel); 2],
    /// Many directories leave it out; its tokens are zeros then.
    t5: Option<(T5Tokenizer, T5EncoderModel)>,
    /// Width of the text that the transformer takes.
    text_dim: usize,
    device: Device,
}

impl Sd3Conditioner {
    pub(super) fn load(pipeline: &PipelineDir, options: &NetworkOptions) -> Result<Self> {
        let first = clip(pipeline, options, ["text_encoder", "tokenizer"])?;
        let second = clip(pipeline, options, ["text_encoder_2", "tokenizer_2"])?;
        for (name, (_, encoder)) in [("text_encoder", &first), ("text_encoder_2", &second)] {
            if !encoder.config().has_projection {
                return Err(Error::Config {
                    file: pipeline.component(name)?.config(),
                    key: "architectures".into(),
                    found: "without \"CLIPTextModelWithProjection\"".into(),
                    expected: "it, as the transformer takes the projected vector".into(),
                });
            }
        }
        let t5 = pipeline
            .has("text_encoder_3")
            .then(|| t5(pipeline, options, ["text_encoder_3", "tokenizer_3"]))
            .transpose()?;
        Ok(Self {
            clips: [first, second],
            t5,
            text_dim: DenoiserConfig::read(pipeline)?.text_dim().0,
            device: options.device.clone(),
        })
    }

    pub(super) fn encode(&self, prompts: &[&str]) -> Result<Conditioning> {
        let (mut states, mut pooled) = (Vec::new(), Vec::new());
        for (tokenizer, encoder) in &self.clips {
            let output = encoder.forward(&tokenizer.encode_batch(prompts, &self.device)?)?;
            states.push(output.penultimate_hidden_state);
            pooled.extend(output.text_embeds);
        }
        let t5 = self
            .t5
            .as_ref()
            .map(|(tokenizer, encoder)| encode_t5(tokenizer, encoder, prompts, (T5_LEN, &self.device)))
            .transpose()?;
        let width: usize = states.iter().map(|states| states.dims()[2]).sum();
        let t5_width = t5.as_ref().map_or(self.text_dim, |states| states.dims()[2]);
        if width > t5_width {
            return Err(Error::Shape {
                name: "states of the CLIP encoders, side by side".into(),
                found: vec![width],
                expected: vec![t5_width],
            });
        }
        let text = joined(&states, t5, (prompts.len(), t5_width))?;
        Ok(Conditioning::new(text).with_pooled(side_by_side(&pooled)?))
    }

    /// Tokens and width of an encoded prompt, and width of its pooled vector.
    pub(super) fn shape(pipeline: &PipelineDir) -> Result<[usize; 3]> {
        let config = DenoiserConfig::read(pipeline)?;
        let clip = ClipTextConfig::from_file(pipeline.component("text_encoder")?.config())?;
        let tokens = clip.max_position_embeddings + T5_LEN;
        Ok([tokens, config.text_dim().0, config.pooled_dim().unwrap_or(0)])
    }
}

/// A CLIP encoder and its tokenizer, frozen.
pub(super) fn clip(
    pipeline: &PipelineDir,
    options: &NetworkOptions,
    [encoder, tokenizer]: [&str; 2],
) -> Result<(ClipTokenizer, ClipTextModel)> {
    let component = pipeline.component(encoder)?;
    let config = ClipTextConfig::from_file(component.config())?;
    let weights = component.weights()?;
    let builder = options.builder(&weights, Trainable::None, None, "")?;
    let network = ClipTextModel::load(&builder, &config)?;
    builder.finish()?;
    Ok((ClipTokenizer::from_dir(pipeline.component(tokenizer)?.path())?, network))
}

/// A T5 encoder and its tokenizer, frozen.
pub(super) fn t5(
    pipeline: &PipelineDir,
    options: &NetworkOptions,
    [encoder, tokenizer]: [&str; 2],
) -> Result<(T5Tokenizer, T5EncoderModel)> {
    let component = pipeline.component(encoder)?;
    let config = T5Config::from_file(component.config())?;
    let weights = component.weights()?;
    let builder = options.builder(&weights, Trainable::None, None, "")?;
    let network = T5EncoderModel::load(&builder, &config)?;
    builder.finish()?;
    Ok((T5Tokenizer::from_dir(pipeline.component(tokenizer)?.path())?, network))
}

/// States of prompts cut and filled to `len` tokens. As diffusers does, the filling is not masked.
pub(super) fn encode_t5(
    tokenizer: &T5Tokenizer,
    encoder: &T5EncoderModel,
    prompts: &[&str],
    (len, device): (usize, &Device),
) -> Result<Tensor> {
    let tokens = tokenizer.encode_batch(prompts, len, device)?;
    Ok(encoder.forward(&tokens.input_ids, None)?)
}

fn side_by_side(parts: &[Tensor]) -> TensorResult<Tensor> {
    Ok(Tensor::cat(parts, parts[0].rank() - 1)?)
}

/// CLIP's states filled to `width`, and T5's behind them.
fn joined(clip: &[Tensor], t5: Option<Tensor>, (batch, width): (usize, usize)) -> TensorResult<Tensor> {
    let clip = side_by_side(clip)?;
    let clip = clip.pad_with_zeros(2, 0, width - clip.dim(2)?)?;
    let t5 = match t5 {
        Some(states) => states,
        None => Tensor::zeros((batch, T5_LEN, width), clip.dtype(), clip.device())?,
    };
    Ok(Tensor::cat(&[clip, t5], 1)?)
}

/// The transformer's answer; see [`super::Denoiser::predict`].
pub(super) fn predict(
    network: &SD3Transformer2DModel,
    (noisy_latents, timesteps): (&Tensor, &Tensor),
    conditioning: &Conditioning,
    dtype: DType,
) -> Result<Tensor> {
    let pooled = required(conditioning.pooled.as_ref(), "pooled")?;
    let cast = |tensor: &Tensor| crate::tensors::cast(tensor, dtype);
    let text = cast(&conditioning.encoder_hidden_states)?;
    Ok(network.forward(noisy_latents, timesteps, &text, &cast(pooled)?)?)
}
