//! Benchmarks of hallucination against `tests/golden/generate_hallucination.py`, and what is wrong with their files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::too_many_lines, reason = "tables of cases")]

mod amber;
mod captions;
mod comparison;
mod judged;
mod place;
mod pope;
