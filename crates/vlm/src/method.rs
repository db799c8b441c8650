//! `[method.*]` of a recipe for texts with images.

use diptych_llm::arrangement::Arrangement;
use diptych_llm::method::{BatchConfig, OnlineKlConfig, RationaleConfig, SftConfig, WatchConfig};
use serde::{Deserialize, Serialize};

/// How the objective's numbers are obtained: the methods of text, which read images here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodConfig {
    /// Log-probabilities of stored pairs.
    OfflinePairs(OfflinePairsConfig),
    /// Log-probabilities of responses that were each judged good or bad.
    Unpaired(BatchConfig),
    /// Log-probabilities of ranked lists.
    Ranked(BatchConfig),
    /// Log-probabilities of texts, or of the chosen side of pairs.
    Sft(SftConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::OfflinePairs(OfflinePairsConfig::default())
    }
}

impl MethodConfig {
    /// Names in recipes, each with one line.
    pub const DESCRIPTIONS: [(&'static str, &'static str); 4] = [
        (
            "offline_pairs",
            "log-probabilities of stored pairs, the prompt with its images computed once for both answers",
        ),
        (
            "unpaired",
            "log-probabilities of responses to images that were each judged good or bad",
        ),
        (
            "ranked",
            "log-probabilities of ranked lists, the prompt with its images computed once for all",
        ),
        (
            "sft",
            "log-probabilities of texts about images, or of the chosen side of pairs",
        ),
    ];

    /// The method of text that does the work.
    pub(crate) fn as_text(&self) -> diptych_llm::MethodConfig {
        match self {
            Self::OfflinePairs(config) => diptych_llm::MethodConfig::OfflinePairs(config.as_text()),
            Self::Unpaired(config) => diptych_llm::MethodConfig::Unpaired(*config),
            Self::Ranked(config) => diptych_llm::MethodConfig::Ranked(*config),
            Self::Sft(config) => diptych_llm::MethodConfig::Sft(*config),
        }
    }
}

/// `[method.offline_pairs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OfflinePairsConfig {
    /// How prompts and answers are laid out. All give the same numbers.
    pub arrangement: Arrangement,
    /// Whether entropy, mean logits and token accuracy are measured and logged.
    pub statistics: bool,
    /// Rules that warn or stop.
    pub watch: WatchConfig,
    /// A term beside the objective: the divergence from the reference on the policy's own answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online_kl: Option<OnlineKlConfig>,
    /// A term beside the objective: the likelihood of the pairs' rationales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rationale: Option<RationaleConfig>,
}

impl Default for OfflinePairsConfig {
    fn default() -> Self {
        let text = diptych_llm::method::OfflinePairsConfig::default();
        Self {
            arrangement: text.arrangement,
            statistics: text.statistics,
            watch: text.watch,
            online_kl: text.online_kl,
            rationale: text.rationale,
        }
    }
}

impl OfflinePairsConfig {
    fn as_text(&self) -> diptych_llm::method::OfflinePairsConfig {
        diptych_llm::method::OfflinePairsConfig {
            arrangement: self.arrangement,
            statistics: self.statistics,
            watch: self.watch,
            online_kl: self.online_kl,
            rationale: self.rationale.clone(),
        }
    }
}
