//! Rounds of the tiny pipeline: who samples, starts and is compared with, and what a run leaves that is killed anywhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use diptych_data::{Dataset, ImagePair, Layout};
use diptych_diffusion::rounds::RoundBeginning;
use diptych_diffusion::{Diffusion, RoundsOutcome, prepare, run_rounds};
use diptych_tensor::{DType, Device, Weights};
use diptych_train::{Event, Progress, Recipe, Reporter, ResumeMode};

use crate::world::World;

const TRAINING: &str =
    "[train]\nsteps = 2\nmicro_batch = 2\nsample_every = 0\ncheckpoint_every = 1\n[optimizer.adamw]\nlr = 0.01\n";
const SAMPLING: &str = "[rounds.sampling]\nsteps = 2\nguidance_scale = 1.0\nbatch_size = 4\n";
const SCENES: &str = "min_objects = 1\nmax_objects = 1\ncaptions = { counting = 0.0, plain = 1.0, sized = 1.0, spatial = 0.0, \
                      detailed = 0.0, background = 1.0 }\n";

/// Rounds on the images of the data; `rounds` are keys of `[rounds]`.
fn self_play(rounds: &str, others: &str) -> String {
    format!(
        "data.path = \"captions.jsonl\"\nadapter.lora.rank = 2\n{others}[rounds]\nnum_rounds = 3\nrecords.self_play = {{}}\n\
         {rounds}{SAMPLING}{TRAINING}"
    )
}

/// Rounds of the shipped pipeline, whose images a judge can tell apart.
fn judged(records: &str, others: &str) -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes-diffusion");
    format!(
        "model.path = '{}'\ndata.path = []\nadapter.lora.rank = 2\n{others}[rounds]\nnum_rounds = 2\nprompts_per_round = 12\n\
         {records}{SAMPLING}{TRAINING}[rounds.prompts.scenes]\n{SCENES}[eval.win_rate]\nnum_prompts = 4\nsteps = 2\n\
         guidance_scale = 1.0\n[eval.win_rate.scenes]\n{SCENES}",
        model.display()
    )
}

const CANDIDATES: &str = "records.candidates = { num_candidates = 6 }\n";

fn play(recipe: &Recipe<Diffusion>, resume: ResumeMode) -> RoundsOutcome {
    run_rounds(recipe, |_| {}, &AtomicBool::new(false), resume).unwrap()
}

impl World {
    fn play(&self, output: &str, text: &str) -> RoundsOutcome {
        play(&self.recipe(output, text), ResumeMode::Fresh)
    }

    fn round(&self, output: &str, round: usize) -> PathBuf {
        self.path(output).join(format!("rounds/round-{round:03}"))
    }

