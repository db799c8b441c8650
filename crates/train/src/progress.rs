//! What a program shows while it works, and how it asks to stop.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::Event;

/// Something to show.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// The training loop says something.
    Training(&'a Event<'a>),
    /// Work outside the loop goes on.
    Stage {
        /// Which part, in a few words.
        stage: &'static str,
        /// Parts done.
        done: u64,
        /// Parts in all.
        total: u64,
    },
    /// Something that a user should know, in one line.
    Note(&'a str),
}

/// The user asked to stop while nothing was under way that is to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stopped while {during}")]
pub struct Stopped {
    /// What was under way.
    pub during: &'static str,
}

/// Passes progress on, and turns a request to stop into an error between two parts.
pub struct Reporter<'a> {
    progress: Box<dyn FnMut(&Progress<'_>) + Send + 'a>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Reporter<'a> {
    /// Passes progress to `progress`; work ends with [`Stopped`] when `stop` is set.
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
    /// [`Stopped`] when that was asked for.
    pub fn advance(&mut self, stage: impl Into<&'static str>, done: u64, total: u64) -> Result<(), Stopped> {
        let stage = stage.into();
        (self.progress)(&Progress::Stage { stage, done, total });
        match self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(Stopped { during: stage }),
            _ => Ok(()),
        }
    }

    /// Says one line that a user should know.
    pub fn note(&mut self, line: &str) {
        (self.progress)(&Progress::Note(line));
    }

    /// The training loop says something.
    pub fn training(&mut self, event: &Event<'_>) {
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
