//! MIA-DPO: questions about one of several images.
//!
//! Source: the data laolao77/MIA-DPO, and Liuziyu77/MIA-DPO `LLaVA-Hound-DPO/llava_hound_dpo/dpo_scripts/run_dpo.py` (Liu et al., ICLR 2025,
//! arXiv:2410.17637): of one image the placeholder is moved before the words, of a list the prompt stays as it is. `gt`, the answer that
//! the rejected one was filtered against, is not read.

use super::{FOLDERS, FORM, answered};
use crate::TextPair;
use crate::error::Result;
use crate::row::Row;
use crate::text_layout::Form;

pub(in crate::text_layout) const KEYS: [&str; 5] = ["id", "image", "prompt", "chosen", "rejected"];

pub(in crate::text_layout) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let images = row.take_images_among("image", &FOLDERS)?;
    if images.is_empty() {
        return Err(row.missing("image", "a path, or a list of paths"));
    }
    let prompt = row.take_string("prompt")?;
    let sides = [row.take_string("chosen")?, row.take_string("rejected")?];
    let mut pair = answered(row, "prompt", images, prompt, sides)?;
    pair.id = row.take_id()?;
    Ok((pair, FORM))
}
