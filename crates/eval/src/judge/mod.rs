//! Judges: who says how good an image is for a prompt.

mod clip;
mod config;
mod content;
mod image_reward;
mod linear_chain;
mod loaded;
mod stored;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use diptych_shapes::Claims;
use diptych_tensor::{DType, Device};
use image::RgbImage;
use serde::{Deserialize, Serialize};

pub use self::config::{
    AestheticConfig, ClipScoreConfig, ClipScoreConvention, CombinedConfig, HpsConfig, HpsConvention, HpsResize,
    ImageRewardConfig, PickScoreConfig, PickScoreConvention, StepAwareConfig, StoredConfig,
};
pub(crate) use self::content::hex;
pub use self::loaded::{ImageRole, JudgeRequest, LoadedJudge};
use crate::error::{Error, Result};

/// A judge and its options.
///
/// In a recipe `judge = "verifier"`, or a table such as `judge.pick_score = { path = "PickScore_v1" }`; the same table is a file of
/// its own for [`Judge::from_file`]. Every network is read from the files it was published as, in safetensors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Judge {
    /// Reads the shapes world from pixels and counts the caption's claims that hold. Scores lie in `[0, 1]`, 1 = all of
    /// the caption and nothing else. Needs no weights; knows no other images. `shapes` is another name of it.
    #[default]
    #[serde(alias = "shapes")]
    Verifier,
    /// The cosine of image and prompt in the space of a CLIP.
    ClipScore(ClipScoreConfig),
    /// `PickScore`: a CLIP-H trained on what users picked.
    PickScore(PickScoreConfig),
    /// `HPSv2` and `HPSv2.1`: a CLIP-H in `OpenCLIP`'s layout, trained on people's rankings.
    Hps(HpsConfig),
    /// `ImageReward`: a BLIP with a linear head.
    ImageReward(ImageRewardConfig),
    /// LAION's aesthetic predictor: a linear head on the image feature of a CLIP-L. It does not read the prompt.
    Aesthetic(AestheticConfig),
    /// The step-aware preference model: a `PickScore` that knows the denoising step.
    StepAware(StepAwareConfig),
    /// Scores that any other judge gave, from a file.
    Stored(StoredConfig),
    /// Several judges and how their scores become one.
    Combined(CombinedConfig),
}

/// Where a judge's network runs.
#[derive(Debug, Clone)]
pub struct JudgeOptions {
    /// The device.
    pub device: Device,
    /// Type of weights and activations. Scores are f32 in any case.
    pub dtype: DType,
    /// Images scored together.
    pub batch_size: usize,
}

impl Default for JudgeOptions {
    /// In f32 on the CPU, 16 images at a time.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DType::F32,
            batch_size: 16,
        }
    }
}

impl Judge {
    /// Every name a recipe may use.
    pub const NAMES: [&'static str; 9] = [
        "verifier",
        "clip_score",
        "pick_score",
        "hps",
        "image_reward",
        "aesthetic",
        "step_aware",
        "stored",
        "combined",
    ];

