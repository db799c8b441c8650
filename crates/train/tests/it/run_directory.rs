//! The files of a run.

use std::fs;
use std::path::Path;

use diptych_train::{Error, ResumeMode, RunDirectory, Summary, read_metrics, read_scalars};

use crate::toy::{NUM_RECORDS, Toy, config, names, run, run_until};

#[test]
fn a_run_leaves_what_the_documentation_says() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("deep/run"));
    config.recipe_text = Some("modality = \"toy\"\n".into());
    let summary = run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let mut found = names(&config.output);
    let events = found
        .iter()
        .position(|name| name.starts_with("events.out.tfevents."))
        .unwrap();
    let events = found.remove(events);
    let expected = [
        "checkpoints",
        "final",
        "metrics.jsonl",
        "plan.toml",
        "recipe.toml",
        "report.html",
        "samples",
        "summary.json",
    ];
    assert_eq!(found, expected);
    let directory = RunDirectory::new(&config.output);
    assert_eq!(fs::read_to_string(directory.recipe()).unwrap(), "modality = \"toy\"\n");
    assert_eq!(names(&directory.checkpoints()), ["step-000015", "step-000020"]);
    let checkpoint = directory.checkpoints().join("step-000020");
    assert_eq!(
        names(&checkpoint),
        ["adapter.safetensors", "optimizer.safetensors", "state.json"]
    );
    assert_eq!(names(&directory.samples()), ["step-000010.png", "step-000020.png"]);
    assert_eq!(names(&directory.final_weights()), ["README", "adapter.safetensors"]);

    let rows = read_metrics(&directory.metrics()).unwrap();
    let saved: Summary = serde_json::from_slice(&fs::read(directory.summary()).unwrap()).unwrap();
    assert_eq!(saved, summary);
    assert_eq!(saved.metrics.as_ref(), rows.last());
    assert_eq!(
        (saved.step, saved.num_steps, saved.stopped, saved.num_trainable),
        (20, 20, false, 4)
    );
    assert!(saved.wall_time_secs > 0.0 && saved.examples_per_second > 0.0);
    assert_eq!(saved.peak_memory_bytes.is_some(), cfg!(target_os = "linux"));

    // Every number of the log is in the event file, as f32.
    let scalars = read_scalars(&config.output.join(events)).unwrap();
    let logged: Vec<_> = rows
        .iter()
        .flat_map(|row| row.numbers().map(|(name, value)| (row.step, name, value as f32)))
        .collect();
    assert_eq!(scalars.len(), 25);
    for (scalar, (step, name, value)) in scalars.iter().zip(logged) {
        assert_eq!((scalar.step, scalar.tag.as_str(), scalar.value), (step, name, value));
    }

    let state: serde_json::Value = serde_json::from_slice(&fs::read(checkpoint.join("state.json")).unwrap()).unwrap();
    assert_eq!(
        (state["step"].as_u64(), state["records_seen"].as_u64()),
        (Some(20), Some(80))
    );
    assert_eq!(state["epoch"].as_f64(), Some(80.0 / NUM_RECORDS as f64));
}

#[test]
fn keys_of_a_row_are_in_order_and_finite() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("run"));
    run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let text = fs::read_to_string(config.output.join("metrics.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 5);
    for line in text.lines() {
        let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
        let keys: Vec<_> = row.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["step", "epoch", "loss", "grad_norm", "learning_rate", "noise/mean"]
        );
        assert!(row.values().all(|value| value.as_f64().is_some_and(f64::is_finite)));
    }
}

#[test]
fn a_directory_with_a_run_is_refused_and_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("run"));
    run_until(3, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let before = fs::read(config.output.join("metrics.jsonl")).unwrap();
    let error = run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap_err();
    assert!(matches!(error, Error::RunExists { .. }) && error.is_configuration());
    let message = error.to_string();
    assert!(
        message.contains("--resume") && message.contains("--out") && message.contains("run"),
        "{message}"
    );
    assert_eq!(fs::read(config.output.join("metrics.jsonl")).unwrap(), before);

    // Other files of the user are no run.
    let notes = dir.path().join("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("notes.txt"), "mine").unwrap();
    run(&Toy::f32(), &crate::toy::config(&notes), ResumeMode::Fresh).unwrap();
    assert_eq!(fs::read_to_string(notes.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn there_must_be_a_run_to_resume() {
    let dir = tempfile::tempdir().unwrap();
    let error = run(&Toy::f32(), &config(dir.path().join("absent")), ResumeMode::Resume).unwrap_err();
    assert!(
        matches!(error, Error::NothingToResume { .. }) && error.to_string().contains("without --resume"),
        "{error}"
    );
    assert!(!dir.path().join("absent").exists());
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    for output in [file.clone(), file.join("run")] {
        let message = run(&Toy::f32(), &config(&output), ResumeMode::Fresh)
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with(&format!("cannot create {}", output.display())),
            "{message}"
        );
    }
    // A file where the checkpoints should be.
    let output = dir.path().join("run");
    fs::create_dir(&output).unwrap();
    fs::write(output.join("samples"), "in the way").unwrap();
    let message = run(&Toy::f32(), &config(&output), ResumeMode::Fresh)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("cannot create") && message.contains("samples"),
        "{message}"
    );
    // A proc file system takes no new files.
    if Path::new("/proc/self").exists() {
        let message = run(&Toy::f32(), &config("/proc/run"), ResumeMode::Fresh)
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("cannot create /proc/run:"), "{message}");
    }
}

#[test]
fn old_checkpoints_are_pruned_and_leftovers_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    config.train.checkpoint_every = 3;
    config.train.keep_checkpoints = 3;
    let checkpoints = config.output.join("checkpoints");
    fs::create_dir_all(checkpoints.join(".step-000002.partial")).unwrap();
    fs::remove_dir_all(&checkpoints).unwrap();
    run_until(10, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    assert_eq!(names(&checkpoints), ["step-000006", "step-000009", "step-000010"]);

    for leftover in [".step-000011.partial", ".step-000003.partial"] {
        fs::create_dir(checkpoints.join(leftover)).unwrap();
        fs::write(checkpoints.join(leftover).join("state.json"), "{").unwrap();
    }
    fs::create_dir(config.output.join(".final.partial")).unwrap();
    config.train.keep_checkpoints = 0;
    run(&Toy::f32(), &config, ResumeMode::Resume).unwrap();
    let all = [
        "step-000006",
        "step-000009",
        "step-000010",
        "step-000012",
        "step-000015",
        "step-000018",
        "step-000020",
    ];
    assert_eq!(names(&checkpoints), all);
    assert!(names(&config.output).iter().all(|name| !name.starts_with('.')));
}

#[test]
fn what_is_switched_off_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    config.train.checkpoint_every = 0;
    config.train.sample_every = 0;
    run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    assert_eq!(names(&config.output.join("checkpoints")), Vec::<String>::new());
    assert!(!config.output.join("samples").exists());

    config.output = dir.path().join("stopped");
    run_until(3, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    assert_eq!(
        names(&config.output.join("checkpoints")),
        ["step-000003"],
        "a stop always saves"
    );
}
