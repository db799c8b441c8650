//! What is built, of what, and where.

use std::path::PathBuf;

use diptych_data::{Layout, OnError};
use serde::{Deserialize, Serialize};

use super::BuildRecipe;
use super::checks::{check_count, setting, unused};
use crate::Result;
use crate::answers::{AnswerSettings, PromptFormat};

/// What is built, of what, and where.
#[derive(Debug, Clone)]
pub struct BuildConfig {
    /// How pairs are made.
    pub recipe: BuildRecipe,
    /// The rows: prompts that show images, in any layout of text; some recipes need their answers too.
    pub data: Vec<PathBuf>,
    /// How the rows are laid out.
    pub layout: Layout,
    /// The first rows only.
    pub max_rows: Option<usize>,
    /// Rows that cannot be used end the build, or are counted.
    pub on_error: OnError,
    /// A vision-language model in transformers' layout.
    pub model: PathBuf,
    /// Its adapter.
    pub adapter: Option<PathBuf>,
    /// Another vision-language model that judges, where the recipe asks for judgments; by default the model itself.
    pub judge: Option<JudgeConfig>,
    /// A CLIP in transformers' layout that says which images are alike, where the recipe looks for similar ones; by default the model's own tower does.
    pub embedder: Option<PathBuf>,
    /// Frames of a video that rows have as a list of frames, at most: evenly spaced ones.
    pub max_frames: Option<usize>,
    /// How what is asked beside the rows' own prompts becomes a prompt of the model; by default by its chat template. Only where something is.
    pub format: Option<PromptFormat>,
    /// How answers are sampled, with the seed of everything that is random.
    pub answers: AnswerSettings,
    /// What becomes of answers that are cut off.
    pub unfinished: UnfinishedAnswers,
    /// No more pairs than these: a random part of those that were made.
    pub max_pairs: Option<usize>,
    /// The JSON lines file to write, in the `preference` layout; its images lie in `images/` beside it.
    pub out: PathBuf,
}

/// A model that judges and does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgeConfig {
    /// A vision-language model in transformers' layout.
    pub model: PathBuf,
    /// How what it is asked becomes a prompt of it; by default by its own chat template.
    pub format: Option<PromptFormat>,
}

/// What becomes of answers that did not end within `max_new_tokens`, or of which nothing can be read from some token on. The published programs
/// know no difference and keep them: the end of such an answer says nothing of the image, and the longer side of a pair is cut more often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnfinishedAnswers {
    /// They are no side of a pair, and counted.
    #[default]
    Skip,
    /// They are used like the others.
    Keep,
}

impl BuildConfig {
    pub(super) fn validate(&self) -> Result<()> {
        self.recipe.validate()?;
        self.answers.validate()?;
        if self.recipe.samples_answers() && self.answers.sampling.temperature == 0.0 {
            return Err(setting(
                "temperature",
                0,
                "a number above 0: several answers to the same prompt are compared",
            ));
        }
        let counts = [
            ("num_rows", self.max_rows),
            ("max_pairs", self.max_pairs),
            ("max_frames", self.max_frames),
        ];
        for (key, value) in counts {
            value.map_or(Ok(()), |value| check_count(key, value, 1))?;
        }
        self.refuse_unused()
    }

    fn refuse_unused(&self) -> Result<()> {
        if self.judge.is_some() && !self.recipe.takes_judge() {
            return Err(unused("judge", "this recipe asks for no judgments"));
        }
        if self.embedder.is_some() && !self.recipe.takes_embedder() {
            return Err(unused("embedder", "this recipe looks for no similar images"));
        }
        if self.max_frames.is_some() && !self.recipe.takes_frames() {
            return Err(unused("max_frames", "this recipe takes rows with one image"));
        }
        if let (Some(format), Some(why)) = (&self.format, self.recipe.asks_rows_alone(self.judge.is_some())) {
            let key = match format {
                PromptFormat::Plain(_) | PromptFormat::Chat { system: None } => "prompt_format",
                PromptFormat::Chat { system: Some(_) } => "system",
            };
            return Err(unused(key, why));
        }
        Ok(())
    }
}
