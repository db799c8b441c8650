//! What of a network is trained: everything, or LoRA adapters on chosen layers.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685. A layer `y = W x` becomes
//! `y = W x + (alpha / rank) B A x`, with `W` frozen, `A` random and `B` zero at the start. Names, targets and initialization
//! follow PEFT.
//!
//! Liu et al., "`DoRA`: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv:2402.09353, Eq. 5 and section 4.3: the rows of the
//! adapted weight are scaled to magnitudes `m` of their own, `y = m / |W + (alpha / rank) B A| (W + (alpha / rank) B A) x`, where the
//! norm is a constant in the backward pass.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::nearest::nearest;
use crate::{Error, Result};

/// What a training run changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterConfig {
    /// Low-rank adapters on chosen layers; the network itself stays frozen.
    Lora(LoraConfig),
    /// Every parameter of the network.
    Full(FullConfig),
}

/// Training of every parameter; there is nothing to set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullConfig {}

/// Low-rank adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every update; at least 1.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// Strength: updates are multiplied by `alpha / rank`. Default: 8, PEFT's.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Whether updates are multiplied by `alpha / sqrt(rank)` instead, so that they do not shrink as the rank grows. Kalajdzievski,
    /// "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", arXiv:2312.03732.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_rslora: bool,
    /// Whether the length of each row of the adapted weight is trained by itself, as a magnitude (`DoRA`): see
    /// [`LoraModule::magnitude`](crate::lora::LoraModule::magnitude). Linear layers alone. Recipes for images have no such key: the
    /// files of their adapters have no place for magnitudes.
    #[serde(skip)]
    pub use_dora: bool,
    /// The layers that get an adapter.
    #[serde(default)]
    pub targets: Targets,
    /// Distribution of `A` at the start.
    #[serde(default)]
    pub init_weights: LoraInit,
    /// A PEFT directory or diffusers file to start from instead of fresh matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: default_rank(),
            alpha: default_alpha(),
            use_rslora: false,
            use_dora: false,
            targets: Targets::default(),
            init_weights: LoraInit::default(),
            init: None,
        }
    }
}

impl LoraConfig {
    /// The factor of every update: `alpha / rank`, or `alpha / sqrt(rank)` where it is rank-stabilized.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Which of a network's linear layers and convolutions are targets, without building it. A layer is given by its name and
    /// the shape of its weight.
    ///
    /// # Errors
    /// [`Error::TargetPattern`], and [`Error::UnmatchedTarget`] for a target that names none of them.
    pub fn targeted(&self, layers: &[(String, Vec<usize>)]) -> Result<Vec<bool>> {
        let mut matcher = Matcher::new(&self.targets)?;
        let found = layers
            .iter()
            .map(|(name, weight)| matcher.matches(name, LayerKind::of_shape(weight)))
            .collect();
        match matcher.unmatched() {
            None => Ok(found),
            Some(target) => Err(Error::UnmatchedTarget {
                target: target.to_owned(),
                nearest: nearest(target, layers.iter().filter_map(|(name, _)| name.rsplit('.').next())),
            }),
        }
    }

    /// Checks that rank and alpha can be used.
    ///
    /// # Errors
    /// [`Error::AdapterSetting`] for a rank of 0, an alpha that is not finite and positive, or no targets.
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::AdapterSetting {
                key: "rank",
                found: "0".into(),
                expected: "at least 1",
            });
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            let found = self.alpha.to_string();
            return Err(Error::AdapterSetting {
                key: "alpha",
                found,
                expected: "a positive number",
            });
        }
        if matches!(&self.targets, Targets::Suffixes(names) if names.is_empty()) {
            return Err(Error::AdapterSetting {
                key: "targets",
                found: "[]".into(),
                expected: "at least one name",
            });
        }
        Ok(())
    }
}

fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

/// Which layers get an adapter, as PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// Layers whose name is one of these or ends with a dot and one of these.
    Suffixes(Vec<String>),
    /// Layers whose whole name matches this regular expression; `all-linear` stands, as in PEFT, for every linear layer but a
    /// language model's head.
    Pattern(String),
}

impl Targets {
    /// PEFT's word for every linear layer but the head.
    pub const ALL_LINEAR: &str = "all-linear";

    /// Whether these are all linear layers but the head.
    pub(crate) fn is_all_linear(&self) -> bool {
        matches!(self, Self::Pattern(pattern) if pattern == Self::ALL_LINEAR)
    }
}

impl Default for Targets {
    /// The attention projections: `to_q`, `to_k`, `to_v`, `to_out.0`.
    fn default() -> Self {
        Self::Suffixes(["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned).to_vec())
    }
}

/// Distribution of a LoRA's `A`; `B` is always zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// Uniform as PyTorch initializes linear layers: PEFT's default.
    #[default]
    Kaiming,
    /// Normal with standard deviation `1 / rank`: PEFT's `init_lora_weights="gaussian"`, which the diffusers scripts use.
    Gaussian,
}

/// What kind of layer could carry an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerKind {
    Linear,
    Conv2d,
}

impl LayerKind {
    /// The kind of a layer with weights of this shape.
    pub(crate) fn of_shape(weight: &[usize]) -> Self {
        if weight.len() == 2 { Self::Linear } else { Self::Conv2d }
    }
}

