//! What every entry starts from: a checkpoint with a fault that is soon mended, and pairs of its own images.
//!
//! The shipped checkpoint confuses colors and shapes, which takes minutes to unlearn and seconds to show nothing. This one is the same,
//! trained a little further on pictures of which half show nothing but their background: it often leaves out what its prompt names.

use std::path::{Path, PathBuf};

use diptych::data::{ImageCaption, ImageSource, write_captions, write_pairs};
use diptych::diffusion::{NetworkOptions, PairsConfig, Pipeline, SampleConfig, build_pairs};
use diptych::shapes::{Example, SceneConfig, Split, render};
use diptych::tensor::random::{Stream, generator, uniform_vec};
use diptych::tensor::{DType, Device, thread};
use diptych::train::{Reporter, RunDirectory};

use crate::comparison::root;
use crate::worker;

/// Source of the scenes and of which are blank.
const SEED: u64 = 5;
/// Pictures it is trained on, each less than twice.
const NUM_PICTURES: u64 = 3000;
/// Pixels a side.
const SIZE: u32 = 32;
/// The share of pictures without objects.
const BLANK: f32 = 0.5;
/// Prompts that pairs are sampled for.
const NUM_PROMPTS: u64 = 600;

/// Where both are.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) model: PathBuf,
    pub(crate) pairs: PathBuf,
}

impl Checkpoint {
    /// Makes what is not there yet; some minutes.
    pub(crate) fn prepare(scenes: &SceneConfig, out: &Path) -> anyhow::Result<Self> {
        let checkpoint = Self {
            model: out.join("forgetful"),
            pairs: out.join("pairs.jsonl"),
        };
        if !checkpoint.model.is_dir() {
            train(scenes, out, &checkpoint.model)?;
        }
        if !checkpoint.pairs.is_file() {
            thread::on_large_stack(|| sample_pairs(scenes, &checkpoint))??;
        }
        Ok(checkpoint)
    }
}

/// Further training of the shipped checkpoint, all of its parameters.
fn train(scenes: &SceneConfig, out: &Path, model: &Path) -> anyhow::Result<()> {
    let data = out.join("half-blank.jsonl");
    let is_blank = uniform_vec(
        &mut generator(SEED, Stream::Noise, 0, 0),
        0.0,
        1.0,
        NUM_PICTURES as usize,
    );
    let pictures = is_blank.into_iter().zip(0..).map(|(draw, index)| {
        let mut example = Example::generate(SEED, index, Split::Train, scenes)?;
        if draw < BLANK {
            example.scene.objects.clear();
        }
        let image = ImageSource::from_image(&render(&example.scene, SIZE))?;
        Ok(ImageCaption::new(index.to_string(), example.caption, image))
    });
    write_captions(&data, &pictures.collect::<anyhow::Result<Vec<_>>>()?)?;
    let run = out.join("forgetful-run");
    if run.exists() {
        std::fs::remove_dir_all(&run)?;
    }
    let text = |path: &Path| format!("{:?}", path.display().to_string());
    let overrides = [
        format!("run.output={}", text(&run)),
        "run.device=\"cpu\"".to_owned(),
        format!("data.path={}", text(&data)),
        "data.layout=\"image-caption\"".to_owned(),
        "adapter={ full = {} }".to_owned(),
        "optimizer.adamw.lr=5e-4".to_owned(),
        "train.steps=300".to_owned(),
    ];
    let recipe = root().join("examples/recipes/shapes_diffusion_sft.toml");
    worker::train_apart(&recipe, &overrides)?;
    std::fs::rename(RunDirectory::new(&run).final_weights(), model)?;
    std::fs::remove_dir_all(&run)?;
    Ok(())
}

/// For each prompt the best of four images over the worst.
fn sample_pairs(scenes: &SceneConfig, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let caption = |index| Ok(Example::generate(SEED, NUM_PICTURES + index, Split::Train, scenes)?.caption);
    let prompts = (0..NUM_PROMPTS).map(caption).collect::<anyhow::Result<Vec<_>>>()?;
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
    };
    let pipeline = Pipeline::load(&checkpoint.model, None, &options)?;
    let sampling = SampleConfig {
        seed: SEED,
        steps: 20,
        guidance_scale: 1.0,
        ..SampleConfig::default()
    };
    let config = PairsConfig {
        candidates: 4,
        min_chosen: 0.5,
        ..PairsConfig::default()
    };
    let pairs = build_pairs(&pipeline, &prompts, &sampling, &config, &mut Reporter::silent())?;
    Ok(write_pairs(&checkpoint.pairs, &pairs)?)
}
