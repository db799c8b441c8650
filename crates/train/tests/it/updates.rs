//! Several updates on the same records, and records that teach nothing.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Mutex;

use diptych_tensor::optim::LrSchedule;
use diptych_tensor::{DType, Device, Params, Tensor, Weights, save_tensors};
use diptych_train::{
    Item, LoopConfig, Method, MicroBatch, ResumeMode, RunDirectory, Silent, StepOutput, VerifyConfig, read_metrics,
    verify_resume,
};

use crate::toy::{Toy, ToyError, config};

const UPDATES: u64 = 3;

/// Keeps from the first update on a batch to the others what it computed with the parameters of that time: every record's loss is
/// weighed by it, so that a run which forgets it goes another way.
struct Sampling {
    toy: Toy,
    kept: Mutex<Option<f32>>,
    saves: bool,
    /// Batches that teach nothing.
    barren: fn(&MicroBatch) -> bool,
    seen: Mutex<Vec<(u64, u64, Vec<usize>)>>,
}

impl Sampling {
    fn new() -> Self {
        Self {
            toy: Toy::f32(),
            kept: Mutex::new(None),
            saves: true,
            barren: |_| false,
            seen: Mutex::new(Vec::new()),
        }
    }
}

impl Method for Sampling {
    type Error = ToyError;

    fn params(&self) -> &Params {
        self.toy.params()
    }

    fn num_records(&self) -> usize {
        self.toy.num_records()
    }

    fn record_id(&self, index: usize) -> String {
        self.toy.record_id(index)
    }

    fn updates_per_batch(&self) -> u64 {
        UPDATES
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput, ToyError> {
        let items = batch.items.iter().map(|item| item.index).collect();
        self.seen.lock().unwrap().push((batch.step, batch.update, items));
        if (self.barren)(batch) {
            let metrics = BTreeMap::from([("kept_pairs", vec![0.0; batch.items.len()])]);
            return Ok(StepOutput::empty(batch.items.len(), &Device::Cpu, metrics)?);
        }
        let mut kept = self.kept.lock().unwrap();
        if batch.update == 0 && batch.items[0] == batch.step_items[0] {
            *kept = Some(1.0 + self.toy.weight()[0].abs() as f32);
        }
        // What a run without its state would go on with.
        let weight = kept.unwrap_or(1.0);
        drop(kept);
        let mut output = self.toy.step(batch)?;
        output.losses = (output.losses * f64::from(weight))?;
        Ok(output)
    }

    fn save(&self, directory: &Path) -> Result<(), ToyError> {
        self.toy.save(directory)
    }

    fn load(&self, directory: &Path) -> Result<(), ToyError> {
        self.toy.load(directory)
    }

    fn save_state(&self, path: &Path) -> Result<bool, ToyError> {
        let Some(kept) = self.kept.lock().unwrap().filter(|_| self.saves) else {
            return Ok(false);
        };
        let tensors = BTreeMap::from([("kept".to_owned(), Tensor::new(&[kept], &Device::Cpu)?)]);
        save_tensors(path, &tensors, &BTreeMap::new())?;
        Ok(true)
    }

    fn load_state(&self, path: &Path) -> Result<(), ToyError> {
        let kept = Weights::open(path)?.get("kept", &[1], DType::F32, &Device::Cpu)?;
        *self.kept.lock().unwrap() = Some(kept.to_vec1::<f32>()?[0]);
        Ok(())
    }
}

fn run(method: &Sampling, config: &LoopConfig) -> diptych_train::Summary {
    let never = std::sync::atomic::AtomicBool::new(false);
    diptych_train::train(method, config, &mut Silent, &never, ResumeMode::Fresh).unwrap()
}

#[test]
fn the_same_records_come_for_every_update_and_an_epoch_counts_them_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    (config.train.steps, config.train.num_epochs) = (None, Some(2.0));
    let method = Sampling::new();
    // Ten records in batches of four: five batches reach two epochs.
    let summary = run(&method, &config);
    assert_eq!((summary.num_steps, summary.epoch), (5 * UPDATES, 2.0));
    let seen = method.seen.lock().unwrap();
    assert_eq!(seen.len(), 2 * 15);
    let records = |step: u64| -> Vec<usize> {
        let of_step = seen.iter().filter(|(at, ..)| *at == step);
        of_step.flat_map(|(_, _, items)| items.clone()).collect()
    };
    for (step, update, _) in seen.iter() {
        assert_eq!(*update, (step - 1) % UPDATES);
        assert_eq!(records(*step), records(step - update));
    }
    let mut epoch: Vec<usize> = [1, 4, 7].into_iter().flat_map(records).take(10).collect();
    epoch.sort_unstable();
    assert_eq!(epoch, (0..10).collect::<Vec<_>>());
}

