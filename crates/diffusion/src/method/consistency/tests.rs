//! Distances, losses and gradients against PyTorch (`tests/golden/consistency.json`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use diptych_core::{Objective, PairLogps};
use diptych_models::diffusers::PipelineDir;
use diptych_models::{AdapterConfig, LoraConfig, Trainable};
use diptych_tensor::{CheckpointPolicy, DType, Device, Tensor, Weights, backward};
use serde_json::{Value, json};

use super::{Consistency, ConsistencyConfig, ConsistencySolver, ConsistencyTarget, Earlier, TeacherConfig};
use crate::method::reference::Reference;
use crate::method::scoring::Scored;
use crate::method::trained::{TextTraining, TrainedDenoiser};
use crate::pipeline::{Conditioning, Denoiser, NetworkOptions};
use crate::schedule::NoiseSchedule;
use crate::tensors::{doubled, host_f64};

const OPTIONS: NetworkOptions = NetworkOptions {
    device: Device::Cpu,
    dtype: DType::F32,
    seed: 0,
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// The pipeline of `replay/`, its scheduler made for consistency models of a prediction type.
fn pipeline(directory: &Path, case: &Value) -> PipelineDir {
    let replay = golden().join("replay/model");
    for file in [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ] {
        std::fs::create_dir_all(directory.join(file).parent().unwrap()).unwrap();
        std::fs::copy(replay.join(file), directory.join(file)).unwrap();
    }
    let text = std::fs::read_to_string(replay.join("scheduler/scheduler_config.json")).unwrap();
    let mut scheduler: Value = serde_json::from_str(&text).unwrap();
    scheduler["prediction_type"] = case["prediction_type"].clone();
    std::fs::create_dir_all(directory.join("scheduler")).unwrap();
    std::fs::write(directory.join("scheduler/scheduler_config.json"), scheduler.to_string()).unwrap();
    PipelineDir::open(directory).unwrap()
}

fn config(case: &Value) -> ConsistencyConfig {
    ConsistencyConfig {
        huber_c: case["huber_c"].as_f64().unwrap(),
        solver_steps: Some(case["solver_steps"].as_u64().unwrap() as usize),
        solver: match case["solver"]["guidance_scale"].as_f64() {
            None => ConsistencySolver::Data,
            Some(guidance_scale) => ConsistencySolver::Teacher(TeacherConfig {
                path: "teacher".into(),
                guidance_scale,
            }),
        },
        target: serde_json::from_value::<ConsistencyTarget>(case["target"].clone()).unwrap(),
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|number| number.as_f64().unwrap())
        .collect()
}

fn assert_close(found: f64, expected: f64, scale: f64, what: &str) {
    let error = (found - expected).abs() / expected.abs().max(scale);
    assert!(
        error <= 1e-3,
        "{what}: {found}, expected {expected} (relative error {error:.2e})"
    );
}

/// Latents of both sides, noise, and what the denoiser is told with and without a prompt.
fn inputs(case: &Value) -> (Tensor, Tensor, Conditioning, Conditioning) {
    let weights = Weights::open(&golden().join("replay/data/pairs-00000.safetensors")).unwrap();
    let rows = |name: &str, rows: &[u32]| {
        let tensor = weights.read(name, DType::F32, &Device::Cpu).unwrap();
        tensor
            .index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0)
            .unwrap()
    };
    let records: Vec<u32> = numbers(&case["records"]).iter().map(|&row| row as u32).collect();
    let sides = [rows("latents_chosen", &records), rows("latents_rejected", &records)];
    let text = Conditioning::new(rows("encoder_hidden_states", &records));
    let empty = vec![case["unprompted"].as_u64().unwrap() as u32; records.len()];
    let unprompted = Conditioning::new(rows("encoder_hidden_states", &empty));
    (
        Tensor::cat(&sides, 0).unwrap(),
        doubled(&rows("noise", &records)).unwrap(),
        text.repeat(2).unwrap(),
        unprompted.repeat(2).unwrap(),
    )
}

