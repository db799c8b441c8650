//! A resumed run is the run it continues.

use std::convert::Infallible;
use std::fs;

use diptych_tensor::optim::LrSchedule;
use diptych_tensor::{DType, Device, Weights};
use diptych_train::{
    Error, LoopConfig, ResumeMode, RunDirectory, Silent, VerifyConfig, check_start, read_scalars, verify_resume,
};

use crate::toy::{Toy, config, names, run, run_until};

/// Everything a run leaves that must not depend on interruptions.
fn files(config: &LoopConfig) -> Vec<(String, Vec<u8>)> {
    let directory = RunDirectory::new(&config.output);
    let last = directory.checkpoints().join("step-000020");
    let mut paths = vec![directory.metrics(), directory.plan()];
    paths.extend(["adapter.safetensors", "optimizer.safetensors"].map(|name| last.join(name)));
    paths.push(directory.final_weights().join("adapter.safetensors"));
    paths.extend(
        names(&directory.samples())
            .iter()
            .map(|name| directory.samples().join(name)),
    );
    if config.train.ema_decay.is_some() {
        paths.push(last.join("ema.safetensors"));
    }
    let relative = |path: &std::path::Path| path.strip_prefix(&config.output).unwrap().display().to_string();
    paths
        .iter()
        .map(|path| (relative(path), fs::read(path).unwrap()))
        .collect()
}

fn scalars(config: &LoopConfig) -> Vec<diptych_train::ScalarEvent> {
    let files: Vec<_> = names(&config.output)
        .into_iter()
        .filter(|name| name.contains("tfevents"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    read_scalars(&config.output.join(&files[0])).unwrap()
}

/// What every optimizer keeps is saved and read again, of vectors and of a matrix of 64 by 80.
#[test]
fn every_optimizer_goes_on_bit_for_bit() {
    let optimizers: [(&str, &str, &[usize], DType); 4] = [
        (
            r#"{"adamw": {"lr": 0.05, "state": "bf16"}}"#,
            "exp_avg",
            &[64, 80],
            DType::BF16,
        ),
        (
            r#"{"adamw": {"lr": 0.05, "state": {"int8": {"block": 256}}}}"#,
            "exp_avg.absmax",
            &[20],
            DType::F32,
        ),
        (r#"{"adafactor": {"lr": 0.05}}"#, "exp_avg_sq_row", &[64], DType::F32),
        (
            r#"{"adafactor": {"lr": 0.05, "beta1": 0.9}}"#,
            "exp_avg_sq_col",
            &[80],
            DType::F32,
        ),
    ];
    for (text, part, dims, dtype) in optimizers {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = config(dir.path().join("whole"));
        whole.optimizer = serde_json::from_str(text).unwrap();
        run(&Toy::large(), &whole, ResumeMode::Fresh).unwrap();
        let mut parts = whole.clone();
        parts.output = dir.path().join("parts");
        run_until(7, &Toy::large(), &parts, ResumeMode::Fresh).unwrap();
        run(&Toy::large(), &parts, ResumeMode::Resume).unwrap();
        assert_eq!(files(&whole), files(&parts), "{text}");
        // The state is held as the configuration says.
        let last = RunDirectory::new(&whole.output).checkpoints().join("step-000020");
        let state = Weights::open(&last.join("optimizer.safetensors")).unwrap();
        let held = state.get(&format!("layer.table.{part}"), dims, dtype, &Device::Cpu);
        assert!(held.is_ok(), "{text}: {held:?}");
    }
}

/// Stops after every step of 1 to 19: before and after checkpoints, in the middle of a logged window and of an epoch.
#[test]
fn wherever_a_run_is_stopped_it_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = config(dir.path().join("whole"));
    whole.train.ema_decay = Some(0.9);
    let method = Toy::f32();
    run(&method, &whole, ResumeMode::Fresh).unwrap();
    for step in 1..20 {
        let mut parts = whole.clone();
        parts.output = dir.path().join(format!("parts-{step}"));
        let stopped = run_until(step, &Toy::f32(), &parts, ResumeMode::Fresh).unwrap();
        assert!(stopped.stopped && stopped.step == step && !parts.output.join("final").exists());
        let resumed = Toy::f32();
        let summary = run(&resumed, &parts, ResumeMode::Resume).unwrap();
        assert_eq!(
            (summary.stopped, summary.step, summary.resumed_from),
            (false, 20, Some(step))
        );
        assert_eq!(resumed.values(), method.values(), "weights after a stop at {step}");
        assert_eq!(scalars(&parts), scalars(&whole), "events after a stop at {step}");
        for (expected, found) in files(&whole).into_iter().zip(files(&parts)) {
            assert_eq!(expected.0, found.0);
            assert!(expected.1 == found.1, "{} differs after a stop at {step}", found.0);
        }
    }
}

#[test]
fn many_stops_are_no_different_from_one() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path().join("whole"));
    let method = Toy::f32();
    run(&method, &whole, ResumeMode::Fresh).unwrap();
    let parts = config(dir.path().join("parts"));
    run_until(1, &Toy::f32(), &parts, ResumeMode::Fresh).unwrap();
    for step in [2, 7, 8, 13] {
        run_until(step, &Toy::f32(), &parts, ResumeMode::Resume).unwrap();
    }
    let resumed = Toy::f32();
    run(&resumed, &parts, ResumeMode::Resume).unwrap();
    assert_eq!(resumed.values(), method.values());
    assert_eq!(
        fs::read(parts.output.join("metrics.jsonl")).unwrap(),
        fs::read(whole.output.join("metrics.jsonl")).unwrap()
    );
}

