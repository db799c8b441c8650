//! Steps as distributions, their log-probabilities and gradients, and inversion, against values from PyTorch
//! (`tests/golden/schedulers`).

use diptych_diffusion::inversion::Inversion;
use diptych_diffusion::sampler::{FinalLevel, SamplerConfig, SamplerKind, Transition};
use diptych_diffusion::{Error, sampler};
use diptych_tensor::{Device, Params, Tensor, backward};
use serde_json::Value;

use crate::schedulers::{assert_close, golden, matrix, numbers, output, schedule, values};

/// (B, 6) in the file, (B, 6, 1, 1) here.
fn latents(value: &Value) -> Tensor {
    let matrix = matrix(value);
    let (rows, columns) = matrix.dims2().unwrap();
    matrix.reshape((rows, columns, 1, 1)).unwrap()
}

fn prepare(case: &Value) -> sampler::Sampler {
    let kind: SamplerKind = serde_json::from_value(case["sampler"].clone()).unwrap();
    let config = SamplerConfig {
        kind,
        num_steps: case["num_inference_steps"].as_u64().unwrap() as usize,
        eta: case["eta"].as_f64().unwrap(),
        final_level: FinalLevel::FirstTimestep,
    };
    config.prepare(&schedule(case)).unwrap()
}

#[test]
fn distributions_log_probabilities_and_gradients() {
    let golden = golden("transitions.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let steps: Vec<usize> = numbers(&case["steps"]).iter().map(|&step| step as usize).collect();
        let mut params = Params::new();
        let prediction = params.insert("prediction", &latents(&case["prediction"])).unwrap();
        let before = params.insert("latents", &latents(&case["latents"])).unwrap();
        let transition = prepare(case).transitions(&prediction, &steps, &before).unwrap();
        assert_close(&values(&transition.mean), &values(&matrix(&case["mean"])), 1e-6, name);
        assert_close(&values(&transition.clean), &values(&matrix(&case["clean"])), 1e-6, name);
        for (found, expected) in transition.stds.iter().zip(numbers(&case["std"])) {
            assert!(
                (found - expected).abs() < 1e-6 * expected,
                "{name}: {found}, expected {expected}"
            );
        }
        let log_probs = transition.log_probs(&latents(&case["next"])).unwrap();
        assert_close(&values(&log_probs), &numbers(&case["log_probs"]), 1e-6, name);
        let weights = Tensor::new(numbers(&case["weights"]), &Device::Cpu).unwrap();
        let loss = (log_probs * weights).unwrap().sum_all().unwrap();
        let gradients = backward(&loss, &params).unwrap();
        for (parameter, key) in [("prediction", "grad_prediction"), ("latents", "grad_latents")] {
            let found = values(gradients.get(parameter).unwrap());
            let expected = values(&matrix(&case[key]));
            let largest = expected.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
            assert!(largest > 0.0, "{name} {key}");
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5 * largest,
                    "{name} {key}: {found}, expected {expected}"
                );
            }
        }
    }
}

/// The example of SPO's loss: log-probabilities of two results of one step under two networks.
#[test]
fn log_probabilities_are_means_over_components() {
    let state = |values: [f64; 4]| Tensor::new(&[[[values]]], &Device::Cpu).unwrap();
    let [chosen, rejected] = [[0.5, -0.2, 0.1, 0.0], [-0.4, 0.3, 0.2, -0.1]].map(state);
    let under = |mean: [f64; 4], next: &Tensor| {
        let transition = Transition {
            mean: state(mean),
            stds: vec![0.3],
            clean: state(mean),
        };
        values(&transition.log_probs(next).unwrap())[0]
    };
    let [policy, reference] = [[0.45, -0.15, 0.05, 0.02], [0.4, -0.1, 0.0, 0.05]];
    for (found, expected) in [
        (under(policy, &chosen), 0.274_062_048_899_041_3),
        (under(reference, &chosen), 0.239_895_382_232_374_55),
        (under(policy, &rejected), -1.050_937_951_100_959_1),
        (under(reference, &rejected), -0.912_882_395_545_403_5),
    ] {
        assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
    }
}

