//! What a recipe with rounds may not say.

use std::sync::atomic::AtomicBool;

use diptych_diffusion::{prepare, run_rounds};
use diptych_train::{Reporter, ResumeMode};

use super::{TRAINING, judged, self_play};
use crate::world::World;

const DPO: &str = "objective.dpo.beta = 50.0\n";

fn text(rounds: &str) -> String {
    self_play(rounds, DPO)
}

fn candidates(keys: &str) -> String {
    text("").replace("records.self_play = {}", &format!("records.candidates = {{ {keys} }}"))
}

/// Values of `[rounds]`, and the keys they are refused by.
fn of_rounds() -> Vec<(String, &'static str)> {
    vec![
        (
            text("").replace("num_rounds = 3", "num_rounds = 0"),
            "rounds.num_rounds",
        ),
        (text("prompts_per_round = 0\n"), "rounds.prompts_per_round"),
        (text("extrapolation = 0.3\n"), "rounds.extrapolation"),
        (text("start = \"extrapolated\"\n"), "rounds.extrapolation"),
        (
            text("start = \"extrapolated\"\nextrapolation = -1.0\n"),
            "rounds.extrapolation",
        ),
        (
            text("start = \"initial\"\nreference = \"extrapolated\"\nextrapolation = 0.5\n"),
            "rounds.start",
        ),
        (text("start = \"random_past\"\n"), "rounds.start.random_past"),
        (text("num_past = 3\n"), "rounds.num_past"),
        (text("oponent = \"initial\"\n"), "rounds.oponent"),
        (text("prompts.file.path = \"captions.jsonl\"\n"), "rounds.prompts"),
        (
            candidates("num_candidates = 1"),
            "rounds.records.candidates.num_candidates",
        ),
        (candidates("min_margin = -1.0"), "rounds.records.candidates.min_margin"),
        (
            candidates("judge.stored = { path = \"captions.jsonl\" }"),
            "rounds.records.candidates.judge",
        ),
    ]
}

/// Other sections, which contradict it.
fn of_others() -> Vec<(String, &'static str)> {
    vec![
        (
            text("") + "[method.offline_pairs.error.consistency]\n",
            "method.offline_pairs.error",
        ),
        (
            candidates("").replace("\"captions.jsonl\"", "[]") + "[rounds.prompts.scenes]\n",
            "rounds.prompts_per_round",
        ),
        (
            candidates("") + "[rounds.prompts.file]\npath = \"captions.jsonl\"\n",
            "data.path",
        ),
        (
            text("").replace("data.path = \"captions.jsonl\"", "data.path = []"),
            "data.path",
        ),
        (
            text("").replace("records.self_play = {}", "records.curated = {}"),
            "method.offline_pairs",
        ),
        (
            self_play("", "objective.dpo.beta = 50.0\nreference.frozen = {}\n"),
            "reference",
        ),
        (
            self_play("reference = \"previous\"\n", "objective.mapo = {}\n"),
            "rounds.reference",
        ),
        (
            self_play(
                "",
                "objective.smpo = { beta = 1.0, min_score = 0.0, max_score = 1.0 }\n",
            ),
            "objective.smpo",
        ),
        (
            text("").replace("guidance_scale = 1.0", "guidance_scale = -1.0"),
            "rounds.sampling.guidance_scale",
        ),
        (
            text("").replace("data.path", "data.cache.path = \"cache\"\ndata.path"),
            "data.cache",
        ),
        (
            candidates("").replace("\"captions.jsonl\"", "[]\ndata.min_margin = 0.1")
                + "[rounds.prompts.file]\npath = \"captions.jsonl\"\n",
            "data.min_margin",
        ),
    ]
}

#[test]
fn what_rounds_cannot_do_is_refused_by_key_before_anything_is_loaded() {
    let world = World::new();
    let mut num_refused = 0;
    for (text, key) in of_rounds().into_iter().chain(of_others()) {
        let message = world.try_recipe("refused", &text).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
        num_refused += 1;
    }
    assert_eq!(num_refused, 24);
}

#[test]
fn one_run_is_not_several_and_several_are_not_one() {
    let world = World::new();
    let recipe = world.recipe("several", &text(""));
    let message = prepare(&recipe, &mut Reporter::silent()).unwrap_err().to_string();
    assert!(message.contains("`rounds`"), "{message}");
    let single = world.recipe("single", &format!("data.path = \"pairs.jsonl\"\n{DPO}{TRAINING}"));
    let message = run_rounds(&single, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh)
        .unwrap_err()
        .to_string();
    assert!(message.contains("`rounds`"), "{message}");

    // A filter that leaves nothing ends the run with its key.
    let text = judged("records.candidates = { num_candidates = 2, min_margin = 2.0 }\n", DPO);
    let recipe = world.recipe("nothing-left", &text);
    let error = run_rounds(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap_err();
    assert!(
        error.is_configuration() && error.to_string().contains("round 1"),
        "{error}"
    );
}
