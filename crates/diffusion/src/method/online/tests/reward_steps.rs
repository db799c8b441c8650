//! Divergences of steps (ROCM) and latents that are pushed (`TailorPO-G`), against PyTorch (`tests/golden/reward_steps.json`).

use diptych_core::Objective;
use diptych_tensor::{DType, Device, Tensor, Weights, backward};
use serde_json::Value;

use super::golden_runs::{assert_close, assert_gradients, rollout, whole};
use super::{golden, read, studio};
use crate::method::online::config::{DirectRewardConfig, GradientGuidance, RolloutConfig, StepDivergence};
use crate::method::online::direct_reward::{DirectReward, Party, Rewarded};
use crate::method::online::reward_guidance::push;
use crate::pipeline::Checkpointing;
use crate::sampler::{History, SamplerKind};
use crate::tensors::host_f64;
use crate::trajectory::Adapters;

fn expected(part: &str) -> Vec<Value> {
    let path = golden().join("../reward_steps.json");
    let value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    value[part].as_array().unwrap().clone()
}

/// Noise of each step, (steps, B, C, Y, X).
fn noise() -> Tensor {
    let weights = Weights::open(&golden().join("../reward_steps.safetensors")).unwrap();
    weights.read("noise", DType::F32, &Device::Cpu).unwrap()
}

fn assert_numbers(found: &Tensor, expected: &Value, what: &str) {
    let found = host_f64(found).unwrap();
    assert_eq!(found.len(), expected.as_array().unwrap().len(), "{what}");
    for (at, value) in found.into_iter().enumerate() {
        assert_close(value, expected[at].as_f64().unwrap(), 1e-2, what);
    }
}

/// Rewards and divergences of the stored start, with the stored noise.
fn rewarded(method: &DirectReward, party: &Party<'_>, first: usize, checkpointing: Checkpointing) -> Rewarded {
    let walk = party.walk();
    let sampler = walk.sampler;
    let against = method.against(party).unwrap().unwrap();
    let noise = noise();
    let mut latents = read("direct_reward.safetensors", "latents", DType::F32);
    let mut divergences: Option<Tensor> = None;
    for step in first..sampler.num_steps() {
        let at = (step, &latents);
        let network = (walk.network, Adapters::On);
        let transition = walk
            .step_of(network, at, checkpointing, &mut History::default())
            .unwrap();
        if sampler.std(step) > 0.0 {
            let divergence = walk.divergences(&transition, &against, at, checkpointing).unwrap();
            divergences = Some(match divergences {
                None => divergence,
                Some(before) => (before + divergence).unwrap(),
            });
        }
        latents = transition.sample(Some(&noise.get(step).unwrap())).unwrap();
    }
    Rewarded {
        rewards: party.rewards(&latents, 0.0).unwrap(),
        penalties: None,
        divergences,
    }
}

#[test]
fn divergences_of_steps_and_their_gradients_equal_pytorch() {
    let cases = expected("cases");
    assert_eq!(cases.len(), 3);
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let is_lcm = case["sampler"] == "lcm";
        let config = RolloutConfig {
            sampler: if is_lcm { SamplerKind::Lcm } else { SamplerKind::Ddim },
            ..rollout(case["steps"].as_u64().unwrap() as usize, if is_lcm { 0.0 } else { 1.0 })
        };
        let method = DirectReward {
            config: DirectRewardConfig {
                divergence: Some(StepDivergence {
                    beta: case["beta"].as_f64().unwrap(),
                    kind: serde_json::from_value(case["kind"].clone()).unwrap(),
                }),
                ..DirectRewardConfig::default()
            },
            objective: Objective::Sft(diptych_core::Sft::default()),
        };
        for checkpointing in [Checkpointing::Off, Checkpointing::On] {
            let directory = tempfile::tempdir().unwrap();
            let studio = studio(directory.path(), &config);
            let batch = whole(1);
            let party = Party::new(&studio, &batch).unwrap();
            let first = case["first"].as_u64().unwrap() as usize;
            let found = rewarded(&method, &party, first, checkpointing);
            let losses = method.losses(&found).unwrap();
            let what = |of: &str| format!("{name}: {of}");
            assert_numbers(&found.rewards, &case["rewards"], &what("rewards"));
            assert_numbers(
                found.divergences.as_ref().unwrap(),
                &case["divergences"],
                &what("divergences"),
            );
            assert_numbers(&losses, &case["losses"], &what("losses"));
            let gradients = backward(&losses.mean_all().unwrap(), &studio.policy.params).unwrap();
            assert_gradients(&gradients, &case["gradients"], name);
        }
    }
}

#[test]
fn pushed_latents_equal_pytorch_and_are_rewarded_more() {
    let cases = expected("pushes");
    assert_eq!(cases.len(), 3);
    let latents = read("direct_reward.safetensors", "latents", DType::F32);
    let directory = tempfile::tempdir().unwrap();
    let studio = studio(directory.path(), &rollout(10, 1.0));
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        let guidance: GradientGuidance = serde_json::from_value(case["guidance"].clone()).unwrap();
        let step = case["step"].as_u64().unwrap() as usize;
        let pushed = push(&studio, guidance, &[0, 1], &latents, step).unwrap();
        let moves = host_f64(&(&pushed.latents - &latents).unwrap()).unwrap();
        for (row, moves) in moves.chunks(256).enumerate() {
            let number = |key: &str| case[key][row].as_f64().unwrap();
            let length = moves.iter().map(|value| value * value).sum::<f64>().sqrt();
            let cosines = moves.iter().enumerate().map(|(at, value)| value * (at as f64).cos());
            assert_close(length, number("lengths"), 0.0, &format!("{name}: length"));
            assert_close(
                cosines.sum(),
                number("products"),
                number("lengths"),
                &format!("{name}: product"),
            );
            assert_close(pushed.moves[row], number("moves"), 0.0, &format!("{name}: move"));
        }
        // What the push is for, in the judge's own words; the gradient holds for small steps only.
        if name == "finished" {
            let rewards = |latents: &Tensor| studio.host_rewards(&[0, 1], latents, 0.0).unwrap();
            let (before, after) = (rewards(&latents), rewards(&pushed.latents));
            assert!(
                before.iter().zip(&after).all(|(before, after)| after > before),
                "{before:?} {after:?}"
            );
        }
    }
}
