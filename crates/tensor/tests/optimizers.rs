//! Optimizers whose state takes less memory, against values of programs that share no code with ours.
#![expect(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::collections::BTreeMap;

use diptych_tensor::optim::{AdafactorConfig, AdamWConfig, MomentFormat, Optimizer, OptimizerConfig, StateTensor};
use diptych_tensor::{DType, Device, Error, Gradients, Params, Tensor, backward};
use serde_json::Value;

const GOLDEN: &str = include_str!("../../../tests/golden/optimizers.json");

fn golden(section: &str) -> Vec<Value> {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    golden[section].as_array().unwrap().clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn dims(value: &Value) -> Vec<usize> {
    numbers(value).into_iter().map(|x| x as usize).collect()
}

/// The generator's first values.
fn start(dims: &[usize], dtype: DType) -> Params {
    let values: Vec<f32> = (0..dims.iter().product())
        .map(|i: usize| (i as f64 * 0.7341 + 0.1).sin() as f32)
        .collect();
    let mut params = Params::new();
    let value = Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
    params.insert("w", &value.to_dtype(dtype).unwrap()).unwrap();
    params
}

/// The generator's gradient of a step, by way of a loss that has it.
fn gradients(params: &Params, step: u64) -> Gradients {
    let w = params.get("w").unwrap();
    let values: Vec<f32> = (0..w.elem_count())
        .map(|i| ((i as f64 * 0.37 + 1.3 * step as f64).sin() * 10f64.powi(-((i % 5) as i32))) as f32)
        .collect();
    let gradient = Tensor::from_vec(values, w.dims(), &Device::Cpu).unwrap();
    let gradient = gradient.to_dtype(w.dtype()).unwrap();
    backward(&(w.as_tensor() * gradient).unwrap().sum_all().unwrap(), params).unwrap()
}

fn values(params: &Params) -> Vec<f64> {
    let w = params.get("w").unwrap().to_dtype(DType::F64).unwrap();
    w.flatten_all().unwrap().to_vec1().unwrap()
}

fn int8(block: usize) -> OptimizerConfig {
    OptimizerConfig::Adamw(AdamWConfig {
        lr: 1e-2,
        state: MomentFormat::Int8 { block },
        ..AdamWConfig::default()
    })
}

#[test]
fn moments_in_eight_bits_are_those_of_the_published_rules() {
    let cases = golden("adamw_int8");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let (block, every) = (
            case["block"].as_u64().unwrap() as usize,
            case["every"].as_u64().unwrap() as usize,
        );
        let params = start(&dims(&case["shape"]), DType::F32);
        let mut optimizer = Optimizer::new(&params, &int8(block)).unwrap();
        for step in 1..=case["steps"].as_u64().unwrap() {
            optimizer.step(&params, &gradients(&params, step), 1e-2).unwrap();
        }
        let expected = numbers(&case["values"]);
        let found: Vec<f64> = values(&params).into_iter().step_by(every).collect();
        assert_eq!(found.len(), expected.len());
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!(
                (found - expected).abs() < 1e-5,
                "block {block}, value {i}: {found} {expected}"
            );
        }
        let state = optimizer.state(&params).unwrap();
        for (part, codes) in [("w.exp_avg", "codes"), ("w.exp_avg_sq", "codes_sq")] {
            let found: Vec<u8> = state[part].flatten_all().unwrap().to_vec1().unwrap();
            let expected = numbers(&case[codes]);
            let others = found
                .iter()
                .step_by(every)
                .zip(&expected)
                .filter(|(a, b)| f64::from(**a) != **b)
                .count();
            // A number in the middle of two entries may fall to either side.
            assert!(
                others * 50 <= expected.len(),
                "block {block}, {part}: {others} of {} differ",
                expected.len()
            );
        }
        for (part, scales) in [("w.exp_avg.absmax", "absmax"), ("w.exp_avg_sq.absmax", "absmax_sq")] {
            let found: Vec<f32> = state[part].to_vec1().unwrap();
            let expected = numbers(&case[scales]);
            assert_eq!(found.len(), expected.len());
            assert!(
                found
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-6 * b),
                "{part}"
            );
        }
    }
}

#[test]
fn adafactor_is_that_of_transformers() {
    let cases = golden("adafactor");
    assert_eq!(cases.len(), 4);
    for case in cases {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            let params = start(&dims(&case["shape"]), dtype);
            let config: AdafactorConfig = serde_json::from_value(case["settings"].clone()).unwrap();
            let mut optimizer = Optimizer::new(&params, &OptimizerConfig::Adafactor(config)).unwrap();
            for step in 1..=case["steps"].as_u64().unwrap() {
                let lr = case["lr"].as_f64().unwrap();
                optimizer.step(&params, &gradients(&params, step), lr).unwrap();
            }
            for (found, expected) in values(&params).iter().zip(numbers(&case["values"])) {
                assert!(
                    (found - expected).abs() < tolerance,
                    "{case} {dtype:?}: {found} {expected}"
                );
            }
        }
    }
}

fn every_config() -> Vec<OptimizerConfig> {
    let adamw = |state| {
        OptimizerConfig::Adamw(AdamWConfig {
            state,
            ..AdamWConfig::default()
        })
    };
    let adafactor = |beta1| {
        OptimizerConfig::Adafactor(AdafactorConfig {
            beta1,
            ..AdafactorConfig::default()
        })
    };
    vec![
        adamw(MomentFormat::Full),
        adamw(MomentFormat::Bf16),
        adamw(MomentFormat::Int8 { block: 256 }),
        adafactor(None),
        adafactor(Some(0.9)),
    ]
}

