//! The loop trains, and how the batch is cut does not matter.

use diptych_tensor::DType;
use diptych_tensor::optim::LrSchedule;
use diptych_train::{Event, Method, ResumeMode, RunDirectory, read_metrics, train};

use crate::toy::{NUM_RECORDS, Toy, WIDTH, config, run};

#[test]
fn the_loss_falls_and_the_weights_approach_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    config.train.steps = Some(300);
    config.schedule = LrSchedule::Constant { warmup_steps: 0 };
    let method = Toy::f32();
    run(&method, &config, ResumeMode::Fresh).unwrap();
    let rows = read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap();
    assert!(
        rows[0].loss > 1.0 && rows[rows.len() - 1].loss < 0.05,
        "{} {}",
        rows[0].loss,
        rows[rows.len() - 1].loss
    );
    for (found, truth) in method.weight().iter().zip([2.0, -1.0, 0.5]) {
        assert!((found - truth).abs() < 0.15, "{found} {truth}");
    }
}

/// 1 × 8, 2 × 4 and 8 × 1 take the same records with the same noise; only the order of additions differs.
#[test]
fn accumulation_equals_one_large_batch() {
    let outcomes: Vec<_> = [(1, 8), (2, 4), (8, 1)]
        .into_iter()
        .map(|(micro_batch, accumulation)| {
            let dir = tempfile::tempdir().unwrap();
            let mut config = config(dir.path().join("run"));
            config.train.micro_batch = micro_batch;
            config.train.accumulation = accumulation;
            let method = Toy::new(DType::F64);
            run(&method, &config, ResumeMode::Fresh).unwrap();
            (
                method.weight(),
                read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap(),
            )
        })
        .collect();
    let (weight, rows) = &outcomes[0];
    assert_eq!(rows.len(), 5);
    for (other_weight, other_rows) in &outcomes[1..] {
        for (a, b) in weight.iter().zip(other_weight) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        for (a, b) in rows.iter().zip(other_rows) {
            let close = a
                .numbers()
                .zip(b.numbers())
                .all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12);
            assert!(close, "{a:?}\n{b:?}");
        }
    }
}

/// The first step by hand: mean of (prediction - target)² over the batch and one step of Adam, which is the learning
/// rate in each coordinate, against the sign of the gradient.
#[test]
fn the_first_step_is_what_the_formulas_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    config.train.steps = Some(1);
    config.schedule = LrSchedule::Constant { warmup_steps: 0 };
    let diptych_tensor::optim::OptimizerConfig::Adamw(adamw) = &mut config.optimizer else {
        panic!("the toy's optimizer is AdamW")
    };
    adamw.weight_decay = 0.0;
    let method = Toy::new(DType::F64);
    let before = method.weight();
    run(&method, &config, ResumeMode::Fresh).unwrap();
    let batches = method.seen.lock().unwrap().clone();
    let items = || {
        batches
            .iter()
            .flat_map(|batch| batch.items.iter().map(move |item| (batch, item)))
    };
    assert_eq!(items().count(), 4);
    let (mut loss, mut gradient) = (0.0, [0.0; WIDTH + 1]);
    for (batch, item) in items() {
        let (own, slopes) = method.by_hand(&before, batch, item);
        loss += own / 4.0;
        for (sum, slope) in gradient.iter_mut().zip(slopes) {
            *sum += slope / 4.0;
        }
    }
    for ((before, after), slope) in before.iter().zip(method.weight()).zip(gradient) {
        assert!(
            ((after - before) + 0.05 * slope.signum()).abs() < 1e-6,
            "{before} {after} {slope}"
        );
    }
    let rows = read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap();
    assert_eq!(
        (rows[0].step, rows[0].epoch, rows[0].learning_rate),
        (1, 4.0 / NUM_RECORDS as f64, 0.05)
    );
    assert!((rows[0].loss - loss).abs() < 1e-9, "{} {loss}", rows[0].loss);
    let norm = gradient.iter().map(|slope| slope * slope).sum::<f64>().sqrt();
    assert!((rows[0].grad_norm - norm).abs() < 1e-9, "{} {norm}", rows[0].grad_norm);
}

