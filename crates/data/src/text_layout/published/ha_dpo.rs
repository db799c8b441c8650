//! HA-DPO: descriptions (`desc_data.json`) and answers to questions of POPE (`pope_data.json`), hallucinated and corrected.
//!
//! Source: the data juliozhao/hadpo-data, and opendatalab/HA-DPO `ha_dpo/models/llava-v1_5/train_dpo.py` (Zhao et al., arXiv:2311.16839).
//! Descriptions are one object, `{image id: {"chosen": [..], "rejected": [..]}}`; of each list the authors' code draws one, and one of four
//! questions. Here the draw is by the image's id, so that a record is the same in every run. Answers are rows of which those are left
//! out that were right. Images are those of Visual Genome, `VG_100K/` and `VG_100K_2/`, found by the image's id. The authors' code has
//! every description twice in an epoch; here it is there once.

use sha2::{Digest as _, Sha256};

use super::{FORM, answer, shown};
use crate::TextPair;
use crate::error::Result;
use crate::json::Value;
use crate::row::Row;
use crate::text_layout::Form;

pub(in crate::text_layout) const KEYS: [&str; 7] = [
    "image_id", "chosen", "rejected", "reject", "question", "answer", "correct",
];

/// Of the authors' code, `desc_process`.
const QUESTIONS: [&str; 4] = [
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
];

const FOLDERS: [&str; 6] = ["", "images", "VG_100K", "VG_100K_2", "VG/VG_100K", "VG/VG_100K_2"];

pub(in crate::text_layout) fn pair(row: &mut Row) -> Result<(TextPair, Form)> {
    let image_id = match row.take_value("image_id") {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) if id.is_u64() => id.to_string(),
        Some(found) => return Err(row.wrong_type("image_id", &found, "the number of an image of Visual Genome")),
        None => return Err(row.missing("image_id", "the number of an image of Visual Genome")),
    };
    let image = row.image_in("image_id", &format!("{image_id}.jpg"), &FOLDERS)?;
    let (id, question, chosen, rejected) = if row.has("question") {
        // What POPE says is right, and whether the answer was; the corrected answer says both.
        row.take_optional_string("answer")?;
        row.take("correct");
        let question = row.take_string("question")?;
        let sides = (row.take_string("chosen")?, row.take_string("reject")?);
        (format!("{image_id}: {question}"), question, sides.0, sides.1)
    } else {
        let mut draw = Draw::new(&image_id);
        let chosen = drawn(row, "chosen", &mut draw)?;
        let rejected = drawn(row, "rejected", &mut draw)?;
        let question = QUESTIONS[draw.below(QUESTIONS.len())].to_owned();
        (image_id, question, chosen, rejected)
    };
    let mut pair = TextPair::new(id, shown(&question), answer(chosen), answer(rejected));
    pair.images = vec![image];
    Ok((pair, FORM))
}

/// One of the strings of a list.
fn drawn(row: &mut Row, key: &str, draw: &mut Draw) -> Result<String> {
    let expected = "a list of one or more strings";
    let mut list = match row.take_value(key) {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(found) => return Err(row.wrong_type(key, &found, expected)),
        None => return Err(row.missing(key, expected)),
    };
    let at = draw.below(list.len());
    match list.swap_remove(at) {
        Value::String(text) => Ok(text),
        found => Err(row.wrong_type(&format!("{key}[{at}]"), &found, "a string")),
    }
}

/// Numbers that depend on the image alone.
struct Draw {
    image_id: String,
    count: u8,
}

impl Draw {
    fn new(image_id: &str) -> Self {
        Self {
            image_id: image_id.to_owned(),
            count: 0,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        let digest = Sha256::digest(format!("{} {}", self.image_id, self.count));
        self.count += 1;
        let word = digest[..8]
            .iter()
            .fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
        // Lists are short: the remainder is as good as even.
        (word % limit as u64) as usize
    }
}
