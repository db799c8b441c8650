//! The one training loop, its recipe, checkpoints and run directory. It knows no modality.
//!
//! A modality implements two traits: [`Modality`], which brings its own sections of a recipe, and [`Method`], which
//! turns records into per-example losses. Everything else is here, once:
//!
//! | what | where |
//! |---|---|
//! | a run as one TOML file, strict and with errors that name the place | [`Recipe`], [`TrainConfig`] |
//! | the recipe with every default and the hashes of its inputs | [`Plan`] |
//! | what a run will need before it starts: memory, time, disk | [`Estimate`] |
//! | the loop: order, accumulation, guards, clipping, schedule, moving averages | [`train`], [`LoopConfig`] |
//! | what a program shows while it runs, and how it asks to stop | [`Observer`], [`Event`], [`Reporter`], [`Progress`] |
//! | the files a run leaves | [`RunDirectory`], [`MetricsRow`], [`Summary`], [`write_report`] |
//! | several runs beside each other | [`compare_runs`], [`RunComparison`] |
//! | the proof that a resumed run is the same run | [`verify_resume`] |

mod checkpoint;
mod clock;
mod directory;
mod error;
mod estimate;
mod memory;
mod method;
mod modality;
mod observer;
mod plan;
mod progress;
mod recipe;
mod report;
mod run;
mod verify;

pub use directory::{MetricsRow, RunDirectory, RunLock, ScalarEvent, Summary, read_metrics, read_scalars};
pub use error::{Error, RecipeError, Result};
pub use estimate::{Component, Estimate, MachineRates, MemoryEstimate, TimeEstimate, process_component};
pub use memory::{peak_memory_bytes, resident_memory_bytes};
pub use method::{Item, Method, MicroBatch, StepOutput, Weighted};
pub use modality::{Modality, NoSection, Section};
pub use observer::{Event, Observer, Silent};
pub use plan::{Input, Plan};
pub use progress::{Progress, Reporter, Stopped};
pub use recipe::{
    BucketsConfig, CacheConfig, DataConfig, GradientCheckpointing, ModelConfig, OneOrMany, Recipe, RecipeSource,
    ReferenceConfig, RunConfig, TrainConfig, known_modality_of, modality_of, string_override,
};
pub use report::{
    AnswerExample, AnswerExchange, AnswerPiece, EvaluationTable, Repetitions, RunComparison, compare_runs,
    write_evaluation, write_examples, write_report,
};
pub use run::{LoopConfig, Order, ResumeMode, check_start, train};
pub use verify::{Comparison, ResumeReport, VerifyConfig, verify_resume};
