//! Judges: who says which of two images is better.

use std::fmt;
use std::str::FromStr;

use diptych_shapes::{Claims, Verifier};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A judge by name. In a recipe: `judge = "verifier"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judge {
    /// Reads the shapes world from pixels and counts the caption's claims that hold. Scores lie in `[0, 1]`, 1 = all of
    /// the caption and nothing else. Needs no weights; knows no other images.
    #[default]
    Verifier,
}

impl Judge {
    /// Every name a recipe may use.
    pub const NAMES: [&'static str; 1] = ["verifier"];

    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verifier => "verifier",
        }
    }

    /// Refuses prompts that this judge does not understand, before any image is made for them.
    ///
    /// # Errors
    /// [`Error::UnjudgeablePrompt`] for the first one.
    pub fn check_prompts(self, prompts: &[String]) -> Result<()> {
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
        }
    }

    /// One score for each image, given the prompt at the same place. Higher is better. The judge is set up anew in
    /// each call: give it many images at once.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] when there are not as many prompts as images; [`Error::Unjudged`] for a prompt that
    /// the judge does not understand.
    pub fn score(self, prompts: &[String], images: &[RgbImage]) -> Result<Vec<f64>> {
        if prompts.len() != images.len() {
            let (left_len, right_len) = (prompts.len(), images.len());
            return Err(Error::LengthMismatch {
                left: "prompts",
                left_len,
                right: "images",
                right_len,
            });
        }
        match self {
            Self::Verifier => {
                let verifier = Verifier::default();
                let scored = prompts.iter().zip(images).enumerate().map(|(index, (prompt, image))| {
                    verifier.score(prompt, image).map_err(|source| Error::Unjudged {
                        judge: self.name(),
                        index,
                        prompt: prompt.clone(),
                        source,
                    })
                });
                scored.collect()
            }
        }
    }
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Judge {
    type Err = Error;

    /// # Errors
    /// [`Error::UnknownJudge`] for a name that is none of [`Judge::NAMES`].
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "verifier" => Ok(Self::Verifier),
            _ => Err(Error::UnknownJudge {
                found: name.to_owned(),
                expected: &Self::NAMES,
            }),
        }
    }
}
