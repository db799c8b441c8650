//! The autoencoder's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// Configuration of an `AutoencoderKL`.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the file")]
pub struct AutoencoderKlConfig {
    /// Channels of the image.
    pub in_channels: usize,
    /// Channels of the decoded image.
    pub out_channels: usize,
    /// Channels of each level, from the finest to the coarsest; each level after the first halves the sides.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Side of the images that the network was trained on.
    pub sample_size: Option<[usize; 2]>,
    /// Latents are multiplied by this before the denoiser sees them.
    pub scaling_factor: f64,
    /// Subtracted from the latents before they are multiplied.
    pub shift_factor: Option<f64>,
    /// Whether the network overflows in f16 and is to run in f32 instead, as SDXL's first autoencoder. The network itself runs in the
    /// type it is built in; who builds it for a pipeline in f16 honors this.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks attend.
    pub mid_block_add_attention: bool,
}

impl AutoencoderKlConfig {
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
        let config = Self {
            in_channels: file.count("in_channels", 3)?,
            out_channels: file.count("out_channels", 3)?,
            block_out_channels: file.counts("block_out_channels", &[64])?,
            layers_per_block: file.count("layers_per_block", 1)?,
            latent_channels: file.count("latent_channels", 4)?,
            norm_num_groups: file.count("norm_num_groups", 32)?,
            sample_size: file.size("sample_size")?,
            scaling_factor: file.number("scaling_factor", 0.18215)?,
            shift_factor: file.optional_number("shift_factor")?,
            force_upcast: file.flag("force_upcast", true)?,
            use_quant_conv: file.flag("use_quant_conv", true)?,
            use_post_quant_conv: file.flag("use_post_quant_conv", true)?,
            mid_block_add_attention: file.flag("mid_block_add_attention", true)?,
        };
        let levels = config.block_out_channels.len();
        for (key, name) in [
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ] {
            let expected = format!("a list of {levels} times \"{name}\"");
            let types = file.names(key, &expected, &[name], |found| (found == name).then_some(()))?;
            if types.len() != levels || levels == 0 {
                return Err(file.error(key, expected));
            }
        }
        file.only("act_fn", &[json!("silu"), json!("swish")])?;
        file.only("latents_mean", &[])?;
        file.only("latents_std", &[])?;
        if let Some(channels) = config
            .block_out_channels
            .iter()
            .find(|&channels| !channels.is_multiple_of(config.norm_num_groups))
        {
            return Err(file.error("norm_num_groups", format!("a divisor of {channels} channels")));
        }
        if config.scaling_factor == 0.0 {
            return Err(file.error("scaling_factor", "a number other than 0"));
        }
        file.finish()?;
        Ok(config)
    }

    /// Image pixels per latent pixel, along each side.
    pub fn downscale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    /// The `config.json` that diffusers reads.
    pub fn to_json(&self) -> Value {
        let levels = self.block_out_channels.len();
        // diffusers computes with this value, so it must not be null there.
        let sample_size = match self.sample_size {
            Some([height, width]) if height != width => json!([height, width]),
            Some([side, _]) => json!(side),
            None => json!(32),
        };
        json!({
            "_class_name": "AutoencoderKL",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "block_out_channels": self.block_out_channels,
            "layers_per_block": self.layers_per_block,
            "act_fn": "silu",
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_num_groups,
            "sample_size": sample_size,
            "scaling_factor": self.scaling_factor,
            "shift_factor": self.shift_factor,
            "force_upcast": self.force_upcast,
            "use_quant_conv": self.use_quant_conv,
            "use_post_quant_conv": self.use_post_quant_conv,
            "mid_block_add_attention": self.mid_block_add_attention,
        })
    }
}
