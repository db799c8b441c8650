//! Preference objectives: pure functions from scores to per-example losses.
//!
//! A *score* says how likely a network finds a response: the summed log-probability of a text, or, for image diffusion,
//! minus one half of the per-image mean squared denoising error. An objective takes the scores of a batch of pairs
//! ([`PairLogps`]) and gives one loss and two rewards an example ([`ObjectiveOutput`]); it knows no modality, does no
//! IO and draws no random number. Reduction over the batch happens once, in the training loop.
//!
//! | what | where |
//! |---|---|
//! | the closed set of objectives, their names and needs | [`Objective`], [`Requirements`], [`ObjectiveInfo`] |
//! | Direct Preference Optimization | [`Dpo`] |
//! | Margin-aware Preference Optimization | [`MaPo`] |
//! | supervised fine-tuning | [`Sft`] |
//! | inputs and outputs | [`PairLogps`], [`ReferenceLogps`], [`ObjectiveOutput`] |
//! | the numbers a trainer logs | [`pair_metrics`] |
//!
//! Shape letter: B batch.

mod error;
mod metrics;
pub mod objective;
mod scores;

pub use error::{Error, Result};
pub use metrics::pair_metrics;
pub use objective::{Dpo, MaPo, Objective, ObjectiveInfo, Requirements, Sft};
pub use scores::{ObjectiveOutput, PairLogps, ReferenceLogps};
