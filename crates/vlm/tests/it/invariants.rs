//! What must hold whatever the numbers are.

use diptych_llm::network::Network;
use diptych_tensor::{DType, Device, Tensor, save_tensors};
use diptych_train::{Method as _, Reporter};
use diptych_vlm::prepare;
use serde_json::json;

use crate::bench::{Bench, assert_close, compute, flat, numbers};

const MODELS: [&str; 2] = ["llava", "qwen2_5_vl"];

/// A LoRA adapter on decoder, projector and tower of both families.
fn everywhere(tower: &str) -> serde_json::Value {
    let targets = "(.*q_proj|.*v_proj|.*linear_1|.*merger\\.mlp\\.0|.*fc1|.*qkv)";
    json!({ "lora": { "rank": 2, "targets": targets, "tower": tower } })
}

#[test]
fn a_policy_equal_to_its_reference_loses_ln_2() {
    for model in MODELS {
        let bench = Bench::new(model);
        for reference in ["adapter_off", "frozen", "cached", "ema"] {
            for tower in ["frozen", "trained"] {
                let adapter = json!({ "lora": { "rank": 2, "tower": tower } });
                let method = bench.method(&json!({ "adapter": adapter, "reference": { reference: {} } }));
                let (output, _) = compute(&method, 4);
                for loss in numbers(&output.losses) {
                    assert!(
                        (loss - 2_f64.ln()).abs() < 1e-5,
                        "{model}, {reference}, tower {tower}: {loss}"
                    );
                }
            }
        }
    }
}

#[test]
fn every_arrangement_gives_the_same_losses_and_gradients() {
    for model in MODELS {
        let bench = Bench::new(model);
        let of = |arrangement: &str| {
            let method = bench.method(&json!({
                "adapter": { "full": { "tower": "trained" } },
                "reference": { "none": {} },
                "objective": { "simpo": { "beta": 2.0, "gamma": 0.5 } },
                "method": { "offline_pairs": { "arrangement": arrangement } },
            }));
            flat(&method, 6)
        };
        let (losses, gradients) = of("padded");
        for arrangement in ["shared_prefix", "packed"] {
            let (own_losses, own_gradients) = of(arrangement);
            assert_close(&format!("{model}, {arrangement}: losses"), &own_losses, &losses, 1e-5);
            assert_close(
                &format!("{model}, {arrangement}: gradients"),
                &own_gradients,
                &gradients,
                1e-4,
            );
        }
    }
}

#[test]
fn features_that_are_kept_are_those_that_are_computed() {
    for model in MODELS {
        let bench = Bench::new(model);
        let of = |memory: u64| {
            let method = bench.method(&json!({
                "adapter": { "full": { "tower": "frozen" } },
                "reference": { "frozen": {} },
                "data": { "image_memory": memory },
            }));
            // Twice, so that the second pass takes what the first one kept.
            compute(&method, 6);
            flat(&method, 6)
        };
        assert_eq!(of(64), of(0), "{model}");
    }
}

#[test]
fn cached_scores_are_live_ones() {
    for model in MODELS {
        let bench = Bench::new(model);
        let of = |reference: serde_json::Value| {
            bench.run(&json!({ "adapter": everywhere("trained"), "reference": reference, "train": { "steps": 4 } }))
        };
        let live = of(json!({ "adapter_off": {} }));
        let cached = of(json!({ "cached": {} }));
        let frozen = of(json!({ "frozen": {} }));
        for (live, other) in live.iter().zip(&cached).chain(live.iter().zip(&frozen)) {
            assert!(
                (live.loss - other.loss).abs() < 1e-6,
                "{model}: {} and {}",
                live.loss,
                other.loss
            );
        }
        assert!(
            live.last().unwrap().loss != live[0].loss,
            "{model}: nothing was learned"
        );
    }
}