/// What a step of training computes of the case's records.
fn scored(case: &Value, directory: &Path) -> (TrainedDenoiser, Scored) {
    let pipeline = pipeline(directory, case);
    let adapter = AdapterConfig::Lora(LoraConfig {
        rank: 4,
        alpha: 8.0,
        init: Some(golden().join("replay/adapter")),
        ..LoraConfig::default()
    });
    let policy = TrainedDenoiser::load(
        &pipeline,
        &OPTIONS,
        &adapter,
        TextTraining::Frozen,
        CheckpointPolicy::Off,
    )
    .unwrap();
    let config = config(case);
    let teacher = config
        .teacher()
        .map(|_| Denoiser::load(&pipeline, &OPTIONS, Trainable::None, None).unwrap().0);
    let rule = Arc::new(Consistency::new(&config, "sft", policy.denoiser.schedule(), teacher).unwrap());
    let (latents, noise, told, unprompted) = inputs(case);
    // Drawn timesteps are rounded up to the solver's.
    let stride = 1000.0 / case["solver_steps"].as_f64().unwrap();
    let expected: Vec<f32> = numbers(&case["timesteps"])
        .iter()
        .map(|&timestep| timestep as f32)
        .collect();
    let drawn = [expected[0], expected[1] - stride as f32 + 1.0, expected[2] - 3.0];
    let timesteps = rule.rounded(&drawn);
    assert_eq!(timesteps, expected);
    let timesteps = timesteps.repeat(2);
    let target = |earlier: &Earlier, told: &Conditioning| match rule.target {
        ConsistencyTarget::Own => Ok(None),
        ConsistencyTarget::Reference => Reference::AdapterOff.ask(&policy, |network| earlier.clean_of(network, told)),
    };
    let told = (told, Some(&unprompted));
    let input = rule.input((&latents, &noise), timesteps, told, target).unwrap();
    let scored = Scored::new(&policy, &Reference::AdapterOff, &input, &[]).unwrap();
    (policy, scored)
}

#[test]
fn distances_losses_and_gradients_equal_pytorch() {
    let text = std::fs::read_to_string(golden().join("consistency.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (policy, scored) = scored(case, directory.path());
        let sides = [scored.narrow(0, 3).unwrap(), scored.narrow(3, 3).unwrap()];
        for (side, (own, of_reference)) in sides
            .iter()
            .zip([("chosen", "reference_chosen"), ("rejected", "reference_rejected")])
        {
            let (errors, reference) = side.host().unwrap();
            for (key, values) in [(own, errors), (of_reference, reference.unwrap())] {
                for (value, expected) in values.iter().zip(numbers(&case[key])) {
                    assert_close(*value, expected, 0.0, &format!("{name}: {key}"));
                }
            }
        }
        // Scores are minus one half of distances: the published beta is half of ours.
        let objective: Objective =
            serde_json::from_value(json!({ "dpo": { "beta": 2.0 * case["beta"].as_f64().unwrap() } })).unwrap();
        let logps = PairLogps::of(sides[0].responses().unwrap(), sides[1].responses().unwrap());
        let losses = objective.pair_losses(&logps).unwrap().losses;
        for (value, expected) in host_f64(&losses).unwrap().iter().zip(numbers(&case["losses"])) {
            assert_close(*value, expected, 0.1, &format!("{name}: losses"));
        }
        let gradients = backward(&losses.mean_all().unwrap(), &policy.params).unwrap();
        let of_case = case["gradients"].as_object().unwrap();
        assert_eq!(gradients.iter().count(), of_case.len(), "{name}");
        assert!(of_case.len() > 20, "{name}");
        for (parameter, gradient) in gradients.iter() {
            let values = host_f64(gradient).unwrap();
            let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
            let cosines = values.iter().enumerate().map(|(at, value)| value * (at as f64).cos());
            let [of_norm, of_product] = [0, 1].map(|at| of_case[parameter][at].as_f64().unwrap());
            assert_close(norm, of_norm, 1e-12, &format!("{name}: norm of {parameter}"));
            assert_close(
                cosines.sum(),
                of_product,
                of_norm,
                &format!("{name}: product of {parameter}"),
            );
        }
    }
}

#[test]
fn flows_and_steps_that_do_not_divide_the_schedule_are_refused() {
    let schedule = |value: &Value| NoiseSchedule::from_value("scheduler_config.json".as_ref(), value).unwrap();
    let flow = schedule(&json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0 }));
    let error = Consistency::new(&ConsistencyConfig::default(), "sft", &flow, None).unwrap_err();
    assert!(
        error.is_configuration() && error.to_string().contains("is a flow"),
        "{error}"
    );
    for (steps, file) in [
        (Some(30), json!({})),
        (None, json!({ "original_inference_steps": 33 })),
        (Some(2000), json!({})),
    ] {
        let config = ConsistencyConfig {
            solver_steps: steps,
            ..ConsistencyConfig::default()
        };
        let error = Consistency::new(&config, "sft", &schedule(&file), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("solver_steps") && error.contains("divisor of 1000"),
            "{error}"
        );
    }
    let rule = Consistency::new(&ConsistencyConfig::default(), "sft", &schedule(&json!({})), None).unwrap();
    assert_eq!(rule.rounded(&[0.0, 19.0, 20.0, 999.0]), [19.0, 19.0, 39.0, 999.0]);
    assert!(rule.knows(19) && !rule.knows(20) && rule.knows(999));
}
