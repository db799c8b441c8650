//! Judges made of a CLIP.

use std::path::{Path, PathBuf};

use diptych_models::clip::{
    ClipConfig, ClipModel, TimeConditionedClip, from_open_clip, normalized, read_open_clip_config, vit_h_14,
};
use diptych_models::text_encoder::ClipTokenizer;
use diptych_models::vision::{Filter, ImageProcessor, Resize, ResizeArithmetic};
use diptych_models::{Builder, BuilderConfig, Error as ModelError};
use diptych_tensor::{DType, Device, Result as TensorResult, Tensor, Weights};
use image::RgbImage;

use super::linear_chain::LinearChain;
use super::loaded::{NetworkJudge, open_weights};
use super::{
    AestheticConfig, ClipScoreConfig, ClipScoreConvention, HpsConfig, HpsConvention, HpsResize, JudgeOptions,
    PickScoreConfig, PickScoreConvention, StepAwareConfig,
};
use crate::error::{Error, Result};

/// The last of the thousand steps that step-aware models know.
const LAST_TIMESTEP: f64 = 999.0;

/// What is made of features.
#[derive(Debug)]
enum Formula {
    /// `factor` times the cosine, or times the positive part of it; every prompt begins with `prefix`.
    Cosine {
        factor: f64,
        is_clipped: bool,
        prefix: &'static str,
    },
    /// The cosine times the learned factor.
    Scaled,
    /// A head on the normalized image feature; no prompt.
    Head(LinearChain),
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a judge holds one of these")]
enum Network {
    Plain(ClipModel),
    Timed { clip: TimeConditionedClip, timestep: f64 },
}

/// Where a network of `open_clip` is described: beside its weights, or in their directory.
pub(super) fn hps_description(path: &Path) -> PathBuf {
    let directory = if path.is_dir() {
        path
    } else {
        path.parent().unwrap_or(Path::new(""))
    };
    directory.join("open_clip_config.json")
}

/// A CLIP and what is made of its features.
#[derive(Debug)]
pub(super) struct ClipJudge {
    network: Network,
    formula: Formula,
    tokenizer: ClipTokenizer,
    processor: ImageProcessor,
    device: Device,
}

impl ClipJudge {
    pub(super) fn clip_score(config: &ClipScoreConfig, options: &JudgeOptions) -> Result<Self> {
        let (factor, is_clipped, prefix) = match config.convention {
            ClipScoreConvention::Cosine => (1.0, false, ""),
            ClipScoreConvention::Percent => (100.0, true, ""),
            ClipScoreConvention::Paper => (2.5, true, "A photo depicts "),
        };
        let formula = Formula::Cosine {
            factor,
            is_clipped,
            prefix,
        };
        Self::from_transformers(&config.path, formula, options)
    }

    pub(super) fn pick_score(config: &PickScoreConfig, options: &JudgeOptions) -> Result<Self> {
        let formula = match config.convention {
            PickScoreConvention::Scaled => Formula::Scaled,
            PickScoreConvention::Cosine => Formula::Cosine {
                factor: 1.0,
                is_clipped: false,
                prefix: "",
            },
        };
        Self::from_transformers(&config.path, formula, options)
    }

    pub(super) fn aesthetic(config: &AestheticConfig, options: &JudgeOptions) -> Result<Self> {
        let clip = ClipConfig::from_file(config.path.join("config.json"))?;
        let weights = open_weights(&config.head, &[])?;
        let builder = builder(&weights, options)?;
        let head = LinearChain::load(&builder, &weights, "", clip.projection_dim)?;
        builder.finish()?;
        Self::from_transformers(&config.path, Formula::Head(head), options)
    }

    /// A directory in transformers' layout.
    fn from_transformers(path: &Path, formula: Formula, options: &JudgeOptions) -> Result<Self> {
        let config = ClipConfig::from_file(path.join("config.json"))?;
        let weights = open_weights(path, &["model.safetensors"])?;
        if weights.names().any(|name| name.contains("adaLN_modulation")) {
            return Err(Error::JudgeSetup {
                path: weights.origin().to_owned(),
                found: "a CLIP with a time in its image half".to_owned(),
                expected: "a plain one; this is a judge `step_aware`".to_owned(),
            });
        }
        let processor = ImageProcessor::from_dir(path)?;
        let network = Network::Plain(load(&weights, options, |builder| ClipModel::load(builder, &config))?);
        Self::assemble((network, &config), formula, path, processor, options)
    }

