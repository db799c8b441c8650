//! Preference objectives: pure functions from scores to per-example losses.
//!
//! A *score* says how likely a network finds a response: the summed log-probability of a text, or, for image diffusion,
//! minus one half of the per-image mean squared denoising error. An objective takes the scores of a batch and gives one loss an
//! example; it knows no modality, does no IO and draws no random number. Reduction over the batch happens once, in the
//! training loop.
//!
//! | what | where |
//! |---|---|
//! | the closed set of objectives and their names; one file each | [`Objective`], [`ObjectiveInfo`], [`objective`] |
//! | what an objective must be given | [`Requirements`], [`Kind`], [`ScoreKind`] |
//! | scores of pairs, of judged responses, of ranked lists | [`PairLogps`], [`UnpairedLogps`], [`ListLogps`], [`Responses`], [`TokenLogps`] |
//! | losses and rewards | [`ObjectiveOutput`], [`ResponsesOutput`] |
//! | the numbers a trainer logs | [`pair_metrics`], [`unpaired_metrics`], [`list_metrics`] |
//! | how far two normal distributions are apart | [`Divergence::of_normals`] |
//! | a trainer's state between micro batches | [`RunningShift`] |
//!
//! Shape letter: B batch.

mod arithmetic;
mod error;
mod metrics;
mod normal_divergence;
pub mod objective;
mod padded_lists;
mod ranges;
mod requirements;
mod running_shift;
mod scores;
#[cfg(test)]
mod testing;
mod token_logps;
mod whole_texts;

pub use error::{Error, Result};
pub use metrics::{list_metrics, pair_metrics, unpaired_metrics};
pub use objective::*;
pub use requirements::{Kind, Requirements, ScoreKind};
pub use running_shift::RunningShift;
pub use scores::{ListLogps, ObjectiveOutput, PairLogps, Responses, ResponsesOutput, UnpairedLogps};
pub use token_logps::TokenLogps;
pub use whole_texts::WholeTexts;