#[test]
fn the_proof_can_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("unused"));
    config.train.ema_decay = Some(0.5);
    let verify = VerifyConfig {
        steps: 12,
        stop_after: 5,
        directory: dir.path().join("verify"),
    };
    let report = verify_resume(|| Ok::<_, Infallible>(Toy::f32()), &config, &verify, &mut Silent).unwrap();
    assert!(report.is_exact(), "{report:#?}");
    let whats: Vec<_> = report.comparisons.iter().map(|comparison| comparison.what).collect();
    let each = [
        "resumed from",
        "weights",
        "optimizer state",
        "moving averages",
        "data position",
        "randomness",
        "metrics.jsonl",
        "events",
    ];
    assert_eq!(whats, [each, each].concat());
    assert!(!config.output.exists());

    for (steps, stop_after) in [(1, 1), (5, 0), (5, 5)] {
        let wrong = VerifyConfig {
            steps,
            stop_after,
            directory: dir.path().join("wrong"),
        };
        assert!(verify_resume(|| Ok::<_, Infallible>(Toy::f32()), &config, &wrong, &mut Silent).is_err());
    }
    assert!(
        verify_resume(|| Ok::<_, Infallible>(Toy::f32()), &config, &verify, &mut Silent).is_err(),
        "used twice"
    );
}

/// A method whose checkpoint loses something is found out.
#[test]
fn the_proof_fails_where_a_checkpoint_is_not_complete() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("unused"));
    let verify = VerifyConfig {
        steps: 12,
        stop_after: 5,
        directory: dir.path().join("verify"),
    };
    let count = std::cell::Cell::new(0);
    let build = || {
        count.set(count.get() + 1);
        let poison = if count.get() == 3 {
            crate::toy::Poison::Forgets
        } else {
            crate::toy::Poison::None
        };
        Ok::<_, Infallible>(Toy::with(poison))
    };
    let report = verify_resume(build, &config, &verify, &mut Silent).unwrap();
    let unequal: Vec<_> = report
        .comparisons
        .iter()
        .filter(|comparison| !comparison.is_equal)
        .collect();
    assert!(
        !report.is_exact() && unequal.iter().all(|comparison| comparison.scenario == "stopped"),
        "{unequal:#?}"
    );
    let weights = unequal.iter().find(|comparison| comparison.what == "weights").unwrap();
    assert!(weights.detail.contains("layer.bias` differs at value 0"), "{weights:?}");
}

#[test]
fn a_changed_run_is_not_continued() {
    let dir = tempfile::tempdir().unwrap();
    let started = config(dir.path().join("run"));
    run_until(7, &Toy::f32(), &started, ResumeMode::Fresh).unwrap();
    let before = fs::read(started.output.join("plan.toml")).unwrap();

    let mut changed = started.clone();
    changed.seed = 4;
    changed.optimizer.set_lr(0.01);
    let error = run(&Toy::f32(), &changed, ResumeMode::Resume).unwrap_err();
    let Error::Changed { changes, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        changes.as_slice(),
        ["optimizer.adamw.lr: was 0.05, is 0.01", "seed: was 3, is 4"]
    );
    assert!(error.is_configuration());
    assert_eq!(fs::read(started.output.join("plan.toml")).unwrap(), before);
    let early = check_start(&changed, ResumeMode::Resume).unwrap_err();
    assert_eq!(early.to_string(), error.to_string());
    check_start(&started, ResumeMode::Resume).unwrap();
    assert!(matches!(
        check_start(&started, ResumeMode::Fresh),
        Err(Error::RunExists { .. })
    ));

    // What is written when may change.
    let mut other = started.clone();
    other.train.log_every = 3;
    other.train.checkpoint_every = 12;
    other.train.keep_checkpoints = 1;
    other.train.sample_every = 0;
    let summary = run(&Toy::f32(), &other, ResumeMode::Resume).unwrap();
    assert_eq!((summary.step, summary.resumed_from), (20, Some(7)));
}

