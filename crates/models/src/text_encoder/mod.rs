//! The CLIP text encoders of Stable Diffusion 1.x, 2.x, XL and 3 and of Flux: transformers' `CLIPTextModel`,
//! `CLIPTextModelWithProjection` and `CLIPTokenizer`.
//!
//! Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv:2103.00020.

mod bpe;
mod config;
mod model;
mod tokenizer;
mod tokenizer_files;

pub use self::config::{ClipTextConfig, TextActivation};
pub use self::model::{ClipTextModel, ClipTextOutput};
pub use self::tokenizer::{ClipTokenizer, ClipTokenizerConfig, SpecialToken};
