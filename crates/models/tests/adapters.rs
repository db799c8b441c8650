//! Adapters on disk: every layout round-trips, files of every age are read, and damage is named.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use diptych_models::lora::{LoraAdapter, LoraModule, merge, parts, save_diffusers, save_kohya};
use diptych_models::unet::UNet2DConditionModel;
use diptych_models::{BuilderConfig, Error, LoraConfig, LoraInit, Targets, Trainable};
use diptych_tensor::{DType, Tensor, Weights, save_tensors};
use support::{assert_close, golden, randn, shake, tiny_text, tiny_unet, tiny_unet_config, unet_inputs, values};

fn suffixes(names: &[&str]) -> Targets {
    Targets::Suffixes(names.iter().map(|&name| name.to_owned()).collect())
}

fn predict(unet: &UNet2DConditionModel) -> Tensor {
    let (sample, timesteps, text) = unet_inputs(DType::F32);
    unet.forward(&sample, &timesteps, &text).unwrap()
}

/// The prediction of the tiny denoiser with this adapter, frozen.
fn predict_with(adapter: &LoraAdapter) -> Tensor {
    predict(
        &tiny_unet(BuilderConfig {
            adapter: Some(adapter),
            ..BuilderConfig::new(None)
        })
        .0,
    )
}

fn same(a: &LoraAdapter, b: &LoraAdapter) {
    assert_eq!(
        a.modules.keys().collect::<Vec<_>>(),
        b.modules.keys().collect::<Vec<_>>()
    );
    for (name, module) in &a.modules {
        let other = &b.modules[name];
        assert_eq!(values(&module.down), values(&other.down), "{name}");
        assert_eq!(values(&module.up), values(&other.up), "{name}");
        assert_eq!(module.scale, other.scale, "{name}");
    }
}

#[test]
fn a_trained_adapter_is_saved_and_loaded_in_every_layout() {
    let targets = suffixes(&["to_q", "to_out.0", "conv1"]);
    let lora = LoraConfig {
        rank: 3,
        alpha: 1.0,
        targets,
        init_weights: LoraInit::Gaussian,
        ..Default::default()
    };
    let config = BuilderConfig {
        trainable: Trainable::Lora(&lora),
        params_prefix: "unet.",
        ..BuilderConfig::new(None)
    };
    let (unet, params) = tiny_unet(config.clone());
    assert!(params.names().all(|name| name.starts_with("unet.")));
    shake(&params, 3);
    let expected = predict(&unet);
    let adapter = LoraAdapter::from_params(&params, &lora, "unet.").unwrap();
    assert_eq!(2 * adapter.modules.len(), params.len());
    assert_eq!(adapter.num_elements(), params.num_elements());

    let dir = tempfile::tempdir().unwrap();
    let (peft, diffusers) = (dir.path().join("peft"), dir.path().join("diffusers"));
    adapter.save_peft(&peft, Some("tiny")).unwrap();
    save_diffusers(&diffusers, &[("unet", &adapter)]).unwrap();
    let file = diffusers.join("pytorch_lora_weights.safetensors");
    for path in [&peft, &diffusers, &file, &peft.join("adapter_model.safetensors")] {
        let loaded = LoraAdapter::load(path, "unet").unwrap();
        same(&adapter, &loaded);
        assert_eq!(
            (&loaded.targets, loaded.init_weights),
            (&adapter.targets, LoraInit::Gaussian)
        );
        assert_close("loaded", &predict_with(&loaded), &expected, 1e-6);
    }
    // A directory with one PEFT directory for each network.
    std::fs::create_dir(dir.path().join("both")).unwrap();
    std::fs::rename(&peft, dir.path().join("both/unet")).unwrap();
    let loaded = LoraAdapter::load(dir.path().join("both"), "unet").unwrap();
    assert!(matches!(
        LoraAdapter::load(dir.path().join("both"), "vae"),
        Err(Error::NoAdapter { .. })
    ));

    // Training goes on from a file.
    let (resumed, resumed_params) = tiny_unet(BuilderConfig {
        adapter: Some(&loaded),
        ..config
    });
    assert_eq!(values(&predict(&resumed)), values(&expected));
    for ((name, a), (other, b)) in params.iter().zip(resumed_params.iter()) {
        assert_eq!((name, values(a)), (other, values(b)));
    }
}

