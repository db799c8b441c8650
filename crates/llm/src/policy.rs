//! The trained network: how it is loaded, saved and restored.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use diptych_models::lm::{self, CausalLm, LmDir};
use diptych_models::lora::LoraAdapter;
use diptych_models::vlm::{self, TowerTraining, VisionLanguageModel, VlmDir};
use diptych_models::{AdapterConfig, Builder, BuilderConfig, LoraConfig, Trainable};
use diptych_tensor::files::write_file;
use diptych_tensor::{DType, Device, Params, Quantization, Tensor, Weights};

use crate::network::Network;
use crate::vision::{KeptFeatures, RunImages, VisionNetwork};
use crate::{Error, Result};

/// What an adapter for a language model is called where files hold several.
const COMPONENT: &str = "transformer";

/// Where a network is put, and how.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Where tensors live.
    pub device: Device,
    /// Type of frozen tensors and of the activations.
    pub dtype: DType,
    /// Seed of initial values.
    pub seed: u64,
    /// What the weights of a decoder's linear layers, its head excepted, are kept in.
    pub quantization: Option<Quantization>,
}

/// A network and those of its parameters that are trained.
#[derive(Debug)]
pub struct Trained<N> {
    /// The network.
    pub model: N,
    /// Its trained parameters.
    pub params: Params,
    adapter: AdapterConfig,
    home: Home,
    /// Adapted layers of the start that are not trained further: those of a tower that is frozen.
    carried: LoraAdapter,
}

/// A language model and those of its parameters that are trained.
pub type TrainedLm = Trained<CausalLm>;

/// The checkpoint that a network was made from.
#[derive(Debug, Clone)]
enum Home {
    Text(Box<LmDir>),
    Vision(Box<VlmDir>),
}

impl Home {
    fn path(&self) -> &Path {
        match self {
            Self::Text(directory) => directory.path(),
            Self::Vision(directory) => directory.path(),
        }
    }
}

/// Loads a network, frozen, perhaps with a frozen adapter.
///
/// # Errors
/// When a file is missing or damaged, or the adapter does not fit.
pub fn load_frozen(directory: &LmDir, adapter: Option<&LoraAdapter>, options: &NetworkOptions) -> Result<CausalLm> {
    Ok(load(directory, Trainable::None, adapter, options)?.0)
}

/// Reads the adapter for a language model at a path.
///
/// # Errors
/// When there is none, or it is damaged.
pub fn load_adapter(path: &Path) -> Result<LoraAdapter> {
    Ok(LoraAdapter::load(path, COMPONENT)?)
}

/// Loads a network, frozen, from a directory of its own or as an adapter of the network at `base`.
///
/// # Errors
/// As [`load_frozen`] and [`load_adapter`].
pub fn load_checkpoint(path: &Path, base: &LmDir, options: &NetworkOptions) -> Result<CausalLm> {
    if path.join("config.json").is_file() {
        load_frozen(&LmDir::open(path)?, None, options)
    } else {
        load_frozen(base, Some(&load_adapter(path)?), options)
    }
}

fn load(
    directory: &LmDir,
    trainable: Trainable<'_>,
    adapter: Option<&LoraAdapter>,
    options: &NetworkOptions,
) -> Result<(CausalLm, Params)> {
    let weights = directory.weights()?;
    let builder = Builder::new(BuilderConfig {
        device: options.device.clone(),
        dtype: options.dtype,
        trainable,
        quantization: options.quantization,
        adapter,
        seed: options.seed,
        ..BuilderConfig::new(Some(&weights))
    })?;
    let model = CausalLm::load(&builder, directory.config())?;
    Ok((model, builder.finish()?))
}

impl TrainedLm {
    /// Loads the network at `directory` with what `adapter` trains.
    ///
    /// # Errors
    /// When a file is missing or damaged, a target names no layer, or the adapter to start from does not fit.
    pub fn load(directory: &LmDir, adapter: &AdapterConfig, options: &NetworkOptions) -> Result<Self> {
        let trainable = match adapter {
            AdapterConfig::Lora(lora) => Trainable::Lora(lora),
            AdapterConfig::Full(_) => Trainable::All,
        };
        let start = start_adapter(adapter)?;
        let (model, params) = load(directory, trainable, start.as_ref(), options)?;
        Ok(Self {
            model,
            params,
            adapter: adapter.clone(),
            home: Home::Text(Box::new(directory.clone())),
            carried: LoraAdapter::default(),
        })
    }

