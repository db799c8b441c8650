//! Updates on stored transitions, and gradients through the sampler, against PyTorch (`tests/golden/online`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use diptych_core::Objective;
use diptych_tensor::optim::OptimizerConfig;
use diptych_tensor::{DType, Gradients, backward};
use diptych_train::{
    Item, LoopConfig, Method, MicroBatch, ResumeMode, RunDirectory, Silent, TrainConfig, read_metrics, train,
};
use serde_json::Value;

use super::{golden, read, studio};
use crate::method::online::config::{
    AdvantageConfig, DirectRewardConfig, PolicyGradientConfig, ReuseConfig, RewardLoss, RolloutConfig,
};
use crate::method::online::direct_reward::{DirectReward, Party, Rewardable};
use crate::method::online::pair_step::PairLoss;
use crate::method::online::policy_gradient::PolicyGradient;
use crate::method::online::{Online, PairSource, PairWay, Way};
use crate::tensors::host_f64;
use crate::trajectory::State;

/// Relative to the expected number.
const TOLERANCE: f64 = 1e-3;
const NUM_UPDATES: u64 = 20;

fn expected() -> Value {
    serde_json::from_str(&std::fs::read_to_string(golden().join("expected.json")).unwrap()).unwrap()
}

pub(super) fn assert_close(found: f64, expected: f64, scale: f64, what: &str) {
    let error = (found - expected).abs() / expected.abs().max(scale);
    assert!(
        error <= TOLERANCE,
        "{what}: {found}, expected {expected} (relative error {error:.2e})"
    );
}

/// Lengths of gradients and their products with cosines.
pub(super) fn assert_gradients(found: &Gradients, expected: &Value, what: &str) {
    let expected = expected.as_object().unwrap();
    assert_eq!(found.iter().count(), expected.len(), "{what}");
    assert!(expected.len() > 20, "{what}");
    for (name, gradient) in found.iter() {
        let values = host_f64(gradient).unwrap();
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let product: f64 = values
            .iter()
            .enumerate()
            .map(|(at, value)| value * (at as f64).cos())
            .sum();
        let [of_norm, of_product] = [0, 1].map(|at| expected[name][at].as_f64().unwrap());
        assert_close(norm, of_norm, 1e-12, &format!("{what}: norm of {name}"));
        assert_close(product, of_product, of_norm, &format!("{what}: product of {name}"));
    }
}

pub(super) fn whole(step: u64) -> MicroBatch {
    let item = |index| Item {
        index,
        position: index as u64,
    };
    MicroBatch::whole(0, step, vec![item(0), item(1)])
}

fn mean_gradients(method: &Online) -> Gradients {
    let losses = method.step(&whole(1)).unwrap().losses;
    backward(&losses.mean_all().unwrap(), method.params()).unwrap()
}

pub(super) fn rollout(steps: usize, eta: f64) -> RolloutConfig {
    RolloutConfig {
        steps,
        eta,
        guidance_scale: 3.0,
        ..RolloutConfig::default()
    }
}

/// The method of a golden run, with its transitions in place of sampled ones.
fn method(directory: &Path, run: &Value) -> Online {
    let reuse = ReuseConfig {
        passes: NUM_UPDATES,
        ..ReuseConfig::default()
    };
    let clip_range = run["clip_range"].as_f64().unwrap();
    let name = run["name"].as_str().unwrap();
    let way = if name == "policy_gradient" {
        let config = PolicyGradientConfig {
            reuse,
            clip_range,
            advantages: AdvantageConfig::Batch {},
            ..PolicyGradientConfig::default()
        };
        Way::PolicyGradient(PolicyGradient::new(
            config,
            Objective::Sft(diptych_core::Sft::default()),
        ))
    } else {
        Way::Pairs(PairWay {
            source: PairSource::Trajectories,
            loss: PairLoss {
                objective: serde_json::from_value(run["objective"].clone()).unwrap(),
                reuse,
                clip_range,
            },
            kept: Mutex::new(None),
        })
    };
    let method = Online {
        studio: studio(directory, &rollout(10, 1.0)),
        way,
        showcase: None,
    };
    method
        .load_state(&golden().join(format!("{name}.safetensors")))
        .unwrap();
    method
}

