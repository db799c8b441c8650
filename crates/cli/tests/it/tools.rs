//! Export, forward, inspection and lists.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use serde_json::json;

use crate::place::{Place, golden};

/// Networks against Python, as in the models' own tests.
pub(crate) const PARITY: f64 = 1e-4;
/// One network against itself in another form.
const MERGED: f64 = 1e-5;
/// The golden weights are stored in half precision, so that a merged network is rounded to it.
const ROUNDED: f64 = 2e-3;

pub(crate) fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let weights = Weights::open(path).unwrap();
    let names: Vec<String> = weights.names().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|name| {
            let tensor = weights.read(&name, DType::F32, &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest difference in units of the largest expected value.
pub(crate) fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let difference = found
        .iter()
        .zip(&expected)
        .fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    f64::from(difference) / f64::from(scale)
}

#[test]
fn formats_of_an_adapter_hold_the_same_numbers() {
    let place = Place::with_replay();
    let export = |from: &str, format: &str, out: &str| {
        place
            .run(&["export", "--adapter", from, "--format", format, "--out", out])
            .success()
    };
    assert_eq!(
        export("adapter", "diffusers", "a/pytorch_lora_weights.safetensors"),
        "wrote a/pytorch_lora_weights.safetensors\n"
    );
    export("a/pytorch_lora_weights.safetensors", "peft", "b");
    export("b", "diffusers", "d");
    let again = read(&place.path("d/pytorch_lora_weights.safetensors"));
    assert!(
        again
            .keys()
            .eq(read(&place.path("a/pytorch_lora_weights.safetensors")).keys())
    );
    export("a", "peft", "c");
    export("c", "kohya", "kohya.safetensors");

    let start = read(&place.path("adapter/adapter_model.safetensors"));
    assert_eq!(start.len(), 64);
    for back in ["b", "c"] {
        let back_again = read(&place.path(back).join("adapter_model.safetensors"));
        assert!(back_again.keys().eq(start.keys()), "{:?}", back_again.keys());
        for (name, tensor) in &start {
            assert_eq!(values(&back_again[name]), values(tensor), "{name}");
        }
        let config = place.json(&format!("{back}/adapter_config.json"));
        assert_eq!((&config["r"], config["lora_alpha"].as_f64()), (&json!(4), Some(8.0)));
        assert_eq!(config["peft_type"], "LORA");
    }

    let kohya = read(&place.path("kohya.safetensors"));
    assert_eq!(kohya.len(), 96);
    for (name, tensor) in &start {
        let module = name
            .strip_prefix("base_model.model.")
            .unwrap()
            .strip_suffix(".weight")
            .unwrap();
        let (module, half) = module.rsplit_once('.').unwrap();
        let module = format!("lora_unet_{}", module.replace('.', "_"));
        let half = if half == "lora_A" { "lora_down" } else { "lora_up" };
        assert_eq!(
            values(&kohya[&format!("{module}.{half}.weight")]),
            values(tensor),
            "{name}"
        );
        assert_eq!(values(&kohya[&format!("{module}.alpha")]), [8.0]);
    }
}

/// A pipeline of the golden networks.
fn pipeline(place: &Place) {
    for (name, component) in [("unet_sd1", "unet"), ("vae", "vae"), ("text_gelu", "text_encoder")] {
        for file in [
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "model.safetensors",
        ] {
            if let Ok(content) = std::fs::read(golden("models").join(name).join(file)) {
                place.write(&format!("golden/{component}/{file}"), content);
            }
        }
    }
    let index = json!({
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
    });
    place.write("golden/model_index.json", index.to_string());
}

/// Writes some of the golden vectors as inputs.
pub(crate) fn inputs(place: &Place, name: &str, tensors: &[(&str, &str)]) {
    let vectors = read(&golden("models").join(name).join("vectors.safetensors"));
    let inputs = tensors
        .iter()
        .map(|(from, to)| ((*to).to_owned(), vectors[*from].clone()))
        .collect();
    save_tensors(&place.path("inputs.safetensors"), &inputs, &BTreeMap::new()).unwrap();
}

pub(crate) fn forward(place: &Place, model: &str, out: &str, more: &[&str]) -> BTreeMap<String, Tensor> {
    let mut arguments = vec![
        "forward",
        "--model",
        model,
        "--inputs",
        "inputs.safetensors",
        "--out",
        out,
    ];
    arguments.extend(more);
    place.run(&arguments).success();
    read(&place.path(out))
}

#[test]
fn forward_equals_python() {
    let place = Place::new();
    pipeline(&place);
    let denoiser: &[(&str, &str)] = &[
        ("sample", "sample"),
        ("timesteps", "timestep"),
        ("encoder_hidden_states", "encoder_hidden_states"),
    ];
    type Case<'a> = (
        &'a str,
        &'a str,
        &'a [(&'a str, &'a str)],
        &'a [&'a str],
        &'a [(&'a str, &'a str)],
    );
    let cases: [Case<'_>; 3] = [
        ("unet", "unet_sd1", denoiser, &["unet_sd1"], &[("sample", "output")]),
        (
            "vae",
            "vae",
            &[("sample", "sample")],
            &["vae"],
            &[("latent_mean", "latent_mean"), ("latent_logvar", "latent_logvar")],
        ),
        (
            "text_encoder",
            "text_gelu",
            &[("input_ids", "input_ids")],
            &["text_gelu"],
            &[
                ("last_hidden_state", "last_hidden_state"),
                ("pooler_output", "pooler_output"),
            ],
        ),
    ];
    let mut num_compared = 0;
    for (component, name, given, _, compared) in cases {
        inputs(&place, name, given);
        let found = forward(
            &place,
            "golden",
            &format!("out/{component}.safetensors"),
            &["--component", component],
        );
        let expected = read(&golden("models").join(name).join("vectors.safetensors"));
        for (output, vector) in compared {
            let error = error(&found[*output], &expected[*vector]);
            assert!(error < PARITY, "{component} {output}: {error:e}");
            num_compared += 1;
        }
    }
    assert_eq!(num_compared, 5);

    // With an adapter in both layouts, and merged.
    inputs(&place, "unet_sd1", denoiser);
    let expected = &read(&golden("models/unet_sd1_lora/vectors.safetensors"))["output"];
    let without = &forward(&place, "golden", "without.safetensors", &[])["sample"];
    assert!(error(without, expected) > 1e-2, "the adapter changes nothing");
    let adapters = ["models/unet_sd1_lora", "models/unet_sd1_lora_diffusers"].map(golden);
    for (number, adapter) in adapters.iter().enumerate() {
        let adapter = adapter.to_str().unwrap();
        let with = &forward(
            &place,
            "golden",
            &format!("with-{number}.safetensors"),
            &["--adapter", adapter],
        )["sample"];
        assert!(error(with, expected) < PARITY, "{adapter}");
        let merged = format!("merged-{number}");
        for (more, tolerance) in [(&["--dtype", "f32"][..], MERGED), (&[], ROUNDED)] {
            let _ = std::fs::remove_dir_all(place.path(&merged));
            let mut arguments = vec![
                "export",
                "--adapter",
                adapter,
                "--model",
                "golden",
                "--format",
                "merged",
            ];
            arguments.extend(["--out", &merged]);
            arguments.extend(more);
            place.run(&arguments).success();
            let of_merged = &forward(&place, &merged, &format!("{merged}.safetensors"), &[])["sample"];
            let error = error(of_merged, with);
            assert!(error < tolerance, "{adapter} merged {more:?}: {error:e}");
        }
    }

    // The other networks of a merged pipeline are what they were.
    for (component, name, given) in [
        ("vae", "vae", ("sample", "sample")),
        ("text_encoder", "text_gelu", ("input_ids", "input_ids")),
    ] {
        inputs(&place, name, &[given]);
        let more = ["--component", component];
        let expected = forward(&place, "golden", "before.safetensors", &more);
        let found = forward(&place, "merged-0", "after.safetensors", &more);
        assert!(found.keys().eq(expected.keys()));
        for (name, expected) in &expected {
            assert_eq!(values(&found[name]), values(expected), "{component} {name}");
        }
    }
}

