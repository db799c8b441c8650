//! `ImageReward`.

use diptych_models::Error as ModelError;
use diptych_models::blip::{BertTokenizer, BlipConfig, BlipEncoder};
use diptych_models::vision::ImageProcessor;
use diptych_tensor::{DType, Device, Result as TensorResult, Tensor};

use super::clip::builder;
use super::linear_chain::LinearChain;
use super::loaded::{NetworkJudge, open_weights};
use super::{ImageRewardConfig, JudgeOptions};
use crate::error::{Error, Result};

/// Mean of the raw reward over the published program's validation prompts.
const MEAN: f64 = 0.167_173_628_300_524_26;
/// Its standard deviation.
const STD: f64 = 1.033_339_496_605_407_2;
/// Tokens of a prompt that are read.
const MAX_LEN: usize = 35;

/// BLIP, a head, and two numbers.
#[derive(Debug)]
pub(super) struct ImageRewardJudge {
    blip: BlipEncoder,
    head: LinearChain,
    tokenizer: BertTokenizer,
    processor: ImageProcessor,
    device: Device,
}

impl ImageRewardJudge {
    pub(super) fn load(config: &ImageRewardConfig, options: &JudgeOptions) -> Result<Self> {
        let path = &config.path;
        let weights = open_weights(path, &["ImageReward.safetensors", "model.safetensors"])?;
        let blip_config = BlipConfig::read(path.join("med_config.json"), &weights, "blip.")?;
        let root = builder(&weights, options)?;
        let blip = BlipEncoder::load(&root.child("blip"), &blip_config)?;
        let head = LinearChain::load(&root.child("mlp"), &weights, "mlp.", blip_config.hidden_size)?;
        root.finish()?;
        let tokenizer = BertTokenizer::from_dir(path, MAX_LEN.min(blip_config.max_position_embeddings))?;
        // The program adds two tokens that texts do not have.
        if tokenizer.vocab_size() > blip_config.vocab_size {
            return Err(Error::JudgeSetup {
                path: path.clone(),
                found: format!("a vocabulary of {} tokens", tokenizer.vocab_size()),
                expected: format!("at most the network's {}", blip_config.vocab_size),
            });
        }
        Ok(Self {
            blip,
            head,
            tokenizer,
            processor: ImageProcessor::torchvision_clip(blip_config.image_size),
            device: options.device.clone(),
        })
    }
}

impl NetworkJudge for ImageRewardJudge {
    fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn knows_time(&self) -> bool {
        false
    }

    fn scores(&self, prompts: &[String], pixel_values: &Tensor, _timesteps: Option<&[f64]>) -> Result<Tensor> {
        let (ids, mask) = self.tokenizer.encode_batch(prompts, &self.device)?;
        let raw = self.head.forward(&self.blip.forward(pixel_values, &ids, &mask)?)?;
        let scaled = || -> TensorResult<Tensor> { Ok(((raw.to_dtype(DType::F32)? - MEAN)? / STD)?) };
        Ok(scaled().map_err(ModelError::from)?)
    }
}
