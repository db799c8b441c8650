//! Users of pairs (PPD): two who prefer the opposite, told apart by their embeddings.

use std::collections::BTreeMap;
use std::path::Path;

use diptych_data::{ImagePair, ImageSource, write_pairs};
use diptych_diffusion::pipeline::UserEmbeddings;
use diptych_diffusion::{NetworkOptions, Pipeline, SampleConfig, estimate, generate};
use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use diptych_train::{LoopConfig, Method, Reporter, Silent, VerifyConfig, verify_resume};

use crate::preferences::Preferences;
use crate::world::{PROMPTS, World, batch, image};

const USERS: &str = "[method.offline_pairs.users]\nembeddings = \"users.safetensors\"\n";
const DPO: &str = "data.path = \"judged.jsonl\"\nobjective.dpo.beta = 500.0\n[reference.adapter_off]\n";

const OPTIONS: NetworkOptions = NetworkOptions {
    device: Device::Cpu,
    dtype: DType::F32,
    seed: 0,
};

fn write_users(path: &Path, users: &[(&str, &[f32], &[usize])]) {
    let tensors = users.iter().map(|(name, values, shape)| {
        let tensor = Tensor::from_slice(values, *shape, &Device::Cpu).unwrap();
        ((*name).to_owned(), tensor)
    });
    save_tensors(path, &tensors.collect::<BTreeMap<_, _>>(), &BTreeMap::new()).unwrap();
}

/// `judged.jsonl`: of each prompt the same two images twice, and what Ann prefers Bob does not. `users.safetensors`: both, and Eve.
fn world() -> World {
    let world = World::new();
    let source = |number| ImageSource::from_image(&image(number)).unwrap();
    let pair = |number: usize, user: &str, [chosen, rejected]: [usize; 2]| ImagePair {
        user_id: Some(user.to_owned()),
        ..ImagePair::new(
            format!("{user}-{number}"),
            PROMPTS[number],
            source(chosen),
            source(rejected),
        )
    };
    let pairs: Vec<ImagePair> = (0..3)
        .flat_map(|number| {
            let images = [2 * number, 2 * number + 1];
            [pair(number, "ann", images), pair(number, "bob", [images[1], images[0]])]
        })
        .collect();
    write_pairs(&world.path("judged.jsonl"), &pairs).unwrap();
    let users: [(&str, &[f32], &[usize]); 3] = [
        ("ann", &[1.0, 0.0, 0.5, 1.0], &[2, 2]),
        ("bob", &[0.0, 1.0, -0.5, 1.0], &[2, 2]),
        ("eve", &[0.3, 0.3, 0.3, 0.3], &[2, 2]),
    ];
    write_users(&world.path("users.safetensors"), &users);
    world
}

fn train(steps: u64, micro_batch: usize, accumulation: usize, lr: f64) -> String {
    format!(
        "[train]\nsteps = {steps}\nmicro_batch = {micro_batch}\naccumulation = {accumulation}\nsample_every = 0\n\
         checkpoint_every = 0\n[optimizer.adamw]\nlr = {lr:?}\nweight_decay = 0.0\n"
    )
}

/// After one update the same draws of two opposite users have a lower loss, and a higher one where each is taken for the other.
#[test]
fn one_update_moves_towards_what_each_of_two_opposite_users_prefers() {
    let world = world();
    let users: [(&str, &[f32], &[usize]); 2] = [
        ("bob", &[1.0, 0.0, 0.5, 1.0], &[2, 2]),
        ("ann", &[0.0, 1.0, -0.5, 1.0], &[2, 2]),
    ];
    write_users(&world.path("exchanged.safetensors"), &users);
    let text = |users: &str, more: &str| {
        format!(
            "data.shuffle = false\n{DPO}{users}dropout = 0.0\n{more}{}",
            train(1, 6, 1, 0.003)
        )
    };
    let before = &world.rows("moved", &text(USERS, ""))[0];
    assert!((before.loss - std::f64::consts::LN_2).abs() < 1e-6);
    let start = format!("init = '{}'\n", world.path("moved/final").display());
    let mean = |users: &str| {
        let places: Vec<(usize, u64)> = (0..6).map(|index| (index as usize, index)).collect();
        let output = world.method(&text(users, &start)).step(&batch(1, &places)).unwrap();
        let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
        let losses = output
            .losses
            .to_vec1::<f32>()
            .unwrap()
            .into_iter()
            .map(f64::from)
            .collect();
        (mean(losses), mean(output.metrics["rewards/margins"].clone()))
    };
    let (own, exchanged) = (
        mean(USERS),
        mean(&USERS.replace("users.safetensors", "exchanged.safetensors")),
    );
    println!("loss and margin: {own:?}, exchanged {exchanged:?}");
    assert!(own.0 < before.loss && own.1 > 0.0, "{own:?}");
    assert!(exchanged.0 > own.0 && exchanged.1 < own.1, "{own:?} {exchanged:?}");
}

