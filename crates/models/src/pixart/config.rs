//! The transformer's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// Configuration of a `PixArtTransformer2DModel`, which published files still call `Transformer2DModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct PixArtTransformer2DConfig {
    /// Height and width of the latents that the network was trained on.
    pub sample_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the prediction: those of the noise, and of its variance in published networks.
    pub out_channels: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Width of each head of attention.
    pub attention_head_dim: usize,
    /// Attention heads of each block; with their width they make up the width of the network.
    pub num_attention_heads: usize,
    /// Whether the projections of queries, keys and values have a bias.
    pub attention_bias: bool,
    /// Width of the text, which two layers bring to that of the network. Without them it has the network's width.
    pub caption_channels: Option<usize>,
    /// Positions are divided by this.
    pub interpolation_scale: f64,
    /// Whether resolution and aspect ratio are inputs.
    pub use_additional_conditions: bool,
}

impl PixArtTransformer2DConfig {
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
        let sample_size = file.count("sample_size", 128)?;
        let in_channels = file.count("in_channels", 4)?;
        // Null stands for as many as come in; a missing key has a default of its own.
        let default_out = if file.has("out_channels") { in_channels } else { 8 };
        let config = Self {
            sample_size,
            patch_size: file.count("patch_size", 2)?,
            in_channels,
            out_channels: file.count("out_channels", default_out)?,
            num_layers: file.count("num_layers", 28)?,
            attention_head_dim: file.count("attention_head_dim", 72)?,
            num_attention_heads: file.count("num_attention_heads", 16)?,
            attention_bias: file.flag("attention_bias", true)?,
            caption_channels: file.optional_count("caption_channels")?,
            interpolation_scale: file.number("interpolation_scale", (sample_size / 64).max(1) as f64)?,
            use_additional_conditions: file.flag("use_additional_conditions", sample_size == 128)?,
        };
        Self::reject_what_is_not_implemented(&file)?;
        config.validate(&file)?;
        file.finish()?;
        Ok(config)
    }

    /// Keys that exist in diffusers and have only one value here.
    fn reject_what_is_not_implemented(file: &ConfigFile) -> Result<()> {
        file.only("activation_fn", &[json!("gelu-approximate")])?;
        file.only("norm_type", &[json!("ada_norm_single")])?;
        file.only("norm_eps", &[json!(1e-6)])?;
        file.only("attention_type", &[json!("default")])?;
        file.only("dropout", &[json!(0)])?;
        let off = [
            "double_self_attention",
            "only_cross_attention",
            "use_linear_projection",
            "norm_elementwise_affine",
            "upcast_attention",
        ];
        for key in off {
            file.only(key, &[json!(false)])?;
        }
        file.only("num_vector_embeds", &[])?;
        // Neither groups nor embeddings of classes are part of this network.
        file.any(&["norm_num_groups", "num_embeds_ada_norm"]);
        Ok(())
    }

    fn validate(&self, file: &ConfigFile) -> Result<()> {
        let dim = self.dim();
        let multiple = if self.use_additional_conditions { 12 } else { 4 };
        if !dim.is_multiple_of(multiple) {
            let expected = format!("a number that with the number of heads makes a multiple of {multiple}");
            return Err(file.error("attention_head_dim", expected));
        }
        let is_null = file.has("cross_attention_dim") && file.value("cross_attention_dim").is_none();
        if is_null || file.count("cross_attention_dim", 1152)? != dim {
            let expected = format!("{dim}, the width of {} heads", self.num_attention_heads);
            return Err(file.error("cross_attention_dim", expected));
        }
        if self.sample_size < self.patch_size {
            return Err(file.error("sample_size", format!("at least the patch size {}", self.patch_size)));
        }
        if self.interpolation_scale <= 0.0 {
            return Err(file.error("interpolation_scale", "a number above 0"));
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
            "_class_name": "PixArtTransformer2DModel",
            "sample_size": self.sample_size,
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "num_layers": self.num_layers,
            "attention_head_dim": self.attention_head_dim,
            "num_attention_heads": self.num_attention_heads,
            "attention_bias": self.attention_bias,
            "cross_attention_dim": self.dim(),
            "caption_channels": self.caption_channels,
            "interpolation_scale": self.interpolation_scale,
            "use_additional_conditions": self.use_additional_conditions,
            "activation_fn": "gelu-approximate",
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": false,
            "norm_eps": 1e-6,
        })
    }
}
