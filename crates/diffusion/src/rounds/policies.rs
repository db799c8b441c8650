//! The policies of the rounds before, for those who sample, are trained on or are compared with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_models::diffusers::PipelineDir;
use diptych_models::{AdapterConfig, LoraConfig};
use diptych_tensor::files::write_directory;
use diptych_tensor::random::{Stream, generator};
use diptych_tensor::{CheckpointPolicy, Params, Tensor};
use diptych_train::Recipe;
use rand::Rng as _;

use super::config::{PastPolicy, RoundSampler, RoundStart, RoundsConfig};
use super::draws;
use super::place::{PolicyRecord, RoundDirectory, content_hash, round_name};
use crate::Result;
use crate::method::{MethodConfig, TextTraining, TrainedDenoiser, network_options};
use crate::modality::{Diffusion, adapter_of};
use crate::pipeline::{NetworkOptions, Pipeline};

/// Where a policy's parameters lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Weights {
    /// In the model that the recipe names.
    Base,
    /// In an adapter of it.
    Adapter(PathBuf),
    /// In a pipeline of its own.
    Pipeline(PathBuf),
}

/// A policy by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) weights: Weights,
}

impl Policy {
    /// Loads all it takes to sample, frozen. `model` is the recipe's.
    pub(super) fn load(&self, model: &Path, options: &NetworkOptions) -> Result<Pipeline> {
        match &self.weights {
            Weights::Base => Pipeline::load(model, None, options),
            Weights::Adapter(path) => Pipeline::load(model, Some(path), options),
            Weights::Pipeline(path) => Pipeline::load(path, None, options),
        }
    }

    pub(super) fn record(&self) -> Result<PolicyRecord> {
        let sha256 = match &self.weights {
            Weights::Base => None,
            Weights::Adapter(path) | Weights::Pipeline(path) => Some(content_hash(path)?),
        };
        Ok(PolicyRecord {
            name: self.name.clone(),
            sha256,
        })
    }
}

/// The policies so far: the initial one, then that of each round.
#[derive(Debug)]
pub(super) struct History {
    policies: Vec<Policy>,
    is_adapter: bool,
}

impl History {
    pub(super) fn new(recipe: &Recipe<Diffusion>) -> Result<Self> {
        let adapter = adapter_of(recipe)?;
        let weights = match &adapter {
            AdapterConfig::Lora(LoraConfig { init: Some(path), .. }) => Weights::Adapter(absolute(path)?),
            AdapterConfig::Lora(_) | AdapterConfig::Full(_) => Weights::Base,
        };
        let initial = Policy {
            name: "initial".into(),
            weights,
        };
        Ok(Self {
            policies: vec![initial],
            is_adapter: matches!(adapter, AdapterConfig::Lora(_)),
        })
    }

    pub(super) fn initial(&self) -> &Policy {
        &self.policies[0]
    }

    pub(super) fn newest(&self) -> &Policy {
        // The initial one is always there.
        &self.policies[self.policies.len() - 1]
    }

    /// Adds what a round has published.
    pub(super) fn push(&mut self, round: usize, published: &Path) -> Result<()> {
        let path = absolute(published)?;
        let weights = if self.is_adapter {
            Weights::Adapter(path)
        } else {
            Weights::Pipeline(path)
        };
        self.policies.push(Policy {
            name: round_name(round),
            weights,
        });
        Ok(())
    }

    /// The newest `num_past` policies, all without it.
    fn past(&self, num_past: Option<usize>) -> &[Policy] {
        let num = num_past.map_or(self.policies.len(), |num| num.min(self.policies.len()));
        &self.policies[self.policies.len() - num..]
    }
}

/// Who does what in a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cast {
    pub(super) start: Policy,
    /// Where the objective compares.
    pub(super) reference: Option<Policy>,
    /// Who may sample, at least one.
    pub(super) samplers: Vec<Policy>,
}

