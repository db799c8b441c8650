//! `[method.*]` of a recipe for text.

use diptych_core::Requirements;
use diptych_data::RationaleTemplate;
use serde::{Deserialize, Serialize};

use super::diagnostics::WatchConfig;
use super::frequency::FrequencyConfig;
use super::token_divergence::TokenDivergenceConfig;
use super::token_weights::TokenWeightsConfig;
use crate::arrangement::Arrangement;

/// How the objective's numbers are obtained.
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
            "log-probabilities of stored pairs, the prompt computed once for both answers",
        ),
        (
            "unpaired",
            "log-probabilities of responses that were each judged good or bad",
        ),
        (
            "ranked",
            "log-probabilities of ranked lists, the prompt computed once for all",
        ),
        (
            "sft",
            "log-probabilities of texts, of completions, or of the chosen side of pairs",
        ),
    ];

    /// The name in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OfflinePairs(_) => "offline_pairs",
            Self::Unpaired(_) => "unpaired",
            Self::Ranked(_) => "ranked",
            Self::Sft(_) => "sft",
        }
    }

    /// The term of the policy's own answers, where there is one.
    pub(crate) fn online_kl(&self) -> Option<OnlineKlConfig> {
        match self {
            Self::OfflinePairs(config) => config.online_kl,
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// The term of rationales, where there is one.
    pub fn rationale(&self) -> Option<&RationaleConfig> {
        match self {
            Self::OfflinePairs(config) => config.rationale.as_ref(),
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// How the tokens of pairs are weighed, where they are.
    pub fn token_weights(&self) -> Option<TokenWeightsConfig> {
        match self {
            Self::OfflinePairs(config) => config.token_weights,
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// The divergence along the answers, where it is looked at.
    pub fn token_divergence(&self) -> Option<TokenDivergenceConfig> {
        match self {
            Self::OfflinePairs(config) => config.token_divergence,
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// The comparison of spectra, where there is one.
    pub fn frequency(&self) -> Option<FrequencyConfig> {
        match self {
            Self::OfflinePairs(config) => config.frequency,
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// What all methods have.
    pub fn batch(&self) -> BatchConfig {
        match self {
            Self::OfflinePairs(config) => BatchConfig {
                arrangement: config.arrangement,
                statistics: config.statistics,
            },
            Self::Unpaired(config) | Self::Ranked(config) => *config,
            Self::Sft(config) => BatchConfig {
                arrangement: config.arrangement,
                statistics: config.statistics,
            },
        }
    }
}

/// `[method.unpaired]`, `[method.ranked]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// How prompts and responses are laid out. All give the same numbers.
    pub arrangement: Arrangement,
    /// Whether entropy, mean logits and token accuracy are measured and logged.
    pub statistics: bool,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            arrangement: Arrangement::default(),
            statistics: true,
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
    /// A term beside the objective: the divergence from the reference on the policy's own answers (`HyPO`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online_kl: Option<OnlineKlConfig>,
    /// A term beside the objective: the likelihood of the pairs' rationales (RDPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rationale: Option<RationaleConfig>,
    /// Weights of the tokens in which the answers of a pair differ (dense DPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_weights: Option<TokenWeightsConfig>,
    /// The divergence from the reference, token by token along the answers (TDPO, RRPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_divergence: Option<TokenDivergenceConfig>,
    /// A term beside the objective: the spectra of both answers' states (TARS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency: Option<FrequencyConfig>,
}

/// `[method.offline_pairs.online_kl]`: needs a reference whose network is there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineKlConfig {
    /// Factor of the divergence, the paper's lambda, at least 0. With 0 it is only measured.
    pub weight: f64,
    /// Tokens of an answer, at most; at least 1. The divergence is that of answers up to there.
    pub max_new_tokens: usize,
}

/// `[method.offline_pairs.rationale]`: every row of the data needs the column `rationale`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RationaleConfig {
    /// Factor of minus the log-probability of a rationale, summed over its tokens: the paper's gamma, at least 0. With 0 it is only
    /// measured.
    pub weight: f64,
    /// The prompt that a rationale follows.
    #[serde(default)]
    pub template: RationaleTemplate,
}

impl OfflinePairsConfig {
    /// The first value of a term that is out of its range: key, what was found, what was expected.
    pub(crate) fn problem(&self, needs: Requirements) -> Option<(&'static str, String, &'static str)> {
        let is_weight = |weight: f64| weight.is_finite() && weight >= 0.0;
        let expected = "a finite number, at least 0";
        let weights = self.token_weights.and_then(|config| config.problem(needs));
        if let Some(problem) = weights
            .or_else(|| self.token_divergence?.problem(needs))
            .or_else(|| self.frequency?.problem())
        {
            return Some(problem);
        }
        match (&self.online_kl, &self.rationale) {
            (Some(term), _) if !is_weight(term.weight) => Some(("online_kl.weight", term.weight.to_string(), expected)),
            (Some(term), _) if term.max_new_tokens == 0 => {
                Some(("online_kl.max_new_tokens", "0".to_owned(), "a number, at least 1"))
            }
            (_, Some(term)) if !is_weight(term.weight) => Some(("rationale.weight", term.weight.to_string(), expected)),
            (_, Some(term)) => term.template.missing().map(|part| {
                let found = format!("a text without `{part}`");
                (
                    "rationale.template",
                    found,
                    "`{prompt}`, `{chosen}` and `{rejected}` in it",
                )
            }),
            (_, None) => None,
        }
    }
}

impl Default for OfflinePairsConfig {
    fn default() -> Self {
        Self {
            arrangement: Arrangement::default(),
            statistics: true,
            watch: WatchConfig::default(),
            online_kl: None,
            rationale: None,
            token_weights: None,
            token_divergence: None,
            frequency: None,
        }
    }
}

/// `[method.sft]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SftConfig {
    /// How prompts and responses are laid out. All give the same numbers.
    pub arrangement: Arrangement,
    /// Whether entropy and token accuracy are measured and logged.
    pub statistics: bool,
    /// What of a row is learned.
    pub loss_on: LossOn,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            arrangement: Arrangement::Packed,
            statistics: true,
            loss_on: LossOn::default(),
        }
    }
}

/// What of a row is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// The completion where there is a prompt, all assistant turns of a conversation, else the whole text.
    #[default]
    Completion,
    /// Every token after the first.
    Everything,
}