/// A resumed run could be given another length while its learning rates depended on it.
#[test]
fn a_run_changes_its_length_only_under_a_constant_schedule() {
    let dir = tempfile::tempdir().unwrap();
    let schedules = [
        ("linear", LrSchedule::Linear { warmup_steps: 4 }),
        ("cosine", LrSchedule::Cosine { warmup_steps: 0 }),
    ];
    for (name, schedule) in schedules {
        let mut started = config(dir.path().join(name));
        started.schedule = schedule;
        run_until(7, &Toy::f32(), &started, ResumeMode::Fresh).unwrap();
        let mut longer = started.clone();
        longer.train.steps = Some(24);
        let error = run(&Toy::f32(), &longer, ResumeMode::Resume).unwrap_err();
        let message = error.to_string();
        assert!(error.is_configuration(), "{message}");
        assert!(
            message.contains("train.steps: was 20, is 24") && message.contains(&format!("schedule.{name}")),
            "{message}"
        );
        assert_eq!(
            check_start(&longer, ResumeMode::Resume).unwrap_err().to_string(),
            message
        );
        let mut epochs = started.clone();
        (epochs.train.steps, epochs.train.num_epochs) = (None, Some(3.0));
        let message = run(&Toy::f32(), &epochs, ResumeMode::Resume).unwrap_err().to_string();
        assert!(
            message.contains("train.num_epochs: was absent, is 3.0")
                && message.contains("train.steps: was 20, is absent"),
            "{message}"
        );
        run(&Toy::f32(), &started, ResumeMode::Resume).unwrap();
    }

    let mut started = config(dir.path().join("constant"));
    started.schedule = LrSchedule::Constant { warmup_steps: 4 };
    run_until(7, &Toy::f32(), &started, ResumeMode::Fresh).unwrap();
    let mut longer = started.clone();
    longer.train.steps = Some(24);
    let resumed = Toy::f32();
    let summary = run(&resumed, &longer, ResumeMode::Resume).unwrap();
    assert_eq!((summary.step, summary.resumed_from), (24, Some(7)));
    let mut whole = longer.clone();
    whole.output = dir.path().join("whole");
    let method = Toy::f32();
    run(&method, &whole, ResumeMode::Fresh).unwrap();
    assert_eq!(resumed.values(), method.values());
    let error = run(&Toy::f32(), &started, ResumeMode::Resume).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("at least 24, the step of the newest checkpoint"),
        "{error}"
    );
}

#[test]
fn a_finished_run_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("run"));
    run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let before = files(&config);
    fs::remove_dir_all(config.output.join("final")).unwrap();
    let summary = run(&Toy::f32(), &config, ResumeMode::Resume).unwrap();
    assert_eq!(
        (summary.step, summary.resumed_from, summary.examples_per_second),
        (20, Some(20), 0.0)
    );
    assert_eq!(summary.metrics.unwrap().step, 20);
    assert!(files(&config) == before);
}

#[test]
fn a_run_ended_before_its_first_checkpoint_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let whole = config(dir.path().join("whole"));
    let method = Toy::f32();
    run(&method, &whole, ResumeMode::Fresh).unwrap();
    let config = config(dir.path().join("run"));
    run_until(4, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    fs::remove_dir_all(config.output.join("checkpoints")).unwrap();
    let resumed = Toy::f32();
    assert_eq!(
        run(&resumed, &config, ResumeMode::Resume).unwrap().resumed_from,
        Some(0)
    );
    assert_eq!(resumed.values(), method.values());
    assert_eq!(
        fs::read(config.output.join("metrics.jsonl")).unwrap(),
        fs::read(whole.output.join("metrics.jsonl")).unwrap()
    );
}

#[test]
fn a_damaged_checkpoint_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("run"));
    run_until(7, &Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    let newest = config.output.join("checkpoints/step-000007");
    let damage = |name: &str, expected: &str| {
        let path = newest.join(name);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let message = run(&Toy::f32(), &config, ResumeMode::Resume).unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
        fs::write(&path, whole).unwrap();
    };
    damage("state.json", "state.json is damaged");
    damage("optimizer.safetensors", "optimizer.safetensors");
    damage("adapter.safetensors", "adapter.safetensors");
    run(&Toy::f32(), &config, ResumeMode::Resume).unwrap();
}
