//! `[eval]` of a recipe about pictures.

use diptych_eval::hallucination::ShapesNaming;
use diptych_models::lm::Sampling;
use diptych_shapes::SceneConfig;
use serde::{Deserialize, Serialize};

/// Pixels of a side that scenes can be told apart at.
const SIZES: std::ops::RangeInclusive<u32> = 32..=128;

/// `[eval]`: what is measured after training.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VisionEvaluationConfig {
    /// Hallucination about held-out pictures of the embedded world.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hallucination: Option<HallucinationConfig>,
}

/// `[eval.hallucination]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HallucinationConfig {
    /// The scenes that are drawn; all of the world if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scenes: Option<SceneConfig>,
    /// How many held-out scenes.
    pub num_scenes: usize,
    /// Pixels of a side of their pictures, 32 to 128.
    pub size: u32,
    /// What counts as an object of its own.
    pub naming: ShapesNaming,
    /// Source of the scenes, of the choices of tokens, and of the resampling.
    pub seed: u64,
    /// Tokens of an answer, at most.
    pub max_new_tokens: usize,
    /// How tokens are chosen; by default the likeliest.
    pub sampling: Sampling,
    /// Answers computed together.
    pub batch_size: usize,
    /// Resamples behind the intervals, and exchanges behind the p-values.
    pub bootstrap_samples: usize,
    /// Pictures that the report shows with their answers.
    pub num_shown: usize,
}

impl Default for HallucinationConfig {
    fn default() -> Self {
        Self {
            scenes: None,
            num_scenes: 256,
            size: 32,
            naming: ShapesNaming::ColoredShape,
            seed: 0,
            max_new_tokens: 40,
            sampling: Sampling::GREEDY,
            batch_size: 64,
            bootstrap_samples: 10_000,
            num_shown: 8,
        }
    }
}

impl VisionEvaluationConfig {
    /// The first value out of its range: key, what was found, what was expected.
    pub(crate) fn problem(&self) -> Option<(String, String, String)> {
        let config = self.hallucination.as_ref()?;
        let problem = |key: &str, found: String, expected: &str| {
            Some((format!("hallucination.{key}"), found, expected.to_owned()))
        };
        let counts = [
            ("num_scenes", config.num_scenes),
            ("max_new_tokens", config.max_new_tokens),
            ("batch_size", config.batch_size),
            ("bootstrap_samples", config.bootstrap_samples),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return problem(key, "0".into(), "a number, at least 1");
        }
        if !SIZES.contains(&config.size) {
            return problem("size", config.size.to_string(), "32 to 128");
        }
        if let Some(Err(error)) = config.scenes.as_ref().map(SceneConfig::validate) {
            return problem("scenes", error.to_string(), "scenes of the embedded world");
        }
        match config.sampling.validate() {
            Err(diptych_models::Error::GenerationSetting { key, found, expected }) => {
                problem(&format!("sampling.{key}"), found, expected)
            }
            Err(_) | Ok(()) => None,
        }
    }
}
