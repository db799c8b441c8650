//! The layouts records are stored in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How records are laid out on disk. In a recipe: `layout = "preference"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Found out from the file's extension and first row.
    #[default]
    Auto,
    /// JSON: `prompt`, `chosen_image`, `rejected_image` for images; TRL's `prompt`, `chosen`, `rejected` (or without
    /// `prompt`, or `*_ids`) for text; and optionally `chosen_score`, `rejected_score`, `id` and more.
    Preference,
    /// JSON lines: `prompt`, `image`, and optionally `id`.
    ImageCaption,
    /// Safetensors shards of encoded pairs: `latents_chosen`, `latents_rejected`, `encoder_hidden_states`, …
    LatentPairs,
    /// JSON, TRL's unpaired preference: `prompt`, `completion` or `image`, `label`.
    Unpaired,
    /// JSON: `prompt`, `responses` with a score each.
    Ranked,
    /// JSON, TRL's language modeling and prompt-completion: `text`, or `messages`, or `prompt` and `completion`.
    Sft,
    /// JSON: `prompt` alone.
    PromptOnly,
    /// JSON of LLaMA-Factory: alpaca (`instruction`, `input`, ..) or sharegpt (`conversations`); pairs, `kto_tag`, or
    /// supervised.
    LlamaFactory,
    /// JSON of ms-swift: `messages` with `rejected_response`, `rejected_messages`, `label`, or alone.
    MsSwift,
    /// JSON of axolotl's DPO strategies: intel, argilla, icr, ultra, `chat_template`.
    Axolotl,
    /// JSON of `OpenRLHF`'s preference data: `chosen`, `rejected`, and optionally `prompt`, `margin`.
    Openrlhf,
    /// JSON of Anthropic's hh-rlhf: transcripts with `Human:` and `Assistant:`, read as messages.
    Hh,
    /// JSON of `LLaVA`: `image`, `conversations` of `from` and `value`.
    Llava,
    /// RLHF-V-Dataset: `image`, and `question`, `chosen`, `rejected` inside `text`.
    RlhfV,
    /// RLAIF-V-Dataset: `image`, `question`, `chosen`, `rejected`.
    RlaifV,
    /// JSON of POVID: `image`, `conversations`, `rejected_conversations`.
    Povid,
    /// JSON of MIA-DPO: `image` (a list), `prompt`, `chosen`, `rejected`, `gt`.
    MiaDpo,
    /// JSON of Re-Align: `image`, `retrieved_image`, `chosen`, `rejected`.
    ReAlign,
    /// `desc_data.json` and `pope_data.json` of HA-DPO: `image_id`, `chosen`, `rejected` or `reject`.
    HaDpo,
    /// Pick-a-Pic, versions 1 and 2, Pick-Style and Pick-Safety: `caption`, `jpg_0`, `jpg_1`, `label_0`, `label_1`.
    PickAPic,
    /// HPD v2: `prompt`, `file_path`, `human_preference`, or `prompt`, `image_path`, `rank`.
    Hpdv2,
    /// `ImageRewardDB`: `prompt_id`, `prompt`, `rank`, `image_path`, one image a row.
    ImageRewardDb,
    /// Scores of RichHF-18K joined with prompts and images: `prompt`, `image`, `overall_score`, ….
    RichHf,
    /// Prompts of SPO: `caption`, `trainset_idx`.
    SpoPrompts,
}

