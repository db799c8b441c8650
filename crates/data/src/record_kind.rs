//! What the records of a dataset are, whatever layout they came in.

use std::fmt;

use serde::Serialize;

/// What one record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordKind {
    /// [`crate::ImagePair`].
    ImagePair,
    /// [`crate::ImageCaption`].
    ImageCaption,
    /// A row of [`crate::LatentPairs`].
    LatentPair,
    /// [`crate::RankedImages`].
    RankedImages,
    /// [`crate::ImageLabel`].
    ImageLabel,
    /// [`crate::ImagePrompt`].
    ImagePrompt,
    /// [`crate::TextPair`].
    TextPair,
    /// [`crate::UnpairedText`].
    UnpairedText,
    /// [`crate::RankedText`].
    RankedText,
    /// [`crate::TextSample`].
    TextSample,
    /// [`crate::TextPrompt`].
    TextPrompt,
}

impl RecordKind {
    /// Whether the records are text.
    pub fn is_text(self) -> bool {
        match self {
            Self::TextPair | Self::UnpairedText | Self::RankedText | Self::TextSample | Self::TextPrompt => true,
            Self::ImagePair
            | Self::ImageCaption
            | Self::LatentPair
            | Self::RankedImages
            | Self::ImageLabel
            | Self::ImagePrompt => false,
        }
    }

    /// What messages call several of them.
    pub fn name(self) -> &'static str {
        match self {
            Self::ImagePair => "image pairs",
            Self::ImageCaption => "captioned images",
            Self::LatentPair => "latent pairs",
            Self::RankedImages => "ranked images",
            Self::ImageLabel => "labelled images",
            Self::ImagePrompt => "prompts for images",
            Self::TextPair => "text pairs",
            Self::UnpairedText => "labelled completions",
            Self::RankedText => "ranked completions",
            Self::TextSample => "supervised texts",
            Self::TextPrompt => "prompts",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