#[test]
fn a_restored_optimizer_continues_bit_for_bit_whatever_it_keeps() {
    for config in every_config() {
        let params = start(&[70, 90], DType::F32);
        let mut optimizer = Optimizer::new(&params, &config).unwrap();
        let step = |optimizer: &mut Optimizer, step| optimizer.step(&params, &gradients(&params, step), 1e-3).unwrap();
        (1..4).for_each(|i| step(&mut optimizer, i));
        let (state, weights) = (optimizer.state(&params).unwrap(), params.snapshot().unwrap());
        (4..6).for_each(|i| step(&mut optimizer, i));
        let uninterrupted = values(&params);

        params.load(&weights).unwrap();
        let mut restored = Optimizer::restore(&params, &config, &state, 3).unwrap();
        (4..6).for_each(|i| step(&mut restored, i));
        assert_eq!(values(&params), uninterrupted, "{config:?}");

        let layout = config.state_layout(&params);
        assert_eq!(layout.len(), state.len());
        let bytes: u64 = layout.iter().map(StateTensor::bytes).sum();
        assert_eq!(bytes, config.state_bytes(&[70, 90]), "{config:?}");
        for part in layout {
            assert_eq!(
                (state[&part.name].dims(), state[&part.name].dtype()),
                (part.dims.as_slice(), part.dtype)
            );
        }
        let missing: BTreeMap<String, Tensor> = state.into_iter().skip(1).collect();
        let refused = Optimizer::restore(&params, &config, &missing, 3);
        assert!(matches!(refused, Err(Error::ParameterNames { .. })), "{config:?}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for config in every_config() {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let params = start(&[300, 200], DType::F32);
                let mut optimizer = Optimizer::new(&params, &config).unwrap();
                (1..4).for_each(|i| optimizer.step(&params, &gradients(&params, i), 1e-3).unwrap());
                values(&params)
            })
        };
        assert_eq!(run(1), run(3), "{config:?}");
    }
}

/// What the formats are for: bytes a parameter, of a parameter large enough for all of them.
#[test]
fn state_takes_the_bytes_that_were_promised() {
    let bytes = |config: &OptimizerConfig| config.state_bytes(&[512, 1024]) as f64 / (512.0 * 1024.0);
    let per_parameter: Vec<f64> = every_config().iter().map(bytes).collect();
    let (of_means, of_scales) = (4.0 * 1536.0 / (512.0 * 1024.0), 8.0 / 256.0);
    assert_eq!(per_parameter, [8.0, 4.0, 2.0 + of_scales, of_means, 4.0 + of_means]);
    // A small one is not worth the loss.
    assert_eq!(int8(256).state_bytes(&[63, 65]), 63 * 65 * 8);
}

/// With decay of 0.999 a second moment changes by less than half of bf16's last place: rounded to nearest it would never fall.
#[test]
fn a_second_moment_in_bf16_decays() {
    let config = OptimizerConfig::Adamw(AdamWConfig {
        lr: 0.0,
        state: MomentFormat::Bf16,
        ..AdamWConfig::default()
    });
    let params = start(&[64, 64], DType::F32);
    let mut optimizer = Optimizer::new(&params, &config).unwrap();
    optimizer.step(&params, &gradients(&params, 1), 0.0).unwrap();
    let second = |optimizer: &Optimizer| -> f64 {
        let moment = optimizer.state(&params).unwrap()["w.exp_avg_sq"]
            .to_dtype(DType::F64)
            .unwrap();
        moment.sum_all().unwrap().to_scalar().unwrap()
    };
    let (before, zero) = (second(&optimizer), params.get("w").unwrap().zeros_like().unwrap());
    let loss = (params.get("w").unwrap().as_tensor() * zero)
        .unwrap()
        .sum_all()
        .unwrap();
    let nothing = backward(&loss, &params).unwrap();
    (0..200).for_each(|_| optimizer.step(&params, &nothing, 0.0).unwrap());
    let expected = before * 0.999f64.powi(200);
    assert!(
        (second(&optimizer) - expected).abs() < 0.01 * expected,
        "{} {expected}",
        second(&optimizer)
    );
}

#[test]
fn formats_without_a_kernel_are_refused() {
    let params = start(&[64, 64], DType::F64);
    let refused = Optimizer::new(&params, &int8(256));
    assert!(matches!(
        refused,
        Err(Error::Operand {
            op: "adamw",
            what: "state",
            ..
        })
    ));
}

/// A recipe's words, and that the default adds none to plans of runs that were begun without it.
#[test]
fn formats_are_read_from_recipes() {
    let read = |text: &str| serde_json::from_str::<OptimizerConfig>(text);
    let OptimizerConfig::Adamw(adamw) = read(r#"{"adamw": {"state": {"int8": {}}}}"#).unwrap() else {
        panic!("another optimizer")
    };
    assert_eq!(adamw.state, MomentFormat::Int8 { block: 256 });
    assert!(read(r#"{"adamw": {"state": "bf16"}}"#).is_ok());
    assert!(read(r#"{"adafactor": {"lr": 0.001, "relative_step": true}}"#).is_err());
    assert!(
        !serde_json::to_string(&OptimizerConfig::default())
            .unwrap()
            .contains("state")
    );
}