#[test]
fn the_schedule_is_logged_and_epochs_count_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    config.train.log_every = 1;
    let method = Toy::f32();
    run(&method, &config, ResumeMode::Fresh).unwrap();
    let rows = read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap();
    assert_eq!(rows.len(), 20);
    // transformers' linear schedule: the step that follows `done` steps, 4 of 20 to warm up.
    for row in &rows {
        let done = row.step - 1;
        let factor = if done < 4 {
            done as f64 / 4.0
        } else {
            (20 - done) as f64 / 16.0
        };
        assert!((row.learning_rate - 0.05 * factor).abs() < 1e-15, "{row:?}");
        assert!((row.epoch - 4.0 * row.step as f64 / 10.0).abs() < 1e-12, "{row:?}");
    }

    config.output = dir.path().join("epochs");
    config.train.steps = None;
    config.train.num_epochs = Some(3.0);
    let summary = run(&Toy::f32(), &config, ResumeMode::Fresh).unwrap();
    // 30 records in batches of 4: seven and a half steps, and every step is a whole one.
    assert_eq!((summary.step, summary.epoch), (8, 3.2));
}

#[test]
fn a_row_is_the_mean_since_the_row_before() {
    let dir = tempfile::tempdir().unwrap();
    let mut each = config(dir.path().join("each"));
    each.train.log_every = 1;
    run(&Toy::f32(), &each, ResumeMode::Fresh).unwrap();
    let fourth = config(dir.path().join("fourth"));
    run(&Toy::f32(), &fourth, ResumeMode::Fresh).unwrap();
    let each = read_metrics(&RunDirectory::new(&each.output).metrics()).unwrap();
    let fourth = read_metrics(&RunDirectory::new(&fourth.output).metrics()).unwrap();
    assert_eq!(
        fourth.iter().map(|row| row.step).collect::<Vec<_>>(),
        [4, 8, 12, 16, 20]
    );
    for (row, steps) in fourth.iter().zip(each.chunks(4)) {
        let mean = |number: &dyn Fn(&diptych_train::MetricsRow) -> f64| steps.iter().map(number).sum::<f64>() / 4.0;
        assert!((row.loss - mean(&|row| row.loss)).abs() < 1e-12);
        assert!((row.metrics["noise/mean"] - mean(&|row| row.metrics["noise/mean"])).abs() < 1e-12);
        assert_eq!(row.grad_norm, steps[3].grad_norm);
    }
}

#[test]
fn moving_averages_lag_and_are_what_final_shows() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    config.train.ema_decay = Some(0.9);
    let averaged = Toy::f32();
    run(&averaged, &config, ResumeMode::Fresh).unwrap();
    let trained = averaged.weight();
    averaged
        .load(&RunDirectory::new(&config.output).final_weights())
        .unwrap();
    let shown = averaged.weight();
    let start = Toy::f32().weight();
    assert!(
        (start[0] < shown[0]) && (shown[0] < trained[0]),
        "{start:?} {shown:?} {trained:?}"
    );

    config.output = dir.path().join("plain");
    config.train.ema_decay = None;
    let plain = Toy::f32();
    run(&plain, &config, ResumeMode::Fresh).unwrap();
    assert_eq!(plain.weight(), trained, "averages changed the training itself");
}

#[test]
fn events_tell_the_whole_story() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path().join("run"));
    let mut story = Vec::new();
    let mut observer = |event: &Event<'_>| {
        story.push(match event {
            Event::Started {
                done,
                num_steps,
                num_records,
                effective_batch,
                num_elements,
                ..
            } => {
                format!("start {done} {num_steps} {num_records} {effective_batch} {num_elements}")
            }
            Event::Step { step, .. } if step % 5 == 0 => format!("step {step}"),
            Event::Logged(row) => format!("row {}", row.step),
            Event::Sampled { step, .. } => format!("sample {step}"),
            Event::Checkpoint { step, .. } => format!("checkpoint {step}"),
            Event::Finished(summary) => format!("finished {}", summary.step),
            _ => return,
        });
    };
    let never = std::sync::atomic::AtomicBool::new(false);
    train(&Toy::f32(), &config, &mut observer, &never, ResumeMode::Fresh).unwrap();
    let expected = "start 0 20 10 4 4; row 4; step 5; checkpoint 5; row 8; step 10; checkpoint 10; sample 10; row 12; \
                    step 15; checkpoint 15; row 16; step 20; row 20; checkpoint 20; sample 20; finished 20";
    assert_eq!(story.join("; "), expected);
}