impl Layout {
    /// Every name a recipe may use, in the order of the variants.
    pub const NAMES: [&'static str; 25] = [
        "auto",
        "preference",
        "image-caption",
        "latent-pairs",
        "unpaired",
        "ranked",
        "sft",
        "prompt-only",
        "llama-factory",
        "ms-swift",
        "axolotl",
        "openrlhf",
        "hh",
        "llava",
        "rlhf-v",
        "rlaif-v",
        "povid",
        "mia-dpo",
        "re-align",
        "ha-dpo",
        "pick-a-pic",
        "hpdv2",
        "image-reward-db",
        "rich-hf",
        "spo-prompts",
    ];
    /// The names that say what the files are.
    pub const EXPLICIT_NAMES: [&'static str; 24] = [
        "preference",
        "image-caption",
        "latent-pairs",
        "unpaired",
        "ranked",
        "sft",
        "prompt-only",
        "llama-factory",
        "ms-swift",
        "axolotl",
        "openrlhf",
        "hh",
        "llava",
        "rlhf-v",
        "rlaif-v",
        "povid",
        "mia-dpo",
        "re-align",
        "ha-dpo",
        "pick-a-pic",
        "hpdv2",
        "image-reward-db",
        "rich-hf",
        "spo-prompts",
    ];

    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Preference => "preference",
            Self::ImageCaption => "image-caption",
            Self::LatentPairs => "latent-pairs",
            Self::Unpaired => "unpaired",
            Self::Ranked => "ranked",
            Self::Sft => "sft",
            Self::PromptOnly => "prompt-only",
            Self::LlamaFactory => "llama-factory",
            Self::MsSwift => "ms-swift",
            Self::Axolotl => "axolotl",
            Self::Openrlhf => "openrlhf",
            Self::Hh => "hh",
            Self::Llava => "llava",
            Self::RlhfV => "rlhf-v",
            Self::RlaifV => "rlaif-v",
            Self::Povid => "povid",
            Self::MiaDpo => "mia-dpo",
            Self::ReAlign => "re-align",
            Self::HaDpo => "ha-dpo",
            Self::PickAPic => "pick-a-pic",
            Self::Hpdv2 => "hpdv2",
            Self::ImageRewardDb => "image-reward-db",
            Self::RichHf => "rich-hf",
            Self::SpoPrompts => "spo-prompts",
        }
    }

    /// One line that says what the layout holds, for `diptych list layouts`.
    pub fn description(self) -> &'static str {
        match self {
            Self::Auto => "found out from the file's extension and first row",
            Self::Preference => {
                "JSON with prompt and chosen_image, rejected_image, or TRL's chosen, rejected as strings or messages; optional scores and id"
            }
            Self::ImageCaption => "JSON lines with prompt, image; optional id",
            Self::LatentPairs => {
                "safetensors shards of encoded pairs; optional scores, and noise and timesteps for a replay"
            }
            Self::Unpaired => "JSON with prompt, completion | image, label (TRL, KTO)",
            Self::Ranked => "JSON with prompt and responses: [{text | messages | image, score}]",
            Self::Sft => "JSON with text, or messages, or prompt and completion (TRL)",
            Self::PromptOnly => "JSON with prompt",
            Self::LlamaFactory => "JSON of LLaMA-Factory: alpaca or sharegpt; ranking, kto_tag or supervised",
            Self::MsSwift => "JSON of ms-swift: messages with rejected_response, rejected_messages, label or alone",
            Self::Axolotl => "JSON of axolotl's DPO strategies: intel, argilla, icr, ultra, chat_template",
            Self::Openrlhf => "JSON of OpenRLHF: chosen, rejected, optional prompt and margin",
            Self::Hh => "JSON of hh-rlhf: Human/Assistant transcripts, read as messages",
            Self::Llava => "JSON of LLaVA: image, conversations of from and value; supervised",
            Self::RlhfV => "RLHF-V-Dataset: image, and text with question, chosen, rejected as JSON",
            Self::RlaifV => "RLAIF-V-Dataset: image, question, chosen, rejected; optional logps",
            Self::Povid => "JSON of POVID: image, conversations, rejected_conversations",
            Self::MiaDpo => "JSON of MIA-DPO: image (a list), prompt, chosen, rejected, gt",
            Self::ReAlign => "JSON of Re-Align: image, retrieved_image, chosen, rejected",
            Self::HaDpo => "desc_data.json and pope_data.json of HA-DPO: image_id, chosen, rejected | reject",
            Self::PickAPic => "Pick-a-Pic v1 and v2, Pick-Style, Pick-Safety: caption, jpg_0, jpg_1, label_0, label_1",
            Self::Hpdv2 => "HPD v2: train.json with file_path, human_preference; test.json with image_path, rank",
            Self::ImageRewardDb => {
                "ImageRewardDB: prompt_id, prompt, rank, image_path; rows of one prompt_id are a list"
            }
            Self::RichHf => {
                "RichHF-18K joined with prompts and images: prompt, image, overall_score, aesthetics_score, …"
            }
            Self::SpoPrompts => "prompts of SPO: caption, trainset_idx",
        }
    }

    /// Whether files of it are JSON.
    pub(crate) fn is_rows(self) -> bool {
        !matches!(self, Self::Auto | Self::LatentPairs)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layout {
    type Err = String;

    /// # Errors
    /// The name is none of [`Layout::NAMES`]; the message says which was found and which are expected.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            "preference" => Ok(Self::Preference),
            "image-caption" => Ok(Self::ImageCaption),
            "latent-pairs" => Ok(Self::LatentPairs),
            "unpaired" => Ok(Self::Unpaired),
            "ranked" => Ok(Self::Ranked),
            "sft" => Ok(Self::Sft),
            "prompt-only" => Ok(Self::PromptOnly),
            "llama-factory" => Ok(Self::LlamaFactory),
            "ms-swift" => Ok(Self::MsSwift),
            "axolotl" => Ok(Self::Axolotl),
            "openrlhf" => Ok(Self::Openrlhf),
            "hh" => Ok(Self::Hh),
            "llava" => Ok(Self::Llava),
            "rlhf-v" => Ok(Self::RlhfV),
            "rlaif-v" => Ok(Self::RlaifV),
            "povid" => Ok(Self::Povid),
            "mia-dpo" => Ok(Self::MiaDpo),
            "re-align" => Ok(Self::ReAlign),
            "ha-dpo" => Ok(Self::HaDpo),
            "pick-a-pic" => Ok(Self::PickAPic),
            "hpdv2" => Ok(Self::Hpdv2),
            "image-reward-db" => Ok(Self::ImageRewardDb),
            "rich-hf" => Ok(Self::RichHf),
            "spo-prompts" => Ok(Self::SpoPrompts),
            _ => Err(format!(
                "unknown layout `{name}`; expected one of {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_serde_agrees() {
        let layouts: Vec<Layout> = Layout::NAMES.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(layouts.len(), 25);
        assert_eq!(layouts[4..7], [Layout::Unpaired, Layout::Ranked, Layout::Sft]);
        for (layout, name) in layouts.iter().zip(Layout::NAMES) {
            assert_eq!(layout.to_string(), name);
            assert_eq!(serde_json::to_value(layout).unwrap(), name);
        }
        assert!("pairs".parse::<Layout>().unwrap_err().contains("latent-pairs"));
    }
}
