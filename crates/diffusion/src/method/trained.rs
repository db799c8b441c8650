//! The trained denoiser: its parameters, and how they are written and read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_models::diffusers::{ComponentDir, Library, PipelineDir, save_component};
use diptych_models::lora::{LoraAdapter, save_diffusers};
use diptych_models::{AdapterConfig, LoraConfig, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Params, Tensor, Weights};

use super::complete::complete;
use crate::pipeline::{
    Denoiser, NetworkOptions, TextConditioner, USER_ATTENTION_FILE, USERS_FILE, UserEmbeddings, denoiser_component,
};
use crate::{Error, Result};

/// A denoiser, perhaps with its text encoder, and the parameters of both that are trained.
#[derive(Debug)]
pub(crate) struct TrainedDenoiser {
    pub(crate) denoiser: Arc<Denoiser>,
    /// Present where it is trained.
    pub(crate) text: Option<TextConditioner>,
    pub(crate) params: Params,
    trained: TrainedPart,
    model: PathBuf,
}

/// What of a pipeline is trained.
#[derive(Debug)]
enum TrainedPart {
    /// Its denoiser, as the recipe's adapter says.
    Denoiser(AdapterConfig),
    /// The attention to these users.
    Users(UserEmbeddings),
}

/// Whether the text encoder is trained beside the denoiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextTraining {
    Frozen,
    Trained,
}

impl TrainedDenoiser {
    pub(crate) fn load(
        pipeline: &PipelineDir,
        options: &NetworkOptions,
        adapter: &AdapterConfig,
        text: TextTraining,
        checkpointing: CheckpointPolicy,
    ) -> Result<Self> {
        let start = start_adapter(pipeline, adapter)?;
        let trainable = match adapter {
            AdapterConfig::Lora(lora) => Trainable::Lora(lora),
            AdapterConfig::Full(_) => Trainable::All,
        };
        let (mut denoiser, mut params) = Denoiser::load(pipeline, options, trainable, start.as_ref())?;
        denoiser.set_gradient_checkpointing(checkpointing);
        let text = match text {
            TextTraining::Frozen => None,
            TextTraining::Trained => {
                let (text, text_params) = TextConditioner::load(pipeline, options, Trainable::All, None)?;
                params.extend(&text_params)?;
                Some(text)
            }
        };
        Ok(Self {
            denoiser: Arc::new(denoiser),
            text,
            params,
            trained: TrainedPart::Denoiser(adapter.clone()),
            model: pipeline.path().to_path_buf(),
        })
    }

    /// A frozen denoiser with attention to users, which is trained.
    pub(crate) fn load_for_users(
        pipeline: &PipelineDir,
        options: &NetworkOptions,
        users: &UserEmbeddings,
        start: Option<&Path>,
        checkpointing: CheckpointPolicy,
    ) -> Result<Self> {
        let (denoiser, _) = Denoiser::load(pipeline, options, Trainable::None, None)?;
        let [_, dim] = users.shape();
        let (mut denoiser, params) = denoiser.with_trained_users(dim, start, options)?;
        if let Some(attention) = denoiser.users().filter(|attention| attention.dim() != dim) {
            return Err(Error::Users {
                path: users.file().to_path_buf(),
                problem: format!(
                    "has users of width {dim}, and the attention to start from takes {}",
                    attention.dim()
                ),
            });
        }
        denoiser.set_gradient_checkpointing(checkpointing);
        Ok(Self {
            denoiser: Arc::new(denoiser),
            text: None,
            params,
            trained: TrainedPart::Users(users.clone()),
            model: pipeline.path().to_path_buf(),
        })
    }

    fn save_users(&self, users: &UserEmbeddings, directory: &Path) -> Result<()> {
        let attention = self.denoiser.users().ok_or(Error::MissingComponent {
            action: "saving the attention to users",
            component: "unet",
        })?;
        attention.save(&directory.join(USER_ATTENTION_FILE))?;
        let (from, to) = (users.file(), directory.join(USERS_FILE));
        std::fs::copy(from, &to).map(drop).map_err(|source| Error::Io {
            action: "copy",
            path: from.to_path_buf(),
            source,
        })
    }

    /// Writes an adapter as PEFT and diffusers files, or the trained networks as parts of a pipeline.
    pub(crate) fn save(&self, directory: &Path) -> Result<()> {
        match &self.trained {
            TrainedPart::Users(users) => self.save_users(users, directory),
            TrainedPart::Denoiser(AdapterConfig::Lora(lora)) => {
                let adapter = LoraAdapter::from_params(&self.params, lora, "")?;
                adapter.save_peft(directory, Some(&self.model.to_string_lossy()))?;
                Ok(save_diffusers(directory, &[(self.denoiser.component(), &adapter)])?)
            }
            TrainedPart::Denoiser(AdapterConfig::Full(_)) => self.save_networks(directory),
        }
    }

