//! Language methods on tiny networks: equal to TRL step by step, and equal to themselves however a batch is laid out.

#![expect(clippy::unwrap_used, reason = "tests: what goes wrong fails them")]

mod arrangements;
mod bench;
mod catalog;
mod divergence;
mod learning;
mod peer_defects;
mod quantized;
mod references;
mod refusals;
mod results;
mod resume;
mod sections;
mod terms;
mod trl;