/// Targets ready to be matched, with a count of what each one matched.
#[derive(Debug)]
pub(crate) enum Matcher {
    AllLinear,
    Suffixes(Vec<(String, usize)>),
    Pattern(regex::Regex, String, usize),
}

impl Matcher {
    pub(crate) fn new(targets: &Targets) -> Result<Self> {
        Ok(match targets {
            Targets::Suffixes(names) => Self::Suffixes(names.iter().map(|name| (name.clone(), 0)).collect()),
            all if all.is_all_linear() => Self::AllLinear,
            Targets::Pattern(pattern) => {
                let regex = regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|source| Error::TargetPattern {
                    target: pattern.clone(),
                    source: Box::new(source),
                })?;
                Self::Pattern(regex, pattern.clone(), 0)
            }
        })
    }

    /// Whether `module`, a layer of this kind, is a target; counts the match.
    pub(crate) fn matches(&mut self, module: &str, kind: LayerKind) -> bool {
        match self {
            Self::AllLinear => kind == LayerKind::Linear && !is_suffix(module, "lm_head"),
            Self::Suffixes(names) => {
                let mut found = false;
                for (name, count) in names {
                    if is_suffix(module, name) {
                        *count += 1;
                        found = true;
                    }
                }
                found
            }
            Self::Pattern(regex, _, count) => {
                let found = regex.is_match(module);
                *count += usize::from(found);
                found
            }
        }
    }

    /// The first target that matched nothing.
    pub(crate) fn unmatched(&self) -> Option<&str> {
        match self {
            Self::AllLinear => None,
            Self::Suffixes(names) => names
                .iter()
                .find(|(_, count)| *count == 0)
                .map(|(name, _)| name.as_str()),
            Self::Pattern(_, pattern, count) => (*count == 0).then_some(pattern.as_str()),
        }
    }
}

fn is_suffix(module: &str, target: &str) -> bool {
    module
        .strip_suffix(target)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Turns every adapter built with it on or off, so that one network is both policy and reference.
///
/// ```
/// use diptych_models::AdapterSwitch;
///
/// let switch = AdapterSwitch::new();
/// {
///     let _off = switch.disable(); // reference pass
///     assert!(!switch.is_enabled());
/// }
/// assert!(switch.is_enabled());
/// ```
#[derive(Debug, Clone)]
pub struct AdapterSwitch(Arc<AtomicBool>);

impl Default for AdapterSwitch {
    fn default() -> Self {
        Self::new()
    }
}

impl AdapterSwitch {
    /// A switch that is on.
    pub fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Whether adapters take part in forward passes.
    pub fn is_enabled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Turns adapters off until the guard is dropped.
    #[must_use = "adapters are on again as soon as the guard is dropped"]
    pub fn disable(&self) -> SwitchGuard {
        self.set(false)
    }

    /// Sets the switch until the guard is dropped; a recomputed block runs in the state it first ran in.
    pub(crate) fn set(&self, enabled: bool) -> SwitchGuard {
        SwitchGuard {
            switch: self.0.clone(),
            before: self.0.swap(enabled, Ordering::Relaxed),
        }
    }
}

/// Puts an [`AdapterSwitch`] back when dropped.
#[derive(Debug)]
pub struct SwitchGuard {
    switch: Arc<AtomicBool>,
    before: bool,
}

impl Drop for SwitchGuard {
    fn drop(&mut self) {
        self.switch.store(self.before, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_match_whole_parts_of_a_name() {
        let mut matcher = Matcher::new(&Targets::Suffixes(vec!["to_q".into(), "0.conv1".into()])).unwrap();
        assert!(matcher.matches("mid_block.attentions.0.to_q", LayerKind::Linear));
        assert!(matcher.matches("to_q", LayerKind::Linear));
        assert!(!matcher.matches("attn.not_to_q", LayerKind::Linear));
        assert_eq!(matcher.unmatched(), Some("0.conv1"));
        assert!(matcher.matches("resnets.0.conv1", LayerKind::Linear));
        assert_eq!(matcher.unmatched(), None);
    }

    #[test]
    fn a_pattern_must_match_the_whole_name() {
        let mut matcher = Matcher::new(&Targets::Pattern(r"down.*\.to_q|conv_in".into())).unwrap();
        assert!(matcher.matches("down_blocks.0.to_q", LayerKind::Linear));
        assert!(!matcher.matches("up.down_blocks.0.to_q", LayerKind::Linear));
        assert!(!matcher.matches("conv_in_2", LayerKind::Linear));
        assert!(matcher.matches("conv_in", LayerKind::Linear));
        assert!(matches!(
            Matcher::new(&Targets::Pattern("(".into())),
            Err(Error::TargetPattern { .. })
        ));
    }

    #[test]
    fn all_linear_is_every_linear_layer_but_the_head() {
        let mut matcher = Matcher::new(&Targets::Pattern("all-linear".into())).unwrap();
        assert!(matcher.matches("model.layers.0.mlp.up_proj", LayerKind::Linear));
        assert!(!matcher.matches("conv_in", LayerKind::Conv2d));
        assert!(!matcher.matches("lm_head", LayerKind::Linear));
        assert_eq!(matcher.unmatched(), None);
    }

    #[test]
    fn guards_nest() {
        let switch = AdapterSwitch::new();
        let outer = switch.disable();
        {
            let _inner = switch.set(true);
            assert!(switch.is_enabled());
        }
        assert!(!switch.is_enabled());
        drop(outer);
        assert!(switch.is_enabled());
    }
}