    pub(super) fn hps(config: &HpsConfig, options: &JudgeOptions) -> Result<Self> {
        let names = [
            "HPS_v2.1_compressed.safetensors",
            "HPS_v2_compressed.safetensors",
            "model.safetensors",
        ];
        let weights = from_open_clip(&open_weights(&config.path, &names)?)?;
        let described = hps_description(&config.path);
        let clip = if described.is_file() {
            read_open_clip_config(&described)?
        } else {
            vit_h_14()
        };
        let processor = ImageProcessor {
            resize: Some(Resize::LongestEdgePadded(clip.vision.image_size)),
            filter: match config.resize {
                HpsResize::Antialiased => Filter::Bicubic,
                HpsResize::Aliased => Filter::BicubicAliased,
            },
            arithmetic: ResizeArithmetic::Float,
            ..ImageProcessor::clip(clip.vision.image_size)
        };
        let factor = match config.convention {
            HpsConvention::Cosine => 1.0,
            HpsConvention::Percent => 100.0,
        };
        let network = Network::Plain(load(&weights, options, |builder| ClipModel::load(builder, &clip))?);
        let formula = Formula::Cosine {
            factor,
            is_clipped: false,
            prefix: "",
        };
        Self::assemble((network, &clip), formula, &config.tokenizer, processor, options)
    }

    pub(super) fn step_aware(config: &StepAwareConfig, options: &JudgeOptions) -> Result<Self> {
        let file = config.path.join("config.json");
        if !(0.0..=LAST_TIMESTEP).contains(&config.timestep) {
            return Err(Error::JudgeSetup {
                path: config.path.clone(),
                found: format!("`timestep` {}", config.timestep),
                expected: format!("a number from 0 to {LAST_TIMESTEP}"),
            });
        }
        let clip = ClipConfig::from_file(&file)?;
        let names = ["step-aware_preference_model.safetensors", "model.safetensors"];
        let weights = open_weights(config.weights.as_deref().unwrap_or(&config.path), &names)?;
        let weights = without_member_name(weights)?;
        if !weights.contains("t_embedder.mlp.0.weight") {
            return Err(Error::JudgeSetup {
                path: weights.origin().to_owned(),
                found: "no `t_embedder.mlp.0.weight`".to_owned(),
                expected: "a step-aware preference model, which embeds the time".to_owned(),
            });
        }
        let processor = ImageProcessor::step_aware(clip.vision.image_size);
        let timed = load(&weights, options, |builder| TimeConditionedClip::load(builder, &clip))?;
        let network = Network::Timed {
            clip: timed,
            timestep: config.timestep,
        };
        Self::assemble((network, &clip), Formula::Scaled, &config.path, processor, options)
    }

    fn assemble(
        (network, config): (Network, &ClipConfig),
        formula: Formula,
        tokenizer_path: &Path,
        processor: ImageProcessor,
        options: &JudgeOptions,
    ) -> Result<Self> {
        let tokenizer = ClipTokenizer::from_dir(tokenizer_path)?;
        let (vocabulary, len) = (tokenizer.vocab_size(), tokenizer.config().model_max_length);
        let (known, positions) = (config.text.vocab_size, config.text.max_position_embeddings);
        if vocabulary > known || len > positions {
            return Err(Error::JudgeSetup {
                path: tokenizer_path.to_owned(),
                found: format!("a tokenizer of {vocabulary} tokens and texts of {len}"),
                expected: format!("at most the network's {known} tokens and texts of {positions}"),
            });
        }
        let side = config.vision.image_size;
        let probe = RgbImage::new(side as u32 + 3, side as u32 + 1);
        let found = processor.images(&[probe], &Device::Cpu)?;
        if found.dims() != [1, 3, side, side] {
            return Err(Error::JudgeSetup {
                path: tokenizer_path.to_owned(),
                found: format!("an image processor that makes images of {:?}", &found.dims()[2..]),
                expected: format!("[{side}, {side}], what the network reads"),
            });
        }
        Ok(Self {
            network,
            formula,
            tokenizer,
            processor,
            device: options.device.clone(),
        })
    }

