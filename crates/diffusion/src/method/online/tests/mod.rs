//! The mathematics of these methods against an independent program, on a studio without records.

mod golden_runs;
mod reward_steps;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_data::HostTensor;
use diptych_models::diffusers::PipelineDir;
use diptych_models::{AdapterConfig, LoraConfig, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Tensor, Weights};

use super::config::RolloutConfig;
use super::reward::Reward;
use super::studio::{PromptSet, Studio};
use crate::Result;
use crate::method::reference::Reference;
use crate::method::trained::{TextTraining, TrainedDenoiser};
use crate::pipeline::{NetworkOptions, PromptEmbeddings, load_vae};

pub(super) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/online")
}

/// How red an image is and how little it shines: the reward of the golden files.
#[derive(Debug)]
pub(super) struct Tint;

impl Reward for Tint {
    fn name(&self) -> &'static str {
        "tint"
    }

    fn is_differentiable(&self) -> bool {
        true
    }

    fn rewards(&self, _: &[&str], pixels: &Tensor, _: f32) -> Result<Tensor> {
        let compute = || -> diptych_tensor::Result<Tensor> {
            let weights = Tensor::new(&[1_f32, -0.5, 0.25], pixels.device())?.reshape((1, 3, 1, 1))?;
            let tint = pixels.broadcast_mul(&weights)?.flatten_from(1)?.mean(1)?;
            Ok((tint - (pixels.sqr()?.flatten_from(1)?.mean(1)? * 0.1)?)?)
        };
        Ok(compute()?)
    }
}

/// Tensors of a golden file by name.
pub(super) fn read(file: &str, name: &str, dtype: DType) -> Tensor {
    let weights = Weights::open(&golden().join(file)).unwrap();
    weights.read(name, dtype, &Device::Cpu).unwrap()
}

/// A pipeline of the networks of `replay/` and `online/`.
fn assemble(model: &Path) {
    let replay = golden().join("../replay");
    for (from, to) in [
        (replay.join("model/unet/config.json"), "unet/config.json"),
        (
            replay.join("model/unet/diffusion_pytorch_model.safetensors"),
            "unet/diffusion_pytorch_model.safetensors",
        ),
        (golden().join("model/vae/config.json"), "vae/config.json"),
        (
            golden().join("model/vae/diffusion_pytorch_model.safetensors"),
            "vae/diffusion_pytorch_model.safetensors",
        ),
        (
            golden().join("model/scheduler/scheduler_config.json"),
            "scheduler/scheduler_config.json",
        ),
    ] {
        std::fs::create_dir_all(model.join(to).parent().unwrap()).unwrap();
        std::fs::copy(from, model.join(to)).unwrap();
    }
    let components = [
        ("scheduler", "diffusers", "DDIMScheduler"),
        ("unet", "diffusers", "UNet2DConditionModel"),
        ("vae", "diffusers", "AutoencoderKL"),
    ];
    diptych_models::diffusers::save_model_index(model, "StableDiffusionPipeline", &components).unwrap();
}

/// The model and the adapter of `replay/` with the autoencoder, the schedule and the prompts of `online/`.
pub(super) fn studio(directory: &Path, rollout: &RolloutConfig) -> Studio {
    let replay = golden().join("../replay");
    let model = directory.join("model");
    assemble(&model);
    let pipeline = PipelineDir::open(&model).unwrap();
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
    };
    let adapter = AdapterConfig::Lora(LoraConfig {
        rank: 4,
        alpha: 8.0,
        init: Some(replay.join("adapter")),
        ..LoraConfig::default()
    });
    let policy = TrainedDenoiser::load(
        &pipeline,
        &options,
        &adapter,
        TextTraining::Frozen,
        CheckpointPolicy::Off,
    )
    .unwrap();
    let states = read("embeddings.safetensors", "encoder_hidden_states", DType::F32);
    let shape = states.dims().to_vec();
    let states = HostTensor::new(shape, states.flatten_all().unwrap().to_vec1().unwrap()).unwrap();
    let names = || vec!["first".to_owned(), "second".to_owned()];
    Studio {
        reference: Reference::AdapterOff,
        vae: Arc::new(load_vae(&pipeline, &options, Trainable::None).unwrap().0),
        reward: Arc::new(Tint),
        prompts: PromptSet {
            ids: names(),
            texts: names(),
            embeddings: PromptEmbeddings::from_rows(states, None),
            rows: vec![0, 1],
            empty: Some(2),
        },
        sampler: Arc::new(rollout.sampler().prepare(policy.denoiser.schedule()).unwrap()),
        guidance_scale: rollout.guidance_scale,
        latent_shape: policy.denoiser.latent_shape().unwrap(),
        policy,
    }
}
