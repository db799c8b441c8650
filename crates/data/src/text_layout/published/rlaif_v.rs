//! RLHF-V-Dataset and RLAIF-V-Dataset.
//!
//! Sources: the cards of openbmb/RLHF-V-Dataset (Yu et al., CVPR 2024, arXiv:2312.00849) and openbmb/RLAIF-V-Dataset (Yu et al.,
//! CVPR 2025, arXiv:2405.17220), and RLHF-V/RLAIF-V `muffin/data/datasets.py`. The older of the two has question and answers as
//! JSON inside `text`. Copies that the authors' trainer writes carry the log-probabilities under the reference as JSON in `logps`:
//! `[chosen, mean, per token, rejected, mean, per token]`, or that under a key `logps`.

use super::{FOLDERS, FORM, answered};
use crate::TextPair;
use crate::error::Result;
use crate::json::{Object, Value};
use crate::row::Row;
use crate::text_layout::Form;

/// Of rows with question and answers in columns of their own.
pub(in crate::text_layout) const KEYS: [&str; 8] = [
    "image",
    "question",
    "chosen",
    "rejected",
    "idx",
    "image_path",
    "logps",
    "id",
];

/// Of rows with them inside `text`.
pub(in crate::text_layout) const TEXT_KEYS: [&str; 7] = [
    "image",
    "text",
    "idx",
    "origin_split_inner_idx",
    "image_path",
    "logps",
    "id",
];

const TEXT: &str = "question, chosen and rejected as strings, in an object or its JSON";

pub(in crate::text_layout) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let question = row.take_string("question")?;
    let sides = [row.take_string("chosen")?, row.take_string("rejected")?];
    finish(row, question, sides)
}

pub(in crate::text_layout) fn pair_in_text(row: &mut Row) -> Result<(TextPair, Form)> {
    let text = row.take_value("text").ok_or_else(|| row.missing("text", TEXT))?;
    let Object(fields) = match &text {
        Value::Object(object) => object.clone(),
        Value::String(json) => serde_json::from_str(json).map_err(|_| row.wrong_type("text", &text, TEXT))?,
        found => return Err(row.wrong_type("text", found, TEXT)),
    };
    // Read as a row of its own, so that its keys are checked as those of rows are; errors name where it stands.
    let known = ["question", "chosen", "rejected"].map(|key| format!("text.{key}"));
    let mut inner = Row {
        path: row.path.clone(),
        number: row.number,
        fields: fields
            .into_iter()
            .map(|(key, value)| (format!("text.{key}"), value))
            .collect(),
    };
    inner.check_keys(&known.each_ref().map(String::as_str))?;
    let [question, chosen, rejected] = known.each_ref().map(|key| inner.take_string(key));
    finish(row, question?, [chosen?, rejected?])
}

fn finish(row: &mut Row, question: String, sides: [String; 2]) -> Result<(TextPair, Form)> {
    // Beside bytes, the path only says where they were.
    let path = row.take("image_path");
    let (key, image) = match row.take_value("image") {
        None => ("image_path", path),
        image => ("image", image),
    };
    let image = row.image_among(key, image, &FOLDERS)?;
    let logps = row
        .take_value("logps")
        .map(|logps| reference_logps(row, &logps))
        .transpose()?;
    // A question is words alone, whatever they are.
    let mut pair = answered(row, "question", vec![image], question, sides)?;
    (pair.reference_chosen_logps, pair.reference_rejected_logps) = logps.unzip();
    pair.id = row.take_id_of(&["id", "idx", "origin_split_inner_idx"])?;
    Ok((pair, FORM))
}

/// The two sums of `logps`.
fn reference_logps(row: &Row, found: &Value) -> Result<(f64, f64)> {
    let expected = "JSON of a list: chosen sum, mean and tokens, rejected sum, mean and tokens";
    let wrong = |found: &Value| row.wrong_type("logps", found, expected);
    let read = match found {
        Value::String(json) => serde_json::from_str(json).map_err(|_| wrong(found))?,
        other => other.clone(),
    };
    let list = match read {
        Value::Object(Object(fields)) => match fields.into_iter().find(|(key, _)| key == "logps") {
            Some((_, Value::Array(list))) => list,
            _ => return Err(wrong(found)),
        },
        Value::Array(list) => list,
        _ => return Err(wrong(found)),
    };
    let sum = |value: &Value| match value {
        Value::Number(number) => number.as_f64().filter(|sum| sum.is_finite()),
        _ => None,
    };
    match list.as_slice() {
        [chosen, _, Value::Array(_), rejected, _, Value::Array(_)] => match (sum(chosen), sum(rejected)) {
            (Some(chosen), Some(rejected)) => Ok((chosen, rejected)),
            _ => Err(wrong(found)),
        },
        _ => Err(wrong(found)),
    }
}
