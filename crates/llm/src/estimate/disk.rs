//! What stays in the run directory.

use std::path::Path;

use diptych_models::AdapterConfig;
use diptych_train::{Component, ReferenceConfig};

use super::network::WIDE;
use super::run::{Counted, Parts};

/// Bytes of a logged row: in `metrics.jsonl`, and in the event file.
const ROW_BYTES: u64 = 1200 + 1800;
/// Bytes of a token in text, about.
const TOKEN_BYTES: u64 = 4;

/// Checkpoints, the result, samples and logs.
pub(super) fn disk(parts: &Parts<'_>, counted: &Counted, model: &Path) -> Vec<Component> {
    let train = &parts.recipe.train;
    let num_steps = parts.sizes.num_steps;
    let trained = (counted.num_trained * WIDE) as u64;
    let times = |every: u64| if every == 0 { 0 } else { num_steps.div_ceil(every) };
    let mut copies = 1;
    let moments = counted.state_bytes as u64;
    let mut what = "weights and moments".to_owned();
    if train.ema_decay.is_some() {
        copies += 1;
        what.push_str(", averages");
    }
    if matches!(parts.recipe.reference, ReferenceConfig::Ema { .. }) {
        copies += 1;
        what.push_str(", moving reference");
    }
    let written = times(train.checkpoint_every);
    let kept = match train.keep_checkpoints as u64 {
        0 => written,
        keep => written.min(keep),
    };
    let mut disk = Vec::new();
    if kept > 0 {
        disk.push(Component::new(
            "checkpoints",
            kept * (copies * trained + moments),
            format!("{kept} of them: {what}"),
        ));
    }
    let (tokenizer, note) = match parts.adapter {
        AdapterConfig::Full(_) => (tokenizer_bytes(model), "weights and tokenizer"),
        AdapterConfig::Lora(_) => (0, "adapter"),
    };
    disk.push(Component::new("final", trained + tokenizer, note));
    if let Some(sampling) = parts.samples {
        let tokens = (sampling.num_prompts * (sampling.longest + 2 * sampling.max_new_tokens)) as u64;
        let files = times(train.sample_every);
        disk.push(Component::new(
            "samples",
            files * tokens * TOKEN_BYTES,
            format!("{files} files"),
        ));
    }
    let rows = times(train.log_every);
    disk.push(Component::new("logs", rows * ROW_BYTES, format!("{rows} rows, twice")));
    disk
}

/// The tokenizer's files, as far as they are there.
fn tokenizer_bytes(model: &Path) -> u64 {
    crate::policy::TOKENIZER_FILES
        .iter()
        .filter_map(|name| std::fs::metadata(model.join(name)).ok())
        .map(|metadata| metadata.len())
        .sum()
}
