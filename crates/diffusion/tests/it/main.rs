//! Tests of whole schedules, samplers, methods and runs.

mod invariants;
mod replay;
mod runs;
mod schedulers;
mod world;
