//! Signals: Ctrl-C ends a run cleanly, a kill at any moment costs nothing but time.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::answer_judges::judge;
use crate::place::{DIPTYCH, Place};

const NUM_STEPS: &str = "train.steps=150";
/// Often, so that a kill at a random moment hits a checkpoint under way now and then.
const CHECKPOINTS: &str = "train.checkpoint_every=2";
const PATIENCE: Duration = Duration::from_mins(1);

const ARGUMENTS: [&str; 6] = ["train", "recipe.toml", "--set", NUM_STEPS, "--set", CHECKPOINTS];

/// Starts a run, waits until `num_rows` steps are logged, and a little more.
fn start(place: &Place, resume: bool, num_rows: usize, more: Duration) -> Child {
    let mut child = Command::new(DIPTYCH)
        .args(ARGUMENTS)
        .args(resume.then_some("--resume"))
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while num_logged(place) < num_rows {
        assert!(start.elapsed() < PATIENCE, "{} rows", num_logged(place));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(more);
    child
}

fn num_logged(place: &Place) -> usize {
    std::fs::read(place.path("run/metrics.jsonl")).map_or(0, |rows| rows.iter().filter(|byte| **byte == b'\n').count())
}

fn uninterrupted(place: Place) -> Place {
    place.run(&ARGUMENTS).success();
    place
}

fn assert_same_result(place: &Place, whole: &Place) {
    for file in [
        "run/metrics.jsonl",
        "run/final/adapter_model.safetensors",
        "run/checkpoints/step-000150/optimizer.safetensors",
    ] {
        assert!(place.bytes(file) == whole.bytes(file), "{file} differs");
    }
    assert_eq!(place.names("run/checkpoints"), whole.names("run/checkpoints"));
    let hidden: Vec<String> = place
        .tree()
        .into_iter()
        .filter(|path| path.contains(".partial"))
        .collect();
    assert_eq!(hidden, Vec::<String>::new());
}

#[test]
fn an_interrupted_run_saves_and_goes_on() {
    for place in [Place::with_replay, Place::with_language] {
        interrupted(&place(), &uninterrupted(place()));
    }
}

fn interrupted(place: &Place, whole: &Place) {
    let mut child = start(place, false, 3, Duration::ZERO);
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success(), "the run was over before the signal");
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let summary = place.json("run/summary.json");
    assert_eq!(summary["stopped"], true, "{summary}");
    let step = summary["step"].as_u64().unwrap();
    assert!((3..150).contains(&step), "stopped after step {step}");
    assert!(place.names("run/checkpoints").contains(&format!("step-{step:06}")));
    assert!(!place.path("run/final").exists());
    assert_eq!(num_logged(place), step as usize);

    let mut arguments = ARGUMENTS.to_vec();
    arguments.push("--resume");
    place.run(&arguments).success();
    assert_eq!(place.json("run/summary.json")["resumed_from"], step);
    assert_same_result(place, whole);
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_the_same() {
    let moment = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_micros();
    let place = Place::with_replay();
    for (attempt, num_rows) in [1, 30, 60].into_iter().enumerate() {
        let more = Duration::from_micros(u64::from(moment) * (attempt as u64 + 1) % 20_000);
        let mut child = start(&place, attempt > 0, num_rows, more);
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !place.path("run/final").exists(),
            "the run was over before it was killed"
        );
    }
    let mut arguments = ARGUMENTS.to_vec();
    arguments.push("--resume");
    place.run(&arguments).success();
    assert!(place.json("run/summary.json")["resumed_from"].as_u64().unwrap() > 0);
    assert_same_result(&place, &uninterrupted(Place::with_replay()));
}

#[test]
fn a_judge_that_is_interrupted_is_asked_only_what_is_missing() {
    const NUM: usize = 600;
    let place = Place::new();
    judge(&place, "five", &["Rating:", "5"]);
    let row = |index: usize| json!({ "question": format!("what is {index}"), "gt_answer": "a dog", "model_answer": "a cat", "image_content": ["Dog"] });
    place.write("answers.json", json!((0..NUM).map(row).collect::<Vec<_>>()).to_string());
    let words = "eval mmhal --answers answers.json --judge-model five --judge-batch-size 1 --bootstrap-samples 10 --out below/out";
    let arguments: Vec<&str> = words.split_whitespace().collect();
    let log = || {
        let entries = std::fs::read_dir(place.path("below")).ok()?;
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.find(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
    };
    let num_lines = || log().map_or(0, |path| std::fs::read_to_string(path).unwrap().lines().count());
    let mut child = Command::new(DIPTYCH)
        .args(&arguments)
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while num_lines() < 5 {
        assert!(start.elapsed() < PATIENCE && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(1));
    let said = String::from_utf8_lossy(&stopped.stderr);
    let path = log().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(
        said.contains("replies so far are kept in") && said.contains(name),
        "{said}"
    );
    assert!(num_lines() < NUM, "it was over before the signal");
    assert!(!place.path("below/out").exists());

    // What it said is taken as it is: asked again it would say something else.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("Rating: 5", "Rating: 1", 1)).unwrap();
    place.run(&arguments).success();
    let judgments = place.read("below/out/judgments/judgments.jsonl");
    let rows: Vec<Value> = judgments
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), NUM);
    assert_eq!(rows[0]["judgment"], "Rating: 1");
    assert!(rows[1..].iter().all(|row| row["judgment"] == "Rating: 5"));
    assert!(log().is_none(), "what is in the result is kept nowhere else");
}
