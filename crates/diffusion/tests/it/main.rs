//! Tests of whole schedules, samplers, methods and runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod flows;
mod invariants;
mod online;
mod replay;
mod result;
mod runs;
mod schedulers;
mod sdxl;
mod trajectories;
mod transitions;
mod world;