    /// A network without weights of its own yet: every parameter drawn from the seed, all of them trained.
    ///
    /// # Errors
    /// [`Error::Models`].
    pub fn untrained(directory: &LmDir, options: &NetworkOptions) -> Result<Self> {
        let builder = Builder::new(BuilderConfig {
            device: options.device.clone(),
            dtype: options.dtype,
            trainable: Trainable::All,
            quantization: options.quantization,
            seed: options.seed,
            ..BuilderConfig::new(None)
        })?;
        let model = CausalLm::load(&builder, directory.config())?;
        Ok(Self {
            model,
            params: builder.finish()?,
            adapter: AdapterConfig::Full(diptych_models::FullConfig::default()),
            home: Home::Text(Box::new(directory.clone())),
            carried: LoraAdapter::default(),
        })
    }
}

impl<N> Trained<N> {
    /// Writes a PEFT adapter, or a checkpoint of the whole network.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        match &self.adapter {
            AdapterConfig::Lora(lora) => {
                let mut adapter = LoraAdapter::from_params(&self.params, lora, "")?;
                adapter.modules.extend(self.carried.modules.clone());
                if matches!(self.home, Home::Vision(_)) {
                    // Suffixes would also be those of a tower's layers that have no adapter: PEFT writes the layers.
                    adapter.targets = None;
                }
                Ok(adapter.save_peft(directory, Some(&self.home.path().to_string_lossy()))?)
            }
            AdapterConfig::Full(_) => {
                let trained = self.params.snapshot()?;
                match &self.home {
                    Home::Text(home) => Ok(lm::save(directory, home.config(), (&trained, DType::F32))?),
                    Home::Vision(home) => {
                        let tensors = home.with_trained(&trained, DType::F32)?;
                        Ok(vlm::save(directory, home.config(), (&tensors, DType::F32))?)
                    }
                }
            }
        }
    }

    /// Writes what can be used on its own: the adapter, or the whole network with its tokenizer.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save_final(&self, directory: &Path) -> Result<()> {
        self.save(directory)?;
        match &self.adapter {
            AdapterConfig::Lora(_) => Ok(()),
            AdapterConfig::Full(_) => copy_companions(self.home.path(), directory),
        }
    }

    /// Sets the parameters from what [`TrainedLm::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing or damaged, or belongs to another network.
    pub fn restore(&self, directory: &Path) -> Result<()> {
        let mut tensors = match (&self.adapter, &self.home) {
            (AdapterConfig::Lora(_), Home::Text(_)) => adapter_tensors(&load_adapter(directory)?),
            (AdapterConfig::Lora(_), Home::Vision(home)) => adapter_tensors(&home.adapter(directory)?),
            (AdapterConfig::Full(_), Home::Text(_)) => self.read_like_params(&LmDir::open(directory)?.weights()?)?,
            (AdapterConfig::Full(_), Home::Vision(_)) => self.read_like_params(&VlmDir::open(directory)?.weights()?)?,
        };
        for name in self.carried.modules.keys() {
            let prefix = format!("{name}.lora_");
            tensors.retain(|tensor, _| !tensor.starts_with(&prefix));
        }
        Ok(self.params.load(&tensors)?)
    }

    fn read_like_params(&self, weights: &Weights) -> Result<BTreeMap<String, Tensor>> {
        let read = |(name, var): (&str, &diptych_tensor::Var)| -> Result<(String, Tensor)> {
            let tensor = weights.get(name, var.dims(), var.dtype(), var.device())?;
            Ok((name.to_owned(), tensor))
        };
        self.params.iter().map(read).collect()
    }
}

impl From<TrainedLm> for Trained<Network> {
    fn from(trained: TrainedLm) -> Self {
        Self {
            model: trained.model.into(),
            params: trained.params,
            adapter: trained.adapter,
            home: trained.home,
            carried: trained.carried,
        }
    }
}

/// The images that a vision-language model reads, and what is known about them.
#[derive(Debug, Clone)]
pub struct VisionParts {
    /// The images of the run.
    pub images: Arc<RunImages>,
    /// What other networks with the same tower, which does not change, made of them.
    pub kept: Option<Arc<KeptFeatures>>,
}

