//! What a program shows while it works, and how it asks to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use diptych_train::Event;

use crate::{Error, Result};

/// A part of the work outside the training loop that takes long enough to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Encoding the data set's images.
    Latents,
    /// Encoding prompts.
    TextEmbeddings,
    /// Sampling images.
    Sampling,
    /// Sampling the base model's images of an evaluation.
    BaseImages,
    /// Sampling the aligned model's images of an evaluation.
    AlignedImages,
    /// Judging images.
    Judging,
}

impl Stage {
    /// A few words for a progress bar.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latents => "encoding images",
            Self::TextEmbeddings => "encoding prompts",
            Self::Sampling => "sampling",
            Self::BaseImages => "sampling the base model",
            Self::AlignedImages => "sampling the aligned model",
            Self::Judging => "judging",
        }
    }
}

/// Something to show.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The training loop says something.
    Training(&'a Event<'a>),
    /// Work outside the loop goes on.
    Stage {
        /// Which part.
        stage: Stage,
        /// Parts done.
        done: u64,
        /// Parts in all.
        total: u64,
    },
}

/// Passes progress on, and turns a request to stop into an error between two parts.
pub struct Reporter<'a> {
    progress: Box<dyn FnMut(&Progress<'_>) + Send + 'a>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Reporter<'a> {
    /// Passes progress to `progress`; work ends with [`Error::Stopped`] when `stop` is set.
    pub fn new(progress: impl FnMut(&Progress<'_>) + Send + 'a, stop: &'a AtomicBool) -> Self {
        Self {
            progress: Box::new(progress),
            stop: Some(stop),
        }
    }

    /// Tells nobody and never stops.
    pub fn silent() -> Self {
        Self {
            progress: Box::new(|_| {}),
            stop: None,
        }
    }

    /// `done` of `total` parts are complete.
    ///
    /// # Errors
    /// [`Error::Stopped`] when that was asked for.
    pub fn advance(&mut self, stage: Stage, done: u64, total: u64) -> Result<()> {
        (self.progress)(&Progress::Stage { stage, done, total });
        match self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(Error::Stopped { during: stage.name() }),
            _ => Ok(()),
        }
    }

    /// The training loop says something.
    pub(crate) fn training(&mut self, event: &Event<'_>) {
        (self.progress)(&Progress::Training(event));
    }
}

impl std::fmt::Debug for Reporter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter")
            .field("stop", &self.stop)
            .finish_non_exhaustive()
    }
}
