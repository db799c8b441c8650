//! Training of tiny vision-language models.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod bench;
mod caches;
mod evaluation;
mod gradients;
mod invariants;
mod methods;
mod preferences;
mod references;
mod refusals;
mod trl;
