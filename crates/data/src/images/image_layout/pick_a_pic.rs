//! Pick-a-Pic, versions 1 and 2, and data in its columns: Pick-Style, Pick-Safety and others of MaPO.
//!
//! Kirstain et al., "Pick-a-Pic: An Open Dataset of User Preferences for Text-to-Image Generation", NeurIPS 2023, arXiv:2305.01569.
//! Columns: `caption`, `jpg_0` and `jpg_1` (encoded images), `label_0` and `label_1` (1 preferred, 0 not, ½ a tie; their sum is 1),
//! `has_label`, `are_different`, `user_id`. MaPO's have `caption`, `jpg_0`, `jpg_1`, `label_0`, `label_1` alone, the labels as integers.
//!
//! A row with `has_label` false, or else with `are_different` false, is left out whatever its labels say.

use super::ImageRow;
use crate::error::Result;
use crate::row::Row;
use crate::{ImagePair, LeftOut};

pub(super) const KEYS: [&str; 8] = [
    "caption",
    "jpg_0",
    "jpg_1",
    "label_0",
    "label_1",
    "has_label",
    "are_different",
    "user_id",
];

/// Columns of the published data that say nothing about the preference.
pub(super) const UNREAD: [&str; 11] = [
    "best_image_uid",
    "created_at",
    "image_0_uid",
    "image_0_url",
    "image_1_uid",
    "image_1_url",
    "model_0",
    "model_1",
    "ranking_id",
    "num_example_per_prompt",
    "__index_level_0__",
];

/// Labels are sums of votes that were divided: this much is rounding.
const TOLERANCE: f64 = 1e-6;

pub(super) fn read(mut row: Row) -> Result<ImageRow> {
    let has_label = row.take_optional_bool("has_label")?;
    let are_different = row.take_optional_bool("are_different")?;
    let prompt = row.take_string("caption")?;
    let (first, second) = (row.take_image("jpg_0")?, row.take_image("jpg_1")?);
    if has_label == Some(false) {
        return Ok(ImageRow::LeftOut(LeftOut::NoLabel));
    }
    let label = row.take_required_number("label_0")?;
    let other = row.take_number("label_1")?.unwrap_or(1.0 - label);
    if !(0.0..=1.0).contains(&label) {
        return Err(row.conflict("label_0", format!("is {label}; expected a number from 0 to 1")));
    }
    if (label + other - 1.0).abs() > TOLERANCE {
        let reason = format!("is {other} where `label_0` is {label}; expected a sum of 1");
        return Err(row.conflict("label_1", reason));
    }
    if are_different == Some(false) {
        return Ok(ImageRow::LeftOut(LeftOut::SameImages));
    }
    let user_id = row.take_name("user_id")?;
    let id = row.take_id()?;
    let pair = |chosen, rejected| ImagePair {
        user_id,
        ..ImagePair::new(id, prompt, chosen, rejected)
    };
    Ok(if (label - 0.5).abs() <= TOLERANCE {
        ImageRow::Tie(pair(first, second))
    } else if label > 0.5 {
        ImageRow::Pair(pair(first, second))
    } else {
        ImageRow::Pair(pair(second, first))
    })
}
