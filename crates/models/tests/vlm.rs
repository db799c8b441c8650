//! Vision-language models against transformers and PEFT, on the golden vectors of `tests/golden/generate_vlm.py`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "checkpoints are made from lists of names here")]
#[path = "support/named.rs"]
mod named;
mod support;
#[path = "vlm/tiny.rs"]
mod tiny;

use diptych_models::lm::{CausalLm, GenerateConfig, LmInput, LmSequence, Sampling};
use diptych_models::lora::{LANGUAGE_MODEL, LoraAdapter, parts};
use diptych_models::vlm::{ImageEmbeddings, ImageLayout, TowerTraining, VisionLanguageModel, VlmDir, VlmPrompt, save};
use diptych_models::{Builder, BuilderConfig, Error, LoraConfig, Targets, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Params, Tensor, backward};
use named::{check_named_gradients, uniform};
use serde_json::Value;
use support::{assert_close, read, relative_error, values};
use tiny::{Batch, FAMILIES, Generation, golden_vlm, json, load, vectors, weights};

const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 1e-3;

/// Gradient of the generator's loss: the sum of log-probabilities times made-up weights.
fn loss(vlm: &VisionLanguageModel, batch: &Batch, images: &[&ImageEmbeddings]) -> Tensor {
    let lm = vlm.language_model();
    let hidden = vlm.forward(&batch.input, images).unwrap();
    let (rows, tokens, width) = hidden.dims3().unwrap();
    let before = hidden.narrow(1, 0, tokens - 1).unwrap().reshape(((), width)).unwrap();
    let targets = batch.input.input_ids().narrow(1, 1, tokens - 1).unwrap();
    let logps = lm
        .token_logps(&before, &targets.flatten_all().unwrap(), lm.token_logps_config())
        .unwrap();
    let weight: Vec<f32> = uniform("loss_weight", rows * tokens)
        .into_iter()
        .map(|x| x as f32)
        .collect();
    let weight = Tensor::from_vec(weight, (rows, tokens), &Device::Cpu).unwrap();
    let weight = (weight * &batch.mask).unwrap().narrow(1, 1, tokens - 1).unwrap();
    (logps.reshape((rows, tokens - 1)).unwrap() * weight)
        .unwrap()
        .sum_all()
        .unwrap()
}

/// Logits of tokens; zero for padding, as in the files.
fn logits(vlm: &VisionLanguageModel, batch: &Batch) -> Tensor {
    let images = vlm.encode(&batch.processed()).unwrap();
    let hidden = vlm.forward(&batch.input, &images.iter().collect::<Vec<_>>()).unwrap();
    let logits = vlm.language_model().logits(&hidden).unwrap();
    logits.broadcast_mul(&batch.mask.unsqueeze(2).unwrap()).unwrap()
}

fn gradient_names(name: &str) -> Vec<String> {
    let names = json(&format!("{name}/cases.json"))["gradients"].clone();
    serde_json::from_value(names).unwrap()
}

#[test]
fn features_logits_and_gradients_of_every_family() {
    for name in FAMILIES {
        let (expected, batch) = (vectors(name), Batch::of(name));
        let weights = weights(name, Generation::Memory);
        let builder = BuilderConfig {
            trainable: Trainable::All,
            ..BuilderConfig::new(Some(&weights))
        };
        let (mut vlm, params) = load(name, builder, TowerTraining::Included);
        let ids = expected.read("input_ids", DType::U32, &Device::Cpu).unwrap();
        assert_eq!(
            batch.ids_padded_with(0),
            ids.to_vec2::<u32>().unwrap(),
            "{name}: expanded texts"
        );
        let images = vlm.encode(&batch.processed()).unwrap();
        let features: Vec<&Tensor> = images.iter().map(|image| &image.embeddings).collect();
        let features = Tensor::cat(&features, 0).unwrap();
        assert_close(
            &format!("{name}: features"),
            &features,
            &read(&expected, "image_features"),
            FORWARD,
        );
        assert_close(name, &logits(&vlm, &batch), &read(&expected, "logits"), FORWARD);
        let found: Vec<&str> = params.names().collect();
        assert_eq!(found, gradient_names(name), "{name}: parameters that are trained");
        for policy in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
            vlm.checkpoint_gradients(policy);
            let images = vlm.encode(&batch.processed()).unwrap();
            let loss = loss(&vlm, &batch, &images.iter().collect::<Vec<_>>());
            let gradients = backward(&loss, &params).unwrap();
            check_named_gradients(name, &gradients, &params, &expected, "gradients");
            let whole: Vec<&str> = expected.names().filter_map(|key| key.strip_prefix("grad.")).collect();
            assert!(whole.len() >= 3, "{whole:?}");
            for key in whole {
                let gradient = gradients.get(key).unwrap();
                assert_close(key, gradient, &read(&expected, &format!("grad.{key}")), GRADIENT);
            }
        }
    }
}

