//! Pipeline directories in diffusers' layout: `model_index.json` and a directory for each component.
//!
//! ```text
//! model_index.json
//! unet/config.json           unet/diffusion_pytorch_model.safetensors
//! vae/config.json            vae/diffusion_pytorch_model.safetensors
//! text_encoder/config.json   text_encoder/model.safetensors
//! tokenizer/vocab.json       tokenizer/merges.txt ...
//! text_encoder_2/ ...        tokenizer_2/ ...             (SDXL)
//! scheduler/scheduler_config.json
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diptych_tensor::{DType, Tensor, Weights, files, save_tensors};
use serde_json::{Map, Value, json};

use crate::config_json::read_json;
use crate::nearest::nearest;
use crate::{Error, Result};

const INDEX: &str = "model_index.json";

/// Version of diffusers whose layout is written.
const DIFFUSERS_VERSION: &str = "0.31.0";

/// A pipeline directory.
#[derive(Debug, Clone)]
pub struct PipelineDir {
    path: PathBuf,
    class_name: String,
    /// Library and class of each component.
    components: BTreeMap<String, (String, String)>,
    /// What is no component.
    settings: BTreeMap<String, Value>,
}

impl PipelineDir {
    /// Reads `model_index.json`.
    ///
    /// # Errors
    /// [`Error::NoDirectory`], [`Error::MissingFile`] when there is no index in it, [`Error::Config`] when it is not an index.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Err(Error::NoDirectory { path: path.to_owned() });
        }
        let file = path.join(INDEX);
        if !file.is_file() {
            return Err(Error::MissingFile {
                path: path.to_owned(),
                expected: vec![INDEX.to_owned()],
            });
        }
        let error = |key: &str, found: String, expected: &str| Error::Config {
            file: file.clone(),
            key: key.to_owned(),
            found,
            expected: expected.to_owned(),
        };
        let json = read_json(&file)?;
        let Some(index) = json.as_object() else {
            return Err(error(".", json.to_string(), "an object"));
        };
        let class_name = index.get("_class_name").and_then(Value::as_str);
        let class_name = class_name.ok_or_else(|| error("_class_name", "missing".into(), "the pipeline's class"))?;
        let (mut components, mut settings) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in index {
            // `[null, null]` stands for a component that is left out, such as the safety checker; what is no list is a setting.
            if let Some([Value::String(library), Value::String(class)]) = value.as_array().map(Vec::as_slice) {
                components.insert(name.clone(), (library.clone(), class.clone()));
            } else if !value.is_array() {
                settings.insert(name.clone(), value.clone());
            }
        }
        Ok(Self {
            path: path.to_owned(),
            class_name: class_name.to_owned(),
            components,
            settings,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Class of the pipeline, such as `StableDiffusionPipeline`.
    pub fn class_name(&self) -> &str {
        &self.class_name
    }

    /// Names of the components, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.components.keys().map(String::as_str)
    }

    /// Whether the pipeline has this component.
    pub fn has(&self, name: &str) -> bool {
        self.components.contains_key(name)
    }

    /// A setting of the pipeline that is true or false, such as `force_zeros_for_empty_prompt`; `default` when it is missing.
    ///
    /// # Errors
    /// [`Error::Config`] when it is something else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.settings.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(Error::Config {
                file: self.path.join(INDEX),
                key: key.to_owned(),
                found: other.to_string(),
                expected: "true or false".to_owned(),
            }),
        }
    }

    /// A component's directory.
    ///
    /// # Errors
    /// [`Error::MissingComponent`] when the index does not list it, [`Error::MissingFile`] when its directory is not there.
    pub fn component(&self, name: &str) -> Result<ComponentDir> {
        let Some((_, class_name)) = self.components.get(name) else {
            let nearest = nearest(name, self.names());
            return Err(Error::MissingComponent {
                path: self.path.clone(),
                name: name.to_owned(),
                nearest,
            });
        };
        let path = self.path.join(name);
        if !path.is_dir() {
            return Err(Error::MissingFile {
                path: self.path.clone(),
                expected: vec![format!("{name}/")],
            });
        }
        Ok(ComponentDir {
            path,
            class_name: Some(class_name.clone()),
        })
    }
}

