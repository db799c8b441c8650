//! The text encoder's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// Activation of the feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextActivation {
    /// `x * sigmoid(1.702 x)`, `OpenAI`'s.
    QuickGelu,
    /// The exact GELU, with the error function.
    Gelu,
}

impl TextActivation {
    /// transformers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::QuickGelu => "quick_gelu",
            Self::Gelu => "gelu",
        }
    }
}

/// Configuration of a `CLIPTextModel` or a `CLIPTextModelWithProjection`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Whether the pooled vector is projected: `CLIPTextModelWithProjection` among the `architectures`.
    pub has_projection: bool,
    /// Width of the joint space of text and images, to which it is projected; without effect otherwise, kept for the file.
    pub projection_dim: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each layer.
    pub num_attention_heads: usize,
    /// Longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: TextActivation,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
    /// Factor of the initial standard deviations.
    pub initializer_factor: f64,
    /// The token at which the text is pooled. 2 stands, as in transformers, for the highest id of each text.
    pub eos_token_id: u32,
    /// The token that begins a text; kept for the file.
    pub bos_token_id: u32,
    /// The token that fills a text; kept for the file.
    pub pad_token_id: u32,
}

/// Keys that every transformers configuration may have and that change nothing in a forward pass of this network.
const WITHOUT_EFFECT: [&str; 21] = [
    "attention_dropout",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "max_length",
    "min_length",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
];

impl ClipTextConfig {
    /// Reads a `config.json`. Missing keys have transformers' defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, [`Error::UnknownConfigKey`] for a key that has a value and is
    /// not known.
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
        file.only("model_type", &[json!("clip_text_model")])?;
        let activation = |name: &str| match name {
            "quick_gelu" => Some(TextActivation::QuickGelu),
            "gelu" => Some(TextActivation::Gelu),
            _ => None,
        };
        let config = Self {
            has_projection: Self::read_projection(&file)?,
            vocab_size: file.count("vocab_size", 49408)?,
            hidden_size: file.count("hidden_size", 512)?,
            intermediate_size: file.count("intermediate_size", 2048)?,
            projection_dim: file.count("projection_dim", 512)?,
            num_hidden_layers: file.count("num_hidden_layers", 12)?,
            num_attention_heads: file.count("num_attention_heads", 8)?,
            max_position_embeddings: file.count("max_position_embeddings", 77)?,
            hidden_act: file.name(
                "hidden_act",
                "\"quick_gelu\" or \"gelu\"",
                TextActivation::QuickGelu,
                activation,
            )?,
            layer_norm_eps: file.number("layer_norm_eps", 1e-5)?,
            initializer_factor: file.number("initializer_factor", 1.0)?,
            eos_token_id: file.token("eos_token_id", 49407)?,
            bos_token_id: file.token("bos_token_id", 49406)?,
            pad_token_id: file.token("pad_token_id", 1)?,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(file.error(
                "num_attention_heads",
                format!("a divisor of the width {}", config.hidden_size),
            ));
        }
        file.only("dropout", &[json!(0)])?;
        file.any(&WITHOUT_EFFECT);
        file.finish()?;
        Ok(config)
    }

    fn read_projection(file: &ConfigFile) -> Result<bool> {
        let parse = |name: &str| match name {
            "CLIPTextModelWithProjection" => Some(true),
            // A whole CLIP, of whose file this network takes its part.
            "CLIPTextModel" | "CLIPModel" => Some(false),
            _ => None,
        };
        let expected = "a list of \"CLIPTextModel\" or \"CLIPTextModelWithProjection\"";
        let named = file.names("architectures", expected, &[], parse)?;
        Ok(named.contains(&true))
    }

    /// The `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": [if self.has_projection { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }],
            "model_type": "clip_text_model",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "projection_dim": self.projection_dim,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": self.hidden_act.name(),
            "layer_norm_eps": self.layer_norm_eps,
            "attention_dropout": 0.0,
            "initializer_factor": self.initializer_factor,
            "initializer_range": 0.02,
            "eos_token_id": self.eos_token_id,
            "bos_token_id": self.bos_token_id,
            "pad_token_id": self.pad_token_id,
        })
    }
}