#[test]
fn initial_matrices_have_pefts_distributions() {
    for (init_weights, std) in [
        (LoraInit::Kaiming, 1.0 / (3.0f64 * 8.0).sqrt()),
        (LoraInit::Gaussian, 1.0 / 64.0),
    ] {
        let targets = suffixes(&["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]);
        let lora = LoraConfig {
            rank: 64,
            targets,
            init_weights,
            ..Default::default()
        };
        let (_, params) = tiny_unet(BuilderConfig {
            trainable: Trainable::Lora(&lora),
            ..BuilderConfig::new(None)
        });
        assert_eq!(params.len(), 2);
        for (name, var) in params.iter() {
            let values = values(var);
            let found = (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
            let expected = if name.contains("lora_A") { std } else { 0.0 };
            assert!(
                (found - expected).abs() <= 0.1 * expected,
                "{init_weights:?} {name}: {found}, expected {expected}"
            );
        }
    }
}

/// Names that diffusers wrote in 2023, and what they are today.
#[test]
fn files_of_2023_are_read() {
    let cases = [
        (
            "unet",
            "unet.mid.attn1.processor.to_q_lora.down.weight",
            "mid.attn1.to_q",
        ),
        (
            "unet",
            "unet.mid.attn1.processor.to_out_lora.down.weight",
            "mid.attn1.to_out.0",
        ),
        ("unet", "unet.mid.attn1.to_k.lora.down.weight", "mid.attn1.to_k"),
        ("unet", "mid.attn2.processor.to_v_lora.down.weight", "mid.attn2.to_v"),
        ("unet", "unet.mid.proj_in.lora_A.default.weight", "mid.proj_in"),
        (
            "text_encoder",
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight",
            "text_model.encoder.layers.0.self_attn.out_proj",
        ),
        (
            "text_encoder",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
            "text_model.encoder.layers.0.self_attn.q_proj",
        ),
        (
            "text_encoder",
            "text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight",
            "text_model.encoder.layers.0.mlp.fc1",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (component, down, module) in cases {
        let up = down.replace(".down.", ".up.").replace("lora_A", "lora_B");
        let tensors = BTreeMap::from([
            (down.to_owned(), randn(1, &[2, 4], DType::F32)),
            (up, randn(2, &[6, 2], DType::F32)),
        ]);
        let file = dir.path().join("lora.safetensors");
        save_tensors(&file, &tensors, &BTreeMap::new()).unwrap();
        let adapter = LoraAdapter::load(&file, component).unwrap();
        assert_eq!(adapter.modules.keys().collect::<Vec<_>>(), [module], "{down}");
        assert_eq!(
            adapter.modules[module].scale, 1.0,
            "without any alpha, alpha is the rank"
        );
    }
}

#[test]
fn an_alpha_beside_the_matrices_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "unet.a.to_q.lora.down.weight",
        "unet.a.to_q.lora.up.weight",
        "unet.a.to_q.alpha",
    ];
    let shapes: [&[usize]; 3] = [&[2, 4], &[6, 2], &[]];
    let tensors = names.iter().zip(shapes).map(|(name, shape)| {
        (
            (*name).to_owned(),
            Tensor::full(5f32, shape, &diptych_tensor::Device::Cpu).unwrap(),
        )
    });
    let file = dir.path().join("alpha.safetensors");
    save_tensors(&file, &tensors.collect(), &BTreeMap::new()).unwrap();
    assert_eq!(LoraAdapter::load(&file, "unet").unwrap().modules["a.to_q"].scale, 2.5);
}

#[test]
fn pefts_factors() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = BTreeMap::from([
        (
            "base_model.model.a.to_q.lora_A.weight".to_owned(),
            randn(1, &[4, 3], DType::F32),
        ),
        (
            "base_model.model.a.to_q.lora_B.weight".to_owned(),
            randn(2, &[3, 4], DType::F32),
        ),
    ]);
    save_tensors(
        &dir.path().join("adapter_model.safetensors"),
        &tensors,
        &BTreeMap::new(),
    )
    .unwrap();
    let cases = [
        (r#"{"r": 4, "lora_alpha": 8}"#, Some(2.0)),
        (r#"{"r": 4, "lora_alpha": 8, "use_rslora": true}"#, Some(4.0)),
        (r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}}"#, Some(0.5)),
        (
            r#"{"r": 4, "lora_alpha": 8, "alpha_pattern": {"^a.to_q": 1, "to_k": 9}}"#,
            Some(0.25),
        ),
        (r#"{"r": 4, "lora_alpha": 8, "use_qalora": true}"#, None),
        (
            r#"{"r": 4, "lora_alpha": 8, "init_lora_weights": "pissa_niter_16"}"#,
            None,
        ),
        (
            r#"{"r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"}"#,
            Some(2.0),
        ),
        (r#"{"r": 4, "lora_alpha": 8, "bias": "all"}"#, None),
        (r#"{"r": 4, "lora_alpha": 8, "modules_to_save": ["conv_in"]}"#, None),
        (r#"{"r": 4, "lora_alpha": 8, "peft_type": "LOHA"}"#, None),
        (r#"{"r": 4}"#, None),
        // The rank that is written must be that of the matrices.
        (r#"{"lora_alpha": 8}"#, Some(2.0)),
        (r#"{"r": 8, "lora_alpha": 8, "rank_pattern": {"to_q": 4}}"#, Some(2.0)),
        (r#"{"r": 8, "lora_alpha": 8}"#, None),
        (r#"{"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}}"#, None),
        (r#"{"r": 0, "lora_alpha": 8}"#, None),
        (r#"{"r": "4", "lora_alpha": 8}"#, None),
    ];
    assert_eq!(cases.len(), 17);
    for (config, scale) in cases {
        std::fs::write(dir.path().join("adapter_config.json"), config).unwrap();
        match (LoraAdapter::load(dir.path(), "unet"), scale) {
            (Ok(adapter), Some(scale)) => assert_eq!(adapter.modules["a.to_q"].scale, scale, "{config}"),
            (Err(Error::Config { .. }), None) => {}
            (result, _) => panic!("{config}: {result:?}"),
        }
    }
}

#[test]
fn damaged_adapters_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    let load = |tensors: &[(&str, &[usize])]| {
        let tensors = tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), randn(1, shape, DType::F32)))
            .collect();
        save_tensors(&file, &tensors, &BTreeMap::new()).unwrap();
        LoraAdapter::load(&file, "unet").unwrap_err()
    };
    let error = load(&[("unet.a.lora_A.weight", &[2, 4])]);
    assert!(
        matches!(&error, Error::MissingHalf { module, missing: "lora_B", .. } if module == "a"),
        "{error}"
    );
    let error = load(&[("unet.a.lora_B.weight", &[2, 4])]);
    assert!(
        matches!(&error, Error::MissingHalf { missing: "lora_A", .. }),
        "{error}"
    );
    let error = load(&[("unet.a.lora_A.weight", &[2, 4]), ("unet.a.lora_B.weight", &[6, 3])]);
    assert!(
        matches!(&error, Error::AdapterShape { found, expected, .. } if *found == [6, 3] && *expected == [6, 2]),
        "{error}"
    );
    let error = load(&[("unet.a.magnitude", &[2])]);
    assert!(
        matches!(&error, Error::UnknownAdapterTensor { name, .. } if name == "unet.a.magnitude"),
        "{error}"
    );
    let both = [("unet.a.lora_A.weight", &[2, 4][..]), ("vae.a.lora_A.weight", &[2, 4])];
    load(&both);
    let error = parts(&file).unwrap_err();
    assert!(
        matches!(&error, Error::UnknownAdapterTensor { name, .. } if name == "vae.a.lora_A.weight"),
        "{error}"
    );
    let error = load(&[("text_encoder.a.lora_A.weight", &[2, 4])]);
    assert!(matches!(&error, Error::NoAdapter { .. }), "{error}");
    assert!(matches!(
        LoraAdapter::load(dir.path(), "unet"),
        Err(Error::NoAdapter { .. })
    ));
}

fn build(config: BuilderConfig<'_>) -> diptych_models::Result<()> {
    let builder = diptych_models::Builder::new(config)?;
    UNet2DConditionModel::load(&builder, &tiny_unet_config())?;
    builder.finish().map(|_| ())
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let unmatched = LoraConfig {
        targets: suffixes(&["to_q", "to_qq"]),
        ..Default::default()
    };
    let error = build(BuilderConfig {
        trainable: Trainable::Lora(&unmatched),
        ..BuilderConfig::new(None)
    })
    .unwrap_err();
    assert!(
        matches!(&error, Error::UnmatchedTarget { target, nearest } if target == "to_qq" && nearest[0] == "to_q"),
        "{error}"
    );

    let mut adapter = LoraAdapter::load(golden("unet_sd1_lora"), "unet").unwrap();
    adapter
        .modules
        .retain(|name, _| name.ends_with("mid_block.resnets.0.conv1"));
    let error = build(BuilderConfig {
        adapter: Some(&adapter),
        ..BuilderConfig::new(None)
    })
    .unwrap_err();
    assert!(
        matches!(&error, Error::AdapterShape { module, what: "A", .. } if module == "mid_block.resnets.0.conv1"),
        "{error}"
    );

    let module = adapter.modules.pop_first().unwrap().1;
    adapter.modules.insert("mid_block.resnets.0.conv3".to_owned(), module);
    let error = build(BuilderConfig {
        adapter: Some(&adapter),
        ..BuilderConfig::new(None)
    })
    .unwrap_err();
    assert!(
        matches!(&error, Error::UnknownModule { nearest, .. } if nearest[0] == "mid_block.resnets.0.conv1"),
        "{error}"
    );
    let weights = Weights::open(&golden("unet_sd1/diffusion_pytorch_model.safetensors")).unwrap();
    let error = merge(&weights, &adapter, DType::F32).unwrap_err();
    assert!(
        matches!(&error, Error::UnknownModule { nearest, .. } if nearest[0] == "mid_block.resnets.0.conv1"),
        "{error}"
    );
}

#[test]
fn an_adapter_must_have_what_is_trained() {
    let mut adapter = LoraAdapter::load(golden("unet_sd1_lora"), "unet").unwrap();
    adapter.modules.clear();
    let lora = LoraConfig {
        targets: suffixes(&["to_q"]),
        ..Default::default()
    };
    let config = BuilderConfig {
        adapter: Some(&adapter),
        trainable: Trainable::Lora(&lora),
        ..BuilderConfig::new(None)
    };
    assert!(matches!(build(config), Err(Error::MissingModule { .. })));
    let mut adapter = LoraAdapter::default();
    let (down, up) = (randn(1, &[8, 8], DType::F32), randn(2, &[8, 8], DType::F32));
    let name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    adapter.modules.insert(
        name.into(),
        LoraModule {
            down,
            up,
            scale: 2.0,
            magnitude: None,
        },
    );
    for (alpha, fits) in [(16.0, true), (8.0, false)] {
        let targets = suffixes(&[name]);
        let lora = LoraConfig {
            rank: 8,
            alpha,
            targets,
            ..Default::default()
        };
        let trainable = Trainable::Lora(&lora);
        match build(BuilderConfig {
            adapter: Some(&adapter),
            trainable,
            ..BuilderConfig::new(None)
        }) {
            Ok(()) => assert!(fits),
            Err(error) => assert!(!fits && error.to_string().contains("but 16 in the adapter"), "{error}"),
        }
    }
    let none = LoraConfig {
        rank: 0,
        ..Default::default()
    };
    let config = BuilderConfig {
        trainable: Trainable::Lora(&none),
        ..BuilderConfig::new(None)
    };
    assert!(matches!(build(config), Err(Error::AdapterSetting { key: "rank", .. })));
}

#[test]
fn two_networks_share_one_file() {
    let lora = LoraConfig {
        rank: 2,
        targets: suffixes(&["to_q"]),
        ..Default::default()
    };
    let text_lora = LoraConfig {
        rank: 4,
        targets: suffixes(&["q_proj", "fc1"]),
        ..Default::default()
    };
    let (_, params) = tiny_unet(BuilderConfig {
        trainable: Trainable::Lora(&lora),
        ..BuilderConfig::new(None)
    });
    let (_, text_params) = tiny_text(BuilderConfig {
        trainable: Trainable::Lora(&text_lora),
        ..BuilderConfig::new(None)
    });
    let unet = LoraAdapter::from_params(&params, &lora, "").unwrap();
    let text = LoraAdapter::from_params(&text_params, &text_lora, "").unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_diffusers(dir.path(), &[("unet", &unet), ("text_encoder", &text)]).unwrap();
    same(&unet, &LoraAdapter::load(dir.path(), "unet").unwrap());
    same(&text, &LoraAdapter::load(dir.path(), "text_encoder").unwrap());

    assert_eq!(parts(dir.path()).unwrap(), ["text_encoder", "unet"]);
    let all = LoraAdapter::load_all(dir.path()).unwrap();
    assert_eq!(all.len(), 2);
    same(&unet, &all["unet"]);
    same(&text, &all["text_encoder"]);
    for (name, adapter) in [("text_encoder", &text), ("unet", &unet)] {
        let alone = dir.path().join("alone").join(name);
        adapter.save_peft(&alone, None).unwrap();
        assert_eq!(parts(&alone).unwrap(), [name]);
        assert_eq!(parts(alone.join("adapter_model.safetensors")).unwrap(), [name]);
    }
    assert_eq!(parts(dir.path().join("alone")).unwrap(), ["unet", "text_encoder"]);
    assert!(matches!(parts(dir.path().join("none")), Err(Error::NoAdapter { .. })));

    let file = dir.path().join("kohya.safetensors");
    save_kohya(&file, &[("unet", &unet), ("text_encoder", &text)]).unwrap();
    let names: Vec<String> = Weights::open(&file).unwrap().names().map(str::to_owned).collect();
    assert_eq!(names.len(), 3 * (unet.modules.len() + text.modules.len()));
    for name in [
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_te_text_model_encoder_layers_1_mlp_fc1.alpha",
    ] {
        assert!(names.iter().any(|found| found == name), "{name}");
    }
    assert!(matches!(
        save_kohya(Path::new("x"), &[("vae", &unet)]),
        Err(Error::AdapterSetting { .. })
    ));
}

#[test]
fn recipes_read_and_write_adapters() {
    let read = |json: &str| serde_json::from_str::<diptych_models::AdapterConfig>(json);
    let config = read(r#"{"lora": {"rank": 4, "targets": "down.*to_q", "init_weights": "gaussian"}}"#).unwrap();
    let expected = LoraConfig {
        rank: 4,
        targets: Targets::Pattern("down.*to_q".into()),
        init_weights: LoraInit::Gaussian,
        ..Default::default()
    };
    assert_eq!(config, diptych_models::AdapterConfig::Lora(expected));
    assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    assert!(read(r#"{"lora": {"ranks": 4}}"#).is_err());
    assert!(read(r#"{"full": {}}"#).is_ok());
}
