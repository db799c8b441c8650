//! What a run of several rounds leaves that is killed or stopped anywhere, and how it goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use diptych_diffusion::{Diffusion, RoundsOutcome, run_rounds};
use diptych_train::{Event, Progress, Recipe, ResumeMode};

use super::{CANDIDATES, judged, play, self_play};
use crate::world::World;

/// Every file below a directory that training decides.
fn decided(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                visit(root, &path, files);
            } else if !["report.html", "comparison.html", "tfevents", "state.json"]
                .iter()
                .any(|timed| name.contains(timed))
            {
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

/// When a process is killed: after so many reports of a part of the work.
const MOMENTS: [&str; 8] = [
    "sampling 10",
    "sampling 19",
    "judging 2",
    "step 1 1",
    "judging 4",
    "rounds 1",
    "sampling 30",
    "step 1 2",
];

/// Plays the recipe to its end and copies what lies in its directory at each moment: what a process that is killed then leaves.
fn snapshots(world: &World, recipe: &Recipe<Diffusion>, output: &Path) -> (RoundsOutcome, Vec<(String, PathBuf)>) {
    let mut snapshots: Vec<(String, PathBuf)> = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let snapshot = |progress: &Progress<'_>| {
        let moment = match progress {
            Progress::Stage { stage, .. } => (*stage).to_owned(),
            Progress::Training(Event::Step { step, .. }) => format!("step {step}"),
            _ => return,
        };
        let count = counts.entry(moment.clone()).or_default();
        *count += 1;
        let name = format!("{moment} {count}");
        if MOMENTS.contains(&name.as_str()) {
            let place = world.path(&format!("snapshot {name}"));
            copy(output, &place);
            snapshots.push((name, place));
        }
    };
    let outcome = run_rounds(recipe, snapshot, &AtomicBool::new(false), ResumeMode::Fresh).unwrap();
    (outcome, snapshots)
}

#[test]
fn each_round_goes_on_from_the_one_before_and_wherever_it_is_killed() {
    let world = World::new();
    let recipe = world.recipe("loop", &judged(CANDIDATES, "objective.dpo.beta = 50.0\n"));
    let output = world.path("loop");
    let (outcome, snapshots) = snapshots(&world, &recipe, &output);
    assert!(!outcome.summary.stopped);
    assert_eq!(outcome.summary.rounds.len(), 2);

    assert_second_goes_on_from_first(&world, &outcome);
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

    assert_eq!(snapshots.len(), MOMENTS.len());
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

    assert_finished(recipe, &output, &whole);
}

/// The second round starts from what the first has published, and is compared with it.
fn assert_second_goes_on_from_first(world: &World, outcome: &RoundsOutcome) {
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
}

/// A finished run has nothing left to do, may have another round, and no other length of training.
fn assert_finished(recipe: Recipe<Diffusion>, output: &Path, whole: &BTreeMap<String, Vec<u8>>) {
    play(&recipe, ResumeMode::Resume);
    assert_eq!(decided(output), *whole);
    let mut longer = recipe.clone();
    longer.rounds.as_mut().unwrap().num_rounds = 3;
    assert_eq!(play(&longer, ResumeMode::Resume).summary.rounds.len(), 3);
    let found = decided(output);
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
