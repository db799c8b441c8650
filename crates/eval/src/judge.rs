//! Judges: who says which of two images is better.

use std::fmt;

use serde::{Deserialize, Serialize};

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
}

impl fmt::Display for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
