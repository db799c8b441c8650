//! Time: how long a run took, and the wall clock that event files ask for. No number of a run depends on it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Measures one process's part of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch {
    start: Instant,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn secs(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// Seconds since 1970; 0 on a machine whose clock is before that.
pub(crate) fn unix_secs() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
