//! Sequence log-probabilities, references and alignment methods for language models.
//!
//! A run starts from a [`Recipe`](diptych_train::Recipe) of the modality [`Language`] and is done by [`run()`]; a program that
//! drives the loop itself takes a [`LanguageMethod`] from [`prepare`] and hands it to [`diptych_train::train`].
//!
//! | module | what it holds |
//! |---|---|
//! | [`arrangement`] | how prompts and responses are laid out for the network: padded, packed, prompts shared |
//! | [`scoring`] | log-probabilities of response tokens, and their sums |
//! | [`network`] | a language model, or one that reads images |
//! | [`vision`] | the images of a run, each encoded once a batch |
//! | [`policy`] | the trained network: loading, saving, adapters |
//! | [`reference`](mod@reference) | what it is compared with: nothing, itself without adapter, a copy, another checkpoint, cached scores, a moving copy |
//! | [`cached_logps`] | scores of a reference on disk, with hashes of all they depend on |
//! | [`method`] | `offline_pairs`, `unpaired`, `ranked`, `sft` |
//! | [`samples`] | texts sampled while training |
//! | [`answers`] | answers to prompts, and the file of them |
//! | [`evaluation`] | how true generated captions of the embedded world are |
//! | [`estimate`](mod@estimate) | what a run will need, before anything is loaded |
//! | [`implicit_rewards`] | scores of given pairs under a model and a reference |
//! | [`logits`] | logits of padded batches |
//! | [`export()`] | checkpoints with an adapter merged in |

pub mod answers;
pub mod arrangement;
pub mod cached_logps;
mod error;
pub mod estimate;
pub mod evaluation;
mod export;
pub mod implicit_rewards;
pub mod logits;
pub mod method;
mod modality;
pub mod network;
pub mod policy;
pub mod records;
pub mod reference;
mod run;
pub mod samples;
pub mod scoring;
pub mod vision;

pub use error::{Error, Result};
pub use estimate::estimate;
pub use export::{Checkpoint, export, write_merged};
pub use method::{LanguageMethod, MethodConfig, prepare};
pub use modality::{Language, LanguageAdapter, adapter_of, own_targets};
pub use run::{Finished, Outcome, Stages, run, run_stages};
pub use samples::SamplesConfig;
