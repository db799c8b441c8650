//! Checkpoints of `OpenCLIP`, brought under the names of transformers.
//!
//! `OpenCLIP` keeps query, key and value in one matrix and projections transposed; the networks are the same otherwise.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_tensor::{Device, Result as TensorResult, Tensor, Weights};
use serde_json::json;

use super::ClipConfig;
use crate::config_json::{ConfigFile, read_json};
use crate::text_encoder::{ClipTextConfig, TextActivation};
use crate::vision::ClipVisionConfig;
use crate::{Error, Result};

/// The `ViT-H-14` of `OpenCLIP`, the network of `HPSv2` and of LAION's CLIP-H.
pub fn vit_h_14() -> ClipConfig {
    let (text_width, vision_width) = (1024, 1280);
    ClipConfig {
        text: text_config((text_width, 16, 24), (49408, 77), 1024, TextActivation::Gelu),
        vision: vision_config(
            (vision_width, 16, 32, 4 * vision_width),
            (224, 14),
            1024,
            TextActivation::Gelu,
        ),
        projection_dim: 1024,
        logit_scale_init_value: LOGIT_SCALE,
    }
}

/// ln(1 / 0.07).
const LOGIT_SCALE: f64 = 2.659_260_036_932_778;

fn text_config(
    (width, heads, layers): (usize, usize, usize),
    (vocab_size, context): (usize, usize),
    projection_dim: usize,
    hidden_act: TextActivation,
) -> ClipTextConfig {
    ClipTextConfig {
        vocab_size,
        hidden_size: width,
        intermediate_size: 4 * width,
        projection_dim,
        has_projection: true,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        max_position_embeddings: context,
        hidden_act,
        layer_norm_eps: 1e-5,
        initializer_factor: 1.0,
        // Texts are pooled at their highest id, which transformers calls 2.
        eos_token_id: 2,
        bos_token_id: 0,
        pad_token_id: 1,
    }
}

fn vision_config(
    (width, heads, layers, inner): (usize, usize, usize, usize),
    (image_size, patch_size): (usize, usize),
    projection_dim: usize,
    hidden_act: TextActivation,
) -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: width,
        intermediate_size: inner,
        projection_dim,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        image_size,
        patch_size,
        hidden_act,
        layer_norm_eps: 1e-5,
        initializer_factor: 1.0,
    }
}

/// Reads the `model_cfg` of an `open_clip_config.json`, for vision transformers with a text transformer of `OpenCLIP`'s own.
///
/// # Errors
/// [`Error::Config`] for a value that is wrong or not implemented, [`Error::UnknownConfigKey`] for a key that is not known.
pub fn read_open_clip_config(path: impl AsRef<Path>) -> Result<ClipConfig> {
    let path = path.as_ref();
    let file = ConfigFile::from_value(path, read_json(path)?)?;
    let Some(model) = file.section("model_cfg")? else {
        return Err(file.error("model_cfg", "an object"));
    };
    let (Some(text), Some(vision)) = (model.section("text_cfg")?, model.section("vision_cfg")?) else {
        return Err(file.error("model_cfg", "an object with `text_cfg` and `vision_cfg`"));
    };
    let projection_dim = model.count("embed_dim", 512)?;
    let activation = if model.flag("quick_gelu", false)? {
        TextActivation::QuickGelu
    } else {
        TextActivation::Gelu
    };
    let (width, layers) = (vision.count("width", 768)?, vision.count("layers", 12)?);
    let head_width = vision.count("head_width", 64)?;
    let size = (vision.count("image_size", 224)?, vision.count("patch_size", 16)?);
    let inner = (width as f64 * vision.number("mlp_ratio", 4.0)?) as usize;
    if !width.is_multiple_of(head_width) {
        return Err(vision.error("head_width", format!("a divisor of the width {width}")));
    }
    let (text_width, text_heads) = (text.count("width", 512)?, text.count("heads", 8)?);
    if !text_width.is_multiple_of(text_heads) {
        return Err(text.error("heads", format!("a divisor of the width {text_width}")));
    }
    let vocabulary = (text.count("vocab_size", 49408)?, text.count("context_length", 77)?);
    let text_config = text_config(
        (text_width, text_heads, text.count("layers", 12)?),
        vocabulary,
        projection_dim,
        activation,
    );
    for section in [text, vision, model] {
        section.finish()?;
    }
    file.any(&["preprocess_cfg"]);
    file.finish()?;
    Ok(ClipConfig {
        text: text_config,
        vision: vision_config(
            (width, width / head_width, layers, inner),
            size,
            projection_dim,
            activation,
        ),
        projection_dim,
        logit_scale_init_value: LOGIT_SCALE,
    })
}

