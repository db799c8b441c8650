//! Checkpoints of `tests/golden/judges`: every value is a function of its tensor's name and place, so that none is stored.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diptych_tensor::{Device, Tensor, Weights};

/// A file or directory of the golden vectors of judges.
pub(crate) fn golden_judge(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/judges")
        .join(name)
}

/// The tensors that the `tensors.json` of a directory names.
pub(crate) fn seeded_tensors(directory: &str) -> BTreeMap<String, Tensor> {
    let path = golden_judge(directory).join("tensors.json");
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    shapes
        .into_iter()
        .map(|(name, shape)| {
            let tensor = Tensor::from_vec(seeded(&name, &shape), shape, &Device::Cpu).unwrap();
            (name, tensor)
        })
        .collect()
}

/// [`seeded_tensors`] as a checkpoint.
pub(crate) fn seeded_weights(directory: &str) -> Weights {
    Weights::from_tensors(golden_judge(directory), seeded_tensors(directory))
}

/// splitmix64 of the FNV-1a hash of the name and the element's index, scaled to the fan-in.
fn seeded(name: &str, shape: &[usize]) -> Vec<f32> {
    let tag = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |tag, byte| {
        (tag ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let count: usize = shape.iter().product();
    let fan_in: usize = shape.iter().skip(1).product();
    let scale = (3.0 / fan_in as f64).sqrt();
    (1..=count as u64)
        .map(|index| {
            let mut z = tag.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let unit = (z >> 40) as f64 / f64::from(1_u32 << 23) - 1.0;
            (match shape.len() {
                0 => 2.0 + 0.5 * unit,
                1 => 0.2 * unit + f64::from(u8::from(name.ends_with("weight"))),
                _ => unit * scale,
            }) as f32
        })
        .collect()
}
