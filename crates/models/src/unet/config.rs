//! The denoiser's `config.json`.

use std::path::Path;

use serde_json::{Value, json};

use super::depth::{self, BlockDepth};
use crate::Result;
use crate::config_json::{ConfigFile, read_json};

/// A block on the way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownBlockType {
    /// Residual blocks and transformers.
    CrossAttnDownBlock2D,
    /// Residual blocks.
    DownBlock2D,
}

/// A block on the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpBlockType {
    /// Residual blocks.
    UpBlock2D,
    /// Residual blocks and transformers.
    CrossAttnUpBlock2D,
}

/// The block between the way down and the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MidBlockType {
    /// Two residual blocks around a transformer.
    UNetMidBlock2DCrossAttn,
    /// One residual block.
    UNetMidBlock2D,
}

impl MidBlockType {
    /// diffusers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UNetMidBlock2DCrossAttn => "UNetMidBlock2DCrossAttn",
            Self::UNetMidBlock2D => "UNetMidBlock2D",
        }
    }
}

/// What SDXL adds to the time embedding (`addition_embed_type = "text_time"`): a text's vector, and sinusoids of sizes and crops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextTimeConfig {
    /// Sinusoids of each of the numbers.
    pub addition_time_embed_dim: usize,
    /// Width of the text's vector and of all sinusoids together.
    pub projection_class_embeddings_input_dim: usize,
}

/// Configuration of a `UNet2DConditionModel`. Values for each level are listed from the finest to the coarsest.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the file")]
pub struct UNet2DConditionConfig {
    /// Height and width of the latents that the network was trained on.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Whether the input is mapped from `[0, 1]` to `[-1, 1]` first.
    pub center_input_sample: bool,
    /// Whether cosines come before sines in the time embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the time embedding's frequencies.
    pub freq_shift: f64,
    /// Blocks on the way down.
    pub down_block_types: Vec<DownBlockType>,
    /// The block between them, if there is one.
    pub mid_block_type: Option<MidBlockType>,
    /// Blocks on the way up, from the coarsest level to the finest.
    pub up_block_types: Vec<UpBlockType>,
    /// Channels of each level.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level.
    pub layers_per_block: Vec<usize>,
    /// Padding of the strided convolutions: 1, or 0 for padding on one side.
    pub downsample_padding: usize,
    /// The middle block's residual sums are divided by this.
    pub mid_block_scale_factor: f64,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' norms.
    pub norm_eps: f64,
    /// Width of the text, for each level.
    pub cross_attention_dim: Vec<usize>,
    /// Number of attention heads of each level; diffusers calls it by this name for historical reasons.
    pub attention_head_dim: Vec<usize>,
    /// Transformer blocks in each transformer of a level on the way down; those of the coarsest also of the middle.
    pub transformer_layers_per_block: Vec<BlockDepth>,
    /// The same on the way up, from the coarsest level to the finest; by default as on the way down.
    pub reverse_transformer_layers_per_block: Option<Vec<BlockDepth>>,
    /// Whether transformers project with linear layers instead of 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Whether attention is computed in f32 when the activations are in half precision.
    pub upcast_attention: bool,
    /// Width of the time embedding.
    pub time_embedding_dim: usize,
    /// What is added to the time embedding, if anything.
    pub addition_embed: Option<TextTimeConfig>,
    /// Kernel size of the first convolution.
    pub conv_in_kernel: usize,
    /// Kernel size of the last convolution.
    pub conv_out_kernel: usize,
}

impl DownBlockType {
    const EXPECTED: &str = "a list of \"CrossAttnDownBlock2D\" and \"DownBlock2D\"";

    fn parse(name: &str) -> Option<Self> {
        match name {
            "CrossAttnDownBlock2D" => Some(Self::CrossAttnDownBlock2D),
            "DownBlock2D" => Some(Self::DownBlock2D),
            _ => None,
        }
    }

    /// diffusers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossAttnDownBlock2D => "CrossAttnDownBlock2D",
            Self::DownBlock2D => "DownBlock2D",
        }
    }
}

impl UpBlockType {
    const EXPECTED: &str = "a list of \"UpBlock2D\" and \"CrossAttnUpBlock2D\"";

    fn parse(name: &str) -> Option<Self> {
        match name {
            "UpBlock2D" => Some(Self::UpBlock2D),
            "CrossAttnUpBlock2D" => Some(Self::CrossAttnUpBlock2D),
            _ => None,
        }
    }

    /// diffusers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::UpBlock2D => "UpBlock2D",
            Self::CrossAttnUpBlock2D => "CrossAttnUpBlock2D",
        }
    }
}

