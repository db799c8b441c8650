//! Writes the untrained language model that its pretraining recipe starts from: the first step to `models/shapes-lm`.
//!
//! Run: `cargo run --release --example untrained_shapes_lm -- runs/shapes-lm-untrained`

use std::path::PathBuf;

use diptych::llm::policy::{NetworkOptions, TrainedLm};
use diptych::models::lm::LmDir;
use diptych::shapes::{SPECIAL_TOKENS, text_vocabulary, tokenizer_config_json, tokenizer_json};
use diptych::tensor::{DType, Device};
use serde_json::json;

/// Tokens of a listing of four objects with the longest caption, 55, and some to spare.
const MAX_LEN: usize = 64;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args().nth(1);
    let directory = PathBuf::from(directory.unwrap_or_else(|| "runs/shapes-lm-untrained".into()));
    let config = json!({
        "model_type": "llama",
        "vocab_size": SPECIAL_TOKENS.len() + text_vocabulary().len(),
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": MAX_LEN,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
        // About 1 / sqrt(hidden_size): at this width the usual 0.02 takes hundreds of steps to grow out of.
        "initializer_range": 0.1,
        // Ids of tokenizer_json(), in the order of SPECIAL_TOKENS.
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("config.json"), format!("{config:#}\n"))?;
    std::fs::write(directory.join("tokenizer.json"), tokenizer_json())?;
    std::fs::write(directory.join("tokenizer_config.json"), tokenizer_config_json(MAX_LEN))?;
    let options = NetworkOptions {
        device: Device::Cpu,
        dtype: DType::F32,
        seed: 0,
        quantization: None,
    };
    TrainedLm::untrained(&LmDir::open(&directory)?, &options)?.save(&directory)?;
    Ok(())
}
