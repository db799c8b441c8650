//! Prompts of SPO.
//!
//! Liang et al., "Step-aware Preference Optimization", CVPR 2025, arXiv:2406.04314: `assets/prompts/4k_training_prompts.json`, an array of
//! `{"caption", "trainset_idx"}`. `trainset_idx` is a row of Pick-a-Pic version 1 and becomes the id.

use super::ImageRow;
use crate::ImagePrompt;
use crate::error::Result;
use crate::json::Value;
use crate::row::Row;

pub(super) const KEYS: [&str; 2] = ["caption", "trainset_idx"];

pub(super) fn read(mut row: Row) -> Result<ImageRow> {
    let prompt = row.take_string("caption")?;
    let id = match row.take_value("trainset_idx") {
        None => row.take_id()?,
        Some(Value::Number(number)) if number.is_u64() => number.to_string(),
        Some(found) => return Err(row.wrong_type("trainset_idx", &found, "a number from 0")),
    };
    Ok(ImageRow::Prompt(ImagePrompt { id, prompt }))
}