#[test]
fn forward_names_the_input_that_is_wrong() {
    let place = Place::new();
    pipeline(&place);
    let denoiser = [
        ("sample", "sample"),
        ("timesteps", "timestep"),
        ("encoder_hidden_states", "encoder_hidden_states"),
    ];
    let arguments = [
        "forward",
        "--model",
        "golden",
        "--inputs",
        "inputs.safetensors",
        "--out",
        "out.safetensors",
    ];
    inputs(&place, "unet_sd1", &denoiser[..2]);
    place
        .run(&arguments)
        .failure(1, &["inputs.safetensors", "encoder_hidden_states"]);
    inputs(
        &place,
        "unet_sd1",
        &[denoiser[0], ("timesteps", "timesteps"), denoiser[2]],
    );
    place
        .run(&arguments)
        .failure(2, &["inputs.safetensors", "`timesteps`", "timestep"]);
    inputs(
        &place,
        "unet_sd1",
        &[denoiser[0], denoiser[1], ("loss_weight", "encoder_hidden_states")],
    );
    place
        .run(&arguments)
        .failure(1, &["encoder_hidden_states", "[2, 4, 8, 8]"]);
    inputs(&place, "unet_sd1", &denoiser[..1]);
    place
        .run(
            &["forward", "--component", "text_encoder"]
                .iter()
                .chain(&arguments[1..])
                .copied()
                .collect::<Vec<_>>(),
        )
        .failure(
            2,
            &["inputs.safetensors", "found tensor `sample`", "expected input_ids"],
        );
    std::fs::remove_dir_all(place.path("golden/vae")).unwrap();
    place
        .run(
            &["forward", "--component", "vae"]
                .iter()
                .chain(&arguments[1..])
                .copied()
                .collect::<Vec<_>>(),
        )
        .failure(1, &["golden", "vae"]);
    assert!(!place.path("out.safetensors").exists());
}

