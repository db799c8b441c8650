//! The `diptych` command as its users run it: exit codes, messages, files.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]
#![expect(clippy::too_many_lines, reason = "tables of cases")]
#![expect(clippy::naive_bytecount, reason = "a few lines are counted")]
#![expect(clippy::items_after_statements, reason = "a small function beside its only use")]

mod answer_judges;
mod build_answers;
mod cards;
mod exit_codes;
mod faults;
#[cfg(unix)]
mod full_disk;
mod hallucination;
mod image_data;
#[cfg(unix)]
mod interruptions;
mod judging;
mod language;
mod language_errors;
mod language_runs;
#[path = "../../../../tests/golden/named_values.rs"]
mod named_values;
mod place;
mod plan;
#[path = "../../../vlm/tests/it/plan_case.rs"]
mod plan_case;
mod runs;
mod sampling;
mod sdxl;
mod tools;
mod vision;
mod vision_answers;
