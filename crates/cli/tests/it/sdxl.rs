//! Networks of SDXL, one by one.

use std::collections::BTreeMap;

use diptych_models::text_encoder::{ClipTextConfig, ClipTextModel};
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel};
use diptych_tensor::{Tensor, save_tensors};
use serde_json::json;

use crate::named_values;
use crate::place::{Place, golden};
use crate::tools::{PARITY, error, forward, inputs, read};

const DENOISER: [(&str, &str); 5] = [
    ("sample", "sample"),
    ("timesteps", "timestep"),
    ("encoder_hidden_states", "encoder_hidden_states"),
    ("text_embeds", "text_embeds"),
    ("time_ids", "time_ids"),
];

/// The golden denoiser and second text encoder, with their weights.
fn pipeline(place: &Place) {
    let add = |component: &str, name: &str, file: &str, tensors: &BTreeMap<String, Tensor>| {
        let config = std::fs::read(golden("models").join(name).join("config.json")).unwrap();
        place.write(&format!("sdxl/{component}/config.json"), config);
        let path = place.path("sdxl").join(component).join(file);
        save_tensors(&path, tensors, &BTreeMap::new()).unwrap();
    };
    let config = |name: &str| golden("models").join(name).join("config.json");
    let unet = UNet2DConditionConfig::from_file(config("unet_sdxl")).unwrap();
    let tensors = named_values::named_tensors(|builder| UNet2DConditionModel::load(builder, &unet));
    add("unet", "unet_sdxl", "diffusion_pytorch_model.safetensors", &tensors);
    let text = ClipTextConfig::from_file(config("text_bigg")).unwrap();
    let tensors = named_values::named_tensors(|builder| ClipTextModel::load(builder, &text));
    add("text_encoder_2", "text_bigg", "model.safetensors", &tensors);
    let index = json!({
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    });
    place.write("sdxl/model_index.json", index.to_string());
}

#[test]
fn forward_of_sdxl_equals_python() {
    let place = Place::new();
    pipeline(&place);
    inputs(&place, "unet_sdxl", &DENOISER);
    let found = forward(&place, "sdxl", "out.safetensors", &[]);
    let expected = read(&golden("models/unet_sdxl/vectors.safetensors"));
    assert!(error(&found["sample"], &expected["output"]) < PARITY);

    inputs(&place, "text_bigg", &[("input_ids", "input_ids")]);
    let found = forward(&place, "sdxl", "text.safetensors", &["--component", "text_encoder_2"]);
    let expected = read(&golden("models/text_bigg/vectors.safetensors"));
    let states = &expected["hidden_states"];
    let penultimate = states.get(states.dims()[0] - 2).unwrap();
    for (name, expected) in [
        ("last_hidden_state", &expected["last_hidden_state"]),
        ("penultimate_hidden_state", &penultimate),
        ("text_embeds", &expected["text_embeds"]),
    ] {
        assert!(error(&found[name], expected) < PARITY, "{name}");
    }
}

#[test]
fn added_conditions_are_asked_for_by_name() {
    let place = Place::new();
    pipeline(&place);
    inputs(&place, "unet_sdxl", &DENOISER[..4]);
    place
        .run(&[
            "forward",
            "--model",
            "sdxl",
            "--inputs",
            "inputs.safetensors",
            "--out",
            "out.safetensors",
        ])
        .failure(1, &["inputs.safetensors", "time_ids"]);
}
