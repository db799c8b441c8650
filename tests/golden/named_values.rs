//! Weights that are a function of their parameter's name, as `named_values.py` makes them: for tests that include this file.

use std::collections::BTreeMap;

use diptych_models::{Builder, BuilderConfig, Trainable};
use diptych_tensor::{Device, Tensor};

/// Numbers of unit variance from the name.
pub(crate) fn uniform(name: &str, count: usize) -> Vec<f64> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let number = |i: u64| {
        let mut z = i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        3_f64.sqrt() * (2.0 * (z >> 11) as f64 * 2_f64.powi(-53) - 1.0)
    };
    (1..=count as u64).map(number).collect()
}

/// The weights of parameter `name`, in f32.
pub(crate) fn named(name: &str, shape: &[usize]) -> Tensor {
    let fan_in = (shape[1..].iter().product::<usize>() as f64).sqrt();
    let value = |x: f64| match (shape.len(), name.ends_with("weight")) {
        (1, true) => 0.1 * x + 1.0,
        (1, false) => 0.1 * x,
        _ => x / fan_in,
    };
    let values: Vec<f32> = uniform(name, shape.iter().product())
        .into_iter()
        .map(|x| value(x) as f32)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The weights of a network, for every parameter that `load` asks for.
pub(crate) fn named_tensors<T>(load: impl Fn(&Builder<'_>) -> diptych_models::Result<T>) -> BTreeMap<String, Tensor> {
    let builder = Builder::new(BuilderConfig {
        trainable: Trainable::All,
        ..BuilderConfig::new(None)
    })
    .unwrap();
    drop(load(&builder).unwrap());
    let params = builder.finish().unwrap();
    let tensor = |(name, var): (&str, &diptych_tensor::Var)| (name.to_owned(), named(name, var.dims()));
    params.iter().map(tensor).collect()
}