    fn beginning(&self, output: &str, round: usize) -> RoundBeginning {
        let text = fs::read_to_string(self.round(output, round).join("round.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The recipe of a round as its plan has it.
    fn plan(&self, output: &str, round: usize) -> toml::Table {
        let text = fs::read_to_string(self.round(output, round).join("plan.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()["recipe"]
            .as_table()
            .unwrap()
            .clone()
    }

    fn pairs(&self, output: &str, round: usize) -> Vec<ImagePair> {
        let path = self.round(output, round).join("records/records.jsonl");
        let Dataset::Pairs(pairs) = Dataset::load(&[path], Layout::Preference).unwrap() else {
            panic!("no pairs")
        };
        pairs
    }

    fn rejected(&self, output: &str, round: usize) -> BTreeMap<String, Vec<u8>> {
        let pairs = self.pairs(output, round).into_iter();
        pairs
            .map(|pair| (pair.id.clone(), pair.decode().unwrap().1.into_raw()))
            .collect()
    }
}

/// Every file below a directory that training decides.
fn decided(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                visit(root, &path, files);
            } else if !(name.ends_with(".html") || name.contains("tfevents") || name.ends_with("state.json")) {
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    visit(directory, directory, &mut files);
    // These tell the time; the records' is the same in any case.
    files.retain(|name, _| !name.ends_with("summary.json") || name.contains("records"));
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

fn tensors(directory: &Path) -> BTreeMap<String, Vec<f32>> {
    let weights = Weights::open(&directory.join("adapter_model.safetensors")).unwrap();
    let read = |name: &str| {
        let tensor = weights.read(name, DType::F32, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    };
    weights.names().map(|name| (name.to_owned(), read(name))).collect()
}

#[test]
fn each_round_goes_on_from_the_one_before_and_wherever_it_is_killed() {
    let world = World::new();
    let recipe = world.recipe("loop", &judged(CANDIDATES, "objective.dpo.beta = 50.0\n"));
    let output = world.path("loop");
    // What lies there at some moments is what a process that is killed then leaves.
    let mut snapshots: Vec<(String, PathBuf)> = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let outcome = {
        let snapshot = |progress: &Progress<'_>| {
            let moment = match progress {
                Progress::Stage { stage, .. } => (*stage).to_owned(),
                Progress::Training(Event::Step { step, .. }) => format!("step {step}"),
                _ => return,
            };
            let count = counts.entry(moment.clone()).or_default();
            *count += 1;
            let name = format!("{moment} {count}");
            let is_wanted = [
                "sampling 10",
                "sampling 19",
                "judging 2",
                "step 1 1",
                "judging 4",
                "rounds 1",
                "sampling 30",
                "step 1 2",
            ];
            if is_wanted.contains(&name.as_str()) {
                let place = world.path(&format!("snapshot {name}"));
                copy(&output, &place);
                snapshots.push((name, place));
            }
        };
        run_rounds(&recipe, snapshot, &AtomicBool::new(false), ResumeMode::Fresh).unwrap()
    };
    assert!(!outcome.summary.stopped);
    assert_eq!(outcome.summary.rounds.len(), 2);

    // The second round starts from what the first has published, and is compared with it.
    let [first, second] = [1, 2].map(|round| world.beginning("loop", round));
    assert_eq!(
        (first.start.name.as_str(), first.start.sha256.as_ref()),
        ("initial", None)
    );
    assert_eq!(
        (second.start.name.as_str(), second.samplers[0].name.as_str()),
        ("round-001", "round-001")
    );
    assert_ne!(first.seed, second.seed);
    assert!(world.plan("loop", 1)["reference"].get("adapter_off").is_some());
    let published = world.round("loop", 1).join("final");
    let second = world.plan("loop", 2);
    assert_eq!(
        second["reference"]["checkpoint"]["path"].as_str().map(Path::new),
        Some(published.as_path())
    );
    assert_eq!(
        second["adapter"]["lora"]["init"].as_str().map(Path::new),
        Some(published.as_path())
    );
    for round in [1, 2] {
        let pairs = world.pairs("loop", round);
        assert!(!pairs.is_empty() && pairs.iter().all(|pair| pair.chosen_score > pair.rejected_score));
        assert_eq!(outcome.summary.rounds[round - 1].made.num_records, pairs.len());
        assert_eq!(outcome.summary.rounds[round - 1].made.num_images, 72);
        assert!(outcome.summary.rounds[round - 1].against_initial.is_some());
    }
    let prompts = [1, 2].map(|round| world.pairs("loop", round)[0].prompt.clone());
    assert_ne!(prompts[0], prompts[1], "the prompts of a round come again");
    let whole = decided(&output);
    assert_eq!(
        whole["final/adapter_model.safetensors"],
        whole["rounds/round-002/final/adapter_model.safetensors"]
    );
    assert!(output.join("comparison.html").is_file());
    assert!(
        !whole.keys().any(|name| name.contains("/candidates/")),
        "images under way stay"
    );

    assert!(snapshots.len() == 8, "{counts:?}");
    for (moment, snapshot) in &snapshots {
        fs::remove_dir_all(&output).unwrap();
        fs::rename(snapshot, &output).unwrap();
        let resumed = play(&recipe, ResumeMode::Resume);
        assert!(!resumed.summary.stopped);
        let found = decided(&output);
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            whole.keys().collect::<Vec<_>>(),
            "{moment}"
        );
        for (name, bytes) in &whole {
            assert!(found[name] == *bytes, "{moment}: {name} differs");
        }
    }

    // A finished run has nothing left to do, and may have another round.
    let again = play(&recipe, ResumeMode::Resume);
    assert_eq!(decided(&output), whole);
    assert_eq!(again.summary.rounds[1].made, outcome.summary.rounds[1].made);
    let mut longer = recipe.clone();
    longer.rounds.as_mut().unwrap().num_rounds = 3;
    assert_eq!(play(&longer, ResumeMode::Resume).summary.rounds.len(), 3);
    let found = decided(&output);
    for (name, bytes) in whole.iter().filter(|(name, _)| name.starts_with("rounds/")) {
        assert!(found[name] == *bytes, "{name} differs after another round");
    }
    assert!(found["final/adapter_model.safetensors"] != whole["final/adapter_model.safetensors"]);
    let mut changed = recipe;
    changed.train.steps = Some(3);
    let refused = run_rounds(&changed, |_| {}, &AtomicBool::new(false), ResumeMode::Resume).unwrap_err();
    assert!(refused.to_string().contains("train.steps: was 2, is 3"), "{refused}");
}

#[test]
fn a_stop_says_so_and_is_gone_on_from() {
    let world = World::new();
    let text = self_play("", "objective.dpo.beta = 50.0\n");
    let whole = world.play("whole", &text);
    assert_eq!(whole.summary.rounds.len(), 3);
    let recipe = world.recipe("stopped", &text);
    let stop = AtomicBool::new(false);
    let mut num_done = Vec::new();
    for moment in ["sampling", "encoding images", "training", "rounds"] {
        stop.store(false, Ordering::Relaxed);
        let progress = |progress: &Progress<'_>| {
            let now = match progress {
                Progress::Stage { stage, .. } => *stage,
                Progress::Training(Event::Step { .. }) => "training",
                _ => return,
            };
            if now == moment {
                stop.store(true, Ordering::Relaxed);
            }
        };
        let mode = if num_done.is_empty() {
            ResumeMode::Fresh
        } else {
            ResumeMode::Resume
        };
        let outcome = run_rounds(&recipe, progress, &stop, mode).unwrap();
        assert!(outcome.summary.stopped, "{moment}");
        num_done.push(outcome.summary.rounds.len());
        assert!(!world.path("stopped").join("final").exists());
    }
    assert_eq!(num_done, [0, 0, 0, 1]);
    play(&recipe, ResumeMode::Resume);
    for file in ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"] {
        let [stopped, whole] =
            ["stopped", "whole"].map(|run| fs::read(world.path(run).join("final").join(file)).unwrap());
        assert!(stopped == whole, "{file}");
    }
    let again = run_rounds(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap_err();
    assert!(again.is_configuration(), "{again}");
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

#[test]
fn what_rounds_cannot_do_is_refused_by_key_before_anything_is_loaded() {
    let world = World::new();
    let dpo = "objective.dpo.beta = 50.0\n";
    let text = |rounds: &str| self_play(rounds, dpo);
    let candidates =
        |keys: &str| text("").replace("records.self_play = {}", &format!("records.candidates = {{ {keys} }}"));
    let cases = [
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
        (text("start = \"random_past\"\n"), "rounds.start"),
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
    ];
    let mut num_refused = 0;
    for (text, key) in cases {
        let message = world.try_recipe("refused", &text).unwrap_err().to_string();
        assert!(message.contains(&format!("`{key}`")), "{key}: {message}");
        num_refused += 1;
    }
    assert_eq!(num_refused, 22);

    // One run of many is not what was asked for, and no run is there to be made many of.
    let recipe = world.recipe("several", &text(""));
    let message = prepare(&recipe, &mut Reporter::silent()).unwrap_err().to_string();
    assert!(message.contains("`rounds`"), "{message}");
    let message = diptych_diffusion::estimate(&recipe).unwrap_err().to_string();
    assert!(message.contains("`rounds`"), "{message}");
    let single = world.recipe("single", &format!("data.path = \"pairs.jsonl\"\n{dpo}{TRAINING}"));
    let message = run_rounds(&single, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh)
        .unwrap_err()
        .to_string();
    assert!(message.contains("`rounds`"), "{message}");

    // A filter that leaves nothing ends the run with its key.
    let text = judged("records.candidates = { num_candidates = 2, min_margin = 2.0 }\n", dpo);
    let recipe = world.recipe("nothing-left", &text);
    let error = run_rounds(&recipe, |_| {}, &AtomicBool::new(false), ResumeMode::Fresh).unwrap_err();
    assert!(
        error.is_configuration() && error.to_string().contains("round 1"),
        "{error}"
    );
}