#[test]
fn twenty_updates_on_stored_transitions_equal_pytorch() {
    let expected = expected();
    let runs = expected["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["trajectory_pairs", "step_aware", "policy_gradient"]);
    for (name, run) in names.iter().zip(runs) {
        let directory = tempfile::tempdir().unwrap();
        let first = method(&directory.path().join("first"), run);
        assert_gradients(&mean_gradients(&first), &run["gradients"], name);

        let method = method(&directory.path().join("whole"), run);
        let settings = TrainConfig {
            steps: Some(NUM_UPDATES),
            micro_batch: if *name == "step_aware" { 1 } else { 2 },
            accumulation: if *name == "step_aware" { 2 } else { 1 },
            checkpoint_every: 0,
            sample_every: 0,
            ..TrainConfig::default()
        };
        let mut config = LoopConfig::new(directory.path().join("run"), settings);
        config.shuffle = false;
        config.optimizer = serde_json::from_value::<OptimizerConfig>(run["optimizer"].clone()).unwrap();
        train(
            &method,
            &config,
            &mut Silent,
            &AtomicBool::new(false),
            ResumeMode::Fresh,
        )
        .unwrap();
        let rows = read_metrics(&RunDirectory::new(&config.output).metrics()).unwrap();
        let records = run["records"].as_array().unwrap();
        assert_eq!((rows.len(), records.len()), (20, 20), "{name}");
        for (row, record) in rows.iter().zip(records) {
            let mut num_compared = 0;
            for (key, value) in record.as_object().unwrap() {
                let found = match key.as_str() {
                    "step" => row.step as f64,
                    "loss" => row.loss,
                    "grad_norm" => row.grad_norm,
                    key => row.metrics[key],
                };
                // Margins are small differences, and a mean square of ratios of 1e-3 is no larger than its rounding.
                let scale = match key.as_str() {
                    "rewards/margins" => 0.1,
                    "kl" => 1e-3,
                    "clip_ratio" => 1.0,
                    _ => 0.0,
                };
                let what = format!("{name} step {} {key}", row.step);
                assert_close(found, value.as_f64().unwrap(), scale, &what);
                num_compared += 1;
            }
            assert!(num_compared >= 5, "{name}: {num_compared} numbers compared");
        }
    }
}

#[test]
fn gradients_of_rewards_through_the_sampler_equal_pytorch() {
    let expected = expected();
    let cases = expected["rewards"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    let start = read("direct_reward.safetensors", "latents", DType::F32);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let studio = studio(directory.path(), &rollout(5, 0.0));
        let method = DirectReward {
            config: DirectRewardConfig {
                loss: serde_json::from_value::<RewardLoss>(case["loss"].clone()).unwrap(),
                regularization: case["regularization"].as_f64().unwrap(),
                ..DirectRewardConfig::default()
            },
            objective: Objective::Sft(diptych_core::Sft::default()),
        };
        let batch = whole(1);
        let party = Party::new(&studio, &batch).unwrap();
        let what = if case["what"] == "finished" {
            Rewardable::Finished
        } else {
            Rewardable::Promised
        };
        let [first, end] = ["first", "end"].map(|key| case[key].as_u64().unwrap() as usize);
        let state = State::new(start.clone(), first);
        let rewarded = method.rewarded(&party, &state, end, what).unwrap();
        let losses = method.losses(&rewarded).unwrap();
        let numbers = BTreeMap::from([
            ("rewards", host_f64(&rewarded.rewards).unwrap()),
            ("losses", host_f64(&losses).unwrap()),
        ]);
        for (key, values) in numbers {
            for (at, value) in values.iter().enumerate() {
                let of_case = case[key][at].as_f64().unwrap();
                assert_close(*value, of_case, 1e-2, &format!("{name}: {key} {at}"));
            }
        }
        let gradients = backward(&losses.mean_all().unwrap(), &studio.policy.params).unwrap();
        assert_gradients(&gradients, &case["gradients"], name);
    }
}
