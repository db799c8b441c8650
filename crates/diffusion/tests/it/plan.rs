//! What a plan counts beside the trained networks: judges, and what is sampled.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use diptych_diffusion::{estimate, prepare_with_reward};
use diptych_tensor::{DType, Device, Tensor, Weights, save_tensors};
use diptych_train::{Estimate, LoopConfig, Reporter, ResumeMode, Silent, train};

use crate::online::{DATA, Redness, SFT, settings};
use crate::rounds::{CANDIDATES, judged, self_play};
use crate::world::World;

const DPO: &str = "objective.dpo.beta = 50.0\n";

fn bytes(plan: &Estimate, name: &str) -> Option<u64> {
    let parts = plan.memory.components.iter().chain(&plan.disk);
    let mut found = parts.filter(|part| part.name == name);
    found.next().map(|part| part.bytes)
}

/// A directory with so many weights.
fn judge(directory: &Path, len: usize) {
    std::fs::create_dir_all(directory).unwrap();
    let weights = Tensor::zeros((len / 10, 10), DType::F32, &Device::Cpu).unwrap();
    let tensors = BTreeMap::from([("weights".to_owned(), weights)]);
    save_tensors(&directory.join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

/// Every latent of a trajectory is kept between the updates on it, and written into the checkpoint between them.
#[test]
fn latents_that_are_kept_are_counted() {
    let world = World::new();
    let method = "[method.policy_gradient]\nrollout = { steps = 3, guidance_scale = 1.0, height = 24 }\n\
                  reuse = { updates = 2 }\nimages_per_prompt = 2\nclip_range = 0.1\n";
    let text = format!("{DATA}{SFT}{method}{}", settings(2, 2, 1, 0.01));
    let recipe = world.recipe("kept", &text.replace("checkpoint_every = 0", "checkpoint_every = 1"));
    let plan = estimate(&recipe).unwrap();
    let method = prepare_with_reward(&recipe, Arc::new(Redness), &mut Reporter::silent()).unwrap();
    let config = LoopConfig::from_recipe(&recipe).unwrap();
    train(
        &method,
        &config,
        &mut Silent,
        &AtomicBool::new(false),
        ResumeMode::Fresh,
    )
    .unwrap();
    let checkpoint = config.output.join("checkpoints/step-000001");
    let files = std::fs::read_dir(&checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let written: Vec<u64> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .filter_map(|path| {
            let weights = Weights::open(&path).unwrap();
            let shape = weights.shape("rollout.latents")?;
            Some(shape.iter().product::<usize>() as u64 * 4)
        })
        .collect();
    assert_eq!(written, [bytes(&plan, "sampled latents").unwrap()]);
}

#[test]
fn judges_are_counted_where_they_are_in_memory() {
    let world = World::new();
    judge(&world.path("judge"), 2000);
    let section = "judge.clip_score = { path = \"judge\" }\n";
    let text = |more: &str| format!("{DATA}{SFT}[method.policy_gradient]\n{more}{}", settings(2, 2, 1, 0.01));
    let plan = |more: &str| estimate(&world.recipe("judged", &text(more))).unwrap();
    assert_eq!(bytes(&plan(section), "judge"), Some(2000 * 4));
    assert_eq!(bytes(&plan("judge = \"verifier\"\n"), "judge"), None);
    // The process is measured as it is now; everything else is counted.
    let counted = |more: &str| {
        let plan = plan(more);
        plan.memory.total_bytes() - plan.memory.components[0].bytes
    };
    assert_eq!(counted(section), counted("judge = \"verifier\"\n") + 8000);

    // A judge that is larger than everything that is trained is what the memory is for.
    judge(&world.path("large"), 4_000_000);
    let of_pairs = format!("data.path = \"pairs.jsonl\"\n{DPO}{}", settings(2, 2, 1, 0.01));
    let text = format!("{of_pairs}[eval.win_rate]\njudge.clip_score = {{ path = \"large\" }}\n");
    let plan = estimate(&world.recipe("evaluated", &text)).unwrap();
    assert_eq!(plan.memory.moment, "evaluation");
    assert_eq!(bytes(&plan, "judge"), Some(16_000_000));
    let plan = estimate(&world.recipe("unjudged", &of_pairs)).unwrap();
    assert_eq!((plan.memory.moment.as_str(), bytes(&plan, "judge")), ("training", None));
}

/// Rounds are planned by what they make, and by whatever holds most: sampling, judging or training.
#[test]
fn rounds_are_planned() {
    let world = World::new();
    let text = judged(CANDIDATES, DPO);
    let plan = estimate(&world.recipe("candidates", &text)).unwrap();
    let said = plan.assumptions.join(" ");
    assert!(
        said.contains("72 images of 12 prompts and trains on 12 records"),
        "{said}"
    );
    assert_eq!(plan.memory.moment, "training", "with the policy of the round before");
    let full = text.replace("adapter.lora.rank = 2", "adapter.full = {}");
    let plan = estimate(&world.recipe("full", &full)).unwrap();
    assert_eq!(plan.memory.moment, "training");
    // Latents of both sides, mean and deviation: 4 channels of 8 by 8 where the shipped pipeline has 32 pixels.
    assert_eq!(bytes(&plan, "latents").unwrap() % (12 * 2 * 2 * 4), 0);
    // Two rounds of 72 images of 32 by 32 pixels.
    assert_eq!(bytes(&plan, "images"), Some(2 * 72 * 32 * 32 * 4));
    assert!(bytes(&plan, "checkpoints").unwrap() > 0);
    let of_reference = |changed: &str| {
        let plan = estimate(&world.recipe("reference", changed)).unwrap();
        bytes(&plan, "reference network")
    };
    let network = of_reference(&full);
    assert!(network.is_some(), "the network as it was");
    assert_eq!(of_reference(&text), network, "the policy of the round before");
    let initial = text.replace("num_rounds = 2", "num_rounds = 2\nreference = \"initial\"");
    assert_ne!(initial, text);
    assert_eq!(of_reference(&initial), None, "the adapter switched off");
    let plan = estimate(&world.recipe("initial", &initial)).unwrap();
    assert_eq!(
        plan.memory.moment, "sampling for a round",
        "a small adapter of a whole pipeline"
    );

    let all = text.replace("num_candidates = 6", "num_candidates = 6, rule = \"all\"");
    let plan = estimate(&world.recipe("all", &all)).unwrap();
    assert!(plan.assumptions.join(" ").contains("trains on 180 records"));

    judge(&world.path("large"), 8_000_000);
    let by_network = text.replace(
        "num_candidates = 6",
        "num_candidates = 6, judge = { clip_score = { path = \"large\" } }",
    );
    let plan = estimate(&world.recipe("network", &by_network)).unwrap();
    assert_eq!(plan.memory.moment, "judging the images of a round");
    assert_eq!(bytes(&plan, "judge"), Some(32_000_000));

    let plan = estimate(&world.recipe("self-play", &self_play("accumulate = \"all\"\n", DPO))).unwrap();
    let said = plan.assumptions.join(" ");
    assert!(
        said.contains("4 images of 4 prompts and trains on 12 records"),
        "{said}"
    );
    assert!(said.contains("The last round is meant"), "{said}");
}