#[test]
fn positions_in_time_height_and_width() {
    for name in ["qwen2_vl", "qwen2_5_vl"] {
        let (expected, batch) = (vectors(name), Batch::of(name));
        let weights = weights(name, Generation::Memory);
        let (vlm, _) = load(name, BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
        let layouts: Vec<ImageLayout> = batch.images.iter().map(|image| image.layout).collect();
        let found = vlm.positioned(&batch.input, &layouts).unwrap();
        let found = found.spatial_positions().unwrap();
        let expected = expected.read("position_ids", DType::U32, &Device::Cpu).unwrap();
        let expected: Vec<Vec<Vec<u32>>> = expected.to_vec3().unwrap();
        let width = expected[0][0].len();
        for (row, text) in batch.texts.iter().enumerate() {
            for token in 0..text.input_ids.len() {
                let expected = [0, 1, 2].map(|axis: usize| expected[axis][row][token]);
                assert_eq!(found[row * width + token], expected, "{name}: row {row}, token {token}");
            }
        }
    }
}

#[test]
fn checkpoints_of_every_generation_of_names() {
    for name in FAMILIES {
        let (batch, expected) = (Batch::of(name), read(&vectors(name), "logits"));
        for generation in [Generation::Saved, Generation::Published, Generation::Nested] {
            let weights = weights(name, generation);
            let (vlm, _) = load(name, BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
            assert_close(
                &format!("{name} {generation:?}"),
                &logits(&vlm, &batch),
                &expected,
                FORWARD,
            );
        }
    }
}

#[test]
fn a_checkpoint_is_written_as_it_is_published() {
    for name in FAMILIES {
        let weights = weights(name, Generation::Memory);
        let tensors = weights
            .names()
            .map(|key| (key.to_owned(), read(&weights, key)))
            .collect();
        let directory = tempfile::tempdir().unwrap();
        save(directory.path(), &tiny::config(name), (&tensors, DType::F32)).unwrap();
        let file = diptych_tensor::Weights::open(&directory.path().join("model.safetensors")).unwrap();
        let mut published: Vec<String> = tiny::names(name, Generation::Published).into_values().collect();
        published.sort_unstable();
        assert_eq!(file.names().collect::<Vec<_>>(), published);
        for processor in ["preprocessor_config.json", "processor_config.json"] {
            let from = golden_vlm(name).join(processor);
            if from.is_file() {
                std::fs::copy(from, directory.path().join(processor)).unwrap();
            }
        }
        // The directory as a whole: weights, configuration, image processor.
        let dir = VlmDir::open(directory.path()).unwrap();
        assert_eq!(dir.image_processor().unwrap(), tiny::processor(name));
        let weights = dir.weights().unwrap();
        let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
        let vlm = VisionLanguageModel::load(&builder, dir.config(), TowerTraining::Frozen).unwrap();
        builder.finish().unwrap();
        let expected = read(&vectors(name), "logits");
        assert_close(name, &logits(&vlm, &Batch::of(name)), &expected, FORWARD);
        // What was trained replaces what the directory has, and nothing else.
        let key = "model.language_model.norm.weight";
        let trained = [(key.to_owned(), Tensor::ones(16, DType::F32, &Device::Cpu).unwrap())].into();
        let all = dir.with_trained(&trained, DType::F32).unwrap();
        assert_eq!(all.len(), tensors.len());
        for (name, tensor) in &all {
            let expected = if name == key { &trained[key] } else { &tensors[name] };
            assert_eq!(values(tensor), values(expected), "{name}");
        }
    }
}

fn lora(adapter: &LoraAdapter) -> LoraConfig {
    LoraConfig {
        rank: 2,
        alpha: 3.0,
        targets: adapter.targets.clone().unwrap(),
        ..LoraConfig::default()
    }
}

#[test]
fn adapters_of_peft_on_decoder_projector_and_tower() {
    for (name, adapter_name) in [("llava", "llava_lora"), ("qwen2_5_vl", "qwen2_5_vl_lora")] {
        assert_eq!(parts(golden_vlm(adapter_name)).unwrap(), [LANGUAGE_MODEL]);
        let (batch, expected) = (Batch::of(name), vectors(adapter_name));
        let weights = weights(name, Generation::Memory);
        let adapter = LoraAdapter::load(golden_vlm(adapter_name), "language_model").unwrap();
        let adapted = read(&expected, "logits");
        // Frozen beside the network, whatever the tower does.
        let builder = || BuilderConfig {
            adapter: Some(&adapter),
            ..BuilderConfig::new(Some(&weights))
        };
        let (vlm, _) = load(name, builder(), TowerTraining::Frozen);
        assert_close(adapter_name, &logits(&vlm, &batch), &adapted, FORWARD);
        {
            let _off = vlm.adapter_switch().disable();
            let plain = read(&vectors(name), "logits");
            assert_close("adapter off", &logits(&vlm, &batch), &plain, FORWARD);
        }
        // Trained further, tower included.
        let lora = lora(&adapter);
        let trained = BuilderConfig {
            trainable: Trainable::Lora(&lora),
            ..builder()
        };
        let (mut vlm, params) = load(name, trained.clone(), TowerTraining::Included);
        assert_eq!(params.names().collect::<Vec<_>>(), gradient_names(adapter_name));
        for policy in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
            vlm.checkpoint_gradients(policy);
            let images = vlm.encode(&batch.processed()).unwrap();
            let loss = loss(&vlm, &batch, &images.iter().collect::<Vec<_>>());
            let gradients = backward(&loss, &params).unwrap();
            check_named_gradients(adapter_name, &gradients, &params, &expected, "gradients");
        }
        // The tower's part is kept, and not trained, where the tower is frozen; targets that name it alone are refused.
        let refused = Builder::new(trained.clone()).unwrap();
        VisionLanguageModel::load(&refused, &tiny::config(name), TowerTraining::Frozen).unwrap();
        let error = refused.finish().unwrap_err();
        assert!(matches!(error, Error::UnmatchedTarget { .. }), "{error}");
        let Targets::Suffixes(names) = &lora.targets else {
            panic!()
        };
        let elsewhere = names.iter().filter(|name| !["fc1", "qkv"].contains(&name.as_str()));
        let lora = LoraConfig {
            targets: Targets::Suffixes(elsewhere.cloned().collect()),
            ..lora
        };
        let trained = BuilderConfig {
            trainable: Trainable::Lora(&lora),
            ..builder()
        };
        let (vlm, params) = load(name, trained, TowerTraining::Frozen);
        assert_close("trained beside", &logits(&vlm, &batch), &adapted, FORWARD);
        assert!(params.names().all(|key| !vlm.config().is_tower_parameter(key)));
        assert!(
            params.names().any(|key| vlm.config().is_vision_parameter(key)),
            "the projector's"
        );
        saved_and_loaded(name, &params, &lora, &adapter, &adapted);
    }
}

/// An adapter from parameters, with the tower's part that is not among them, saved and read again.
fn saved_and_loaded(name: &str, params: &Params, lora: &LoraConfig, whole: &LoraAdapter, expected: &Tensor) {
    let mut adapter = LoraAdapter::from_params(params, lora, "").unwrap();
    for (key, module) in &whole.modules {
        adapter.modules.entry(key.clone()).or_insert_with(|| module.clone());
    }
    let directory = tempfile::tempdir().unwrap();
    let checkpoint = directory.path().join("checkpoint");
    let weights = weights(name, Generation::Memory);
    let tensors = weights
        .names()
        .map(|key| (key.to_owned(), read(&weights, key)))
        .collect();
    save(&checkpoint, &tiny::config(name), (&tensors, DType::F32)).unwrap();
    let dir = VlmDir::open(&checkpoint).unwrap();
    // By the names of today, and by those of published files.
    adapter.save_peft(directory.path().join("today"), None).unwrap();
    let renamed = LoraAdapter {
        modules: std::mem::take(&mut adapter.modules)
            .into_iter()
            .map(|(key, module)| (dir.config().published_name(&key), module))
            .collect(),
        ..adapter
    };
    renamed.save_peft(directory.path().join("before"), None).unwrap();
    let batch = Batch::of(name);
    for generation in ["today", "before"] {
        let read = dir.adapter(directory.path().join(generation)).unwrap();
        let builder = BuilderConfig {
            adapter: Some(&read),
            ..BuilderConfig::new(Some(&weights))
        };
        let (vlm, _) = load(name, builder, TowerTraining::Frozen);
        assert_close(generation, &logits(&vlm, &batch), expected, FORWARD);
        let (config, tensors) = dir.merged(&read, DType::F32).unwrap();
        let merged = diptych_tensor::Weights::from_tensors("merged", tensors);
        let builder = Builder::new(BuilderConfig::new(Some(&merged))).unwrap();
        let vlm = VisionLanguageModel::load(&builder, &config, TowerTraining::Frozen).unwrap();
        builder.finish().unwrap();
        assert_close("merged", &logits(&vlm, &batch), expected, FORWARD);
    }
}

#[test]
fn texts_with_images_go_on_as_in_transformers() {
    for name in FAMILIES {
        let batch = Batch::of(name);
        let weights = weights(name, Generation::Memory);
        let (vlm, _) = load(name, BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
        let images = vlm.encode(&batch.processed()).unwrap();
        let of_rows: Vec<Vec<&ImageEmbeddings>> = batch.split(&images);
        let prompts: Vec<VlmPrompt<'_>> = batch
            .texts
            .iter()
            .zip(&of_rows)
            .map(|(text, images)| VlmPrompt {
                input_ids: &text.input_ids,
                images,
                example: 0,
            })
            .collect();
        let config = GenerateConfig {
            max_new_tokens: 8,
            sampling: Sampling {
                repetition_penalty: 1.5,
                ..Sampling::GREEDY
            },
            eos_token_ids: Vec::new(),
            seed: 0,
        };
        let expected = json(&format!("{name}/cases.json"))["generated"].clone();
        let expected: Vec<Value> = serde_json::from_value(expected).unwrap();
        assert_eq!(expected.len(), prompts.len());
        // All in one batch, and one by one.
        let mut found = vlm.generate(&prompts, &config).unwrap();
        for prompt in &prompts {
            found.extend(vlm.generate(&[*prompt], &config).unwrap());
        }
        for (index, found) in found.iter().enumerate() {
            let expected = &expected[index % expected.len()];
            let tokens: Vec<u32> = serde_json::from_value(expected["tokens"].clone()).unwrap();
            assert_eq!(found.tokens, tokens, "{name}: row {index}");
            let logps: Vec<f64> = serde_json::from_value(expected["logps"].clone()).unwrap();
            for (found, expected) in found.logps.iter().zip(logps) {
                assert!((found - expected).abs() < 1e-4, "{name}: {found}, expected {expected}");
            }
        }
    }
}

/// The prompt with its images once for two answers, or a copy for each: the same hidden states.
#[test]
fn a_shared_prefix_is_computed_once_with_its_images() {
    for name in FAMILIES {
        let batch = Batch::of(name);
        let weights = weights(name, Generation::Memory);
        let (vlm, _) = load(name, BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
        let images = vlm.encode(&batch.processed()).unwrap();
        let answers: [&[u32]; 2] = [&[7, 8, 9], &[11, 12]];
        let prompts: Vec<&[u32]> = batch.texts.iter().map(|text| &text.input_ids[..]).collect();
        let row = prompts.iter().map(|&prefix| LmSequence {
            prefix,
            branches: &answers,
        });
        let shared = LmInput::packed(&[row.collect()], 0, &Device::Cpu).unwrap();
        let shared = vlm
            .forward(&shared, &images.iter().collect::<Vec<_>>())
            .unwrap()
            .squeeze(0)
            .unwrap();
        let mut start = 0;
        for (prompt, images) in prompts.iter().zip(batch.split(&images)) {
            for (branch, answer) in answers.iter().enumerate() {
                let whole = [*prompt, answer].concat();
                let input = LmInput::padded(&[&whole], 0, &Device::Cpu).unwrap();
                let alone = vlm.forward_detached(&input, &images).unwrap().squeeze(0).unwrap();
                let at = start + prompt.len() + answers[..branch].iter().map(|answer| answer.len()).sum::<usize>();
                let found = shared.narrow(0, at, answer.len()).unwrap();
                assert_close(
                    name,
                    &found,
                    &alone.narrow(0, prompt.len(), answer.len()).unwrap(),
                    1e-5,
                );
            }
            start += prompt.len() + 5;
        }
    }
}

#[test]
fn features_of_the_tower_can_be_kept() {
    for name in FAMILIES {
        let batch = Batch::of(name);
        let weights = weights(name, Generation::Memory);
        let (vlm, _) = load(name, BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
        let together = vlm.encode(&batch.processed()).unwrap();
        for (image, together) in batch.processed().into_iter().zip(together) {
            let features = vlm.vision_features(&[image]).unwrap();
            let alone = &vlm.image_embeddings(&[&features[0]]).unwrap()[0];
            assert!(relative_error(&alone.embeddings, &together.embeddings) < 1e-5, "{name}");
            let count = vlm.config().num_image_tokens(&image.layout).unwrap();
            assert_eq!(alone.embeddings.dims(), [count, 16]);
        }
    }
}

#[test]
fn a_pass_that_no_gradient_follows_keeps_no_graph_of_a_trained_tower() {
    for name in FAMILIES {
        let batch = Batch::of(name);
        let weights = weights(name, Generation::Memory);
        let builder = BuilderConfig {
            trainable: Trainable::All,
            ..BuilderConfig::new(Some(&weights))
        };
        let (mut vlm, _) = load(name, builder, TowerTraining::Included);
        for policy in [CheckpointPolicy::Off, CheckpointPolicy::ALL, CheckpointPolicy::every(2)] {
            vlm.checkpoint_gradients(policy);
            let kept = vlm.vision_features(&batch.processed()).unwrap();
            let detached = vlm.vision_features_detached(&batch.processed()).unwrap();
            assert_eq!(kept.len(), detached.len());
            for (kept, detached) in kept.iter().zip(&detached) {
                assert!(kept.features.track_op() && !detached.features.track_op(), "{name}");
                assert_eq!(kept.layout, detached.layout, "{name}");
                let values = |features: &Tensor| features.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(values(&kept.features), values(&detached.features), "{name}");
            }
        }
    }
}

#[test]
fn a_frozen_tower_has_no_parameters() {
    for name in FAMILIES {
        let weights = weights(name, Generation::Memory);
        let lora = LoraConfig {
            targets: Targets::Pattern(Targets::ALL_LINEAR.into()),
            ..LoraConfig::default()
        };
        for trainable in [Trainable::All, Trainable::Lora(&lora)] {
            let builder = BuilderConfig {
                trainable,
                ..BuilderConfig::new(Some(&weights))
            };
            let (vlm, params) = load(name, builder, TowerTraining::Frozen);
            assert!(
                params.names().all(|key| !vlm.config().is_tower_parameter(key)),
                "{name}"
            );
            assert!(
                params.names().any(|key| vlm.config().is_vision_parameter(key)),
                "{name}"
            );
            assert!(
                params.names().any(|key| key.starts_with("model.language_model.")),
                "{name}"
            );
            let batch = Batch::of(name);
            let images = vlm.encode(&batch.processed()).unwrap();
            let loss = loss(&vlm, &batch, &images.iter().collect::<Vec<_>>());
            backward(&loss, &params).unwrap().ensure_complete(&params).unwrap();
        }
    }
}

/// The decoder by itself is the one that the text models have.
#[test]
fn the_decoder_reads_text_alone() {
    let weights = weights("llava", Generation::Memory);
    let (vlm, _) = load("llava", BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
    let tensors = weights
        .names()
        .filter_map(|key| {
            let plain = key
                .strip_prefix("model.language_model.")
                .map(|rest| format!("model.{rest}"));
            let plain = plain.or_else(|| (key == "lm_head.weight").then(|| key.to_owned()))?;
            Some((plain, read(&weights, key)))
        })
        .collect();
    let plain = diptych_tensor::Weights::from_tensors("text", tensors);
    let builder = Builder::new(BuilderConfig::new(Some(&plain))).unwrap();
    let lm = CausalLm::load(&builder, &vlm.config().text).unwrap();
    builder.finish().unwrap();
    let input = LmInput::padded(&[&[1, 5, 9], &[1, 7]], 0, &Device::Cpu).unwrap();
    let expected = lm.forward(&input).unwrap();
    assert_close("text", &vlm.forward(&input, &[]).unwrap(), &expected, 1e-7);
}

/// An adapted head that shares the embedding is beside it, and gets a weight of its own when it is merged.
#[test]
fn a_head_that_is_the_embedding_is_adapted_and_merged() {
    let (name, batch) = ("qwen2_5_vl", Batch::of("qwen2_5_vl"));
    let weights = weights(name, Generation::Memory);
    let directory = tempfile::tempdir().unwrap();
    let tensors = weights
        .names()
        .map(|key| (key.to_owned(), read(&weights, key)))
        .collect();
    let checkpoint = directory.path().join("checkpoint");
    save(&checkpoint, &tiny::config(name), (&tensors, DType::F32)).unwrap();
    let dir = VlmDir::open(&checkpoint).unwrap();
    let mut adapter = LoraAdapter::load(golden_vlm("qwen2_5_vl_lora"), "language_model").unwrap();
    let mut head = adapter.modules["model.visual.merger.mlp.0"].clone();
    head.down = head.down.narrow(1, 0, 16).unwrap().contiguous().unwrap();
    head.up = named::named("head", &[40, 2]);
    adapter.modules.insert("lm_head".into(), head);
    adapter.targets = None;
    // The copy that PEFT writes of an adapted head.
    let embedding = read(&weights, "model.language_model.embed_tokens.weight");
    adapter.base.insert("lm_head".into(), embedding);
    adapter.save_peft(directory.path().join("adapter"), None).unwrap();
    let adapter = dir.adapter(directory.path().join("adapter")).unwrap();
    let builder = BuilderConfig {
        adapter: Some(&adapter),
        ..BuilderConfig::new(Some(&weights))
    };
    let (vlm, _) = load(name, builder, TowerTraining::Frozen);
    let adapted = logits(&vlm, &batch);
    assert!(relative_error(&adapted, &read(&vectors("qwen2_5_vl_lora"), "logits")) > 0.05);
    let (config, tensors) = dir.merged(&adapter, DType::F32).unwrap();
    assert!(!config.text.tie_word_embeddings && tensors.contains_key("lm_head.weight"));
    let merged = directory.path().join("merged");
    save(&merged, &config, (&tensors, DType::F32)).unwrap();
    let dir = VlmDir::open(&merged).unwrap();
    let weights = dir.weights().unwrap();
    let builder = Builder::new(BuilderConfig::new(Some(&weights))).unwrap();
    let vlm = VisionLanguageModel::load(&builder, dir.config(), TowerTraining::Frozen).unwrap();
    builder.finish().unwrap();
    assert_close("merged", &logits(&vlm, &batch), &adapted, FORWARD);
}

/// In half precision everything stays near the results in single precision.
#[test]
fn half_precision_is_near() {
    for name in FAMILIES {
        let weights = weights(name, Generation::Memory);
        for (dtype, tolerance) in [(DType::BF16, 0.1), (DType::F16, 0.015)] {
            let builder = BuilderConfig {
                dtype,
                ..BuilderConfig::new(Some(&weights))
            };
            let (vlm, _) = load(name, builder, TowerTraining::Frozen);
            assert_eq!(vlm.dtype(), dtype);
            let batch = Batch::of(name);
            let images = vlm.encode(&batch.processed()).unwrap();
            assert_eq!(images[0].embeddings.dtype(), dtype);
            let hidden = vlm.forward(&batch.input, &images.iter().collect::<Vec<_>>()).unwrap();
            let logits = vlm
                .language_model()
                .logits(&hidden)
                .unwrap()
                .to_dtype(DType::F32)
                .unwrap();
            let logits = logits.broadcast_mul(&batch.mask.unsqueeze(2).unwrap()).unwrap();
            let error = relative_error(&logits, &read(&vectors(name), "logits"));
            assert!(error > 0.0 && error < tolerance, "{name} {dtype:?}: {error}");
        }
    }
}

/// Without weights a network begins from a seed, and has as many parameters as its configuration says.
#[test]
fn a_fresh_network_has_as_many_parameters_as_the_file() {
    for name in FAMILIES {
        let builder = BuilderConfig {
            trainable: Trainable::All,
            ..BuilderConfig::new(None)
        };
        let (vlm, params) = load(name, builder, TowerTraining::Included);
        let of_head = |key: &str| key.contains("vision_tower.head.") || key.contains("vision_tower.post_layernorm");
        let is_siglip = name == "llava_siglip";
        let weights = weights(name, Generation::Memory);
        let built = weights.names().filter(|key| !(is_siglip && of_head(key)));
        let count: usize = built
            .map(|key| weights.shape(key).unwrap().iter().product::<usize>())
            .sum();
        assert_eq!(vlm.config().num_parameters(), count, "{name}");
        assert!(params.num_elements() <= count);
        let batch = Batch::of(name);
        assert!(values(&logits(&vlm, &batch)).iter().all(|x| x.is_finite()));
    }
}

/// More images than are computed together.
#[test]
fn many_images_are_computed_in_pieces() {
    for name in FAMILIES {
        let batch = Batch::of(name);
        let weights = weights(name, Generation::Memory);
        let (vlm, _) = load(name, BuilderConfig::new(Some(&weights)), TowerTraining::Frozen);
        let one = vlm.encode(&batch.processed()).unwrap();
        let num_copies = if name.starts_with("qwen") { 40 } else { 12 };
        let many: Vec<_> = (0..num_copies).flat_map(|_| batch.processed()).collect();
        // Patches of Qwen, pictures of the others.
        let parts: usize = many.iter().map(|image| image.pixels.dim(0).unwrap()).sum();
        assert!(
            parts > if name.starts_with("qwen") { 4096 } else { 32 },
            "{name}: {parts}"
        );
        let found = vlm.encode(&many).unwrap();
        assert_eq!(found.len(), many.len());
        for (index, found) in found.iter().enumerate() {
            let expected = &one[index % one.len()];
            assert_eq!(found.layout, expected.layout);
            assert_close(name, &found.embeddings, &expected.embeddings, 1e-5);
        }
    }
}
