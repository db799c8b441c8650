//! The text encoder of Stable Diffusion 3, Flux and `PixArt`: transformers' `T5EncoderModel` and `T5TokenizerFast`.
//!
//! Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020, arXiv:1910.10683; the
//! gated feed-forward layers of version 1.1 are those of Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.

mod config;
mod model;
mod position_bias;
mod tokenizer;

pub use self::config::T5Config;
pub use self::model::T5EncoderModel;
pub use self::tokenizer::{T5Tokenizer, T5Tokens};