    fn image_features(&self, pixel_values: &Tensor, timesteps: Option<&[f64]>) -> Result<Tensor> {
        match &self.network {
            Network::Plain(clip) => Ok(clip.image_features(pixel_values)?),
            Network::Timed { clip, timestep } => {
                let batch = pixel_values.dims().first().copied().unwrap_or(0);
                let times = timesteps.map_or_else(|| vec![*timestep; batch], <[f64]>::to_vec);
                let times: Vec<f32> = times.iter().map(|&time| time as f32).collect();
                let times = Tensor::new(times, pixel_values.device()).map_err(tensor_error)?;
                Ok(clip.image_features(pixel_values, &times)?)
            }
        }
    }

    fn clip(&self) -> &ClipModel {
        match &self.network {
            Network::Plain(clip) => clip,
            Network::Timed { clip, .. } => &clip.clip,
        }
    }
}

impl NetworkJudge for ClipJudge {
    fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn knows_time(&self) -> bool {
        matches!(self.network, Network::Timed { .. })
    }

    fn scores(&self, prompts: &[String], pixel_values: &Tensor, timesteps: Option<&[f64]>) -> Result<Tensor> {
        let images = self.image_features(pixel_values, timesteps)?;
        let images = unit(&images)?;
        if let Formula::Head(head) = &self.formula {
            return head.forward(&images);
        }
        let input_ids = match self.formula {
            Formula::Cosine { prefix, .. } if !prefix.is_empty() => {
                let prompts: Vec<String> = prompts.iter().map(|prompt| format!("{prefix}{prompt}")).collect();
                self.tokenizer.encode_batch(&prompts, &self.device)?
            }
            _ => self.tokenizer.encode_batch(prompts, &self.device)?,
        };
        let texts = unit(&self.clip().text_features(&input_ids)?)?;
        let cosines = || -> TensorResult<Tensor> { Ok((images * texts)?.sum(1)?) };
        let cosines = cosines().map_err(ModelError::from)?;
        let scored = || -> TensorResult<Tensor> {
            Ok(match &self.formula {
                Formula::Cosine { factor, is_clipped, .. } => {
                    let kept = if *is_clipped { cosines.relu()? } else { cosines.clone() };
                    (kept * *factor)?
                }
                _ => cosines.broadcast_mul(&self.clip().logit_scale().map_err(flatten)?.to_dtype(DType::F32)?)?,
            })
        };
        Ok(scored().map_err(ModelError::from)?)
    }
}

/// Rows of norm 1, in f32.
fn unit(features: &Tensor) -> Result<Tensor> {
    let run = || normalized(&features.to_dtype(DType::F32)?);
    Ok(run().map_err(ModelError::from)?)
}

fn flatten(error: ModelError) -> diptych_tensor::Error {
    match error {
        ModelError::Tensor(error) => error,
        other => diptych_tensor::OperationError::Msg(other.to_string()).into(),
    }
}

fn tensor_error(error: diptych_tensor::OperationError) -> Error {
    ModelError::Tensor(error.into()).into()
}

/// The weights without `model.` before every name: published files hold the network as a member of another.
fn without_member_name(weights: Weights) -> Result<Weights> {
    const MEMBER: &str = "model.";
    if !weights.names().all(|name| name.starts_with(MEMBER)) {
        return Ok(weights);
    }
    let tensors = weights
        .names()
        .map(|name| {
            let dtype = weights.dtype(name).unwrap_or(DType::F32);
            let tensor = weights.read(name, dtype, &Device::Cpu).map_err(ModelError::from)?;
            Ok((name[MEMBER.len()..].to_owned(), tensor))
        })
        .collect::<Result<_>>()?;
    Ok(Weights::from_tensors(weights.origin(), tensors))
}

pub(super) fn builder<'a>(weights: &'a Weights, options: &JudgeOptions) -> Result<Builder<'a>> {
    Ok(Builder::new(BuilderConfig {
        device: options.device.clone(),
        dtype: options.dtype,
        ..BuilderConfig::new(Some(weights))
    })?)
}

fn load<T>(
    weights: &Weights,
    options: &JudgeOptions,
    network: impl FnOnce(&Builder<'_>) -> diptych_models::Result<T>,
) -> Result<T> {
    let builder = builder(weights, options)?;
    let network = network(&builder)?;
    builder.finish()?;
    Ok(network)
}