/// The tensors of an `OpenCLIP` checkpoint under the names, and in the shapes, of transformers. All of it is read.
///
/// # Errors
/// [`Error::Config`] when this is no checkpoint of `OpenCLIP`, with the name it was told by; those of reading the file.
pub fn from_open_clip(weights: &Weights) -> Result<Weights> {
    if !weights.contains("visual.class_embedding") {
        let some: Vec<&str> = weights.names().take(3).collect();
        return Err(Error::Config {
            file: weights.origin().to_owned(),
            key: "visual.class_embedding".to_owned(),
            found: json!(some).to_string(),
            expected: "the tensors of an OpenCLIP checkpoint (its `state_dict`, without anything around it)".to_owned(),
        });
    }
    let mut tensors = BTreeMap::new();
    for name in weights.names() {
        // A buffer.
        if name == "attn_mask" {
            continue;
        }
        let dtype = weights.dtype(name).unwrap_or(diptych_tensor::DType::F32);
        let tensor = weights.read(name, dtype, &Device::Cpu)?;
        tensors.extend(renamed(name, &tensor)?);
    }
    Ok(Weights::from_tensors(weights.origin(), tensors))
}

/// A tensor of `OpenCLIP` as one or three of transformers. A name that is not known stays, and is found unused later.
fn renamed(name: &str, tensor: &Tensor) -> TensorResult<Vec<(String, Tensor)>> {
    let (half, rest) = match name.strip_prefix("visual.") {
        Some(rest) => ("vision_model", rest),
        None => ("text_model", name),
    };
    let whole = |name: &str| Ok(vec![(name.to_owned(), tensor.clone())]);
    match (half, rest) {
        (_, "logit_scale") => whole("logit_scale"),
        ("vision_model", "proj") => Ok(vec![("visual_projection.weight".to_owned(), tensor.t()?.contiguous()?)]),
        ("text_model", "text_projection") => Ok(vec![("text_projection.weight".to_owned(), tensor.t()?.contiguous()?)]),
        (_, "class_embedding") => whole("vision_model.embeddings.class_embedding"),
        (_, "conv1.weight") => whole("vision_model.embeddings.patch_embedding.weight"),
        (half, "positional_embedding") => whole(&format!("{half}.embeddings.position_embedding.weight")),
        (_, "token_embedding.weight") => whole("text_model.embeddings.token_embedding.weight"),
        (half, rest) => {
            let norms = [
                ("ln_pre.", "pre_layrnorm."),
                ("ln_post.", "post_layernorm."),
                ("ln_final.", "final_layer_norm."),
            ];
            for (from, to) in norms {
                if let Some(end) = rest.strip_prefix(from) {
                    return whole(&format!("{half}.{to}{end}"));
                }
            }
            let Some((index, part)) = rest
                .strip_prefix("transformer.resblocks.")
                .and_then(|rest| rest.split_once('.'))
            else {
                return whole(name);
            };
            layer_tensors(&format!("{half}.encoder.layers.{index}"), part, tensor)
        }
    }
}

fn layer_tensors(layer: &str, part: &str, tensor: &Tensor) -> TensorResult<Vec<(String, Tensor)>> {
    if let Some(kind) = part.strip_prefix("attn.in_proj_") {
        let rows = tensor.dim(0)? / 3;
        return ["q", "k", "v"]
            .iter()
            .enumerate()
            .map(|(third, letter)| {
                let piece = tensor.narrow(0, third * rows, rows)?.contiguous()?;
                Ok((format!("{layer}.self_attn.{letter}_proj.{kind}"), piece))
            })
            .collect();
    }
    let names = [
        ("attn.out_proj.", "self_attn.out_proj."),
        ("ln_1.", "layer_norm1."),
        ("ln_2.", "layer_norm2."),
        ("mlp.c_fc.", "mlp.fc1."),
        ("mlp.c_proj.", "mlp.fc2."),
    ];
    let renamed = names
        .iter()
        .find_map(|(from, to)| Some(format!("{to}{}", part.strip_prefix(from)?)))
        .unwrap_or_else(|| part.to_owned());
    Ok(vec![(format!("{layer}.{renamed}"), tensor.clone())])
}
