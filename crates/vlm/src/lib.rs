//! Image prompts, visual corruption and alignment methods for vision-language models.
//!
//! A run starts from a [`Recipe`](diptych_train::Recipe) of the modality [`VisionLanguage`] and is done by [`run()`]; a program that
//! drives the loop itself takes a method from [`prepare`] and hands it to [`diptych_train::train`]. Scores, references, objectives and
//! methods are those of [`diptych_llm`], which scores with a network that reads images as it does with one that reads text alone.
//!
//! | module | what it holds |
//! |---|---|
//! | [`answers`] | answers to prompts that show images |
//! | [`build`](mod@build) | preference data that a model makes of itself |
//! | [`corruption`] | images spoiled on purpose, as functions of seed, record and epoch |
//! | [`records`] | rows with images to tokens: placeholders expanded, completions cut, never an image |
//! | [`estimate`](mod@estimate) | what a run will need |
//! | [`evaluation`] | hallucination of base and aligned model on held-out pictures of the embedded world |
//! | [`export()`] | checkpoints with an adapter merged in |

mod adapter;
pub mod answers;
pub mod build;
mod cache;
mod clip;
pub mod corruption;
mod error;
pub mod estimate;
pub mod evaluation;
mod export;
mod likeness;
mod method;
mod modality;
mod prepare;
mod progress;
pub mod records;
mod run;
mod spoil;

pub use adapter::{TowerConfig, VisionAdapter};
pub use cache::cache_images;
pub use error::{Error, Result};
pub use estimate::estimate;
pub use export::export;
pub use method::{
    Change, ImagePreferenceConfig, MethodConfig, OfflinePairsConfig, OwnAnswerConfig, TokenPerturbationConfig,
};
pub use modality::VisionLanguage;
pub use prepare::prepare;
pub use run::{Outcome, run};