#[test]
fn shapes_are_written_and_inspected() {
    let place = Place::new();
    let make = |out: &str, seed: &str, split: &str| {
        let arguments = [
            "data", "shapes", "--num", "12", "--seed", seed, "--split", split, "--out", out,
        ];
        let stdout = place.run(&arguments).success();
        assert_eq!(stdout, format!("wrote 12 captioned images to {out}\n"));
        place.bytes(out)
    };
    let first = make("new/deep/shapes.jsonl", "0", "train");
    assert!(
        first == make("again.jsonl", "0", "train"),
        "the same seed gives other shapes"
    );
    assert!(
        first != make("other.jsonl", "1", "train"),
        "another seed gives the same shapes"
    );
    assert!(
        first != make("held-out.jsonl", "0", "held-out"),
        "both splits are the same"
    );

    let text = place.run(&["data", "inspect", "new/deep/shapes.jsonl"]).success();
    assert!(
        text.contains("image-caption layout, 12 records") && text.contains("12 of 32x32"),
        "{text}"
    );
    let json = place
        .run(&["data", "inspect", "new/deep/shapes.jsonl", "--json"])
        .success();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["num_records"], &json["num_good_records"]),
        (&json!(12), &json!(12))
    );
    assert_eq!(
        (&json["num_errors"], &json["layout"]),
        (&json!(0), &json!("image-caption"))
    );
    assert_eq!(
        json["image_sizes"],
        json!([{"width": 32, "height": 32, "num_images": 12}])
    );

    let data = golden("replay/data");
    let latents = place
        .run(&["data", "inspect", data.to_str().unwrap(), "--json"])
        .success();
    let latents: serde_json::Value = serde_json::from_str(&latents).unwrap();
    assert_eq!(
        (&latents["num_records"], &latents["layout"]),
        (&json!(40), &json!("latent-pairs"))
    );
    assert_eq!(latents["tensors"].as_array().unwrap().len(), 7);
}

