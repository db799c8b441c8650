//! `[method.*]` of a recipe for texts with images.

use std::path::PathBuf;

use diptych_llm::arrangement::Arrangement;
use diptych_llm::method::{
    Anchor, BatchConfig, Combination, FrequencyConfig, ImageScores, OnlineKlConfig, Perturbed, RationaleConfig,
    ReferenceDraw, ReferenceTokens, SftConfig, TokenDivergenceConfig, TokenWeightsConfig, WatchConfig,
};
use serde::{Deserialize, Serialize};

use crate::corruption::{Corruption, DiffusionNoise};

/// How the objective's numbers are obtained: the methods of text, which read images here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodConfig {
    /// Log-probabilities of stored pairs.
    OfflinePairs(Box<OfflinePairsConfig>),
    /// Log-probabilities of responses that were each judged good or bad.
    Unpaired(BatchConfig),
    /// Log-probabilities of ranked lists.
    Ranked(BatchConfig),
    /// Log-probabilities of texts, or of the chosen side of pairs.
    Sft(SftConfig),
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self::OfflinePairs(Box::default())
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

    /// The preference between images, where there is one.
    pub fn image_preference(&self) -> Option<&ImagePreferenceConfig> {
        match self {
            Self::OfflinePairs(config) => config.image_preference.as_ref(),
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// The comparison with the policy's own tokens, where there is one.
    pub fn own_answer(&self) -> Option<&OwnAnswerConfig> {
        match self {
            Self::OfflinePairs(config) => config.own_answer.as_ref(),
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

    /// The perturbation of prompts, where there is one.
    pub fn token_perturbation(&self) -> Option<&TokenPerturbationConfig> {
        match self {
            Self::OfflinePairs(config) => config.token_perturbation.as_ref(),
            Self::Unpaired(_) | Self::Ranked(_) | Self::Sft(_) => None,
        }
    }

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
    /// Weights of the tokens in which the answers of a pair differ (dense DPO, RRPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_weights: Option<TokenWeightsConfig>,
    /// The divergence from the reference, token by token along the answers (`CHiP`, RRPO, TDPO).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_divergence: Option<TokenDivergenceConfig>,
    /// Tokens that have little to do with the images are masked or replaced before anything is scored (TARS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_perturbation: Option<TokenPerturbationConfig>,
    /// A term beside the objective: the spectra of both answers' states (TARS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency: Option<FrequencyConfig>,
    /// A part of the loss: the chosen answer against the policy's own tokens under spoiled images (POVID).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_answer: Option<OwnAnswerConfig>,
    /// Terms beside the objective: the chosen answer under its own images against the same answer under others (mDPO, rDPO, `CHiP`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_preference: Option<ImagePreferenceConfig>,
}

/// `[method.offline_pairs.image_preference]`; [`ImagePreference`](diptych_llm::method::ImagePreference) has the formulas. It needs a
/// reference whose network is there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePreferenceConfig {
    /// Strength of the pull towards the reference in these terms, above 0. The papers have that of the objective, 0.1.
    pub beta: f64,
    /// Factor of the term, at least 0; 1 by default.
    #[serde(default = "one")]
    pub weight: f64,
    /// One sigmoid for answers and images, or one each.
    #[serde(default)]
    pub combination: Combination,
    /// Holds the log-ratio of the chosen answer up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Anchor>,
    /// How the other images are made of a row's own. Without it they are the row's `other_images`, or else its `rejected_images`, and the
    /// rejected answer sees the same images as the chosen one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corruption: Option<Corruption>,
    /// What the scores of rejected answers and those under other images are sums of. `likeliest_other` is what Re-Align's released
    /// program does.
    #[serde(default)]
    pub scores: ImageScores,
    /// Whether the reference sees the same spoiled images as the policy. mDPO's released program draws them anew: `own`.
    #[serde(default)]
    pub reference_draw: ReferenceDraw,
}

fn one() -> f64 {
    1.0
}

/// `[method.offline_pairs.own_answer]`; [`OwnAnswer`](diptych_llm::method::OwnAnswer) has the formula. It needs a reference whose network
/// is there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnAnswerConfig {
    /// Strength of the pull towards the reference in this term, above 0. POVID has that of the objective, 0.1.
    pub beta: f64,
    /// Share of the term in the loss, above 0 and below 1; the objective has the rest.
    #[serde(default = "half")]
    pub share: f64,
    /// Whose tokens the reference scores. POVID's released program has `own`.
    #[serde(default)]
    pub reference_tokens: ReferenceTokens,
    /// How the images are spoiled under which the tokens are found; diffusion noise of step 500 by default.
    #[serde(default = "noise")]
    pub corruption: Corruption,
}

/// `[method.offline_pairs.token_perturbation]`; [`TokenPerturbation`](diptych_llm::method::TokenPerturbation) has the formula.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPerturbationConfig {
    /// A CLIP in transformers' layout, which says how like its images a word is.
    pub clip: PathBuf,
    /// Which tokens are perturbed.
    #[serde(default)]
    pub tokens: Perturbed,
    /// What stands in their places.
    #[serde(default)]
    pub change: Change,
    /// The token of `mask`; by default the tokenizer's mask, unknown or padding token, whichever it has first. Contradicts `replace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_token: Option<String>,
}

/// What stands in the place of a perturbed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// One token.
    #[default]
    Mask,
    /// Another token of the vocabulary, drawn; neither a special one nor one of the first five.
    Replace,
}

fn half() -> f64 {
    0.5
}

fn noise() -> Corruption {
    Corruption::DiffusionNoise(DiffusionNoise::default())
}

impl OwnAnswerConfig {
    /// What is computed, however images are spoiled.
    pub(crate) fn term(&self) -> diptych_llm::method::OwnAnswerConfig {
        diptych_llm::method::OwnAnswerConfig {
            beta: self.beta,
            share: self.share,
            reference_tokens: self.reference_tokens,
        }
    }
}

impl ImagePreferenceConfig {
    /// What is computed, whatever the other images are.
    pub(crate) fn term(&self) -> diptych_llm::method::ImagePreferenceConfig {
        diptych_llm::method::ImagePreferenceConfig {
            beta: self.beta,
            weight: self.weight,
            combination: self.combination,
            anchor: self.anchor,
            scores: self.scores,
            reference_draw: self.reference_draw,
        }
    }
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
            token_weights: text.token_weights,
            token_divergence: text.token_divergence,
            own_answer: None,
            token_perturbation: None,
            frequency: text.frequency,
            image_preference: None,
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
            token_weights: self.token_weights,
            token_divergence: self.token_divergence,
            frequency: self.frequency,
        }
    }
}
