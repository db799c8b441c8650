//! The network that is trained: a CLIP, or one with a time in its image half.

use std::path::Path;

use diptych_models::clip::{ClipConfig, ClipModel, TimeConditionedClip, with_neutral_time};
use diptych_models::diffusers::ComponentDir;
use diptych_models::{Builder, BuilderConfig, Trainable};
use diptych_tensor::{Params, Tensor, Weights};

use crate::pipeline::NetworkOptions;
use crate::{Error, Result};

/// A name that only networks with a time have.
const OF_TIME: &str = "t_embedder.mlp.0.weight";

/// The network and its configuration.
#[derive(Debug)]
pub(super) struct Network {
    kind: Kind,
    config: ClipConfig,
}

#[derive(Debug)]
enum Kind {
    Plain(Box<ClipModel>),
    Timed(Box<TimeConditionedClip>),
}

/// Whether the network is told the denoising step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Time {
    Unknown,
    Known,
}

impl Network {
    /// Reads the directory of a CLIP in transformers' layout; all of it is trained. A plain one gets a time that changes nothing yet where one is
    /// wanted.
    pub(super) fn load(directory: &Path, time: Time, options: &NetworkOptions) -> Result<(Self, Params)> {
        let config = ClipConfig::from_file(directory.join("config.json"))?;
        let mut weights = ComponentDir::new(directory).weights()?;
        match (time, weights.contains(OF_TIME)) {
            (Time::Unknown, true) => {
                return Err(Error::Recipe {
                    key: "model.path".into(),
                    problem: "is a preference model that knows the denoising step".into(),
                    hint: "name a plain CLIP, or give `[method.preference_model.step_aware]`".into(),
                });
            }
            (Time::Known, false) => weights = with_neutral_time(&weights, &config, options.seed)?,
            (Time::Unknown, false) | (Time::Known, true) => {}
        }
        let builder = builder(&weights, options)?;
        let kind = match time {
            Time::Unknown => Kind::Plain(Box::new(ClipModel::load(&builder, &config)?)),
            Time::Known => Kind::Timed(Box::new(TimeConditionedClip::load(&builder, &config)?)),
        };
        let params = builder.finish()?;
        Ok((Self { kind, config }, params))
    }

    pub(super) fn config(&self) -> &ClipConfig {
        &self.config
    }

    pub(super) fn clip(&self) -> &ClipModel {
        match &self.kind {
            Kind::Plain(clip) => clip,
            Kind::Timed(timed) => &timed.clip,
        }
    }

    /// Images in the joint space, not normalized.
    pub(super) fn image_features(&self, pixel_values: &Tensor, timesteps: Option<&[f32]>) -> Result<Tensor> {
        match &self.kind {
            Kind::Plain(clip) => Ok(clip.image_features(pixel_values)?),
            Kind::Timed(timed) => {
                let times = timesteps.unwrap_or_default();
                let column = || -> diptych_tensor::Result<Tensor> {
                    Ok(Tensor::from_slice(times, times.len(), pixel_values.device())?)
                };
                Ok(timed.image_features(pixel_values, &column()?)?)
            }
        }
    }
}

fn builder<'a>(weights: &'a Weights, options: &NetworkOptions) -> Result<Builder<'a>> {
    Ok(Builder::new(BuilderConfig {
        device: options.device.clone(),
        dtype: options.dtype,
        trainable: Trainable::All,
        seed: options.seed,
        ..BuilderConfig::new(Some(weights))
    })?)
}
