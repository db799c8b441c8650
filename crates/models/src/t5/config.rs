//! The encoder's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// Configuration of a `T5EncoderModel` of version 1.1, whose feed-forward layers are gated.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width.
    pub d_model: usize,
    /// Width of each head of attention; with the number of heads it need not make up the width.
    pub d_kv: usize,
    /// Inner width of the feed-forward layers.
    pub d_ff: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Attention heads of each layer.
    pub num_heads: usize,
    /// Number of learned distances, of both directions together.
    pub relative_attention_num_buckets: usize,
    /// From this distance on all distances are one.
    pub relative_attention_max_distance: usize,
    /// Epsilon of every norm.
    pub layer_norm_epsilon: f64,
    /// Factor of the initial standard deviations.
    pub initializer_factor: f64,
    /// The token that ends a text; kept for the file.
    pub eos_token_id: u32,
    /// The token that fills a text; kept for the file.
    pub pad_token_id: u32,
}

/// Keys that published configurations have and that change nothing in a forward pass of the encoder.
const WITHOUT_EFFECT: [&str; 33] = [
    "architectures",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dropout_rate",
    "dtype",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "max_length",
    "min_length",
    "n_positions",
    "name_or_path",
    "num_decoder_layers",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "problem_type",
    "relative_attention_bias",
    "return_dict",
    "scale_decoder_outputs",
    "task_specific_params",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "vocab_file",
    "gradient_checkpointing",
];

impl T5Config {
    /// Reads a `config.json`. Missing keys have transformers' defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, such as the feed-forward layers of T5 version 1.0,
    /// [`Error::UnknownConfigKey`] for a key that has a value and is not known.
    ///
    /// [`Error::Config`]: crate::Error::Config
    /// [`Error::UnknownConfigKey`]: crate::Error::UnknownConfigKey
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_json(read_json(path.as_ref())?, path)
    }

    /// Reads an already parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_json(value: Value, path: impl AsRef<Path>) -> Result<Self> {
        let file = ConfigFile::from_value(path.as_ref(), value)?;
        file.only("model_type", &[json!("t5")])?;
        file.only("is_decoder", &[json!(false)])?;
        // The default of a missing key is the layer of version 1.0.
        if file.value("feed_forward_proj").and_then(Value::as_str) != Some("gated-gelu") {
            return Err(file.error("feed_forward_proj", "\"gated-gelu\""));
        }
        file.only("dense_act_fn", &[json!("gelu_new")])?;
        file.only("is_gated_act", &[json!(true)])?;
        let config = Self {
            vocab_size: file.count("vocab_size", 32128)?,
            d_model: file.count("d_model", 512)?,
            d_kv: file.count("d_kv", 64)?,
            d_ff: file.count("d_ff", 2048)?,
            num_layers: file.count("num_layers", 6)?,
            num_heads: file.count("num_heads", 8)?,
            relative_attention_num_buckets: file.count("relative_attention_num_buckets", 32)?,
            relative_attention_max_distance: file.count("relative_attention_max_distance", 128)?,
            layer_norm_epsilon: file.number("layer_norm_epsilon", 1e-6)?,
            initializer_factor: file.number("initializer_factor", 1.0)?,
            eos_token_id: file.token("eos_token_id", 1)?,
            pad_token_id: file.token("pad_token_id", 0)?,
        };
        if !config.relative_attention_num_buckets.is_multiple_of(4) {
            return Err(file.error("relative_attention_num_buckets", "a multiple of 4"));
        }
        if config.relative_attention_max_distance <= config.relative_attention_num_buckets / 4 {
            let exact = config.relative_attention_num_buckets / 4;
            return Err(file.error("relative_attention_max_distance", format!("more than {exact}")));
        }
        file.any(&WITHOUT_EFFECT);
        file.finish()?;
        Ok(config)
    }

    /// The `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "vocab_size": self.vocab_size,
            "d_model": self.d_model,
            "d_kv": self.d_kv,
            "d_ff": self.d_ff,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "relative_attention_num_buckets": self.relative_attention_num_buckets,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_factor": self.initializer_factor,
            "feed_forward_proj": "gated-gelu",
            "dense_act_fn": "gelu_new",
            "is_gated_act": true,
            "dropout_rate": 0.1,
            "tie_word_embeddings": false,
            "eos_token_id": self.eos_token_id,
            "pad_token_id": self.pad_token_id,
        })
    }
}
