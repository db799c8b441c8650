//! What the policy is compared with, in numbers.

use std::path::{Path, PathBuf};

use diptych_llm::LanguageMethod;
use diptych_models::vlm::VlmDir;
use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use diptych_train::Method as _;
use serde_json::{Value, json};

use crate::bench::{Bench, assert_close, compute, golden};

const NUM: usize = 4;

/// A metric of the first records, chosen before rejected.
fn both(method: &LanguageMethod, key: &str) -> Vec<f64> {
    let (output, _) = compute(method, NUM);
    let of = |side: &str| output.metrics[format!("{key}/{side}").as_str()].clone();
    [of("chosen"), of("rejected")].concat()
}

/// The scores of a model by itself.
fn logps_of(bench: &Bench, model: &Path) -> Vec<f64> {
    both(&bench.method(&json!({ "model": { "path": model }, "reference": { "none": {} }, "objective": { "simpo": { "beta": 2.0, "gamma": 0.5 } } })), "logps")
}

/// A copy of the bench's model whose weights are `change`d: `f(name, values)` for each tensor.
fn changed(bench: &Bench, name: &str, change: impl Fn(&str, Tensor) -> Tensor) -> PathBuf {
    let (from, to) = (bench.path("model"), bench.path(name));
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(&from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let weights = Weights::open(&from.join("model.safetensors")).unwrap();
    let read = |name: &str| weights.read(name, DType::F32, &Device::Cpu).unwrap();
    let tensors = weights
        .names()
        .map(|name| (name.to_owned(), change(name, read(name))))
        .collect();
    save_tensors(
        &to.join("model.safetensors"),
        &tensors,
        &std::collections::BTreeMap::new(),
    )
    .unwrap();
    to
}

/// Numbers that are no noise, added to every tensor.
fn shaken(tensor: &Tensor) -> Tensor {
    let values: Vec<f32> = (0..tensor.elem_count())
        .map(|i| 0.05 * (i as f32 * 1.7).sin())
        .collect();
    (tensor + Tensor::from_vec(values, tensor.shape(), &Device::Cpu).unwrap()).unwrap()
}

fn rewards(policy: &[f64], reference: &[f64]) -> Vec<f64> {
    policy
        .iter()
        .zip(reference)
        .map(|(policy, reference)| 0.1 * (policy - reference))
        .collect()
}

#[test]
fn another_model_is_what_a_checkpoint_compares_with() {
    for model in ["llava", "qwen2_5_vl"] {
        let bench = Bench::new(model);
        let other = changed(&bench, "other", |_, tensor| shaken(&tensor));
        let method = bench.method(&json!({ "reference": { "checkpoint": { "path": other } } }));
        let (policy, reference) = (logps_of(&bench, &bench.path("model")), logps_of(&bench, &other));
        assert_close(model, &both(&method, "logps"), &policy, 1e-5);
        let expected = rewards(&policy, &reference);
        assert!(expected.iter().all(|reward| reward.abs() > 1e-3), "{expected:?}");
        assert_close(model, &both(&method, "rewards"), &expected, 1e-3);
    }
}

#[test]
fn an_adapter_is_what_a_checkpoint_compares_with() {
    let bench = Bench::new("llava");
    let adapter = golden("vlm/llava_lora");
    let merged = bench.path("merged");
    diptych_vlm::export(&bench.path("model"), Some(&adapter), &merged, None).unwrap();
    let method = bench.method(&json!({ "reference": { "checkpoint": { "path": adapter } } }));
    let expected = rewards(&logps_of(&bench, &bench.path("model")), &logps_of(&bench, &merged));
    assert!(expected.iter().all(|reward| reward.abs() > 1e-4), "{expected:?}");
    assert_close("adapter", &both(&method, "rewards"), &expected, 1e-2);
}

/// `LLaVA`'s first checkpoints have an image token behind the last word of their vocabulary.
#[test]
fn an_image_token_outside_the_vocabulary_is_no_foreign_token() {
    let bench = Bench::new("llava");
    let cut = |name: &str, shakes: bool| {
        let path = changed(&bench, name, |name, tensor| {
            let tensor = if shakes { shaken(&tensor) } else { tensor };
            if name.contains("lm_head") || name.contains("embed_tokens") {
                tensor.narrow(0, 0, 39).unwrap().contiguous().unwrap()
            } else {
                tensor
            }
        });
        let file = path.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config["text_config"]["vocab_size"] = json!(39);
        std::fs::write(file, config.to_string()).unwrap();
        path
    };
    let (policy, other) = (cut("policy", false), cut("other", true));
    let directory = VlmDir::open(&policy).unwrap();
    assert!(directory.config().image_token_id as usize >= directory.config().text.vocab_size);
    let method =
        bench.method(&json!({ "model": { "path": policy }, "reference": { "checkpoint": { "path": other } } }));
    let expected = rewards(&logps_of(&bench, &policy), &logps_of(&bench, &other));
    assert_close("rewards", &both(&method, "rewards"), &expected, 1e-3);
    // A word outside of it is one.
    let mut small: Value = serde_json::from_slice(&std::fs::read(other.join("config.json")).unwrap()).unwrap();
    small["text_config"]["vocab_size"] = json!(9);
    std::fs::write(other.join("config.json"), small.to_string()).unwrap();
    let error = bench
        .try_method(&json!({ "model": { "path": policy }, "reference": { "checkpoint": { "path": other } } }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("its vocabulary has 9 tokens"), "{error}");
}

#[test]
fn a_moving_reference_is_the_mix_of_the_weights() {
    for (model, tower) in [("llava", "trained"), ("qwen2_5_vl", "trained"), ("llava", "frozen")] {
        let bench = Bench::new(model);
        let method = bench.method(&json!({
            "adapter": { "full": { "tower": tower } },
            "reference": { "ema": { "mixup_alpha": 0.6, "sync_steps": 2 } },
        }));
        method.save_final(&bench.path("start")).unwrap();
        let mut moved = method.params().snapshot().unwrap();
        for tensor in moved.values_mut() {
            *tensor = shaken(tensor);
        }
        method.params().load(&moved).unwrap();
        method.save_final(&bench.path("moved")).unwrap();
        let (start, policy) = (
            logps_of(&bench, &bench.path("start")),
            logps_of(&bench, &bench.path("moved")),
        );
        // Before it follows it is the start.
        method.after_step(1).unwrap();
        assert_close(model, &both(&method, "rewards"), &rewards(&policy, &start), 1e-3);
        method.after_step(2).unwrap();
        let [of_start, of_moved] =
            ["start", "moved"].map(|name| VlmDir::open(bench.path(name)).unwrap().weights().unwrap());
        let at_start = VlmDir::open(bench.path("model")).unwrap();
        let mix = bench.path("mix");
        std::fs::create_dir(&mix).unwrap();
        for entry in std::fs::read_dir(bench.path("moved")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, mix.join(path.file_name().unwrap())).unwrap();
        }
        let tensors = of_moved
            .names()
            .map(|name| {
                let read = |weights: &Weights| weights.read(name, DType::F32, &Device::Cpu).unwrap();
                let mixed = (read(&of_moved) * 0.6).unwrap() + (read(&of_start) * 0.4).unwrap();
                (name.to_owned(), mixed.unwrap())
            })
            .collect();
        diptych_models::vlm::save(&mix, at_start.config(), (&tensors, DType::F32)).unwrap();
        let expected = rewards(&policy, &logps_of(&bench, &mix));
        assert_close(model, &both(&method, "rewards"), &expected, 1e-3);
        assert!(
            expected
                .iter()
                .zip(rewards(&policy, &start))
                .any(|(a, b)| (a - b).abs() > 1e-3),
            "{model}: following changes nothing"
        );
    }
}
