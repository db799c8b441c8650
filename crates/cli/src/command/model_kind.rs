//! What lies in a model's directory.

use std::path::Path;

use anyhow::bail;
use diptych_models::Error;
use diptych_models::vlm::VlmFamily;

use crate::failure::usage;

/// Kinds of models, told from the file that describes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelKind {
    /// `model_index.json`: a pipeline in diffusers' layout.
    Pipeline,
    /// `config.json` of a family that reads images, in transformers' layout.
    VisionLanguage,
    /// Any other `config.json`: a language model in transformers' layout.
    Language,
}

impl ModelKind {
    /// The kind of model at `path`.
    pub(crate) fn of(path: &Path) -> anyhow::Result<Self> {
        let has = |file: &str| path.join(file).is_file();
        if has("model_index.json") {
            return Ok(Self::Pipeline);
        }
        if has("config.json") {
            return Ok(if reads_images(&path.join("config.json")) {
                Self::VisionLanguage
            } else {
                Self::Language
            });
        }
        let path = path.to_owned();
        if !path.is_dir() {
            bail!(Error::NoDirectory { path });
        }
        bail!(Error::MissingFile {
            path,
            expected: vec!["model_index.json".to_owned(), "config.json".to_owned()],
        })
    }

    /// As messages say it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pipeline => "a diffusion pipeline",
            Self::VisionLanguage => "a vision-language model",
            Self::Language => "a language model",
        }
    }

    /// Refuses what is no language model where only one can serve.
    pub(crate) fn ensure_language(path: &Path, command: &str) -> anyhow::Result<()> {
        let kind = Self::of(path)?;
        if kind == Self::Language {
            return Ok(());
        }
        Err(usage(format!(
            "--model {} is {}; {command} is for language models",
            path.display(),
            kind.name()
        )))
    }
}

/// Whether a configuration is one of a family that reads images; a file that is damaged is reported by whoever needs it.
fn reads_images(config: &Path) -> bool {
    let text = std::fs::read_to_string(config).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let model_type = value.get("model_type").and_then(serde_json::Value::as_str);
    VlmFamily::ALL
        .iter()
        .any(|family| model_type == Some(family.model_type()))
}
