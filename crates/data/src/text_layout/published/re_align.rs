//! Re-Align: pairs with a retrieved image, under which the chosen answer should be less likely. Both answers are about the row's own image:
//! the rejected one was made by a model that looked at the retrieved one, and is scored as an answer to what is really there (Eq. 5 there
//! has one image in its first term and both in its second).
//!
//! Source: taco-group/Re-Align `train_rdpo.py` (Xing et al., arXiv:2502.13146): `image`, `retrieved_image`, and two conversations that both
//! begin with the prompt.

use super::{FOLDERS, FORM, place};
use crate::TextPair;
use crate::error::Result;
use crate::json::Value;
use crate::row::Row;
use crate::text_layout::Form;
use crate::text_layout::extract_prompt::extract_prompt;

pub(in crate::text_layout) const KEYS: [&str; 6] = ["id", "image", "retrieved_image", "chosen", "rejected", "prompt"];

pub(in crate::text_layout) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let one = |row: &mut Row, key: &str| {
        let value: Option<Value> = row.take_value(key);
        row.image_among(key, value, &FOLDERS)
    };
    let image = one(row, "image")?;
    let retrieved = one(row, "retrieved_image")?;
    let side = |row: &mut Row, key: &str| {
        row.take_foreign_messages(key)?
            .ok_or_else(|| row.missing(key, "a list of messages that begins with the prompt"))
    };
    let chosen = side(row, "chosen")?;
    let rejected = side(row, "rejected")?;
    let parted = extract_prompt(&chosen.into(), &rejected.into());
    let (prompt, chosen, rejected) = parted.ok_or_else(|| row.turns("chosen", "there is no message"))?;
    if let Some(text) = row.take_optional_string("prompt")? {
        crate::text_layout::check_repeated_prompt(row, &text, &prompt)?;
    }
    let mut pair = TextPair::new(row.take_id()?, prompt, chosen, rejected);
    pair.images = vec![image];
    pair.other_images = Some(vec![retrieved]);
    place(row, "chosen", &mut pair)?;
    Ok((pair, FORM))
}
