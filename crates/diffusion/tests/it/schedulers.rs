//! Noise schedules and samplers against values computed by the `diffusers` package (`tests/golden/schedulers`).

use std::collections::BTreeMap;
use std::path::Path;

use diptych_diffusion::sampler::{History, SamplerConfig, SamplerKind};
use diptych_diffusion::schedule::{FlowSpacing, NoiseSchedule};
use diptych_tensor::{Device, Tensor};
use serde_json::Value;

pub(crate) fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/schedulers")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(crate) fn schedule(case: &Value) -> NoiseSchedule {
    NoiseSchedule::from_value(Path::new("scheduler_config.json"), &case["config"]).unwrap()
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap())
        .collect()
}

pub(crate) fn matrix(value: &Value) -> Tensor {
    let rows: Vec<Vec<f64>> = value.as_array().unwrap().iter().map(numbers).collect();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Differences relative to 1 or to the expected number, whichever is larger.
pub(crate) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error <= tolerance, "{what}[{i}]: {found}, expected {expected}");
    }
}

#[test]
fn training_tables_and_targets() {
    let golden = golden("training.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let schedule = schedule(case);
        let NoiseSchedule::Discrete(discrete) = &schedule else {
            panic!("{name} is a flow");
        };
        let table: Vec<f64> = discrete
            .alphas_cumprod()
            .iter()
            .map(|&alpha| f64::from(alpha))
            .collect();
        assert_eq!(
            table.len() as u64,
            case["num_train_timesteps"].as_u64().unwrap(),
            "{name}"
        );
        let found: Vec<f64> = numbers(&case["indices"]).iter().map(|&at| table[at as usize]).collect();
        assert_close(&found, &numbers(&case["alphas_cumprod"]), 1e-6, name);
        assert_close(
            &[table.iter().sum()],
            &[case["alphas_cumprod_sum"].as_f64().unwrap()],
            1e-6,
            name,
        );

        let timesteps: Vec<f32> = numbers(&case["timesteps"])
            .iter()
            .map(|&timestep| timestep as f32)
            .collect();
        let (latents, noise) = (matrix(&case["sample"]), matrix(&case["noise"]));
        let noisy = schedule.add_noise(&latents, &noise, &timesteps).unwrap();
        assert_close(&values(&noisy), &values(&matrix(&case["noisy"])), 1e-6, name);
        let target = schedule.target(&latents, &noise, &timesteps).unwrap();
        assert_close(&values(&target), &values(&matrix(&case["target"])), 1e-6, name);
    }
}

#[test]
fn flow_noise_and_targets() {
    let golden = golden("flow_training.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let timesteps: Vec<f32> = numbers(&case["timesteps"])
            .iter()
            .map(|&timestep| timestep as f32)
            .collect();
        let (latents, noise) = (matrix(&case["sample"]), matrix(&case["noise"]));
        let noisy = schedule(case).add_noise(&latents, &noise, &timesteps).unwrap();
        assert_close(&values(&noisy), &values(&matrix(&case["noisy"])), 1e-6, name);
        let target = schedule(case).target(&latents, &noise, &timesteps).unwrap();
        assert_close(&values(&target), &values(&matrix(&case["target"])), 1e-6, name);
    }
}

/// What stands for the network: the formula in `tests/golden/README.md`.
pub(crate) fn output(input: &Tensor, timestep: f32) -> Tensor {
    let found: Vec<f64> = values(input)
        .into_iter()
        .enumerate()
        .map(|(i, x)| 0.1 * x + 0.5 * (0.7 * i as f64 + f64::from(timestep) / 250.0).sin())
        .collect();
    Tensor::from_vec(found, input.shape(), &Device::Cpu).unwrap()
}

/// What stands for the fresh noise of a step: the formula in `tests/golden/README.md`.
fn step_noise(like: &Tensor, step_idx: usize) -> Tensor {
    let values: Vec<f64> = (0..like.elem_count())
        .map(|i| 1.2 * (1.3 * i as f64 + 2.1 * step_idx as f64).cos())
        .collect();
    Tensor::from_vec(values, like.shape(), &Device::Cpu).unwrap()
}

