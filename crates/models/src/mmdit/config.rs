//! The transformer's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// Configuration of an `SD3Transformer2DModel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SD3Transformer2DConfig {
    /// Height and width of the latents that the network was trained on.
    pub sample_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Width of each head of attention.
    pub attention_head_dim: usize,
    /// Attention heads of each block; with their width they make up the width of the network.
    pub num_attention_heads: usize,
    /// Width of the text.
    pub joint_attention_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Height and width, in patches, of the table of positions.
    pub pos_embed_max_size: usize,
    /// Blocks in which the image also attends to itself alone: the first 13 of Stable Diffusion 3.5 medium.
    pub dual_attention_layers: Vec<usize>,
    /// Whether queries and keys are divided by their root mean square (`"qk_norm": "rms_norm"`): Stable Diffusion 3.5.
    pub has_qk_norm: bool,
}

impl SD3Transformer2DConfig {
    /// Reads a `config.json`. Missing keys have diffusers' defaults.
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
        let in_channels = file.count("in_channels", 16)?;
        // Null stands for as many as come in; a missing key has a default of its own.
        let default_out = if file.has("out_channels") { in_channels } else { 16 };
        let config = Self {
            sample_size: file.count("sample_size", 128)?,
            patch_size: file.count("patch_size", 2)?,
            in_channels,
            out_channels: file.count("out_channels", default_out)?,
            num_layers: file.count("num_layers", 18)?,
            attention_head_dim: file.count("attention_head_dim", 64)?,
            num_attention_heads: file.count("num_attention_heads", 18)?,
            joint_attention_dim: file.count("joint_attention_dim", 4096)?,
            pooled_projection_dim: file.count("pooled_projection_dim", 2048)?,
            pos_embed_max_size: file.count("pos_embed_max_size", 96)?,
            dual_attention_layers: layers(&file, "dual_attention_layers")?,
            has_qk_norm: file.name("qk_norm", "\"rms_norm\" (or null)", false, |name| {
                (name == "rms_norm").then_some(true)
            })?,
        };
        if file.has("pos_embed_max_size") && file.value("pos_embed_max_size").is_none() {
            return Err(file.error("pos_embed_max_size", "a positive integer"));
        }
        config.validate(&file)?;
        file.finish()?;
        Ok(config)
    }

    fn validate(&self, file: &ConfigFile) -> Result<()> {
        let dim = self.dim();
        if !dim.is_multiple_of(4) {
            return Err(file.error(
                "attention_head_dim",
                "a number that with the number of heads makes a multiple of 4",
            ));
        }
        if file.count("caption_projection_dim", 1152)? != dim {
            let expected = format!("{dim}, the width of {} heads", self.num_attention_heads);
            return Err(file.error("caption_projection_dim", expected));
        }
        if self.sample_size < self.patch_size {
            return Err(file.error("sample_size", format!("at least the patch size {}", self.patch_size)));
        }
        if self.dual_attention_layers.iter().any(|&layer| layer >= self.num_layers) {
            let expected = format!("numbers of layers below {}", self.num_layers);
            return Err(file.error("dual_attention_layers", expected));
        }
        Ok(())
    }

    /// Width of the network.
    pub fn dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The `config.json` that diffusers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "_class_name": "SD3Transformer2DModel",
            "sample_size": self.sample_size,
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_layers": self.num_layers,
            "attention_head_dim": self.attention_head_dim,
            "num_attention_heads": self.num_attention_heads,
            "joint_attention_dim": self.joint_attention_dim,
            "caption_projection_dim": self.dim(),
            "pooled_projection_dim": self.pooled_projection_dim,
            "pos_embed_max_size": self.pos_embed_max_size,
            "dual_attention_layers": self.dual_attention_layers,
            "qk_norm": self.has_qk_norm.then_some("rms_norm"),
        })
    }
}

/// Numbers of layers, from 0; none if the key is missing.
fn layers(file: &ConfigFile, key: &str) -> Result<Vec<usize>> {
    let Some(value) = file.value(key) else {
        return Ok(Vec::new());
    };
    let number = |item: &Value| item.as_u64().and_then(|number| usize::try_from(number).ok());
    let numbers = value.as_array().and_then(|items| items.iter().map(number).collect());
    numbers.ok_or_else(|| file.error(key, "a list of numbers of layers"))
}
