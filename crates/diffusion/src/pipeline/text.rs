//! Prompts to what a UNet is told of them.
//!
//! | pipeline | `encoder_hidden_states` | `pooled` |
//! |---|---|---|
//! | Stable Diffusion 1.x, 2.x | the last states, after the final norm | |
//! | SDXL | the penultimate states of both encoders side by side | the second one's projected vector |
//! | SDXL's refiner | the penultimate states of the second encoder | its projected vector |

use std::collections::BTreeMap;

use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;
use diptych_models::lora::LoraAdapter;
use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel, ClipTokenizer};
use diptych_tensor::{CheckpointPolicy, Device, Params, Tensor};

use super::Conditioning;
use super::components::NetworkOptions;
use crate::{Error, Result};

/// Names of a text encoder and its tokenizer, and what is put before the encoder's parameters.
type Part = (&'static str, &'static str, &'static str);

const FIRST: Part = ("text_encoder", "tokenizer", "text_encoder.");
const SECOND: Part = ("text_encoder_2", "tokenizer_2", "text_encoder_2.");

/// The tokenizers and text encoders of a pipeline with a UNet.
#[derive(Debug)]
pub struct ClipConditioner {
    /// At least one.
    encoders: Vec<(&'static str, ClipTokenizer, ClipTextModel)>,
    states: States,
    /// Parameters of encoders under training that nothing depends on, as they were read.
    unread: BTreeMap<String, Tensor>,
    device: Device,
}

/// Which states the denoiser is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum States {
    /// The last ones.
    Last,
    /// The penultimate ones, with a projected vector; of a prompt that is missing perhaps zeros.
    Penultimate { has_zeros_for_missing: bool },
}

impl ClipConditioner {
    /// Loads the tokenizers and text encoders of a pipeline. Names of parameters begin with `text_encoder.` or `text_encoder_2.`;
    /// `adapter` is the first encoder's.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit; values that are not implemented.
    pub fn load(
        pipeline: &PipelineDir,
        options: &NetworkOptions,
        trainable: Trainable<'_>,
        adapter: Option<&LoraAdapter>,
    ) -> Result<(Self, Params)> {
        let mut params = Params::default();
        let (mut encoders, mut unread) = (Vec::new(), BTreeMap::new());
        for part in parts(pipeline) {
            let adapter = adapter.filter(|_| part == FIRST);
            let (tokenizer, encoder, own) = load_part(pipeline, part, options, (trainable, adapter))?;
            let is_unread = unread_names(pipeline, part, encoder.config());
            params.extend(&own.retained(|name| !is_unread(name)))?;
            unread.extend(own.retained(is_unread).snapshot()?);
            encoders.push((part.0, tokenizer, encoder));
        }
        let states = if is_of_sdxl(pipeline) {
            States::Penultimate {
                has_zeros_for_missing: pipeline.flag("force_zeros_for_empty_prompt", true)?,
            }
        } else {
            States::Last
        };
        let device = options.device.clone();
        Ok((
            Self {
                encoders,
                states,
                unread,
                device,
            },
            params,
        ))
    }

    /// Names of the components that prompts need: each text encoder with its tokenizer.
    pub fn components(pipeline: &PipelineDir) -> Vec<(&'static str, &'static str)> {
        parts(pipeline)
            .into_iter()
            .map(|(encoder, tokenizer, _)| (encoder, tokenizer))
            .collect()
    }

    /// Values of an encoded prompt.
    pub(super) fn num_values(pipeline: &PipelineDir) -> Result<usize> {
        let mut sum = 0;
        for (name, ..) in parts(pipeline) {
            let config = ClipTextConfig::from_file(pipeline.component(name)?.config())?;
            sum += config.max_position_embeddings * config.hidden_size;
            if config.has_projection {
                sum += config.projection_dim;
            }
        }
        Ok(sum)
    }

    /// The text encoders, each under the name of its component.
    pub fn encoders(&self) -> impl Iterator<Item = (&'static str, &ClipTextModel)> {
        self.encoders.iter().map(|(name, _, encoder)| (*name, encoder))
    }

    /// Parameters of encoders under training that nothing depends on, which are therefore not trained: with SDXL what the first encoder has behind its
    /// penultimate states. Their names begin as those of trained ones do.
    pub(crate) fn unread(&self) -> &BTreeMap<String, Tensor> {
        &self.unread
    }

    /// Scalars of the parameters that nothing depends on, from the headers of the weight files.
    pub(super) fn num_unread(pipeline: &PipelineDir) -> Result<usize> {
        let mut sum = 0;
        for part in parts(pipeline) {
            let component = pipeline.component(part.0)?;
            let is_unread = unread_names(pipeline, part, &ClipTextConfig::from_file(component.config())?);
            let weights = component.weights()?;
            // Files of transformers 5 leave the prefix of the model out.
            let model = |name: &str| if name.starts_with("text_") { "" } else { "text_model." };
            let prefixed = |name: &str| format!("{}{}{name}", part.2, model(name));
            let unread = weights.names().filter(|name| is_unread(&prefixed(name)));
            let len = |name: &str| weights.shape(name).map_or(0, |shape| shape.iter().product());
            sum += unread.map(len).sum::<usize>();
        }
        Ok(sum)
    }

    /// Which layers' activations the backward pass recomputes instead of keeping them.
    pub fn set_gradient_checkpointing(&mut self, policy: CheckpointPolicy) {
        for (.., encoder) in &mut self.encoders {
            encoder.gradient_checkpointing = policy;
        }
    }

    /// What the denoiser is told about each prompt; see the table above. A prompt that is missing, as in guidance and where prompts are dropped in
    /// training, is told as the empty one, or with SDXL as zeros where its `force_zeros_for_empty_prompt` is set, as it is by default. In spite of that
    /// key's name an empty prompt that is there is encoded like any other, as diffusers does.
    ///
    /// # Shape
    /// `encoder_hidden_states` (B, T, D) in the type of the activations, differentiable where the encoder is trained; `pooled` (B, P).
    ///
    /// # Errors
    /// A tokenizer or an encoder refuses.
    pub fn encode(&self, prompts: &[Option<&str>]) -> Result<Conditioning> {
        let texts: Vec<&str> = prompts.iter().map(|prompt| prompt.unwrap_or_default()).collect();
        let (mut states, mut pooled) = (Vec::new(), None);
        for (_, tokenizer, encoder) in &self.encoders {
            let output = encoder.forward(&tokenizer.encode_batch(&texts, &self.device)?)?;
            match self.states {
                States::Last => return Ok(Conditioning::new(output.last_hidden_state)),
                States::Penultimate { .. } => states.push(output.penultimate_hidden_state),
            }
            pooled = output.text_embeds.or(pooled);
        }
        let mut conditioning = Conditioning::new(side_by_side(&states)?);
        if let Some(pooled) = pooled {
            conditioning = conditioning.with_pooled(pooled);
        }
        let is_zero = self.states
            == States::Penultimate {
                has_zeros_for_missing: true,
            };
        if is_zero && prompts.contains(&None) {
            let factors: Vec<f32> = prompts.iter().map(|prompt| f32::from(prompt.is_some())).collect();
            return conditioning.scaled(&factors);
        }
        Ok(conditioning)
    }
}

/// Whether the text is encoded as SDXL does.
fn is_of_sdxl(pipeline: &PipelineDir) -> bool {
    pipeline.has(SECOND.0)
}

fn parts(pipeline: &PipelineDir) -> Vec<Part> {
    let second = is_of_sdxl(pipeline).then_some(SECOND);
    // The refiner has the second encoder alone.
    let first = (second.is_none() || pipeline.has(FIRST.0)).then_some(FIRST);
    first.into_iter().chain(second).collect()
}

/// Which parameters of an encoder nothing depends on. SDXL's first encoder gives its penultimate states alone: neither its last layer nor what is behind
/// it is asked for.
fn unread_names(
    pipeline: &PipelineDir,
    (encoder, _, prefix): Part,
    config: &ClipTextConfig,
) -> impl Fn(&str) -> bool + Copy + use<> {
    let is_cut = is_of_sdxl(pipeline) && encoder == FIRST.0;
    let last = config.num_hidden_layers.saturating_sub(1);
    move |name: &str| {
        let behind = |name: &str| {
            let layer = name
                .strip_prefix("text_model.encoder.layers.")
                .and_then(|rest| rest.split('.').next());
            layer.and_then(|layer| layer.parse().ok()) == Some(last)
                || name.starts_with("text_model.final_layer_norm.")
                || name.starts_with("text_projection.")
        };
        is_cut && name.strip_prefix(prefix).is_some_and(behind)
    }
}

fn load_part(
    pipeline: &PipelineDir,
    (encoder, tokenizer, params_prefix): Part,
    options: &NetworkOptions,
    (trainable, adapter): (Trainable<'_>, Option<&LoraAdapter>),
) -> Result<(ClipTokenizer, ClipTextModel, Params)> {
    let component = pipeline.component(encoder)?;
    let config = ClipTextConfig::from_file(component.config())?;
    if encoder == SECOND.0 && !config.has_projection {
        return Err(Error::Config {
            file: component.config(),
            key: "architectures".into(),
            found: "without \"CLIPTextModelWithProjection\"".into(),
            expected: "it, as SDXL's denoiser takes the projected vector".into(),
        });
    }
    let weights = component.weights()?;
    let builder = options.builder(&weights, trainable, adapter, params_prefix)?;
    let network = ClipTextModel::load(&builder, &config)?;
    let params = builder.finish()?;
    let tokenizer = ClipTokenizer::from_dir(pipeline.component(tokenizer)?.path())?;
    Ok((tokenizer, network, params))
}

/// States of several encoders of the same tokens: (B, T, D1 + D2).
fn side_by_side(states: &[Tensor]) -> diptych_tensor::Result<Tensor> {
    Ok(Tensor::cat(states, 2)?)
}
