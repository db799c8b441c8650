//! Which layers recompute their activations: those that the recipe says, or as few as a budget of memory allows.

use diptych_models::vlm::{TowerConfig, VisionConfig};
use diptych_tensor::CheckpointPolicy;
use diptych_train::{Component, GradientCheckpointing, MemoryEstimate};

use super::memory;
use super::run::{Counted, Parts, count};
use crate::method::network_options;
use crate::{Error, Result};

const KEY: &str = "train.gradient_checkpointing.memory";

/// Goes through a run with the layers that the recipe says, or, within a budget, with as few as possible; `parts` then has them.
pub(super) fn count_within(parts: &mut Parts<'_>, process: Option<&Component>) -> Result<Counted> {
    let mib = match parts.recipe.train.gradient_checkpointing {
        GradientCheckpointing::Blocks(policy) => {
            parts.checkpointing = policy;
            return count(parts);
        }
        GradientCheckpointing::Memory { mib } => mib,
    };
    if !network_options(parts.recipe)?.device.is_cpu() {
        return Err(Error::Recipe {
            key: KEY.into(),
            problem: "is a budget of the CPU: what a GPU keeps of a step is not counted".into(),
            hint: "set `train.gradient_checkpointing` to `true` or `{ every = BLOCKS }`".into(),
        });
    }
    let mut least = u64::MAX;
    for policy in CheckpointPolicy::candidates(num_layers(parts)) {
        parts.checkpointing = policy;
        let counted = count(parts)?;
        let bytes = total(&memory(&counted, process.cloned()));
        if bytes <= mib << 20 {
            return Ok(counted);
        }
        least = least.min(bytes);
    }
    Err(Error::Recipe {
        key: KEY.into(),
        problem: format!(
            "is {mib} MiB, and this run needs {} MiB also where activations are recomputed",
            least.div_ceil(1 << 20)
        ),
        hint: "allow that much, or make `train.micro_batch` or `data.max_len` smaller".into(),
    })
}

/// What a budget comes to, for the plan.
pub(super) fn note(parts: &Parts<'_>) -> Option<String> {
    let GradientCheckpointing::Memory { mib } = parts.recipe.train.gradient_checkpointing else {
        return None;
    };
    Some(match parts.checkpointing {
        CheckpointPolicy::Off => format!("Within {mib} MiB nothing is recomputed."),
        CheckpointPolicy::ALL => format!("Within {mib} MiB the activations of every layer are recomputed."),
        CheckpointPolicy::Every(num) => {
            format!("Within {mib} MiB the activations of one layer of {num} are recomputed.")
        }
    })
}

fn total(memory: &MemoryEstimate) -> u64 {
    memory.components.iter().map(|component| component.bytes).sum()
}

/// Of the decoder or the tower, whichever has more.
fn num_layers(parts: &Parts<'_>) -> usize {
    let of_tower = parts.vision.map_or(0, |vision| match vision.loading.config {
        VisionConfig::Llava(llava) => match &llava.tower {
            TowerConfig::Clip(clip) => clip.num_hidden_layers,
            TowerConfig::Siglip(siglip) => siglip.num_hidden_layers,
        },
        VisionConfig::Qwen(qwen) => qwen.depth,
    });
    parts.config.layers.len().max(of_tower)
}
