//! Judges, win rates and their intervals.