/// Goes through the cases of a file and returns how many there are of each sampler.
fn check_trajectories(file: &str) -> BTreeMap<String, usize> {
    let golden = golden(file);
    let cases = golden["cases"].as_array().unwrap();
    let initial = numbers(&golden["initial"]);
    let initial = Tensor::from_vec(initial.clone(), (1, initial.len(), 1, 1), &Device::Cpu).unwrap();
    let mut num_cases = BTreeMap::new();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let kind: SamplerKind = serde_json::from_value(case["sampler"].clone()).unwrap();
        *num_cases.entry(kind.to_string()).or_default() += 1;
        let num_steps = case["num_inference_steps"].as_u64().unwrap() as usize;
        let config = SamplerConfig {
            eta: case["eta"].as_f64().unwrap_or(0.0),
            ..SamplerConfig::new(kind, num_steps)
        };
        let sampler = config.prepare(&sampling_schedule(case)).unwrap();
        let timesteps = sampler.timesteps();
        let found: Vec<f64> = timesteps.iter().map(|&timestep| f64::from(timestep)).collect();
        assert_close(&found, &numbers(&case["timesteps"]), 1e-6, name);
        assert_close(
            &[sampler.initial_sigma()],
            &[case["init_noise_sigma"].as_f64().unwrap()],
            1e-6,
            name,
        );

        let mut latents = (&initial * sampler.initial_sigma()).unwrap();
        let mut history = History::default();
        let expected = case["trajectory"].as_array().unwrap();
        assert_eq!(expected.len(), sampler.num_steps(), "{name}");
        for (step_idx, (&timestep, expected)) in timesteps.iter().zip(expected).enumerate() {
            let prediction = output(&sampler.scale_input(&latents, step_idx).unwrap(), timestep);
            let noise = step_noise(&latents, step_idx);
            latents = sampler
                .transition(&prediction, step_idx, &latents, &mut history)
                .unwrap()
                .sample(Some(&noise))
                .unwrap();
            assert_close(
                &values(&latents),
                &numbers(expected),
                1e-5,
                &format!("{name} step {step_idx}"),
            );
        }
    }
    num_cases
}

/// The schedule of a case, for the size and the pipeline that it was made for.
fn sampling_schedule(case: &Value) -> NoiseSchedule {
    let schedule = schedule(case).with_image_tokens(case["image_tokens"].as_u64().unwrap_or(1) as usize);
    match (schedule, case["spacing"].as_str()) {
        (NoiseSchedule::Flow(flow), Some("unit")) => NoiseSchedule::Flow(flow.with_spacing(FlowSpacing::Unit)),
        (schedule, _) => schedule,
    }
}

#[test]
fn variants_that_are_not_implemented_are_refused_by_the_sampler_they_belong_to() {
    let cases = [
        ("dpm_solver_pp_2m", r#"{"solver_order": 3}"#, "solver_order"),
        (
            "dpm_solver_pp_2m",
            r#"{"algorithm_type": "sde-dpmsolver++"}"#,
            "algorithm_type",
        ),
        ("dpm_solver_pp_2m", r#"{"solver_type": "rk4"}"#, "solver_type"),
        ("dpm_solver_pp_2m", r#"{"use_lu_lambdas": true}"#, "use_lu_lambdas"),
        (
            "dpm_solver_pp_2m",
            r#"{"use_exponential_sigmas": true}"#,
            "use_exponential_sigmas",
        ),
        (
            "dpm_solver_pp_2m",
            r#"{"lambda_min_clipped": -5.1}"#,
            "lambda_min_clipped",
        ),
        ("euler", r#"{"use_karras_sigmas": true}"#, "use_karras_sigmas"),
        ("ddpm", r#"{"variance_type": "fixed_large_log"}"#, "variance_type"),
        ("lcm", r#"{"original_inference_steps": 4}"#, "original_inference_steps"),
        (
            "lcm",
            r#"{"original_inference_steps": 2000}"#,
            "original_inference_steps",
        ),
    ];
    for (sampler, json, key) in cases {
        let schedule = schedule(&serde_json::json!({"config": serde_json::from_str::<Value>(json).unwrap()}));
        let kind: SamplerKind = sampler.parse().unwrap();
        let error = kind.prepare(&schedule, 10).unwrap_err();
        let message = error.to_string();
        assert!(
            error.is_configuration() && message.contains(key) && message.contains(sampler),
            "{message}"
        );
        SamplerKind::Ddim.prepare(&schedule, 10).unwrap();
    }
}

/// As `save_pretrained` writes it, which is not JSON.
#[test]
fn the_solvers_own_file_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("scheduler_config.json");
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "solver_order": 2}"#;
    std::fs::write(&file, text).unwrap();
    let schedule = NoiseSchedule::read(directory.path()).unwrap();
    SamplerKind::DpmSolverPp2m.prepare(&schedule, 10).unwrap();
}

fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
    expected.iter().map(|&(name, num)| (name.to_owned(), num)).collect()
}

#[test]
fn sampling_trajectories() {
    assert_eq!(
        check_trajectories("sampling.json"),
        counts(&[("ddim", 19), ("euler", 13)])
    );
}

#[test]
fn trajectories_of_every_other_sampler() {
    let expected = counts(&[
        ("ddpm", 7),
        ("ddim", 4),
        ("euler_ancestral", 3),
        ("dpm_solver_pp_2m", 12),
        ("lcm", 4),
        ("flow_euler", 7),
    ]);
    assert_eq!(check_trajectories("more_sampling.json"), expected);
}