#[test]
fn a_cache_knows_its_images() {
    let bench = Bench::new("llava");
    let image = bench.path("image.png");
    let row = json!({
        "images": ["image.png"], "prompt": [{ "role": "user", "content": "what do you see" }],
        "chosen": [{ "role": "assistant", "content": "a red star" }], "rejected": [{ "role": "assistant", "content": "no" }],
    });
    let rows = bench.rows("rows.jsonl", &[row]);
    let prepare_with = |name: &str| {
        std::fs::copy(crate::bench::golden(&format!("vlm_trl/images/{name}.png")), &image).unwrap();
        bench.try_method(&json!({
            "data": { "path": rows }, "reference": { "cached": { "path": bench.path("cache.safetensors") } },
        }))
    };
    prepare_with("a").unwrap();
    prepare_with("a").unwrap();
    let error = prepare_with("b").unwrap_err().to_string();
    assert!(error.contains("images"), "{error}");
}

#[test]
fn a_resumed_run_is_the_uninterrupted_one() {
    for (model, reference) in [("llava", "adapter_off"), ("qwen2_5_vl", "ema")] {
        let bench = Bench::new(model);
        bench.assert_resumes(&json!({ "adapter": everywhere("trained"), "reference": { reference: {} } }));
    }
}

#[test]
fn samples_show_the_names_of_their_images() {
    let bench = Bench::new("llava");
    let outcome = bench.outcome(
        &json!({ "train": { "steps": 2, "sample_every": 2 }, "samples": { "num_prompts": 2, "max_new_tokens": 4 } }),
    );
    let mut num = 0;
    for entry in std::fs::read_dir(outcome.output.join("samples")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let images = row["images"].as_array().unwrap();
            assert!(
                images.iter().all(|image| image.as_str().unwrap().contains("images")),
                "{line}"
            );
            assert!(row["before"].is_string() && row["after"].is_string(), "{line}");
            num += 1;
        }
    }
    assert_eq!(num, 2);
}

#[test]
fn samples_are_of_whole_prompts_also_where_prompts_are_learned() {
    for model in MODELS {
        let bench = Bench::new(model);
        let outcome = bench.outcome(&json!({
            "objective": { "sft": {} }, "method": { "sft": { "loss_on": "everything" } }, "reference": { "none": {} },
            "train": { "steps": 1, "sample_every": 1 }, "samples": { "num_prompts": 3, "max_new_tokens": 2 },
        }));
        let file = std::fs::read_dir(outcome.output.join("samples"))
            .unwrap()
            .next()
            .unwrap();
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert_eq!(text.lines().count(), 3, "{model}: {text}");
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(!row["images"].as_array().unwrap().is_empty(), "{model}: {line}");
            assert!(
                row["prompt"].as_str().unwrap().split_whitespace().count() > 2,
                "{model}: {line}"
            );
        }
    }
}

#[test]
fn an_adapted_tower_that_is_not_trained_stays_in_the_adapter() {
    for model in MODELS {
        let bench = Bench::new(model);
        let run = |adapter: serde_json::Value| {
            let outcome = bench.outcome(&json!({ "adapter": adapter, "train": { "steps": 1 } }));
            outcome.output.join("final")
        };
        let modules = |adapter: &std::path::Path| {
            let adapter = diptych_models::lora::LoraAdapter::load(adapter, "language_model").unwrap();
            adapter.modules.into_keys().collect::<Vec<_>>()
        };
        let first = run(everywhere("trained"));
        let mut further = everywhere("frozen");
        further["lora"]["init"] = json!(first);
        let second = run(further);
        let is_of_tower = |name: &&String| name.contains("vision_tower") || name.contains("visual.blocks");
        assert!(
            modules(&first).iter().any(|name| is_of_tower(&name)),
            "{model}: {:?}",
            modules(&first)
        );
        assert_eq!(modules(&first), modules(&second), "{model}");
    }
}

