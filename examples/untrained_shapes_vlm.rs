//! Writes the untrained vision-language model that its pretraining recipe starts from: the first step to `models/shapes-vlm`.
//!
//! Run: `cargo run --release --example untrained_shapes_vlm -- runs/shapes-vlm-untrained`

use std::path::{Path, PathBuf};

use diptych::models::vlm::{TowerTraining, VisionLanguageModel, VlmDir, save};
use diptych::models::{Builder, BuilderConfig, Trainable};
use diptych::shapes::{
    PICTURE_TOKEN, PICTURE_TOKEN_ID, SPECIAL_TOKENS, picture_tokenizer_config_json, picture_tokenizer_json,
    picture_vocabulary,
};
use diptych::tensor::{DType, Device, Tensor};
use serde_json::{Value, json};

/// Pixels of a picture along a side, and of a patch: 16 tokens a picture.
const SIDE: usize = 32;
const PATCH: usize = 8;
const NUM_PATCHES: usize = (SIDE / PATCH).pow(2);
const TOWER_WIDTH: usize = 64;
const WIDTH: usize = 96;
/// Tokens of a picture, a request and the longest caption, and some to spare.
const MAX_LEN: usize = 64;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args().nth(1);
    let directory = PathBuf::from(directory.unwrap_or_else(|| "runs/shapes-vlm-untrained".into()));
    std::fs::create_dir_all(&directory)?;
    write_json(&directory, "config.json", &config())?;
    write_json(&directory, "preprocessor_config.json", &image_processor())?;
    write_json(&directory, "processor_config.json", &processor())?;
    std::fs::write(directory.join("tokenizer.json"), picture_tokenizer_json())?;
    std::fs::write(
        directory.join("tokenizer_config.json"),
        picture_tokenizer_config_json(MAX_LEN),
    )?;

    let dir = VlmDir::open(&directory)?;
    dir.image_processor()?;
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        seed: 0,
        ..BuilderConfig::new(None)
    })?;
    VisionLanguageModel::load(&builder, dir.config(), TowerTraining::Included)?;
    let mut tensors = builder.finish()?.snapshot()?;
    // Features are read before this norm, so it is no parameter of the network; transformers looks for it all the same.
    for (name, tensor) in [
        ("weight", Tensor::ones(TOWER_WIDTH, DType::F32, &Device::Cpu)?),
        ("bias", Tensor::zeros(TOWER_WIDTH, DType::F32, &Device::Cpu)?),
    ] {
        tensors.insert(format!("model.vision_tower.post_layernorm.{name}"), tensor);
    }
    save(&directory, dir.config(), (&tensors, DType::F32))?;
    Ok(())
}

fn config() -> Value {
    json!({
        "model_type": "llava",
        "image_token_index": PICTURE_TOKEN_ID,
        "image_seq_length": NUM_PATCHES,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "tie_word_embeddings": true,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 4 * TOWER_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": TOWER_WIDTH,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": SPECIAL_TOKENS.len() + 1 + picture_vocabulary().len(),
            "hidden_size": WIDTH,
            "intermediate_size": 264,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": MAX_LEN,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": true,
            // About 1 / sqrt(hidden_size): at this width the usual 0.02 takes hundreds of steps to grow out of.
            "initializer_range": 0.1,
            // Ids of picture_tokenizer_json(), in the order of SPECIAL_TOKENS.
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    })
}

/// Pictures of any size become squares of [`SIDE`] pixels, normalized as CLIP's.
fn image_processor() -> Value {
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": true,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
        "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11],
    })
}

/// What transformers' `LlavaProcessor` needs to put as many image tokens as there are features.
fn processor() -> Value {
    json!({
        "processor_class": "LlavaProcessor",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
        "image_token": PICTURE_TOKEN,
    })
}

fn write_json(directory: &Path, name: &str, value: &Value) -> std::io::Result<()> {
    std::fs::write(directory.join(name), format!("{value:#}\n"))
}
