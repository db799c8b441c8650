//! Prompts to what a denoiser is told of them, whatever the pipeline.

use std::collections::BTreeMap;

use diptych_models::Trainable;
use diptych_models::diffusers::PipelineDir;
use diptych_models::lora::LoraAdapter;
use diptych_models::text_encoder::ClipTextModel;
use diptych_tensor::{CheckpointPolicy, Params, Tensor};

use super::Conditioning;
use super::components::NetworkOptions;
use super::flux::FluxConditioner;
use super::network::denoiser_component;
use super::sd3::Sd3Conditioner;
use super::text::ClipConditioner;
use crate::{Error, Result};

/// The tokenizers and text encoders of a pipeline.
#[derive(Debug)]
pub enum TextConditioner {
    /// Of a pipeline with a UNet; these can be trained.
    Clip(Box<ClipConditioner>),
    /// Of Stable Diffusion 3.
    Sd3(Box<Sd3Conditioner>),
    /// Of Flux.
    Flux(Box<FluxConditioner>),
}

impl TextConditioner {
    /// Loads the tokenizers and text encoders of a pipeline. Names of parameters begin with the encoder's; `adapter` is the first encoder's.
    ///
    /// # Errors
    /// Files that are missing, damaged or do not fit; values that are not implemented; [`Error::Recipe`] where encoders of a flow should be
    /// trained.
    pub fn load(
        pipeline: &PipelineDir,
        options: &NetworkOptions,
        trainable: Trainable<'_>,
        adapter: Option<&LoraAdapter>,
    ) -> Result<(Self, Params)> {
        let Some(kind) = FlowKind::of(pipeline) else {
            let (clip, params) = ClipConditioner::load(pipeline, options, trainable, adapter)?;
            return Ok((Self::Clip(Box::new(clip)), params));
        };
        if !matches!(trainable, Trainable::None) || adapter.is_some() {
            return Err(Error::Recipe {
                key: "method.sft.train_text_encoder".into(),
                problem: "is true, and the text encoders of this pipeline are not trained".into(),
                hint: "leave it out: the denoiser alone is trained".into(),
            });
        }
        let text = match kind {
            FlowKind::Sd3 => Self::Sd3(Box::new(Sd3Conditioner::load(pipeline, options)?)),
            FlowKind::Flux => Self::Flux(Box::new(FluxConditioner::load(pipeline, options)?)),
        };
        Ok((text, Params::default()))
    }

    /// Names of the components that prompts need: each text encoder with its tokenizer.
    pub fn components(pipeline: &PipelineDir) -> Vec<(&'static str, &'static str)> {
        let all = [
            ("text_encoder", "tokenizer"),
            ("text_encoder_2", "tokenizer_2"),
            ("text_encoder_3", "tokenizer_3"),
        ];
        match FlowKind::of(pipeline) {
            None => ClipConditioner::components(pipeline),
            // T5 may be left out.
            Some(FlowKind::Sd3) if pipeline.has("text_encoder_3") => all.to_vec(),
            Some(FlowKind::Sd3 | FlowKind::Flux) => all[..2].to_vec(),
        }
    }

    /// Values of an encoded prompt, without any network: how much memory each takes.
    pub fn num_values(pipeline: &PipelineDir) -> Result<usize> {
        let [tokens, width, pooled] = match FlowKind::of(pipeline) {
            None => return ClipConditioner::num_values(pipeline),
            Some(FlowKind::Sd3) => Sd3Conditioner::shape(pipeline)?,
            Some(FlowKind::Flux) => FluxConditioner::shape(pipeline)?,
        };
        Ok(tokens * width + pooled)
    }

    /// The text encoders that can be trained beside a denoiser, each under the name of its component.
    pub fn encoders(&self) -> Vec<(&'static str, &ClipTextModel)> {
        match self {
            Self::Clip(clip) => clip.encoders().collect(),
            Self::Sd3(_) | Self::Flux(_) => Vec::new(),
        }
    }

    /// Parameters of encoders under training that nothing depends on.
    pub(crate) fn unread(&self) -> BTreeMap<String, Tensor> {
        match self {
            Self::Clip(clip) => clip.unread().clone(),
            Self::Sd3(_) | Self::Flux(_) => BTreeMap::new(),
        }
    }

    /// Scalars of the parameters that nothing depends on.
    pub(crate) fn num_unread(pipeline: &PipelineDir) -> Result<usize> {
        match FlowKind::of(pipeline) {
            None => ClipConditioner::num_unread(pipeline),
            Some(_) => Ok(0),
        }
    }

    /// Which layers' activations the backward pass recomputes instead of keeping them.
    pub fn set_gradient_checkpointing(&mut self, policy: CheckpointPolicy) {
        match self {
            Self::Clip(clip) => clip.set_gradient_checkpointing(policy),
            // They are never trained.
            Self::Sd3(_) | Self::Flux(_) => {}
        }
    }

    /// What the denoiser is told about each prompt.
    ///
    /// # Shape
    /// `encoder_hidden_states` (B, T, D) in the type of the activations, differentiable where the encoder is trained; `pooled` (B, P)
    /// where the denoiser takes it.
    ///
    /// # Errors
    /// A tokenizer or an encoder refuses.
    pub fn encode(&self, prompts: &[&str]) -> Result<Conditioning> {
        let prompts: Vec<Option<&str>> = prompts.iter().copied().map(Some).collect();
        self.encode_some(&prompts)
    }

    /// The same where prompts may be missing: what guidance leads away from, and what a prompt that is dropped in training is replaced by. That is the
    /// empty prompt, or with SDXL as its `force_zeros_for_empty_prompt` says.
    ///
    /// # Shape
    /// As [`TextConditioner::encode`].
    ///
    /// # Errors
    /// As [`TextConditioner::encode`].
    pub fn encode_some(&self, prompts: &[Option<&str>]) -> Result<Conditioning> {
        let texts = || -> Vec<&str> { prompts.iter().map(|prompt| prompt.unwrap_or_default()).collect() };
        match self {
            Self::Clip(clip) => clip.encode(prompts),
            Self::Sd3(text) => text.encode(&texts()),
            Self::Flux(text) => text.encode(&texts()),
        }
    }
}

/// Pipelines with a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowKind {
    Sd3,
    Flux,
}

impl FlowKind {
    /// By the class of the transformer; a class that is not known is refused where the transformer is read.
    fn of(pipeline: &PipelineDir) -> Option<Self> {
        let component = pipeline.component(denoiser_component(pipeline)).ok()?;
        match component.class_name()? {
            "SD3Transformer2DModel" => Some(Self::Sd3),
            "FluxTransformer2DModel" => Some(Self::Flux),
            _ => None,
        }
    }
}
