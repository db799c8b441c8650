//! What a BLIP looks like: `med_config.json` for the text half, the weights themselves for the image half.

use std::path::Path;

use diptych_tensor::Weights;
use serde_json::{Value, json};

use crate::config_json::{ConfigFile, read_json};
use crate::vision::WITHOUT_EFFECT;
use crate::{Error, Result};

/// Width of a head of the image half: the published vision transformers, base and large, both have 64.
const VISION_HEAD_DIM: usize = 64;

/// Configuration of a BLIP with a multimodal text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct BlipConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the text half.
    pub hidden_size: usize,
    /// Inner width of its feed-forward layers.
    pub intermediate_size: usize,
    /// Its layers.
    pub num_hidden_layers: usize,
    /// Attention heads of each of its layers.
    pub num_attention_heads: usize,
    /// Longest text, in tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the text half's norms.
    pub layer_norm_eps: f64,
    /// Width of the image half.
    pub vision_width: usize,
    /// Its layers.
    pub vision_layers: usize,
    /// Attention heads of each of its layers.
    pub vision_heads: usize,
    /// Side of the image, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
}

impl BlipConfig {
    /// Reads a `med_config.json` and, from the shapes of the tensors below `prefix`, what the image half looks like, as no published
    /// file says it.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, or when the weights have no image half;
    /// [`Error::UnknownConfigKey`] for a key that is not known.
    pub fn read(med_config: impl AsRef<Path>, weights: &Weights, prefix: &str) -> Result<Self> {
        let path = med_config.as_ref();
        let file = ConfigFile::from_value(path, read_json(path)?)?;
        file.only("model_type", &[json!("bert")])?;
        file.only("hidden_act", &[json!("gelu")])?;
        file.only("add_cross_attention", &[json!(true)])?;
        file.any(&WITHOUT_EFFECT);
        // Dropout, segments that are never used, and the width of the image half, which the program overwrites.
        file.any(&[
            "attention_probs_dropout_prob",
            "hidden_dropout_prob",
            "type_vocab_size",
            "encoder_width",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
        ]);
        let vision = VisionShape::of(weights, prefix)?;
        let config = Self {
            vocab_size: file.count("vocab_size", 30_524)?,
            hidden_size: file.count("hidden_size", 768)?,
            intermediate_size: file.count("intermediate_size", 3072)?,
            num_hidden_layers: file.count("num_hidden_layers", 12)?,
            num_attention_heads: file.count("num_attention_heads", 12)?,
            max_position_embeddings: file.count("max_position_embeddings", 512)?,
            layer_norm_eps: file.number("layer_norm_eps", 1e-12)?,
            vision_width: vision.width,
            vision_layers: vision.layers,
            vision_heads: vision.width / VISION_HEAD_DIM,
            image_size: vision.patches_per_side * vision.patch_size,
            patch_size: vision.patch_size,
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of the width {}", config.hidden_size);
            return Err(file.error("num_attention_heads", expected));
        }
        file.finish()?;
        Ok(config)
    }

    /// Patches of an image.
    pub fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }
}

struct VisionShape {
    width: usize,
    layers: usize,
    patch_size: usize,
    patches_per_side: usize,
}

impl VisionShape {
    fn of(weights: &Weights, prefix: &str) -> Result<Self> {
        let name = |end: &str| format!("{prefix}visual_encoder.{end}");
        let (patch, positions) = (name("patch_embed.proj.weight"), name("pos_embed"));
        let error = |key: &str, found: &Value, expected: &str| Error::Config {
            file: weights.origin().to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_owned(),
        };
        let shape = |key: &str| {
            weights
                .shape(key)
                .ok_or_else(|| error(key, &json!("missing"), "a tensor of BLIP's image half"))
        };
        let [width, 3, patch_size, _] = *shape(&patch)? else {
            return Err(error(
                &patch,
                &json!(shape(&patch)?),
                "the shape (width, 3, patch, patch)",
            ));
        };
        let [1, num_positions, _] = *shape(&positions)? else {
            return Err(error(
                &positions,
                &json!(shape(&positions)?),
                "the shape (1, patches + 1, width)",
            ));
        };
        let patches_per_side = (num_positions.saturating_sub(1) as f64).sqrt().round() as usize;
        if patches_per_side.pow(2) + 1 != num_positions || !width.is_multiple_of(VISION_HEAD_DIM) {
            let expected = "a square of patches and one more, and a width that is a multiple of 64";
            return Err(error(&positions, &json!(shape(&positions)?), expected));
        }
        let has = |layer: &usize| weights.contains(&name(&format!("blocks.{layer}.norm1.weight")));
        Ok(Self {
            width,
            layers: (0..weights.names().count()).take_while(has).count(),
            patch_size,
            patches_per_side,
        })
    }
}
