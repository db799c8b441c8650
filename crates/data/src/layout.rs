//! The layouts records are stored in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How records are laid out on disk. In a recipe: `layout = "preference"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Found out from the file's extension and first row.
    #[default]
    Auto,
    /// JSON lines: `prompt`, `chosen_image`, `rejected_image`, and optionally `chosen_score`, `rejected_score`, `id`.
    Preference,
    /// JSON lines: `prompt`, `image`, and optionally `id`.
    ImageCaption,
    /// Safetensors shards of encoded pairs: `latents_chosen`, `latents_rejected`, `encoder_hidden_states`, …
    LatentPairs,
}

impl Layout {
    /// Every name a recipe may use, in the order of the variants.
    pub const NAMES: [&'static str; 4] = ["auto", "preference", "image-caption", "latent-pairs"];
    /// The names that say what the files are.
    pub const EXPLICIT_NAMES: [&'static str; 3] = ["preference", "image-caption", "latent-pairs"];

    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Preference => "preference",
            Self::ImageCaption => "image-caption",
            Self::LatentPairs => "latent-pairs",
        }
    }

    /// One line that says what the layout holds, for `diptych list layouts`.
    pub fn description(self) -> &'static str {
        match self {
            Self::Auto => "found out from the file's extension and first row",
            Self::Preference => "JSON lines with prompt, chosen_image, rejected_image; optional scores and id",
            Self::ImageCaption => "JSON lines with prompt, image; optional id",
            Self::LatentPairs => "safetensors shards of encoded pairs; optional noise and timesteps for a replay",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layout {
    type Err = String;

    /// # Errors
    /// The name is none of [`Layout::NAMES`]; the message says which was found and which are expected.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "preference" => Ok(Self::Preference),
            "image-caption" => Ok(Self::ImageCaption),
            "latent-pairs" => Ok(Self::LatentPairs),
            _ => Err(format!(
                "unknown layout `{name}`; expected one of {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_serde_agrees() {
        let layouts: Vec<Layout> = Layout::NAMES.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(
            layouts,
            [
                Layout::Auto,
                Layout::Preference,
                Layout::ImageCaption,
                Layout::LatentPairs
            ]
        );
        for (layout, name) in layouts.iter().zip(Layout::NAMES) {
            assert_eq!(layout.to_string(), name);
            assert_eq!(serde_json::to_value(layout).unwrap(), name);
        }
        assert!("pairs".parse::<Layout>().unwrap_err().contains("latent-pairs"));
    }
}
