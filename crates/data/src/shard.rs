//! One safetensors file of the `latent-pairs` layout.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result, ShardProblem};
use crate::nearest::nearest;
use crate::{HostTensor, LatentTensors};

/// Reads and checks a shard. f16 and bf16 become f32, exactly; f64 is refused, for it would be rounded silently.
pub(crate) fn read(path: &Path) -> Result<LatentTensors> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parse(&bytes).map_err(|problem| Error::Shard {
        path: path.to_path_buf(),
        problem,
    })
}

fn parse(bytes: &[u8]) -> std::result::Result<LatentTensors, ShardProblem> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| ShardProblem::Unreadable {
        reason: error.to_string(),
    })?;
    let mut views: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    if let Some(name) = views
        .keys()
        .find(|name| !LatentTensors::NAMES.iter().any(|(known, _)| known == name))
    {
        let known = LatentTensors::NAMES.map(|(known, _)| known);
        let (nearest, expected) = (nearest(name, known), known.join(", "));
        return Err(ShardProblem::UnknownTensor {
            name: name.clone(),
            expected,
            nearest,
        });
    }
    let timesteps = views
        .remove("timesteps")
        .map(|view| integers("timesteps", &view))
        .transpose()?;
    let mut optional = |name: &'static str| views.remove(name).map(|view| floats(name, &view)).transpose();
    let tensors = LatentTensors {
        latents_chosen: required("latents_chosen", optional("latents_chosen")?)?,
        latents_rejected: required("latents_rejected", optional("latents_rejected")?)?,
        encoder_hidden_states: required("encoder_hidden_states", optional("encoder_hidden_states")?)?,
        pooled: optional("pooled")?,
        time_ids: optional("time_ids")?,
        noise: optional("noise")?,
        timesteps,
        chosen_score: optional("chosen_score")?,
        rejected_score: optional("rejected_score")?,
    };
    tensors.check()?;
    Ok(tensors)
}

fn required(name: &'static str, tensor: Option<HostTensor>) -> std::result::Result<HostTensor, ShardProblem> {
    let shape = LatentTensors::NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("", |(_, shape)| shape);
    tensor.ok_or(ShardProblem::MissingTensor { name, shape, hint: "" })
}

fn floats(name: &str, view: &TensorView<'_>) -> std::result::Result<HostTensor, ShardProblem> {
    let data = match view.dtype() {
        Dtype::F32 => values(view, f32::from_le_bytes),
        Dtype::F16 => values(view, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => values(view, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        found => return Err(dtype(name, found, "F32, F16 or BF16")),
    };
    check_size(name, view)?;
    Ok(HostTensor::from_checked(view.shape().to_vec(), data))
}

/// `(N)` timesteps of any integer type; `PyTorch` writes I64.
fn integers(name: &str, view: &TensorView<'_>) -> std::result::Result<Vec<u32>, ShardProblem> {
    let wide: Vec<i128> = match view.dtype() {
        Dtype::I64 => values(view, |bytes| i64::from_le_bytes(bytes).into()),
        Dtype::U64 => values(view, |bytes| u64::from_le_bytes(bytes).into()),
        Dtype::I32 => values(view, |bytes| i32::from_le_bytes(bytes).into()),
        Dtype::U32 => values(view, |bytes| u32::from_le_bytes(bytes).into()),
        Dtype::I16 => values(view, |bytes| i16::from_le_bytes(bytes).into()),
        Dtype::U16 => values(view, |bytes| u16::from_le_bytes(bytes).into()),
        Dtype::U8 => values(view, |[byte]: [u8; 1]| byte.into()),
        found => return Err(dtype(name, found, "an integer type (I64, I32, U32, …)")),
    };
    check_size(name, view)?;
    if view.shape().len() != 1 {
        let (name, found) = (name.to_owned(), view.shape().to_vec());
        return Err(ShardProblem::Shape {
            name,
            found,
            expected: "(N)".to_owned(),
        });
    }
    let narrow = |(record, value): (usize, i128)| {
        u32::try_from(value).map_err(|_| ShardProblem::Timestep {
            record,
            found: value.to_string(),
        })
    };
    wide.into_iter().enumerate().map(narrow).collect()
}

fn values<const BYTES: usize, T>(view: &TensorView<'_>, read: impl Fn([u8; BYTES]) -> T) -> Vec<T> {
    view.data()
        .as_chunks::<BYTES>()
        .0
        .iter()
        .map(|bytes| read(*bytes))
        .collect()
}

fn check_size(name: &str, view: &TensorView<'_>) -> std::result::Result<(), ShardProblem> {
    if !view.shape().is_empty() && !view.shape().contains(&0) {
        return Ok(());
    }
    let expected = "at least one dimension and none of size 0".to_owned();
    Err(ShardProblem::Shape {
        name: name.to_owned(),
        found: view.shape().to_vec(),
        expected,
    })
}

fn dtype(name: &str, found: Dtype, expected: &'static str) -> ShardProblem {
    ShardProblem::Dtype {
        name: name.to_owned(),
        found: format!("{found:?}"),
        expected,
    }
}