#[test]
fn a_run_stopped_between_the_updates_on_a_batch_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for stop_after in 1..6 {
        let verify = VerifyConfig {
            steps: 8,
            stop_after,
            directory: dir.path().join(format!("stop-{stop_after}")),
        };
        let config = config(dir.path().join("unused"));
        let report = verify_resume(|| Ok::<_, Infallible>(Sampling::new()), &config, &verify, &mut Silent).unwrap();
        assert!(report.is_exact(), "{report:#?}");
    }
    // The same proof finds a method out that does not save what it keeps.
    let verify = VerifyConfig {
        steps: 8,
        stop_after: 4,
        directory: dir.path().join("forgetful"),
    };
    let built = Cell::new(0);
    let build = || {
        built.set(built.get() + 1);
        Ok::<_, Infallible>(Sampling {
            saves: false,
            ..Sampling::new()
        })
    };
    let report = verify_resume(build, &config(dir.path().join("unused")), &verify, &mut Silent).unwrap();
    assert!(built.get() > 3 && !report.is_exact());
}

#[test]
fn steps_that_teach_nothing_change_nothing_and_no_mean() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("barren"));
    config.train.steps = Some(9);
    config.train.log_every = 3;
    config.train.ema_decay = Some(0.9);
    let barren = Sampling {
        barren: |batch| batch.step <= 3,
        ..Sampling::new()
    };
    run(&barren, &config);
    let rows = read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap();
    assert_eq!(
        (rows[0].loss, rows[0].grad_norm, rows[0].metrics["kept_pairs"]),
        (0.0, 0.0, 0.0)
    );
    assert!(rows[1].loss > 0.0);
    let nothing = Sampling {
        barren: |_| true,
        ..Sampling::new()
    };
    let before = nothing.toy.values();
    config.output = dir.path().join("nothing");
    run(&nothing, &config);
    assert_eq!(nothing.toy.values(), before);
    assert_ne!(barren.toy.values(), before);
}

#[test]
fn a_step_of_which_a_part_teaches_is_an_update_by_that_part() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path().join("run"));
    (config.train.steps, config.train.log_every) = (Some(1), 1);
    config.schedule = LrSchedule::Constant { warmup_steps: 0 };
    let half = Sampling {
        barren: |batch| batch.items[0] != batch.step_items[0],
        ..Sampling::new()
    };
    run(&half, &config);
    let logged = read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap()[0].loss;
    let order = half.seen.lock().unwrap().clone();
    assert_eq!(order.len(), 2);
    let fresh = Sampling::new();
    let items = order[0].2.iter().zip(0..);
    let items = items.map(|(&index, position)| Item { index, position });
    let output = fresh.step(&MicroBatch::whole(config.seed, 1, items.collect())).unwrap();
    let losses = output.losses.to_vec1::<f32>().unwrap();
    assert!(
        (logged - f64::from(losses[0] + losses[1]) / 2.0).abs() < 1e-6,
        "{logged} {losses:?}"
    );
    assert_ne!(half.toy.values(), fresh.toy.values());
}