/// The directory of one component: a configuration and, for a network, weights.
#[derive(Debug, Clone)]
pub struct ComponentDir {
    path: PathBuf,
    class_name: Option<String>,
}

impl ComponentDir {
    /// A component that stands alone, outside a pipeline.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            class_name: None,
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Class of the component, such as `UNet2DConditionModel`, if a pipeline's index says so.
    pub fn class_name(&self) -> Option<&str> {
        self.class_name.as_deref()
    }

    /// `config.json`.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// Opens the component's weights, wherever they are.
    ///
    /// # Errors
    /// [`Error::MissingFile`] with the names looked for.
    pub fn weights(&self) -> Result<Weights> {
        Ok(Weights::open(&find_weights(&self.path)?)?)
    }
}

/// The weights in a component's directory: one file or the index of several; in half precision if there are no others.
///
/// # Errors
/// [`Error::MissingFile`] with the names looked for.
pub fn find_weights(dir: &Path) -> Result<PathBuf> {
    let stems = ["diffusion_pytorch_model", "model"];
    let whole = stems.map(|stem| format!("{stem}.safetensors"));
    let sharded = stems.map(|stem| format!("{stem}.safetensors.index.json"));
    let half = stems.map(|stem| format!("{stem}.fp16.safetensors"));
    let half_sharded = stems.map(|stem| format!("{stem}.safetensors.index.fp16.json"));
    let names: Vec<String> = whole
        .into_iter()
        .chain(sharded)
        .chain(half)
        .chain(half_sharded)
        .collect();
    match names.iter().map(|name| dir.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => Err(Error::MissingFile {
            path: dir.to_owned(),
            expected: names,
        }),
    }
}

/// Which library reads a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// Weights in `diffusion_pytorch_model.safetensors`.
    Diffusers,
    /// Weights in `model.safetensors`.
    Transformers,
}

/// Writes a network: `config.json`, which is what `to_json` of its configuration gives, and its tensors in `dtype`.
///
/// # Errors
/// When the directory cannot be written.
pub fn save_component(
    dir: impl AsRef<Path>,
    library: Library,
    config: &Value,
    (tensors, dtype): (&BTreeMap<String, Tensor>, DType),
) -> Result<()> {
    let dir = dir.as_ref();
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let mut config = config.clone();
    if let (Library::Diffusers, Some(map)) = (library, config.as_object_mut()) {
        map.insert("_diffusers_version".into(), json!(DIFFUSERS_VERSION));
    }
    let name = match library {
        Library::Diffusers => "diffusion_pytorch_model.safetensors",
        Library::Transformers => "model.safetensors",
    };
    let format = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    save_tensors(&dir.join(name), &cast(tensors, dtype)?, &format)?;
    write_json(&dir.join("config.json"), &config)
}

/// Writes the `model_index.json` of a pipeline of class `class_name` with components (name, library, class), such as
/// `("unet", "diffusers", "UNet2DConditionModel")`. For a `StableDiffusionPipeline` the safety checker is marked as left out.
///
/// # Errors
/// When the file cannot be written.
pub fn save_model_index(dir: impl AsRef<Path>, class_name: &str, components: &[(&str, &str, &str)]) -> Result<()> {
    let dir = dir.as_ref();
    fs::create_dir_all(dir).map_err(Error::io(dir))?;
    let mut index = Map::new();
    index.insert("_class_name".into(), json!(class_name));
    index.insert("_diffusers_version".into(), json!(DIFFUSERS_VERSION));
    if class_name == "StableDiffusionPipeline" {
        for absent in ["feature_extractor", "image_encoder", "safety_checker"] {
            index.insert(absent.into(), json!([null, null]));
        }
        index.insert("requires_safety_checker".into(), json!(false));
    }
    for (name, library, class) in components {
        index.insert((*name).to_owned(), json!([library, class]));
    }
    write_json(&dir.join(INDEX), &Value::Object(index))
}

fn cast(tensors: &BTreeMap<String, Tensor>, dtype: DType) -> diptych_tensor::Result<BTreeMap<String, Tensor>> {
    tensors
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(dtype)?.contiguous()?)))
        .collect()
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    Ok(files::write_file(path, format!("{value:#}\n").as_bytes())?)
}
