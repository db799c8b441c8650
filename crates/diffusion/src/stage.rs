//! The parts of the work outside the training loop.

/// A part of the work outside the training loop that takes long enough to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Encoding the data set's images.
    Latents,
    /// Encoding prompts.
    TextEmbeddings,
    /// Computing the reference's denoising errors.
    Reference,
    /// Sampling images.
    Sampling,
    /// Sampling the base model's images of an evaluation.
    BaseImages,
    /// Sampling the aligned model's images of an evaluation.
    AlignedImages,
    /// Judging images.
    Judging,
    /// Rounds of sampling, judging and training.
    Rounds,
}

impl Stage {
    /// A few words for a progress bar.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latents => "encoding images",
            Self::TextEmbeddings => "encoding prompts",
            Self::Reference => "errors of the reference",
            Self::Sampling => "sampling",
            Self::BaseImages => "sampling the base model",
            Self::AlignedImages => "sampling the aligned model",
            Self::Judging => "judging",
            Self::Rounds => "rounds",
        }
    }
}

impl From<Stage> for &'static str {
    fn from(stage: Stage) -> Self {
        stage.name()
    }
}
