//! The network of a run: a language model, or one that reads images too.
//!
//! Everything that scores or continues texts takes a [`NetworkRef`], which is made of either.

use diptych_models::AdapterSwitch;
use diptych_models::lm::{CausalLm, GenerateConfig, Generated, Prompt};
use diptych_tensor::{CheckpointPolicy, Device, Tensor};

use crate::Result;
use crate::arrangement::Arranged;
use crate::vision::VisionNetwork;

/// A network that owns its weights.
#[derive(Debug)]
pub enum Network {
    /// A language model.
    Text(Box<CausalLm>),
    /// A vision-language model with the images of a run.
    Vision(Box<VisionNetwork>),
}

/// A network that is looked at.
#[derive(Debug, Clone, Copy)]
pub enum NetworkRef<'a> {
    /// A language model.
    Text(&'a CausalLm),
    /// A vision-language model with the images of a run.
    Vision(&'a VisionNetwork),
}

/// What is continued.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PromptRef<'a> {
    /// At least one token; as many image tokens as its images have features.
    pub(crate) input_ids: &'a [u32],
    /// Its images, in the order of their tokens.
    pub(crate) images: &'a [usize],
    /// Which example this is: the key of its random choices.
    pub(crate) example: u64,
}

impl From<CausalLm> for Network {
    fn from(model: CausalLm) -> Self {
        Self::Text(Box::new(model))
    }
}

impl From<VisionNetwork> for Network {
    fn from(network: VisionNetwork) -> Self {
        Self::Vision(Box::new(network))
    }
}

impl<'a> From<&'a CausalLm> for NetworkRef<'a> {
    fn from(model: &'a CausalLm) -> Self {
        Self::Text(model)
    }
}

impl<'a> From<&'a VisionNetwork> for NetworkRef<'a> {
    fn from(network: &'a VisionNetwork) -> Self {
        Self::Vision(network)
    }
}

impl<'a> From<&'a Network> for NetworkRef<'a> {
    fn from(network: &'a Network) -> Self {
        match network {
            Network::Text(model) => Self::Text(model),
            Network::Vision(network) => Self::Vision(network),
        }
    }
}

impl Network {
    /// The decoder: the whole network where it reads text alone.
    pub fn language_model(&self) -> &CausalLm {
        NetworkRef::from(self).language_model()
    }

    /// Where the network is.
    pub fn device(&self) -> &Device {
        self.language_model().device()
    }

    /// From now on the backward pass computes the activations inside these layers again instead of keeping them.
    pub(crate) fn checkpoint_gradients(&mut self, policy: CheckpointPolicy) {
        match self {
            Self::Text(model) => model.gradient_checkpointing = policy,
            Self::Vision(network) => network.model.checkpoint_gradients(policy),
        }
    }
}

impl<'a> NetworkRef<'a> {
    /// The decoder: the whole network where it reads text alone.
    pub fn language_model(self) -> &'a CausalLm {
        match self {
            Self::Text(model) => model,
            Self::Vision(network) => network.model.language_model(),
        }
    }

    /// Where the network is.
    pub fn device(self) -> &'a Device {
        self.language_model().device()
    }

    /// The switch of this network's adapters.
    pub fn adapter_switch(self) -> &'a AdapterSwitch {
        self.language_model().adapter_switch()
    }

    /// The token in the place of which images are read, if any is.
    pub fn image_token_id(self) -> Option<u32> {
        match self {
            Self::Text(_) => None,
            Self::Vision(network) => Some(network.model.config().image_token_id),
        }
    }

    /// Where images came from.
    pub(crate) fn image_names(self, images: &[usize]) -> Vec<String> {
        match self {
            Self::Text(_) => Vec::new(),
            Self::Vision(network) => images
                .iter()
                .map(|image| network.images().source(*image).to_string())
                .collect(),
        }
    }

    /// What the decoder reads in the places of a batch's tokens, images among them, (B, T, D).
    pub(crate) fn embeddings(self, arranged: &Arranged) -> Result<Tensor> {
        match self {
            Self::Text(model) => Ok(model.embed(arranged.input.input_ids())?),
            Self::Vision(network) => network.embeddings(arranged),
        }
    }

    /// Hidden states of a batch's tokens, (B, T, D).
    pub(crate) fn hidden(self, arranged: &Arranged) -> Result<Tensor> {
        match self {
            Self::Text(model) => Ok(model.forward(&arranged.input)?),
            Self::Vision(network) => network.forward(arranged),
        }
    }

    /// The same without a graph.
    pub(crate) fn hidden_detached(self, arranged: &Arranged) -> Result<Tensor> {
        match self {
            Self::Text(model) => Ok(model.forward_detached(&arranged.input)?),
            Self::Vision(network) => network.forward_detached(arranged),
        }
    }

    /// Continues every prompt.
    pub(crate) fn generate(self, prompts: &[PromptRef<'_>], config: &GenerateConfig) -> Result<Vec<Generated>> {
        match self {
            Self::Text(model) => {
                let texts: Vec<Prompt<'_>> = prompts
                    .iter()
                    .map(|prompt| Prompt {
                        input_ids: prompt.input_ids,
                        example: prompt.example,
                    })
                    .collect();
                Ok(model.generate(&texts, config)?)
            }
            Self::Vision(network) => network.generate(prompts, config),
        }
    }
}