#[test]
fn scenes_are_written_as_text() {
    let place = Place::new();
    let make = |out: &str, arguments: &[&str]| -> Vec<serde_json::Value> {
        let common = ["data", "shapes", "--num", "150", "--out", out];
        let stdout = place.run(&[&common, arguments].concat()).success();
        assert!(
            stdout.starts_with("wrote 150 ") && stdout.ends_with(&format!(" to {out}\n")),
            "{stdout}"
        );
        let text = String::from_utf8(place.bytes(out)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let keys = |row: &serde_json::Value| row.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let truth = |row: &serde_json::Value, key: &str| {
        diptych_eval::scene_truth(row["prompt"].as_str().unwrap(), row[key].as_str().unwrap()).unwrap()
    };

    let pairs = make("new/pairs.jsonl", &["--kind", "pairs"]);
    assert_eq!(pairs.len(), 150);
    for (index, row) in pairs.iter().enumerate() {
        assert_eq!(keys(row), ["prompt", "chosen", "rejected", "id"]);
        assert_eq!(row["id"], index.to_string());
        assert!(truth(row, "chosen").is_true && !truth(row, "rejected").is_true, "{row}");
        assert!(truth(row, "rejected").is_caption);
    }
    assert_eq!(pairs, make("again.jsonl", &["--kind", "pairs"]));
    assert_ne!(pairs, make("other.jsonl", &["--kind", "pairs", "--seed", "1"]));
    let mean = |rows: &[serde_json::Value]| rows.iter().map(|row| truth(row, "rejected").score).sum::<f64>();
    assert!(mean(&pairs) > mean(&make("worse.jsonl", &["--kind", "pairs", "--mistakes", "3"])) + 15.0);

    let num_false = |rows: &[serde_json::Value]| rows.iter().filter(|row| !truth(row, "completion").is_true).count();
    let sft = make("sft.jsonl", &["--kind", "sft"]);
    assert_eq!(
        (keys(&sft[0]), num_false(&sft)),
        (vec!["prompt".to_owned(), "completion".to_owned()], 0)
    );
    let noisy = make(
        "noisy.jsonl",
        &["--kind", "sft", "--mislabeled", "0.5", "--mistakes", "2"],
    );
    assert!((55..95).contains(&num_false(&noisy)), "{}", num_false(&noisy));

    let prompts = make("prompts.jsonl", &["--kind", "prompts"]);
    assert_eq!(keys(&prompts[0]), ["prompt"]);
    assert!(
        prompts
            .iter()
            .zip(&sft)
            .all(|(prompt, sft)| prompt["prompt"] == sft["prompt"])
    );
    let held_out = make("held-out.jsonl", &["--kind", "prompts", "--split", "held-out"]);
    assert!(held_out.iter().all(|row| !prompts.contains(row)));
}

#[test]
fn pictures_come_with_what_is_asked_and_said_about_them() {
    let place = Place::new();
    let make = |out: &str, arguments: &[&str]| -> Vec<serde_json::Value> {
        place
            .run(&[&["data", "shapes", "--num", "30", "--out", out][..], arguments].concat())
            .success();
        let text = String::from_utf8(place.bytes(out)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();

    let sft = make("sft.jsonl", &["--kind", "vlm-sft"]);
    assert_eq!(sft.len(), 60);
    for (index, rows) in sft.chunks_exact(2).enumerate() {
        let example = diptych_shapes::Example::generate(
            0,
            index as u64,
            diptych_shapes::Split::Train,
            &diptych_shapes::SceneConfig::default(),
        )
        .unwrap();
        assert_eq!(text(&rows[0], "prompt"), "<image> describe the picture:");
        assert_eq!(text(&rows[0], "completion"), format!(" {}", example.caption));
        let asked = example
            .questions
            .iter()
            .find(|question| text(&rows[1], "prompt") == format!("<image> {}:", question.text));
        assert_eq!(text(&rows[1], "completion"), format!(" {}", asked.unwrap().answer));
        assert_eq!(rows[0]["images"], rows[1]["images"]);
    }

    for answer in [" yes", " no"] {
        assert!(
            sft.iter().filter(|row| text(row, "completion") == answer).count() > 3,
            "{answer}"
        );
    }

    let captions = make("captions.jsonl", &["--kind", "vlm-prompts"]);
    assert_eq!(captions.len(), 30);
    assert!(
        captions
            .iter()
            .zip(sft.chunks_exact(2))
            .all(|(prompt, sft)| prompt["images"] == sft[0]["images"])
    );

    // Questions of POPE about the same pictures.
    place
        .run(&[
            "eval",
            "pope-questions",
            "shapes",
            "--num",
            "30",
            "--split",
            "train",
            "--out",
            "pope",
        ])
        .success();
    let questions = String::from_utf8(place.bytes("pope/pope_adversarial.jsonl")).unwrap();
    let prompts = make(
        "questions.jsonl",
        &["--kind", "vlm-prompts", "--questions", "pope/pope_adversarial.jsonl"],
    );
    assert_eq!(prompts.len(), questions.lines().count());
    for (prompt, question) in prompts.iter().zip(questions.lines()) {
        let question: serde_json::Value = serde_json::from_str(question).unwrap();
        assert_eq!(text(prompt, "prompt"), format!("<image> {}:", text(&question, "text")));
        let image: usize = text(&question, "image").parse().unwrap();
        assert_eq!(prompt["images"], captions[image]["images"]);
    }
    let few = [
        "data",
        "shapes",
        "--num",
        "5",
        "--out",
        "few.jsonl",
        "--kind",
        "vlm-prompts",
    ];
    let arguments = [&few[..], &["--questions", "pope/pope_adversarial.jsonl"]].concat();
    place
        .run(&arguments)
        .failure(2, &["is about image", "expected the number of one of 5 examples"]);
}

#[test]
fn lists_name_what_there_is() {
    let place = Place::with_replay();
    place.write("models/tiny/model_index.json", "{}");
    let cases: [(&[&str], &[&str]); 9] = [
        (&["list", "objectives"], &["dpo", "mapo", "sft", "arXiv:2311.12908"]),
        (
            &["list", "methods"],
            &[
                "diffusion  autoencoder",
                "llm        offline_pairs",
                "llm        ranked",
                "llm        unpaired",
            ],
        ),
        (&["list", "models"], &["models/tiny"]),
        (&["list", "datasets"], &["no datasets/"]),
        (&["list", "benchmarks"], &["win-rate", "shapes-geneval", "verdicts"]),
        (
            &["list", "layouts"],
            &[
                "auto",
                "preference",
                "image-caption",
                "latent-pairs",
                "llama-factory",
                "hh",
                "rlaif-v",
                "ha-dpo",
            ],
        ),
        (
            &["doctor"],
            &["diptych 0.", "cpu", "cuda", "metal", "models/shapes-diffusion"],
        ),
        (&["--version"], &["diptych 0."]),
        (
            &["--help"],
            &[
                "train",
                "generate",
                "eval",
                "data",
                "export",
                "forward",
                "score",
                "verify-resume",
                "list",
                "doctor",
            ],
        ),
    ];
    let mut num_cases = 0;
    for (arguments, said) in cases {
        let stdout = place.run(arguments).success();
        for expected in said {
            assert!(
                stdout.contains(expected),
                "{arguments:?}: expected {expected:?} in: {stdout}"
            );
        }
        num_cases += 1;
    }
    assert_eq!(num_cases, 9);
}

#[test]
fn objectives_are_listed_in_columns() {
    let text = Place::new().run(&["list", "objectives"]).success();
    let lines: Vec<&str> = text.lines().collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, diptych_core::Objective::NAMES);
    assert!(names.len() >= 52, "{}", names.len());
    // Kind, needs and paper begin where those of the first line do.
    let begins = |line: &str, at: usize| line.as_bytes()[at - 1] == b' ' && line.as_bytes()[at] != b' ';
    let kind = lines[0].find("pairs").unwrap();
    let needs = lines[0].find("lengths").unwrap();
    let paper = lines[0].find("Gupta").unwrap();
    for line in &lines {
        assert!(begins(line, kind) && begins(line, paper), "{line}");
        let has_needs = line.as_bytes()[needs] != b' ';
        assert_eq!(line[needs..paper].trim().is_empty(), !has_needs, "{line}");
    }
    for (name, said) in [
        ("kto", "unpaired"),
        ("kto", "mismatched responses"),
        ("lipo_lambda", "lists"),
        ("ld_dpo", "token scores"),
        ("r_dpo", "lengths"),
        ("odpo", "judge scores"),
    ] {
        let line = lines.iter().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        assert!(line.contains(said), "{line}");
    }
}

/// Only the denoiser's half used to be written.
#[test]
fn an_adapter_of_two_networks_is_exported_whole_or_not_at_all() {
    let place = Place::with_pipeline();
    let layers = [
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    ];
    let tensors = layers
        .iter()
        .flat_map(|layer| [("A", (2, 32)), ("B", (32, 2))].map(|half| (layer, half)))
        .map(|(layer, (half, shape))| {
            let tensor = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
            (format!("{layer}.lora_{half}.weight"), tensor)
        })
        .collect();
    save_tensors(&place.path("both.safetensors"), &tensors, &BTreeMap::new()).unwrap();
    let export = |format: &str, out: &str, more: &[&str]| {
        let mut arguments = vec![
            "export",
            "--adapter",
            "both.safetensors",
            "--format",
            format,
            "--out",
            out,
        ];
        arguments.extend(more);
        place.run(&arguments)
    };
    export("kohya", "kohya.safetensors", &[]).success();
    let kohya = read(&place.path("kohya.safetensors"));
    assert_eq!(kohya.len(), 6);
    assert!(kohya.contains_key("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"));
    export("diffusers", "diffusers.safetensors", &[]).success();
    assert!(read(&place.path("diffusers.safetensors")).keys().eq(tensors.keys()));
    export("peft", "peft", &[]).failure(
        2,
        &["both.safetensors adapts text_encoder and unet", "--format diffusers"],
    );
    assert!(!place.path("peft").exists());

    export("merged", "merged", &["--model", "pipeline"]).success();
    for (part, name, is_changed) in [
        ("unet", "diffusion_pytorch_model", true),
        ("text_encoder", "model", true),
        ("vae", "diffusion_pytorch_model", false),
    ] {
        let weights = |model: &str| place.bytes(&format!("{model}/{part}/{name}.safetensors"));
        assert_eq!(weights("pipeline") != weights("merged"), is_changed, "{part}");
    }
    place.replace("pipeline/model_index.json", "\"text_encoder\"", "\"another\"");
    export("merged", "other", &["--model", "pipeline"]).failure(1, &["both.safetensors also adapts the text_encoder"]);
    assert!(!place.path("other").exists());
    place
        .run(&[
            "generate",
            "--model",
            "merged",
            "--adapter",
            "both.safetensors",
            "--prompt",
            "x",
            "--out",
            "images",
        ])
        .failure(1, &["both.safetensors also adapts the text_encoder"]);
}
