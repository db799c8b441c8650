//! Preference objectives: pure functions from scores to per-example losses.