/// Chooses the policies of a round; makes the extrapolated one where it is asked for. `first` is the recipe of the first round.
pub(super) fn cast(
    history: &History,
    (rounds, seed): (&RoundsConfig, u64),
    (round, directory): (usize, &RoundDirectory),
    first: &Recipe<Diffusion>,
) -> Result<Cast> {
    let past = history.past(rounds.num_past);
    let drawn = generator(seed, Stream::Rounds, round as u64, draws::PAST).random_range(0..past.len());
    let find = |which: PastPolicy| match which {
        PastPolicy::Initial => Ok(history.initial().clone()),
        PastPolicy::Previous => Ok(history.newest().clone()),
        PastPolicy::RandomPast => Ok(past[drawn].clone()),
        PastPolicy::Extrapolated => extrapolated(history, rounds.extrapolation.unwrap_or(0.0), directory, first),
    };
    let needs_reference = first.objective.requirements().reference;
    let reference = needs_reference.then(|| find(rounds.reference.unwrap_or_default()));
    Ok(Cast {
        start: find(match rounds.start {
            RoundStart::Initial => PastPolicy::Initial,
            RoundStart::Previous => PastPolicy::Previous,
            RoundStart::Extrapolated => PastPolicy::Extrapolated,
        })?,
        reference: reference.transpose()?,
        samplers: match rounds.sampler {
            RoundSampler::Initial => vec![find(PastPolicy::Initial)?],
            RoundSampler::Previous => vec![find(PastPolicy::Previous)?],
            RoundSampler::RandomPast => vec![find(PastPolicy::RandomPast)?],
            RoundSampler::Extrapolated => vec![find(PastPolicy::Extrapolated)?],
            RoundSampler::Mixture => past.to_vec(),
        },
    })
}

/// `theta + a (theta - theta_before)`, parameter by parameter: the step of Accelerated Preference Optimization (He et al.,
/// arXiv:2410.06293) in the parameters. Of a LoRA adapter that moves `A` and `B` each by itself, so that the update of a layer is the
/// extrapolated one to first order. Before there is a step to go on with, it is the initial policy.
fn extrapolated(
    history: &History,
    extrapolation: f64,
    directory: &RoundDirectory,
    first: &Recipe<Diffusion>,
) -> Result<Policy> {
    let [.., before, newest] = history.policies.as_slice() else {
        return Ok(history.initial().clone());
    };
    let path = directory.extrapolated();
    if !path.exists() {
        let network = network(first)?;
        let before = parameters(&network, before)?;
        let newest = parameters(&network, newest)?;
        network.params.load(&beyond(&before, &newest, extrapolation)?)?;
        write_directory::<crate::Error>(&path, |partial| network.save_final(partial))?;
    }
    let path = absolute(&path)?;
    Ok(Policy {
        name: "extrapolated".into(),
        weights: if history.is_adapter {
            Weights::Adapter(path)
        } else {
            Weights::Pipeline(path)
        },
    })
}

/// What the first round trains, as it begins.
fn network(first: &Recipe<Diffusion>) -> Result<TrainedDenoiser> {
    let is_text_trained = matches!(&first.method, MethodConfig::Sft(sft) if sft.train_text_encoder);
    let text = if is_text_trained {
        TextTraining::Trained
    } else {
        TextTraining::Frozen
    };
    TrainedDenoiser::load(
        &PipelineDir::open(first.model_path()?)?,
        &network_options(first)?,
        &adapter_of(first)?,
        text,
        CheckpointPolicy::Off,
    )
}

/// The trained parameters of a policy. Those of the initial one are what the network has before anything is loaded into it.
fn parameters(network: &TrainedDenoiser, policy: &Policy) -> Result<BTreeMap<String, Tensor>> {
    if let ("initial", _) | (_, Weights::Base) = (policy.name.as_str(), &policy.weights) {
        return copied(&network.params);
    }
    match &policy.weights {
        Weights::Base => {}
        Weights::Adapter(path) | Weights::Pipeline(path) => network.restore(path)?,
    }
    copied(&network.params)
}

/// Values that stay when the parameters change.
fn copied(params: &Params) -> Result<BTreeMap<String, Tensor>> {
    let copy = |(name, tensor): (String, Tensor)| -> diptych_tensor::Result<_> { Ok((name, tensor.copy()?)) };
    Ok(params
        .snapshot()?
        .into_iter()
        .map(copy)
        .collect::<diptych_tensor::Result<_>>()?)
}

fn beyond(
    before: &BTreeMap<String, Tensor>,
    newest: &BTreeMap<String, Tensor>,
    extrapolation: f64,
) -> diptych_tensor::Result<BTreeMap<String, Tensor>> {
    newest
        .iter()
        .map(|(name, newest)| {
            let step = ((newest - &before[name])? * extrapolation)?;
            Ok((name.clone(), (newest + step)?))
        })
        .collect()
}

/// A path that means the same wherever it is read.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(super::place::io("find", path))
}