    /// Writes what can be used on its own: the adapter, or a whole pipeline with the trained networks.
    pub(crate) fn save_final(&self, directory: &Path) -> Result<()> {
        self.save(directory)?;
        match &self.trained {
            TrainedPart::Users(_) | TrainedPart::Denoiser(AdapterConfig::Lora(_)) => Ok(()),
            TrainedPart::Denoiser(AdapterConfig::Full(_)) => complete(&self.model, directory),
        }
    }

    fn save_networks(&self, directory: &Path) -> Result<()> {
        let mut own = self.params.snapshot()?;
        if let Some(text) = &self.text {
            own.extend(text.unread());
            for (component, encoder) in text.encoders() {
                let prefix = format!("{component}.");
                let (of_encoder, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    own.into_iter().partition(|(name, _)| name.starts_with(&prefix));
                own = others;
                let tensors = of_encoder
                    .into_iter()
                    .map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor))
                    .collect();
                let place = directory.join(component);
                let config = encoder.config().to_json();
                save_component(place, Library::Transformers, &config, (&tensors, DType::F32))?;
            }
        }
        own.extend(self.denoiser.network().buffers());
        let config = self.denoiser.network().config_json();
        let place = directory.join(self.denoiser.component());
        save_component(place, Library::Diffusers, &config, (&own, DType::F32))?;
        Ok(())
    }

    /// Sets the parameters from what [`TrainedDenoiser::save`] wrote.
    pub(crate) fn restore(&self, directory: &Path) -> Result<()> {
        let tensors = match (&self.trained, self.denoiser.users()) {
            (TrainedPart::Users(_), Some(attention)) => {
                attention.parameters_of(&directory.join(USER_ATTENTION_FILE))?
            }
            (TrainedPart::Users(_), None) => BTreeMap::new(),
            (TrainedPart::Denoiser(AdapterConfig::Lora(_)), _) => {
                adapter_tensors(&LoraAdapter::load(directory, self.denoiser.component())?)
            }
            (TrainedPart::Denoiser(AdapterConfig::Full(_)), _) => {
                let mut tensors = read_all(&directory.join(self.denoiser.component()), "")?;
                let buffers = self.denoiser.network().buffers();
                tensors.retain(|name, _| !buffers.contains_key(name));
                if let Some(text) = &self.text {
                    for (component, _) in text.encoders() {
                        tensors.extend(read_all(&directory.join(component), &format!("{component}."))?);
                    }
                    let unread = text.unread();
                    tensors.retain(|name, _| !unread.contains_key(name));
                }
                tensors
            }
        };
        Ok(self.params.load(&tensors)?)
    }
}

/// The network a run starts from, frozen.
pub(crate) fn load_frozen(
    pipeline: &PipelineDir,
    options: &NetworkOptions,
    adapter: &AdapterConfig,
) -> Result<Denoiser> {
    let start = start_adapter(pipeline, adapter)?;
    Ok(Denoiser::load(pipeline, options, Trainable::None, start.as_ref())?.0)
}

fn start_adapter(pipeline: &PipelineDir, adapter: &AdapterConfig) -> Result<Option<LoraAdapter>> {
    match adapter {
        AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) => {
            Ok(Some(LoraAdapter::load(path, denoiser_component(pipeline))?))
        }
        AdapterConfig::Lora(_) | AdapterConfig::Full(_) => Ok(None),
    }
}

/// An adapter's matrices under the names of parameters.
fn adapter_tensors(adapter: &LoraAdapter) -> BTreeMap<String, Tensor> {
    adapter
        .modules
        .iter()
        .flat_map(|(name, module)| {
            [
                (format!("{name}.lora_A.weight"), module.down.clone()),
                (format!("{name}.lora_B.weight"), module.up.clone()),
            ]
        })
        .collect()
}

/// Every tensor of a component's weights, with `prefix` before the names.
pub(crate) fn read_all(directory: &Path, prefix: &str) -> Result<BTreeMap<String, Tensor>> {
    let weights: Weights = ComponentDir::new(directory).weights()?;
    weights
        .names()
        .map(|name| {
            let tensor = weights
                .read(name, DType::F32, &diptych_tensor::Device::Cpu)
                .map_err(Error::from)?;
            Ok((format!("{prefix}{name}"), tensor))
        })
        .collect()
}
