//! Training of tiny vision-language models.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod bench;
mod build;
mod build_answers;
mod build_images;
mod evaluation;
mod gradients;
mod invariants;
mod preferences;
mod refusals;
mod terms;
mod trl;