#[test]
fn the_first_step_is_that_of_nobody_and_dropped_users_change_nothing() {
    let world = world();
    let losses = |text: &str, step: u64| {
        let method = world.method(&format!("{DPO}{USERS}{text}{}", train(1, 6, 1, 0.01)));
        let output = method.step(&batch(step, &[(0, 0), (1, 1), (4, 2)])).unwrap();
        (output.losses.to_vec1::<f32>().unwrap(), output.metrics)
    };
    let (values, metrics) = losses("dropout = 0.0\n", 2);
    assert!(
        values.iter().all(|loss| (loss - std::f32::consts::LN_2).abs() < 1e-6),
        "{values:?}"
    );
    let plain = world.method(&format!("{DPO}{}", train(1, 6, 1, 0.01)));
    let of_plain = plain.step(&batch(2, &[(0, 0), (1, 1), (4, 2)])).unwrap().metrics;
    assert_eq!(metrics["mse/chosen"], of_plain["mse/chosen"]);
    // From a trained start, users matter, unless all of them are dropped.
    world.rows(
        "trained",
        &format!("{DPO}{USERS}dropout = 0.0\n{}", train(20, 6, 1, 0.01)),
    );
    let start = format!("init = '{}'\n", world.path("trained/final").display());
    let (with, _) = losses(&format!("dropout = 0.0\n{start}"), 2);
    let (without, _) = losses(&format!("dropout = 1.0\n{start}"), 2);
    assert!(
        with.iter().any(|loss| (loss - std::f32::consts::LN_2).abs() > 1e-4),
        "{with:?}"
    );
    assert!(
        without.iter().all(|loss| (loss - std::f32::consts::LN_2).abs() < 1e-6),
        "{without:?}"
    );
    // About a half of the users are somebody at one half.
    let served = (0..40)
        .flat_map(|step| losses(&format!("dropout = 0.5\n{start}"), step).0)
        .filter(|loss| (loss - std::f32::consts::LN_2).abs() > 1e-6)
        .count();
    // 120 draws, give or take four standard deviations.
    assert!((38..=82).contains(&served), "{served}");
}

#[test]
fn accumulation_and_resumption_change_nothing() {
    let world = world();
    let text = |micro_batch, accumulation| {
        format!(
            "{DPO}{USERS}dropout = 0.3\n{}",
            train(4, micro_batch, accumulation, 0.01)
        )
    };
    let (whole, parts) = (world.rows("whole", &text(4, 1)), world.rows("parts", &text(1, 4)));
    for (a, b) in whole.iter().zip(&parts) {
        assert!((a.loss - b.loss).abs() < 1e-4 * a.loss, "{} {}", a.loss, b.loss);
        assert!(
            (a.grad_norm - b.grad_norm).abs() < 1e-3 * a.grad_norm,
            "{} {}",
            a.grad_norm,
            b.grad_norm
        );
    }
    let recipe = world.recipe("resumed", &text(2, 1));
    let config = LoopConfig::from_recipe(&recipe).unwrap();
    let verify = VerifyConfig {
        steps: 4,
        stop_after: 2,
        directory: world.path("verified"),
    };
    let build = || diptych_diffusion::prepare(&recipe, &mut Reporter::silent());
    let report = verify_resume(build, &config, &verify, &mut Silent).unwrap();
    assert!(report.is_exact(), "{report:#?}");
}

#[test]
fn images_are_for_users_of_the_result_and_for_mixtures_of_them() {
    let world = world();
    world.rows(
        "trained",
        &format!("{DPO}{USERS}dropout = 0.0\n{}", train(30, 6, 1, 0.02)),
    );
    let result = world.path("trained/final");
    let names: Vec<String> = Weights::open(&result.join("user_attention.safetensors"))
        .unwrap()
        .names()
        .map(str::to_owned)
        .collect();
    assert!(
        names.iter().all(|name| name.starts_with("ip_adapter.")) && names.len() >= 4,
        "{names:?}"
    );
    let config = SampleConfig {
        steps: 3,
        guidance_scale: 2.0,
        ..SampleConfig::default()
    };
    let load = |adapter| Pipeline::load(&world.path("model"), adapter, &OPTIONS).unwrap();
    let images = |pipeline: &Pipeline| {
        let images = generate(pipeline, &[PROMPTS[0].to_owned()], &config).unwrap();
        images[0].as_raw().clone()
    };
    let for_users = |users: &[(&str, f64)]| {
        let users: Vec<(String, f64)> = users.iter().map(|&(name, weight)| (name.to_owned(), weight)).collect();
        images(&load(Some(&result)).for_user(&result, &users).unwrap())
    };
    let (base, nobody) = (images(&load(None)), images(&load(Some(&result))));
    assert_eq!(base, nobody);
    let (ann, bob) = (for_users(&[("ann", 1.0)]), for_users(&[("bob", 1.0)]));
    assert!(ann != bob && ann != nobody);
    assert_eq!(for_users(&[("ann", 1.0), ("bob", 0.0)]), ann);
    assert_ne!(for_users(&[("ann", 0.5), ("bob", 0.5)]), ann);
    assert_eq!(for_users(&[("ann", 0.0)]), nobody);

    let refused = |pipeline: Pipeline, user: &str| {
        pipeline
            .for_user(&result, &[(user.to_owned(), 1.0)])
            .unwrap_err()
            .to_string()
    };
    let error = refused(load(Some(&result)), "carl");
    assert!(error.contains("`carl`") && error.contains("ann, bob"), "{error}");
    assert!(refused(load(None), "ann").contains("users"));
}