    /// The name used in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Verifier => "verifier",
            Self::ClipScore(_) => "clip_score",
            Self::PickScore(_) => "pick_score",
            Self::Hps(_) => "hps",
            Self::ImageReward(_) => "image_reward",
            Self::Aesthetic(_) => "aesthetic",
            Self::StepAware(_) => "step_aware",
            Self::Stored(_) => "stored",
            Self::Combined(_) => "combined",
        }
    }

    /// Reads a judge from a TOML file: one table, named as the judge. Relative paths in it are taken from the file's directory.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::JudgeFile`] with what the parser said.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.to_owned(),
            source,
        })?;
        let judge: Self = toml::from_str(&text).map_err(|error| Error::JudgeFile {
            path: path.to_owned(),
            reason: error.to_string(),
            expected: &Self::NAMES,
        })?;
        let directory = path.parent().unwrap_or(Path::new(""));
        judge.map_paths(&mut |path: &Path| Ok(directory.join(path)))
    }

    /// The same judge with every path replaced.
    ///
    /// # Errors
    /// Those of `map`.
    pub fn map_paths<E>(
        &self,
        map: &mut dyn FnMut(&Path) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<Self, E> {
        let mut judge = self.clone();
        for path in judge.paths_mut() {
            *path = map(path)?;
        }
        Ok(judge)
    }

    /// Every file and directory the judge reads.
    pub fn paths(&self) -> Vec<&PathBuf> {
        match self {
            Self::Verifier => Vec::new(),
            Self::ClipScore(config) => vec![&config.path],
            Self::PickScore(config) => vec![&config.path],
            Self::Hps(config) => vec![&config.path, &config.tokenizer],
            Self::ImageReward(config) => vec![&config.path],
            Self::Aesthetic(config) => vec![&config.path, &config.head],
            Self::StepAware(config) => std::iter::once(&config.path).chain(&config.weights).collect(),
            Self::Stored(config) => vec![&config.path],
            Self::Combined(config) => config.judges.iter().flat_map(Self::paths).collect(),
        }
    }

    fn paths_mut(&mut self) -> Vec<&mut PathBuf> {
        match self {
            Self::Verifier => Vec::new(),
            Self::ClipScore(config) => vec![&mut config.path],
            Self::PickScore(config) => vec![&mut config.path],
            Self::Hps(config) => vec![&mut config.path, &mut config.tokenizer],
            Self::ImageReward(config) => vec![&mut config.path],
            Self::Aesthetic(config) => vec![&mut config.path, &mut config.head],
            Self::StepAware(config) => std::iter::once(&mut config.path).chain(&mut config.weights).collect(),
            Self::Stored(config) => vec![&mut config.path],
            Self::Combined(config) => config.judges.iter_mut().flat_map(Self::paths_mut).collect(),
        }
    }

    /// SHA-256 of the judge: its name, its options, and the contents of every file it reads. Judges with equal hashes give equal scores.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read.
    pub fn content_hash(&self) -> Result<String> {
        content::hash(self)
    }

    /// Reads the judge's networks.
    ///
    /// # Errors
    /// [`Error::Models`] and [`Error::JudgeSetup`] name the file, what was found and what was expected; [`Error::InvalidCombiner`].
    pub fn load(&self, options: &JudgeOptions) -> Result<LoadedJudge> {
        LoadedJudge::load(self, options)
    }

    /// Whether it looks scores up, and so knows no image that is made anew.
    pub fn is_stored(&self) -> bool {
        match self {
            Self::Stored(_) => true,
            Self::Combined(config) => config.judges.iter().any(Self::is_stored),
            Self::Verifier
            | Self::ClipScore(_)
            | Self::PickScore(_)
            | Self::Hps(_)
            | Self::ImageReward(_)
            | Self::Aesthetic(_)
            | Self::StepAware(_) => false,
        }
    }

    /// Refuses prompts that this judge does not understand, before any image is made for them.
    ///
    /// # Errors
    /// [`Error::UnjudgeablePrompt`] for the first one.
    pub fn check_prompts(&self, prompts: &[String]) -> Result<()> {
        match self {
            Self::Verifier => prompts.iter().enumerate().try_for_each(|(index, prompt)| {
                Claims::parse(prompt)
                    .map(|_| ())
                    .map_err(|source| Error::UnjudgeablePrompt {
                        judge: self.name(),
                        number: index + 1,
                        prompt: prompt.clone(),
                        source,
                    })
            }),
            Self::Combined(config) => config.judges.iter().try_for_each(|judge| judge.check_prompts(prompts)),
            _ => Ok(()),
        }
    }

    /// One score for each image, given the prompt at the same place. Higher is better. The judge is loaded anew, on the CPU, in each
    /// call: give it many images at once, or [`load`](Self::load) it.
    ///
    /// # Errors
    /// Those of [`Self::load`] and [`LoadedJudge::score_images`].
    pub fn score(&self, prompts: &[String], images: &[RgbImage]) -> Result<Vec<f64>> {
        self.load(&JudgeOptions::default())?.score_images(prompts, images)
    }
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Judge {
    type Err = Error;

    /// `verifier` (or `shapes`), or the path of a TOML file that describes a judge.
    ///
    /// # Errors
    /// [`Error::UnknownJudge`] for a name that is neither; [`Error::JudgeNeedsFile`] for the name of a judge that has options; those of
    /// [`Judge::from_file`].
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "verifier" | "shapes" => Ok(Self::Verifier),
            _ if Path::new(name).extension().is_some_and(|extension| extension == "toml") => {
                Self::from_file(Path::new(name))
            }
            _ if Self::NAMES.contains(&name) => Err(Error::JudgeNeedsFile { judge: name.to_owned() }),
            _ => Err(Error::UnknownJudge {
                found: name.to_owned(),
                expected: &Self::NAMES,
            }),
        }
    }
}
