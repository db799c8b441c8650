//! Tests of whole schedules, samplers, methods and runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod buckets;
mod cached;
mod catalog;
mod consistency;
mod flows;
mod invariants;
mod online;
mod plan;
mod preference_model;
mod preferences;
mod replay;
mod result;
mod rounds;
mod runs;
mod sampling;
mod schedulers;
mod sdxl;
mod trajectories;
mod transitions;
mod users;
mod world;