#[test]
fn embeddings_are_read_whole_or_refused_by_name() {
    let world = World::new();
    let path = world.path("some.safetensors");
    let read = |users: &[(&str, &[f32], &[usize])]| {
        write_users(&path, users);
        UserEmbeddings::read(&path)
    };
    let users = read(&[("a", &[1.0, 2.0], &[2]), ("b", &[3.0, 5.0], &[1, 2])]).unwrap();
    assert_eq!(
        (users.shape(), users.names().collect::<Vec<_>>()),
        ([1, 2], vec!["a", "b"])
    );
    let mixture = users
        .mixture(&[("a".into(), 0.25), ("b".into(), 0.75)], &Device::Cpu)
        .unwrap();
    assert_eq!(mixture.to_vec2::<f32>().unwrap(), [[2.5, 4.25]]);
    for (users, named) in [
        (
            vec![("a", &[1.0_f32, 2.0][..], &[2_usize][..]), ("b", &[1.0], &[1])],
            "`b`",
        ),
        (vec![("a", &[f32::NAN], &[1])], "not finite"),
        (vec![("a", &[1.0], &[1, 1, 1])], "expected (D) or (S, D)"),
    ] {
        let error = read(&users).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_key() {
    let world = world();
    world.write_preferences();
    let cases = [
        (format!("{DPO}{USERS}dropout = 1.5\n"), "users.dropout"),
        (format!("{DPO}{USERS}[adapter.lora]\nrank = 2\n"), "adapter"),
        (
            format!("{}{USERS}", DPO.replace("adapter_off", "frozen")),
            "reference.frozen",
        ),
        (
            format!("{DPO}{USERS}[method.offline_pairs.error.consistency]\n"),
            "method.offline_pairs.error",
        ),
        (format!("{}{USERS}", DPO.replace("judged", "pairs")), "user_id"),
        (
            format!("{DPO}{}", USERS.replace("users.safetensors", "nobody.safetensors")),
            "users.embeddings",
        ),
        (format!("{DPO}{USERS}init = \"nothing\"\n"), "users.init"),
    ];
    for (text, key) in cases {
        let error = world.refusal(&format!("{text}{}", train(1, 2, 1, 0.01)));
        assert!(error.contains(key), "{key}: {error}");
    }
    let shown = format!("{DPO}{USERS}[train]\nsteps = 1\nsample_every = 10\n");
    assert!(world.refusal(&shown).contains("train.sample_every"));
    write_users(&world.path("users.safetensors"), &[("ann", &[1.0], &[1])]);
    let error = world.refusal(&format!("{DPO}{USERS}{}", train(1, 2, 1, 0.01)));
    assert!(error.contains("`bob`"), "{error}");
}

#[test]
fn the_attention_is_planned_as_it_is_written() {
    let world = world();
    let text = format!("{DPO}{USERS}{}", train(1, 2, 1, 0.01));
    let plan = estimate(&world.recipe("planned", &text)).unwrap();
    let bytes = |name: &str| {
        let parts = plan.memory.components.iter().chain(&plan.disk);
        parts.clone().find(|part| part.name == name).map(|part| part.bytes)
    };
    let output = world.run("planned", &text).output;
    let written: u64 = ["user_attention.safetensors", "users.safetensors"]
        .map(|name| std::fs::metadata(output.join("final").join(name)).unwrap().len())
        .iter()
        .sum();
    let planned = bytes("final").unwrap();
    // Headers of files are left out.
    assert!(planned <= written && written - planned < 1500, "{planned} {written}");
    let file = Weights::open(&output.join("final/user_attention.safetensors")).unwrap();
    let scalars: usize = file
        .names()
        .map(|name| file.shape(name).unwrap().iter().product::<usize>())
        .sum();
    assert_eq!(bytes("parameters, trained"), Some(4 * scalars as u64));
}