impl UNet2DConditionConfig {
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
        let down = [
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ];
        let up = [
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ];
        let block_out_channels = file.counts("block_out_channels", &[320, 640, 1280, 1280])?;
        let Some(&first) = block_out_channels.first() else {
            return Err(file.error("block_out_channels", "at least one level"));
        };
        let levels = block_out_channels.len();
        let layers_per_block = file.counts_per_block("layers_per_block", 2, levels)?;
        let layers_up: Vec<usize> = layers_per_block.iter().rev().map(|layers| layers + 1).collect();
        let config = Self {
            sample_size: file.size("sample_size")?,
            in_channels: file.count("in_channels", 4)?,
            out_channels: file.count("out_channels", 4)?,
            center_input_sample: file.flag("center_input_sample", false)?,
            flip_sin_to_cos: file.flag("flip_sin_to_cos", true)?,
            freq_shift: file.number("freq_shift", 0.0)?,
            down_block_types: file.names("down_block_types", DownBlockType::EXPECTED, &down, DownBlockType::parse)?,
            up_block_types: file.names("up_block_types", UpBlockType::EXPECTED, &up, UpBlockType::parse)?,
            downsample_padding: file.number("downsample_padding", 1.0)? as usize,
            mid_block_scale_factor: file.number("mid_block_scale_factor", 1.0)?,
            norm_num_groups: file.count("norm_num_groups", 32)?,
            norm_eps: file.number("norm_eps", 1e-5)?,
            cross_attention_dim: file.counts_per_block("cross_attention_dim", 1280, levels)?,
            attention_head_dim: file.counts_per_block("attention_head_dim", 8, levels)?,
            transformer_layers_per_block: depth::read(&file, "transformer_layers_per_block", &layers_per_block)?
                .unwrap_or_else(|| vec![BlockDepth::Same(1); levels]),
            reverse_transformer_layers_per_block: depth::read(
                &file,
                "reverse_transformer_layers_per_block",
                &layers_up,
            )?,
            mid_block_type: Self::read_mid_block(&file)?,
            addition_embed: Self::read_addition(&file)?,
            layers_per_block,
            use_linear_projection: file.flag("use_linear_projection", false)?,
            upcast_attention: file.flag("upcast_attention", false)?,
            time_embedding_dim: file.count("time_embedding_dim", 4 * first)?,
            conv_in_kernel: file.count("conv_in_kernel", 3)?,
            conv_out_kernel: file.count("conv_out_kernel", 3)?,
            block_out_channels,
        };
        Self::reject_what_is_not_implemented(&file)?;
        config.validate(&file)?;
        file.finish()?;
        Ok(config)
    }

    /// `null` means no block, a missing key diffusers' default.
    fn read_mid_block(file: &ConfigFile) -> Result<Option<MidBlockType>> {
        let parse = |name: &str| match name {
            "UNetMidBlock2DCrossAttn" => Some(MidBlockType::UNetMidBlock2DCrossAttn),
            "UNetMidBlock2D" => Some(MidBlockType::UNetMidBlock2D),
            _ => None,
        };
        if file.has("mid_block_type") && file.value("mid_block_type").is_none() {
            return Ok(None);
        }
        let expected = "\"UNetMidBlock2DCrossAttn\", \"UNetMidBlock2D\" or null";
        file.name("mid_block_type", expected, MidBlockType::UNetMidBlock2DCrossAttn, parse)
            .map(Some)
    }

    fn read_addition(file: &ConfigFile) -> Result<Option<TextTimeConfig>> {
        file.only("addition_embed_type", &[json!("text_time")])?;
        // Heads of another kind of added embedding.
        file.any(&["addition_embed_type_num_heads"]);
        let [time, projection] = ["addition_time_embed_dim", "projection_class_embeddings_input_dim"];
        if file.value("addition_embed_type").is_none() {
            // They have no effect while `addition_embed_type` and `class_embed_type` are null.
            file.any(&[time, projection]);
            return Ok(None);
        }
        let count = |key: &str| {
            file.optional_count(key)?
                .ok_or_else(|| file.error(key, "a positive integer, as `addition_embed_type` is \"text_time\""))
        };
        Ok(Some(TextTimeConfig {
            addition_time_embed_dim: count(time)?,
            projection_class_embeddings_input_dim: count(projection)?,
        }))
    }

    /// Keys that exist in diffusers and have only one value here.
    fn reject_what_is_not_implemented(file: &ConfigFile) -> Result<()> {
        file.only("downsample_padding", &[json!(1), json!(0)])?;
        file.only("act_fn", &[json!("silu"), json!("swish")])?;
        file.only("time_embedding_type", &[json!("positional")])?;
        file.only("resnet_time_scale_shift", &[json!("default")])?;
        file.only("attention_type", &[json!("default")])?;
        file.only("dropout", &[json!(0)])?;
        file.only("resnet_out_scale_factor", &[json!(1)])?;
        let off = [
            "only_cross_attention",
            "dual_cross_attention",
            "mid_block_only_cross_attention",
            "resnet_skip_time_act",
        ];
        for key in off.into_iter().chain(["class_embeddings_concat"]) {
            file.only(key, &[json!(false)])?;
        }
        let null = [
            "class_embed_type",
            "encoder_hid_dim",
            "encoder_hid_dim_type",
            "num_class_embeds",
        ];
        let null_too = [
            "num_attention_heads",
            "time_embedding_act_fn",
            "timestep_post_act",
            "time_cond_proj_dim",
        ];
        for key in null.into_iter().chain(null_too).chain(["cross_attention_norm"]) {
            file.only(key, &[])?;
        }
        Ok(())
    }

    fn validate(&self, file: &ConfigFile) -> Result<()> {
        let levels = self.block_out_channels.len();
        for (key, len) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ] {
            if len != levels {
                return Err(file.error(key, format!("{levels} names, one for each of `block_out_channels`")));
            }
        }
        let is_uneven = self
            .transformer_layers_per_block
            .iter()
            .any(|depth| matches!(depth, BlockDepth::Each(_)));
        if is_uneven && self.reverse_transformer_layers_per_block.is_none() {
            let expected = "the depths on the way up, as `transformer_layers_per_block` has one for each layer";
            return Err(file.error("reverse_transformer_layers_per_block", expected));
        }
        for (&channels, &heads) in self.block_out_channels.iter().zip(&self.attention_head_dim) {
            if !channels.is_multiple_of(self.norm_num_groups) {
                return Err(file.error("norm_num_groups", format!("a divisor of {channels} channels")));
            }
            if !channels.is_multiple_of(heads) {
                return Err(file.error(
                    "attention_head_dim",
                    format!("a divisor of {channels} channels (a number of heads)"),
                ));
            }
        }
        if self.cross_attention_dim.windows(2).any(|pair| pair[0] != pair[1]) {
            return Err(file.error("cross_attention_dim", "one width for all levels"));
        }
        for (key, kernel) in [
            ("conv_in_kernel", self.conv_in_kernel),
            ("conv_out_kernel", self.conv_out_kernel),
        ] {
            if kernel.is_multiple_of(2) {
                return Err(file.error(key, "an odd number"));
            }
        }
        Ok(())
    }

    /// The `config.json` that diffusers reads.
    pub fn to_json(&self) -> Value {
        let per_level = |values: &[usize]| match values {
            [first, rest @ ..] if rest.iter().all(|value| value == first) => json!(first),
            values => json!(values),
        };
        let listed = |depths: &[BlockDepth]| depths.iter().map(BlockDepth::to_json).collect::<Value>();
        let depths = |depths: &[BlockDepth]| match depths {
            [first @ BlockDepth::Same(_), rest @ ..] if rest.iter().all(|depth| depth == first) => first.to_json(),
            depths => listed(depths),
        };
        let sample_size = self.sample_size.map(|[height, width]| {
            if height == width {
                json!(height)
            } else {
                json!([height, width])
            }
        });
        json!({
            "_class_name": "UNet2DConditionModel",
            "sample_size": sample_size,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "center_input_sample": self.center_input_sample,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "down_block_types": self.down_block_types.iter().map(|kind| kind.name()).collect::<Vec<_>>(),
            "mid_block_type": self.mid_block_type.map(MidBlockType::name),
            "up_block_types": self.up_block_types.iter().map(|kind| kind.name()).collect::<Vec<_>>(),
            "only_cross_attention": false,
            "block_out_channels": self.block_out_channels,
            "layers_per_block": per_level(&self.layers_per_block),
            "downsample_padding": self.downsample_padding,
            "mid_block_scale_factor": self.mid_block_scale_factor,
            "act_fn": "silu",
            "norm_num_groups": self.norm_num_groups,
            "norm_eps": self.norm_eps,
            "cross_attention_dim": per_level(&self.cross_attention_dim),
            "transformer_layers_per_block": depths(&self.transformer_layers_per_block),
            "reverse_transformer_layers_per_block": self.reverse_transformer_layers_per_block.as_deref().map(listed),
            "attention_head_dim": per_level(&self.attention_head_dim),
            "use_linear_projection": self.use_linear_projection,
            "upcast_attention": self.upcast_attention,
            "time_embedding_dim": (self.time_embedding_dim != 4 * self.block_out_channels[0]).then_some(self.time_embedding_dim),
            "addition_embed_type": self.addition_embed.map(|_| "text_time"),
            "addition_time_embed_dim": self.addition_embed.map(|added| added.addition_time_embed_dim),
            "projection_class_embeddings_input_dim": self.addition_embed.map(|added| added.projection_class_embeddings_input_dim),
            "conv_in_kernel": self.conv_in_kernel,
            "conv_out_kernel": self.conv_out_kernel,
        })
    }
}
