//! Attention to users beside that to the text: diffusers' numbers, gradients, files.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "the network's weights are a file here")]
#[path = "../../../tests/golden/named_values.rs"]
mod named_values;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_models::diffusers::ComponentDir;
use diptych_models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UserAttention, UserAttentionOptions};
use diptych_models::{Builder, BuilderConfig};
use diptych_tensor::{CheckpointPolicy, DType, Device, Tensor, Weights, backward, save_tensors};
use named_values::{named, uniform};
use serde_json::Value;
use support::{check_gradients, randn, same_gradients, shake, tiny_unet, unet_inputs, values};

const OPTIONS: UserAttentionOptions = UserAttentionOptions {
    device: Device::Cpu,
    dtype: DType::F32,
    seed: 3,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name)
}

fn replayed() -> UNet2DConditionModel {
    let component = ComponentDir::new(golden("replay/model/unet"));
    let config = UNet2DConditionConfig::from_file(component.config()).unwrap();
    let weights = component.weights().unwrap();
    let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
    let unet = UNet2DConditionModel::load(&builder, &config).unwrap();
    builder.finish().unwrap();
    unet
}

fn of_name(name: &str, shape: &[usize]) -> Tensor {
    let values = uniform(name, shape.iter().product());
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The file that the golden program's weights make.
fn file(directory: &Path, expected: &Value) -> PathBuf {
    let shapes = expected["shapes"].as_object().unwrap();
    let tensors = shapes.iter().map(|(name, shape)| {
        let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
        (name.clone(), named(name, &shape))
    });
    let path = directory.join("user_attention.safetensors");
    save_tensors(&path, &tensors.collect::<BTreeMap<_, _>>(), &BTreeMap::new()).unwrap();
    path
}

#[test]
fn outputs_and_gradients_are_those_of_diffusers_processors() {
    let text = std::fs::read_to_string(golden("user_attention.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), &expected);
    let unet = replayed();
    let paths: Vec<String> = unet.cross_attentions().into_iter().map(|layer| layer.path).collect();
    assert_eq!(serde_json::to_value(&paths).unwrap(), expected["paths"]);

    let (attention, params) = UserAttention::start(&unet, &path, &OPTIONS).unwrap();
    assert_eq!((attention.dim(), params.len()), (6, 8));
    let attention = Arc::new(attention);
    let (sample, text, users) = (
        of_name("sample", &[2, 4, 8, 8]),
        of_name("text", &[2, 5, 16]),
        of_name("users", &[2, 3, 6]),
    );
    let timesteps = Tensor::new(&[10_f32, 700.0], &Device::Cpu).unwrap();
    let predict = |attention, users| {
        unet.forward_for(&sample, &timesteps, &text, (None, Some((attention, users))))
            .unwrap()
    };
    let output = predict(&attention, &users);
    let of_golden = Weights::open(&golden("user_attention.safetensors")).unwrap();
    let of_golden = of_golden.read("output", DType::F32, &Device::Cpu).unwrap();
    for (found, expected) in values(&output).iter().zip(values(&of_golden)) {
        assert!(
            (found - expected).abs() < 1e-4 * expected.abs().max(0.1),
            "{found} {expected}"
        );
    }
    let loss = (&output * of_name("weight", &[2, 4, 8, 8])).unwrap().sum_all().unwrap();
    let gradients = backward(&loss, &params).unwrap();
    let by_file = attention.parameters_of(&path).unwrap();
    assert_eq!(gradients.iter().count(), by_file.len());
    for (number, layer) in paths.iter().enumerate() {
        for name in ["to_k_ip", "to_v_ip"] {
            let own = format!("{layer}.processor.{name}.weight");
            let of_file = format!("ip_adapter.{}.{name}.weight", 2 * number + 1);
            let (_, gradient) = gradients.iter().find(|(found, _)| *found == own).unwrap();
            let gradient = values(gradient);
            let unit = uniform(&format!("direction.{of_file}"), gradient.len());
            let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
            let product = gradient.iter().zip(&unit).map(|(a, b)| a * b).sum::<f64>() / norm(&unit);
            let [of_norm, of_product] = [0, 1].map(|at| expected["gradients"][&of_file][at].as_f64().unwrap());
            assert!(
                (norm(&gradient) / of_norm - 1.0).abs() < 1e-3,
                "{of_file}: {} {of_norm}",
                norm(&gradient)
            );
            assert!(
                (product - of_product).abs() < 1e-3 * of_norm,
                "{of_file}: {product} {of_product}"
            );
        }
    }
    // Nobody, or a network with its adapters off, is the network alone.
    let plain = unet.forward(&sample, &timesteps, &text).unwrap();
    let nobody = users.zeros_like().unwrap();
    assert_eq!(values(&predict(&attention, &nobody)), values(&plain));
    let _off = unet.adapter_switch().disable();
    assert_eq!(values(&predict(&attention, &users)), values(&plain));
}

#[test]
fn fresh_attention_changes_nothing_and_every_weight_learns() {
    let (mut unet, _) = tiny_unet(BuilderConfig {
        dtype: DType::F64,
        ..BuilderConfig::new(None)
    });
    let options = UserAttentionOptions {
        dtype: DType::F64,
        ..OPTIONS
    };
    let (attention, params) = UserAttention::fresh(&unet, 5, &options).unwrap();
    let attention = Arc::new(attention);
    let (sample, timesteps, text) = unet_inputs(DType::F64);
    let users = randn(9, &[sample.dims()[0], 2, 5], DType::F64);
    let plain = values(&unet.forward(&sample, &timesteps, &text).unwrap());
    let weight = randn(3, sample.dims(), DType::F64);
    let predict = |unet: &UNet2DConditionModel| {
        unet.forward_for(&sample, &timesteps, &text, (None, Some((&attention, &users))))
            .unwrap()
    };
    assert_eq!(values(&predict(&unet)), plain);
    shake(&params, 60);
    assert_ne!(values(&predict(&unet)), plain);
    let mut results = Vec::new();
    for checkpointing in [CheckpointPolicy::Off, CheckpointPolicy::ALL] {
        unet.gradient_checkpointing = checkpointing;
        let loss = || (predict(&unet) * &weight).unwrap().sum_all().unwrap();
        results.push(check_gradients(&params, loss));
    }
    same_gradients(&results[0], &results[1]);
    assert_eq!(params.len(), 2 * unet.cross_attentions().len());
}

#[test]
fn files_are_read_as_they_were_written_and_others_are_refused() {
    let unet = replayed();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("user_attention.safetensors");
    let (attention, params) = UserAttention::fresh(&unet, 4, &OPTIONS).unwrap();
    shake(&params, 5);
    attention.save(&path).unwrap();
    let weights = Weights::open(&path).unwrap();
    let names: Vec<&str> = weights.names().collect();
    assert_eq!(names.len(), 8);
    assert!(names.contains(&"ip_adapter.1.to_k_ip.weight") && names.contains(&"ip_adapter.7.to_v_ip.weight"));
    let (again, _) = UserAttention::start(&unet, &path, &OPTIONS).unwrap();
    let frozen = UserAttention::frozen(&unet, &path, &OPTIONS).unwrap();
    let bytes =
        |attention: &UserAttention| -> Vec<Vec<f64>> { attention.tensors().unwrap().values().map(values).collect() };
    assert_eq!(bytes(&again), bytes(&attention));
    assert_eq!(bytes(&frozen), bytes(&attention));
    let params_of_file = attention.parameters_of(&path).unwrap();
    assert!(params.names().all(|name| params_of_file.contains_key(name)));

    let (other, _) = tiny_unet(BuilderConfig::new(None));
    let error = UserAttention::frozen(&other, &path, &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("cross attentions") || error.contains("shape"), "{error}");
    let error = UserAttention::fresh(&unet, 0, &OPTIONS).unwrap_err().to_string();
    assert!(error.contains("no width"), "{error}");
    let attention = Arc::new(attention);
    let sample = of_name("sample", &[2, 4, 8, 8]);
    let timesteps = Tensor::new(&[10_f32, 700.0], &Device::Cpu).unwrap();
    let users = of_name("users", &[2, 3, 6]);
    let error = unet.forward_for(
        &sample,
        &timesteps,
        &of_name("text", &[2, 5, 16]),
        (None, Some((&attention, &users))),
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("users") && error.contains("(2, S, 4)"), "{error}");
}
