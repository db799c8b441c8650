//! Inspection of safetensors shards.

use std::path::PathBuf;

use super::{Inspection, MAX_PREVIEWS, RecordPreview, TensorSummary};
use crate::DataFiles;
use crate::error::{Error, Result};
use crate::latent_pairs::{LatentTensors, agree};
use crate::shard;

pub(super) fn inspect(files: &DataFiles, inspection: &mut Inspection) -> Result<()> {
    let mut first: Option<(LatentTensors, PathBuf)> = None;
    let mut moments: Vec<Moments> = Vec::new();
    for path in files.files() {
        let tensors = match shard::read(path) {
            Ok(tensors) => tensors,
            Err(Error::Io { path, source }) => return Err(Error::Io { path, source }),
            Err(error) => {
                inspection.error(error.to_string());
                continue;
            }
        };
        inspection.num_records += tensors.num_records();
        if let Some((first, first_path)) = &first
            && let Err(problem) = agree(first, &tensors, first_path)
        {
            inspection.error(
                Error::Shard {
                    path: path.clone(),
                    problem,
                }
                .to_string(),
            );
            continue;
        }
        inspection.num_good_records += tensors.num_records();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        compare_sides(&tensors, &name, inspection);
        preview(&tensors, &name, inspection);
        add(&mut moments, &tensors);
        if first.is_none() {
            first = Some((tensors, path.clone()));
        }
    }
    inspection.tensors = moments.into_iter().map(Moments::finish).collect();
    Ok(())
}

fn compare_sides(tensors: &LatentTensors, name: &str, inspection: &mut Inspection) {
    for record in 0..tensors.num_records() {
        if tensors.latents_chosen.record(record) == tensors.latents_rejected.record(record) {
            inspection.num_identical_pairs += 1;
            inspection.warning(format!(
                "{name}, record {record}: chosen and rejected latents are the same"
            ));
        }
    }
}

fn preview(tensors: &LatentTensors, name: &str, inspection: &mut Inspection) {
    for record in 0..tensors.num_records() {
        if inspection.previews.len() == MAX_PREVIEWS {
            return;
        }
        let shape = &tensors.latents_chosen.shape()[1..];
        let timestep = tensors
            .timesteps
            .as_ref()
            .map(|timesteps| format!("timestep: {}", timesteps[record]));
        let images = std::iter::once(format!("latents: {shape:?}")).chain(timestep).collect();
        inspection.previews.push(RecordPreview {
            id: format!("{name}:{record}"),
            prompt: String::new(),
            images,
        });
    }
}

/// Running sums of a tensor over the shards.
struct Moments {
    name: &'static str,
    shape: Vec<usize>,
    count: f64,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

fn add(moments: &mut Vec<Moments>, tensors: &LatentTensors) {
    for (name, tensor) in tensors.floats() {
        add_values(
            moments,
            name,
            tensor.shape(),
            tensor.data().iter().map(|value| f64::from(*value)),
        );
    }
    if let Some(timesteps) = &tensors.timesteps {
        add_values(
            moments,
            "timesteps",
            &[timesteps.len()],
            timesteps.iter().map(|value| f64::from(*value)),
        );
    }
}

fn add_values(moments: &mut Vec<Moments>, name: &'static str, shape: &[usize], values: impl Iterator<Item = f64>) {
    let at = moments.iter().position(|known| known.name == name).unwrap_or_else(|| {
        let mut shape = shape.to_vec();
        shape[0] = 0;
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        moments.push(Moments {
            name,
            shape,
            count: 0.0,
            sum: 0.0,
            squares: 0.0,
            min,
            max,
        });
        moments.len() - 1
    });
    let tensor = &mut moments[at];
    tensor.shape[0] += shape[0];
    for value in values {
        tensor.count += 1.0;
        tensor.sum += value;
        tensor.squares += value * value;
        tensor.min = tensor.min.min(value);
        tensor.max = tensor.max.max(value);
    }
}

impl Moments {
    fn finish(self) -> TensorSummary {
        let mean = self.sum / self.count;
        let variance = (self.squares / self.count - mean * mean).max(0.0);
        let Self {
            name, shape, min, max, ..
        } = self;
        TensorSummary {
            name,
            shape,
            min,
            max,
            mean,
            std: variance.sqrt(),
        }
    }
}
