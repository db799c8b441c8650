//! What rows of a layout may carry that nothing reads, and rows that the data itself takes back.

use super::published::{ha_dpo, llava, mia_dpo, re_align, rlaif_v};
use crate::json::Value;
use crate::row::Row;
use crate::{Layout, LeftOut};

/// Where a row comes from, which published datasets of these layouts say and no trainer reads.
const PROVENANCE: [&str; 9] = [
    "prompt_id",
    "source",
    "dataset",
    "split",
    "category",
    "language",
    "license",
    "chosen_model",
    "rejected_model",
];

/// Provenance, and what argilla's and distilabel's datasets carry of their making.
const DISTILABEL: [&str; 21] = [
    "prompt_id",
    "source",
    "dataset",
    "split",
    "category",
    "language",
    "license",
    "chosen_model",
    "rejected_model",
    "generations",
    "generation_model",
    "generation_models",
    "order",
    "labelling_model",
    "labelling_prompt",
    "raw_labelling_response",
    "rating",
    "rationale",
    "status",
    "original_chosen",
    "original_rejected",
];

/// Keys of a layout that its authors publish data in; none for the layouts of trainers, in which people write their own.
///
/// Publishers add columns as they like, so that one more is no mistake of the user's: inspection tells which are not read.
fn read_keys(layout: Layout) -> Option<&'static [&'static str]> {
    match layout {
        Layout::Llava => Some(&llava::KEYS),
        Layout::Povid => Some(&llava::PAIR_KEYS),
        Layout::RlhfV => Some(&rlaif_v::TEXT_KEYS),
        Layout::RlaifV => Some(&rlaif_v::KEYS),
        Layout::MiaDpo => Some(&mia_dpo::KEYS),
        Layout::ReAlign => Some(&re_align::KEYS),
        Layout::HaDpo => Some(&ha_dpo::KEYS),
        _ => None,
    }
}

/// Keys that say something of a record in layouts that have them: where a published layout does not, they are not passed over.
const MEANINGFUL: [&str; 18] = [
    "image",
    "images",
    "rejected_images",
    "other_images",
    "video",
    "videos",
    "audio",
    "audios",
    "margin",
    "chosen_score",
    "rejected_score",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_spans",
    "rejected_spans",
    "rationale",
    "tools",
    "chat_template_kwargs",
];

/// Whether nothing reads a key that rows of a layout may have.
pub(crate) fn is_ignored(layout: Layout, key: &str) -> bool {
    match read_keys(layout) {
        Some(read) => !read.contains(&key) && !MEANINGFUL.contains(&key),
        None => ignored_keys(layout).contains(&key),
    }
}

/// Why a well-formed row gives no record, if it gives none.
pub(crate) fn left_out(row: &Row, layout: Layout) -> Option<LeftOut> {
    let is_right = layout == Layout::HaDpo && row.peek("correct") == Some(&Value::Bool(true));
    is_right.then_some(LeftOut::NothingCorrected)
}

/// Keys that rows of a layout are known to carry and that nothing reads.
fn ignored_keys(layout: Layout) -> &'static [&'static str] {
    match layout {
        Layout::Preference
        | Layout::Unpaired
        | Layout::Ranked
        | Layout::Sft
        | Layout::PromptOnly
        | Layout::LlamaFactory
        | Layout::MsSwift
        | Layout::Openrlhf => &PROVENANCE,
        Layout::Axolotl => &DISTILABEL,
        Layout::Auto
        | Layout::ImageCaption
        | Layout::LatentPairs
        | Layout::Hh
        | Layout::Llava
        | Layout::RlhfV
        | Layout::RlaifV
        | Layout::Povid
        | Layout::MiaDpo
        | Layout::ReAlign
        | Layout::HaDpo
        | Layout::PickAPic
        | Layout::Hpdv2
        | Layout::ImageRewardDb
        | Layout::RichHf
        | Layout::SpoPrompts => &[],
    }
}
