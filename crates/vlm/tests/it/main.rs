//! Training of tiny vision-language models.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod bench;
mod build;
mod build_answers;
mod build_images;
mod caches;
mod evaluation;
mod gradients;
mod invariants;
mod methods;
#[cfg(target_os = "linux")]
mod plan;
#[cfg(target_os = "linux")]
mod plan_case;
mod preferences;
mod references;
mod refusals;
#[path = "../../../llm/tests/it/sections.rs"]
mod sections;
mod terms;
mod trl;
