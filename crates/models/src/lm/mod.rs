//! Causal language models: one decoder for Llama 1 to 3.x, `SmolLM`, Mistral, Qwen2, Qwen2.5, Qwen3 and Gemma 1 and 2, in
//! transformers' layout and under its names.
//!
//! ```no_run
//! use diptych_models::lm::{CausalLm, GenerateConfig, LmDir, Prompt, Sampling};
//! use diptych_models::{Builder, BuilderConfig};
//!
//! let dir = LmDir::open("models/shapes-lm")?;
//! let weights = dir.weights()?;
//! let builder = Builder::new(BuilderConfig::new(Some(&weights)))?;
//! let lm = CausalLm::load(&builder, dir.config())?;
//! builder.finish()?;
//! let config = GenerateConfig {
//!     max_new_tokens: 20,
//!     sampling: Sampling::GREEDY,
//!     eos_token_ids: dir.config().eos_token_ids.clone(),
//!     seed: 0,
//! };
//! let answers = lm.generate(&[Prompt { input_ids: &[1, 17, 4], example: 0 }], &config)?;
//! # Ok::<(), diptych_models::Error>(())
//! ```

mod attention_weights;
mod cache;
mod config;
mod directory;
mod family;
mod generate;
mod input;
mod layer;
mod model;
mod rope;
mod sampling;

pub(crate) use self::config::stored_as;
pub use self::config::{AttentionBias, LmActivation, LmConfig};
pub use self::directory::{LmDir, save};
pub(crate) use self::directory::{config_file, read_generation_config, save_checkpoint};
pub use self::family::{LmFamily, LmLayerConfig};
pub(crate) use self::generate::EmbeddedPrompts;
pub use self::generate::{GenerateConfig, Generated, Prompt};
pub use self::input::{LmInput, LmSequence};
pub use self::model::CausalLm;
pub use self::rope::{RopeConfig, RopeScaling};
pub use self::sampling::Sampling;
