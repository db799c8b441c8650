//! Who samples, starts and is compared with in a round, and what becomes of what was sampled.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use diptych_data::{Dataset, Layout};
use diptych_tensor::{DType, Device, Weights};

use super::{judged, self_play};
use crate::world::World;

fn tensors(directory: &Path) -> BTreeMap<String, Vec<f32>> {
    let weights = Weights::open(&directory.join("adapter_model.safetensors")).unwrap();
    let read = |name: &str| {
        let tensor = weights.read(name, DType::F32, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    weights.names().map(|name| (name.to_owned(), read(name))).collect()
}

#[test]
fn references_and_samplers_are_the_policies_that_were_asked_for() {
    let world = World::new();
    let dpo = "objective.dpo.beta = 50.0\n";
    world.play("previous", &self_play("", dpo));
    world.play(
        "initial",
        &self_play("reference = \"initial\"\nsampler = \"initial\"\n", dpo),
    );
    let names = |output: &str| -> Vec<[String; 2]> {
        (1..=3)
            .map(|round| world.beginning(output, round))
            .map(|round| [round.reference.unwrap().name, round.samplers[0].name.clone()])
            .collect()
    };
    assert_eq!(
        names("previous"),
        ["initial", "round-001", "round-002"].map(|name| [name.to_owned(), name.to_owned()])
    );
    assert_eq!(
        names("initial"),
        ["initial"; 3].map(|name| [name.to_owned(), name.to_owned()])
    );
    for round in 1..=3 {
        assert!(world.plan("initial", round)["reference"].get("adapter_off").is_some());
    }
    // The data's images are chosen, and the opponent's are rejected: in the first round both runs have the same opponent.
    let real = world.pairs("previous", 1);
    assert_eq!(real.len(), 4);
    assert!(
        real.iter()
            .all(|pair| pair.chosen_score.is_none() && pair.id.contains("/pair-"))
    );
    assert_eq!(world.rejected("previous", 1), world.rejected("initial", 1));
    assert_ne!(world.rejected("previous", 2), world.rejected("initial", 2));
    // The same opponent in every round, from other noise.
    let initial = [1, 2].map(|round| world.rejected("initial", round).into_values().collect::<Vec<_>>());
    assert_ne!(initial[0], initial[1]);

    // Another reference changes the second round's training, and nothing else does.
    world.play("mixed", &self_play("reference = \"initial\"\n", dpo));
    let trained = |output: &str, round| tensors(&world.round(output, round).join("final"));
    assert_eq!(trained("mixed", 1), trained("previous", 1));
    assert_eq!(world.rejected("mixed", 2), world.rejected("previous", 2));
    assert_ne!(trained("mixed", 2), trained("previous", 2));

    // Every round begins anew.
    world.play("anew", &self_play("start = \"initial\"\n", dpo));
    assert_eq!(world.beginning("anew", 3).start.name, "initial");
    assert!(world.plan("anew", 3)["adapter"]["lora"].get("init").is_none());
}

#[test]
fn a_past_policy_is_the_same_for_opponent_and_reference() {
    let world = World::new();
    let past = "sampler = \"random_past\"\nreference = \"random_past\"\n";
    let text = self_play(past, "objective.seppo.beta = 50.0\n").replace("num_rounds = 3", "num_rounds = 5");
    world.play("seppo", &text);
    let drawn: Vec<String> = (1..=5)
        .map(|round| {
            let round = world.beginning("seppo", round);
            assert_eq!(round.reference.as_ref(), Some(&round.samplers[0]));
            assert_eq!(round.samplers.len(), 1);
            round.samplers[0].name.clone()
        })
        .collect();
    let newest: Vec<String> = (0..5)
        .map(|round| {
            if round == 0 {
                "initial".into()
            } else {
                format!("round-{round:03}")
            }
        })
        .collect();
    assert_ne!(drawn, newest, "always the newest");
    assert_ne!(drawn, vec!["initial"; 5], "always the initial one");

    let mixture = "sampler = \"mixture\"\nnum_past = 2\nrecords.self_play = { images_per_prompt = 8 }\n";
    let text = self_play(mixture, "objective.dpo.beta = 50.0\n").replace("records.self_play = {}\n", "");
    world.play("mixture", &text);
    let samplers: Vec<String> = world
        .beginning("mixture", 3)
        .samplers
        .into_iter()
        .map(|policy| policy.name)
        .collect();
    assert_eq!(samplers, ["round-001", "round-002"]);
    let rows = fs::read_to_string(world.round("mixture", 3).join("records/candidates.jsonl")).unwrap();
    for sampler in samplers {
        let made = rows
            .lines()
            .filter(|row| row.contains(&format!("\"sampler\":\"{sampler}\"")))
            .count();
        assert!((4..=28).contains(&made), "{made} of 32 by {sampler}");
    }
    assert_eq!(world.pairs("mixture", 3).len(), 32);
}

#[test]
fn an_extrapolated_policy_is_as_far_beyond_the_last_as_it_is_told() {
    let world = World::new();
    let accelerated =
        "start = \"extrapolated\"\nsampler = \"extrapolated\"\nreference = \"extrapolated\"\nextrapolation = 0.3\n";
    world.play("accelerated", &self_play(accelerated, "objective.dpo.beta = 50.0\n"));
    let round = |number| world.round("accelerated", number);
    let names: Vec<String> = (1..=3)
        .map(|round| world.beginning("accelerated", round).start.name)
        .collect();
    assert_eq!(names, ["initial", "extrapolated", "extrapolated"]);
    let place = round(3).join("extrapolated");
    let plan = world.plan("accelerated", 3);
    assert_eq!(
        plan["adapter"]["lora"]["init"].as_str().map(Path::new),
        Some(place.as_path())
    );
    assert_eq!(
        plan["reference"]["checkpoint"]["path"].as_str().map(Path::new),
        Some(place.as_path())
    );
    let [first, second, beyond] = [round(1).join("final"), round(2).join("final"), place].map(|place| tensors(&place));
    let mut num_moved = 0;
    for (name, values) in &beyond {
        for ((before, newest), found) in first[name].iter().zip(&second[name]).zip(values) {
            let expected = f64::from(*newest) + 0.3 * (f64::from(*newest) - f64::from(*before));
            assert!(
                (f64::from(*found) - expected).abs() < 1e-6,
                "{name}: {found} for {expected}"
            );
            num_moved += usize::from(found != newest);
        }
    }
    assert!(num_moved > 100, "{num_moved}");
    // Before the first round the matrices B are 0: in the second they are the first round's, enlarged.
    let second_start = tensors(&round(2).join("extrapolated"));
    let (name, values) = second_start.iter().find(|(name, _)| name.contains("lora_B")).unwrap();
    for (found, published) in values.iter().zip(&first[name]) {
        assert!((found - 1.3 * published).abs() < 1e-6);
    }
}

#[test]
fn whole_networks_go_from_round_to_round_and_keep_their_first_one_as_reference() {
    let world = World::new();
    let text = self_play(
        "reference = \"initial\"\n",
        "objective.dpo.beta = 50.0\nadapter.full = {}\n",
    )
    .replace("adapter.lora.rank = 2\n", "")
    .replace("num_rounds = 3", "num_rounds = 2");
    world.play("full", &text);
    let [first, second] = [1, 2].map(|round| world.plan("full", round));
    assert!(first["reference"].get("frozen").is_some());
    let model = |plan: &toml::Table| PathBuf::from(plan["model"]["path"].as_str().unwrap());
    assert_eq!(model(&first), world.path("model"));
    assert_eq!(model(&second), world.round("full", 1).join("final"));
    assert_eq!(
        second["reference"]["checkpoint"]["path"].as_str().map(Path::new),
        Some(world.path("model").as_path())
    );
    assert!(world.path("full").join("final/model_index.json").is_file());
}

#[test]
fn curated_images_are_mixed_with_those_of_the_data() {
    let world = World::new();
    let records =
        "records.curated = { num_candidates = 3, temperature = 0.1, real_share = 0.25 }\naccumulate = \"all\"\n";
    let data = format!("data.path = '{}'", world.path("captions.jsonl").display());
    let text = judged(records, "objective.sft = {}\nmethod.sft = {}\n").replace("data.path = []", &data);
    let outcome = world.play("curated", &text);
    for round in &outcome.summary.rounds {
        assert_eq!(
            (round.made.num_images, round.made.num_records),
            (36, 16),
            "12 curated ones and a third as many real ones"
        );
    }
    let path = world.round("curated", 2).join("records/records.jsonl");
    let Dataset::Captions(captions) = Dataset::load(&[path], Layout::ImageCaption).unwrap() else {
        panic!("no captions")
    };
    assert_eq!(
        captions.iter().filter(|caption| caption.id.contains("/data/")).count(),
        4
    );
    let paths = world.plan("curated", 2)["data"]["path"].as_array().unwrap().len();
    assert_eq!(paths, 2, "the first round's records are kept");
    let rows = fs::read_to_string(world.round("curated", 1).join("records/candidates.jsonl")).unwrap();
    let mean = |is_used: bool| {
        let rows = rows
            .lines()
            .map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap());
        let scores: Vec<f64> = rows
            .filter(|row| !is_used || row["is_used"] == true)
            .map(|row| row["score"].as_f64().unwrap())
            .collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    assert!(mean(true) > mean(false), "{} {}", mean(true), mean(false));
}
