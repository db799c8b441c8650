//! The `config.json` of a whole CLIP.

use std::path::Path;

use serde_json::{Value, json};

use crate::config_json::{ConfigFile, read_json};
use crate::text_encoder::ClipTextConfig;
use crate::vision::{ClipVisionConfig, WITHOUT_EFFECT};
use crate::{Error, Result};

/// Configuration of a `CLIPModel`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipConfig {
    /// The text half, with its projection.
    pub text: ClipTextConfig,
    /// The image half.
    pub vision: ClipVisionConfig,
    /// Width of the joint space.
    pub projection_dim: usize,
    /// Logarithm of the factor of cosines, at the start of training.
    pub logit_scale_init_value: f64,
}

impl ClipConfig {
    /// Reads a `config.json`. Missing keys have transformers' defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is wrong or not implemented, such as another `model_type`, [`Error::UnknownConfigKey`] for a
    /// key that has a value and is not known.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_json(read_json(path.as_ref())?, path)
    }

    /// Reads an already parsed `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_json(value: Value, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = ConfigFile::from_value(path, value)?;
        if file.value("model_type").and_then(Value::as_str) != Some("clip") {
            return Err(file.error("model_type", "\"clip\""));
        }
        // Where an old file has the second form, transformers takes it in place of the first.
        let section = |name: &str| {
            let old = format!("{name}_dict");
            file.value(name);
            file.value(&old)
                .or_else(|| file.value(name))
                .cloned()
                .unwrap_or_else(|| json!({}))
        };
        let projection_dim = file.count("projection_dim", 512)?;
        let text = ClipTextConfig::from_json(only_of_networks(section("text_config"), path)?, path)?;
        let config = Self {
            // The width of the whole counts, whatever the half says.
            text: ClipTextConfig {
                has_projection: true,
                projection_dim,
                ..text
            },
            vision: ClipVisionConfig::from_json(section("vision_config"), path)?,
            projection_dim,
            logit_scale_init_value: file.number("logit_scale_init_value", 2.6592)?,
        };
        file.any(&WITHOUT_EFFECT);
        file.any(&["initializer_factor"]);
        file.finish()?;
        Ok(config)
    }

    /// The `config.json` that transformers reads.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.projection_dim,
            "logit_scale_init_value": self.logit_scale_init_value,
            "initializer_factor": 1.0,
            "text_config": self.text.to_json(),
            "vision_config": self.vision.to_json(),
        })
    }
}

/// A section without the keys of training and generation, which old files repeat in every section.
fn only_of_networks(section: Value, path: &Path) -> Result<Value> {
    let Value::Object(mut map) = section else {
        return Err(Error::Config {
            file: path.to_owned(),
            key: "text_config".to_owned(),
            found: section.to_string(),
            expected: "an object".to_owned(),
        });
    };
    for key in WITHOUT_EFFECT {
        map.remove(key);
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if map.get(key) == Some(&json!(false)) {
            map.remove(key);
        }
    }
    Ok(Value::Object(map))
}
