//! The transformer's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// Configuration of a `FluxTransformer2DModel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FluxTransformer2DConfig {
    /// Channels of a packed token: four times those of the latents.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Number of blocks of two streams.
    pub num_layers: usize,
    /// Number of blocks of one stream.
    pub num_single_layers: usize,
    /// Width of each head of attention.
    pub attention_head_dim: usize,
    /// Attention heads of each block; with their width they make up the width of the network.
    pub num_attention_heads: usize,
    /// Width of the text.
    pub joint_attention_dim: usize,
    /// Width of the pooled text.
    pub pooled_projection_dim: usize,
    /// Whether the strength of guidance is an input: Flux dev.
    pub guidance_embeds: bool,
    /// Channels of a head that are rotated by each of the three coordinates of a token.
    pub axes_dims_rope: [usize; 3],
}

impl FluxTransformer2DConfig {
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
        // Latents are packed before the network; every published one has patches of one token.
        file.only("patch_size", &[json!(1)])?;
        let in_channels = file.count("in_channels", 64)?;
        let axes = file.counts("axes_dims_rope", &[16, 56, 56])?;
        let config = Self {
            in_channels,
            out_channels: file.count("out_channels", in_channels)?,
            num_layers: file.count("num_layers", 19)?,
            num_single_layers: file.count("num_single_layers", 38)?,
            attention_head_dim: file.count("attention_head_dim", 128)?,
            num_attention_heads: file.count("num_attention_heads", 24)?,
            joint_attention_dim: file.count("joint_attention_dim", 4096)?,
            pooled_projection_dim: file.count("pooled_projection_dim", 768)?,
            guidance_embeds: file.flag("guidance_embeds", false)?,
            axes_dims_rope: axes
                .try_into()
                .map_err(|_| file.error("axes_dims_rope", "a list of three"))?,
        };
        let axes = config.axes_dims_rope;
        if axes.iter().any(|axis| !axis.is_multiple_of(2)) || axes.iter().sum::<usize>() != config.attention_head_dim {
            let expected = format!("even numbers with the sum {}", config.attention_head_dim);
            return Err(file.error("axes_dims_rope", expected));
        }
        file.finish()?;
        Ok(config)
    }

    /// Width of the network.
    pub fn dim(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// The `config.json` that diffusers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "_class_name": "FluxTransformer2DModel",
            "patch_size": 1,
            "in_channels": self.in_channels,
            "out_channels": (self.out_channels != self.in_channels).then_some(self.out_channels),
            "num_layers": self.num_layers,
            "num_single_layers": self.num_single_layers,
            "attention_head_dim": self.attention_head_dim,
            "num_attention_heads": self.num_attention_heads,
            "joint_attention_dim": self.joint_attention_dim,
            "pooled_projection_dim": self.pooled_projection_dim,
            "guidance_embeds": self.guidance_embeds,
            "axes_dims_rope": self.axes_dims_rope,
        })
    }
}