impl Trained<Network> {
    /// Loads the vision-language model at `directory` with what `adapter` trains; of the tower something is trained only where
    /// `tower` says so.
    ///
    /// # Errors
    /// As [`TrainedLm::load`].
    pub fn load_vision(
        directory: &VlmDir,
        adapter: &AdapterConfig,
        tower: TowerTraining,
        options: &NetworkOptions,
        parts: VisionParts,
    ) -> Result<Self> {
        let trainable = match adapter {
            AdapterConfig::Lora(lora) => Trainable::Lora(lora),
            AdapterConfig::Full(_) => Trainable::All,
        };
        let start = start_vision_adapter(directory, adapter)?;
        let (model, params) = load_vision(directory, trainable, (start.as_ref(), tower), options)?;
        let is_trained = |name: &String| params.names().any(|param| param == format!("{name}.lora_A.weight"));
        let mut carried = start.unwrap_or_default();
        carried.modules.retain(|name, _| !is_trained(name));
        Ok(Self {
            model: VisionNetwork::new(model, &params, parts.images, parts.kept).into(),
            params,
            adapter: adapter.clone(),
            home: Home::Vision(Box::new(directory.clone())),
            carried,
        })
    }
}

/// Loads a vision-language model, frozen, perhaps with a frozen adapter.
///
/// # Errors
/// When a file is missing or damaged, or the adapter does not fit.
pub fn load_frozen_vision(
    directory: &VlmDir,
    adapter: Option<&LoraAdapter>,
    options: &NetworkOptions,
    parts: VisionParts,
) -> Result<VisionNetwork> {
    let (model, params) = load_vision(directory, Trainable::None, (adapter, TowerTraining::Frozen), options)?;
    Ok(VisionNetwork::new(model, &params, parts.images, parts.kept))
}

/// The adapter that a vision-language model starts from, where it starts from one.
///
/// # Errors
/// When it is missing or damaged.
pub fn start_vision_adapter(directory: &VlmDir, adapter: &AdapterConfig) -> Result<Option<LoraAdapter>> {
    match adapter {
        AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) => Ok(Some(directory.adapter(path)?)),
        AdapterConfig::Lora(_) | AdapterConfig::Full(_) => Ok(None),
    }
}

fn load_vision(
    directory: &VlmDir,
    trainable: Trainable<'_>,
    (adapter, tower): (Option<&LoraAdapter>, TowerTraining),
    options: &NetworkOptions,
) -> Result<(VisionLanguageModel, Params)> {
    let weights = directory.weights()?;
    let builder = Builder::new(BuilderConfig {
        device: options.device.clone(),
        dtype: options.dtype,
        trainable,
        quantization: options.quantization,
        adapter,
        seed: options.seed,
        ..BuilderConfig::new(Some(&weights))
    })?;
    let model = VisionLanguageModel::load(&builder, directory.config(), tower)?;
    Ok((model, builder.finish()?))
}

/// The adapter that a run starts from, where it starts from one.
pub(crate) fn start_adapter(adapter: &AdapterConfig) -> Result<Option<LoraAdapter>> {
    match adapter {
        AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) => load_adapter(path).map(Some),
        AdapterConfig::Lora(_) | AdapterConfig::Full(_) => Ok(None),
    }
}

/// An adapter's matrices under the names of parameters.
fn adapter_tensors(adapter: &LoraAdapter) -> BTreeMap<String, Tensor> {
    adapter
        .modules
        .iter()
        .flat_map(|(name, module)| {
            let magnitude = module.magnitude.clone();
            [
                Some((format!("{name}.lora_A.weight"), module.down.clone())),
                Some((format!("{name}.lora_B.weight"), module.up.clone())),
                magnitude.map(|magnitude| (format!("{name}.lora_magnitude_vector"), magnitude)),
            ]
        })
        .flatten()
        .collect()
}

/// Files of a tokenizer and its chat template.
pub(crate) const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// How images are processed, where a model reads any.
const PROCESSOR_FILES: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];

/// How a model's answers are sampled where nothing else is said, with the tokens that end them.
const GENERATION: &str = "generation_config.json";

/// Copies what belongs to a model beside its configuration and weights: its tokenizer, and the model's own way of sampling in the place
/// of the one that was made from its configuration.
///
/// # Errors
/// [`Error::Io`] when a file cannot be read or written.
pub fn copy_companions(from: &Path, to: &Path) -> Result<()> {
    copy_tokenizer(from, to)?;
    PROCESSOR_FILES
        .into_iter()
        .try_for_each(|name| copy_file(name, from, to))?;
    copy_file(GENERATION, from, to)
}

/// Copies what a tokenizer is made of, as far as it is there.
///
/// # Errors
/// [`Error::Io`] when a file cannot be read or written.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    TOKENIZER_FILES
        .into_iter()
        .try_for_each(|name| copy_file(name, from, to))
}

/// Copies a file, if it is there.
fn copy_file(name: &str, from: &Path, to: &Path) -> Result<()> {
    let path = from.join(name);
    if path.is_file() {
        let content = std::fs::read(&path).map_err(Error::io("read", &path))?;
        write_file(&to.join(name), &content)?;
    }
    Ok(())
}
