//! The vision tower's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};
use crate::text_encoder::TextActivation;

/// Configuration of a `CLIPVisionModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Width of the joint space of text and images; no part of this network, kept for the file.
    pub projection_dim: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each layer.
    pub num_attention_heads: usize,
    /// Side of the image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: TextActivation,
    /// Epsilon of every norm.
    pub layer_norm_eps: f64,
    /// Factor of the initial standard deviations.
    pub initializer_factor: f64,
}

/// Keys that every transformers configuration may have and that change nothing in a forward pass of an encoder: those of training,
/// and those of generation, which old files repeat in every section.
pub(crate) const WITHOUT_EFFECT: [&str; 61] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_return_dict",
    "low_memory",
    "logits_processor",
    "penalty_alpha",
    "max_new_tokens",
    "trust_remote_code",
];

impl ClipVisionConfig {
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

    /// Reads an already parsed `config.json`, or the `vision_config` of a larger one; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_json(value: Value, path: impl AsRef<Path>) -> Result<Self> {
        let file = ConfigFile::from_value(path.as_ref(), value)?;
        file.only("model_type", &[json!("clip_vision_model")])?;
        file.only("num_channels", &[json!(3)])?;
        file.only("dropout", &[json!(0)])?;
        for key in ["is_decoder", "add_cross_attention"] {
            file.only(key, &[json!(false)])?;
        }
        let config = Self {
            hidden_size: file.count("hidden_size", 768)?,
            intermediate_size: file.count("intermediate_size", 3072)?,
            projection_dim: file.count("projection_dim", 512)?,
            num_hidden_layers: file.count("num_hidden_layers", 12)?,
            num_attention_heads: file.count("num_attention_heads", 12)?,
            image_size: file.count("image_size", 224)?,
            patch_size: file.count("patch_size", 32)?,
            hidden_act: file.name(
                "hidden_act",
                "\"quick_gelu\" or \"gelu\"",
                TextActivation::QuickGelu,
                |name| match name {
                    "quick_gelu" => Some(TextActivation::QuickGelu),
                    "gelu" => Some(TextActivation::Gelu),
                    _ => None,
                },
            )?,
            layer_norm_eps: file.number("layer_norm_eps", 1e-5)?,
            initializer_factor: file.number("initializer_factor", 1.0)?,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of the width {}", config.hidden_size);
            return Err(file.error("num_attention_heads", expected));
        }
        if config.patch_size > config.image_size {
            let expected = format!("at most the image size {}", config.image_size);
            return Err(file.error("patch_size", expected));
        }
        file.any(&WITHOUT_EFFECT);
        // The ids and the vocabulary of the language model that files of LLaVA name here too.
        file.any(&["bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"]);
        file.finish()?;
        Ok(config)
    }

    /// The `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "projection_dim": self.projection_dim,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_channels": 3,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "hidden_act": self.hidden_act.name(),
            "layer_norm_eps": self.layer_norm_eps,
            "attention_dropout": 0.0,
            "initializer_factor": self.initializer_factor,
            "initializer_range": 0.02,
        })
    }

    /// Patches along a side of the image; what does not fill a patch is left out, as a convolution does.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Patches of an image.
    pub fn num_patches(&self) -> usize {
        self.patches_per_side().pow(2)
    }
}