#[test]
fn steps_without_noise_have_no_log_probability() {
    let case = serde_json::json!({"config": {"_class_name": "DDIMScheduler", "set_alpha_to_one": true}});
    let table = schedule(&case);
    let deterministic = SamplerKind::Ddim.prepare(&table, 5).unwrap();
    let error = deterministic.ensure_density().unwrap_err();
    assert!(
        error.is_configuration() && error.to_string().contains("`eta`"),
        "{error}"
    );
    let config = SamplerConfig {
        eta: 1.0,
        ..SamplerConfig::new(SamplerKind::Ddim, 5)
    };
    let stochastic = config.prepare(&table).unwrap();
    stochastic.ensure_density().unwrap();
    let x = Tensor::zeros((2, 6, 1, 1), diptych_tensor::DType::F64, &Device::Cpu).unwrap();
    // The last step ends without noise here.
    let transition = stochastic.transitions(&x, &[0, 4], &x).unwrap();
    assert!(matches!(transition.log_probs(&x), Err(Error::NoDensity { .. })));
    assert!(matches!(transition.sample(None), Err(Error::MissingNoise)));
    assert!(stochastic.transitions(&x, &[0], &x).is_err());
}

#[test]
fn fresh_noise_is_refused_where_a_sampler_has_no_choice() {
    let discrete = schedule(&serde_json::json!({"config": {}}));
    let flow = schedule(&serde_json::json!({"config": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}));
    let prepare = |kind, eta, schedule| {
        SamplerConfig {
            eta,
            ..SamplerConfig::new(kind, 4)
        }
        .prepare(schedule)
    };
    for (kind, eta) in [
        (SamplerKind::Ddpm, 0.5),
        (SamplerKind::Euler, 1.0),
        (SamplerKind::EulerAncestral, 1.0),
        (SamplerKind::DpmSolverPp2m, 0.1),
        (SamplerKind::Lcm, 0.1),
        (SamplerKind::Ddim, 1.5),
        (SamplerKind::Ddim, -0.5),
        (SamplerKind::Ddim, f64::NAN),
    ] {
        assert!(
            matches!(prepare(kind, eta, &discrete), Err(Error::Setting { key: "eta", .. })),
            "{kind} {eta}"
        );
    }
    assert!(prepare(SamplerKind::FlowEuler, -0.1, &flow).is_err());
    for (kind, schedule) in [(SamplerKind::Ddim, &flow), (SamplerKind::FlowEuler, &discrete)] {
        let error = prepare(kind, 0.0, schedule).unwrap_err();
        assert!(
            error.is_configuration() && error.to_string().contains("_class_name"),
            "{error}"
        );
    }
}

#[test]
fn inversions() {
    let golden = golden("inversion.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    let initial = numbers(&golden["initial"]);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let num_steps = case["num_inference_steps"].as_u64().unwrap() as usize;
        let inversion = Inversion::new(&schedule(case), num_steps).unwrap();
        let timesteps: Vec<f64> = inversion
            .timesteps()
            .iter()
            .map(|&timestep| f64::from(timestep))
            .collect();
        assert_close(&timesteps, &numbers(&case["timesteps"]), 1e-6, name);
        let until: Vec<f32> = numbers(&case["until"]).iter().map(|&bound| bound as f32).collect();
        let batch = Tensor::from_vec(
            initial.repeat(until.len()),
            (until.len(), initial.len(), 1, 1),
            &Device::Cpu,
        );
        let renoise = case["num_renoise"].as_u64().unwrap() as usize;
        // The network of the file sees one image: each row of a batch goes through it alone.
        let inverted = inversion
            .invert(&batch.unwrap(), &until, renoise, |latents, timestep, rows| {
                assert_eq!(latents.dims()[0], rows.len());
                let predictions: Vec<Tensor> = (0..rows.len())
                    .map(|row| output(&latents.narrow(0, row, 1).unwrap(), timestep))
                    .collect();
                Ok(Tensor::cat(&predictions, 0).map_err(diptych_tensor::Error::from)?)
            })
            .unwrap();
        for (row, trajectory) in case["trajectories"].as_array().unwrap().iter().enumerate() {
            let trajectory = trajectory.as_array().unwrap();
            let expected = trajectory.last().map_or_else(|| initial.clone(), numbers);
            let found = values(&inverted.latents.narrow(0, row, 1).unwrap());
            assert_close(&found, &expected, 1e-5, &format!("{name} row {row}"));
            let reached = trajectory.len().checked_sub(1).map(|last| timesteps[last] as f32);
            assert_eq!(inverted.timesteps[row], reached, "{name} row {row}");
        }
    }
    let linspace = serde_json::json!({"config": {"timestep_spacing": "linspace"}});
    let error = Inversion::new(&schedule(&linspace), 10).unwrap_err().to_string();
    assert!(error.contains("timestep_spacing"), "{error}");
}