#[test]
fn what_is_exported_is_the_trained_network() {
    for model in MODELS {
        let bench = Bench::new(model);
        let outcome = bench.outcome(&json!({ "adapter": everywhere("trained"), "train": { "steps": 2 } }));
        let adapter = outcome.output.join("final");
        let merged = bench.path("merged");
        diptych_vlm::export(&bench.path("model"), Some(&adapter), &merged, None).unwrap();
        let sft = |changes: &serde_json::Value| {
            let mut all = json!({
                "objective": { "sft": {} }, "method": { "sft": {} }, "reference": { "none": {} },
            });
            all.as_object_mut()
                .unwrap()
                .extend(changes.as_object().unwrap().clone());
            numbers(&compute(&bench.method(&all), 4).0.losses)
        };
        let mut start = everywhere("trained");
        start["lora"]["init"] = json!(adapter);
        let of_merged = sft(&json!({ "model": { "path": merged } }));
        assert_close(model, &of_merged, &sft(&json!({ "adapter": start })), 1e-4);
        let base = sft(&json!({}));
        assert!(
            of_merged.iter().zip(&base).any(|(a, b)| (a - b).abs() > 1e-4),
            "{model}: nothing was learned"
        );
    }
}

#[test]
fn a_plan_says_what_it_counts() {
    let bench = Bench::new("llava");
    let recipe = bench.try_recipe(&json!({ "adapter": everywhere("trained") })).unwrap();
    let estimate = diptych_vlm::estimate(&recipe).unwrap();
    let method = prepare(&recipe, &mut Reporter::silent()).unwrap();
    let trained: usize = method.params().iter().map(|(_, var)| var.elem_count()).sum();
    let found = |name: &str| {
        estimate
            .memory
            .components
            .iter()
            .find(|part| part.name == name)
            .unwrap()
            .bytes
    };
    // To the byte: the tower's last layer is not read, and not trained either.
    assert_eq!(found("parameters, trained"), 4 * trained as u64);
    assert_eq!(found("optimizer moments"), 8 * trained as u64);
    assert!(found("activations") + found("backward pass") > 0);
    let Network::Vision(network) = &method.policy().model else {
        panic!("the network reads no images");
    };
    assert_eq!(network.images().len(), 4);
}

#[test]
fn a_plan_counts_the_clip_that_perturbs_texts_and_says_what_it_does_not() {
    let bench = Bench::new("llava");
    // More than the tiny run holds at any other time; a plan reads no more of it than its header.
    let num = 4 << 20;
    let weights = Tensor::zeros(num, DType::F32, &Device::Cpu).unwrap();
    std::fs::create_dir(bench.path("clip")).unwrap();
    let tensors = std::collections::BTreeMap::from([("weights".to_owned(), weights)]);
    save_tensors(
        &bench.path("clip/model.safetensors"),
        &tensors,
        &std::collections::BTreeMap::new(),
    )
    .unwrap();
    let plan = |keys: serde_json::Value| {
        let recipe = bench
            .try_recipe(&json!({ "method": { "offline_pairs": keys } }))
            .unwrap();
        diptych_vlm::estimate(&recipe).unwrap()
    };
    let perturbed = plan(json!({ "token_perturbation": { "clip": bench.path("clip") } }));
    assert!(
        perturbed.memory.moment.contains("another network"),
        "{}",
        perturbed.memory.moment
    );
    let loading = perturbed.memory.components.iter().find(|part| part.name == "loading");
    assert_eq!(loading.unwrap().bytes, 4 * num as u64);
    let plain = plan(json!({}));
    assert!(!plain.memory.moment.contains("another network"));
    let said =
        |estimate: &diptych_train::Estimate, key: &str| estimate.assumptions.iter().any(|text| text.contains(key));
    let diverging = plan(json!({ "token_divergence": { "weight": 0.1 }, "frequency": { "weight": 0.1 } }));
    for key in ["offline_pairs.token_divergence", "offline_pairs.frequency"] {
        assert!(said(&diverging, key) && !said(&plain, key), "{key}");
    }
    assert!(said(&perturbed, "token_perturbation"));
}
