//! Which settings of these methods make sense, and with which objectives and references.

use diptych_core::{Divergence, Kind, ScoreKind};
use diptych_eval::Judge;
use diptych_train::{Recipe, ReferenceConfig, Result};

use super::config::{
    AdvantageConfig, DirectRewardConfig, GradientGuidance, GradientSpan, PolicyGradientConfig, ReuseConfig, RewardLoss,
    RolloutConfig, StepAwareConfig, StepDivergence, TrajectoryPairsConfig,
};
use super::reward::is_differentiable;
use crate::method::MethodConfig;
use crate::modality::Diffusion;
use crate::sampler::SamplerKind;

/// A value that must hold a condition.
struct Rule<'a> {
    key: &'a str,
    found: String,
    holds: bool,
    expected: &'static str,
}

impl<'a> Rule<'a> {
    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers and words read alike where it is called"
    )]
    fn new(key: &'a str, found: impl ToString, holds: bool, expected: &'static str) -> Self {
        Self {
            key,
            found: found.to_string(),
            holds,
            expected,
        }
    }
}

const AT_LEAST_1: &str = "a number, at least 1";
const ABOVE_0: &str = "a finite number above 0";

/// Checks the method's section; says nothing about methods of other kinds.
pub(crate) fn validate(recipe: &Recipe<Diffusion>) -> Result<()> {
    match &recipe.method {
        MethodConfig::TrajectoryPairs(config) => trajectory_pairs(recipe, config),
        MethodConfig::StepAware(config) => step_aware(recipe, config),
        MethodConfig::PolicyGradient(config) => policy_gradient(recipe, config),
        MethodConfig::DirectReward(config) => direct_reward(recipe, config),
        _ => Ok(()),
    }
}

fn trajectory_pairs(recipe: &Recipe<Diffusion>, config: &TrajectoryPairsConfig) -> Result<()> {
    judge(recipe, config.judge.as_ref())?;
    rollout(recipe, &config.rollout, Density::Needed)?;
    reuse(recipe, &config.reuse)?;
    pairs(recipe, config.clip_range)
}

fn step_aware(recipe: &Recipe<Diffusion>, config: &StepAwareConfig) -> Result<()> {
    judge(recipe, config.judge.as_ref())?;
    rollout(recipe, &config.rollout, Density::Needed)?;
    reuse(recipe, &config.reuse)?;
    ensure(
        recipe,
        [
            Rule::new(
                "candidates",
                config.candidates,
                (2..=254).contains(&config.candidates),
                "a number from 2 to 254",
            ),
            Rule::new(
                "threshold",
                config.threshold,
                (0.0..1.0).contains(&config.threshold),
                "a number from 0 to below 1",
            ),
            Rule::new(
                "start_step",
                config.start_step,
                config.start_step < config.rollout.steps,
                "a number below `rollout.steps`",
            ),
            Rule::new("inner_steps", config.inner_steps, config.inner_steps >= 1, AT_LEAST_1),
        ],
    )?;
    if let Some(guidance) = config.gradient_guidance {
        gradient_guidance(recipe, config, guidance)?;
    }
    pairs(recipe, config.clip_range)
}

fn gradient_guidance(recipe: &Recipe<Diffusion>, config: &StepAwareConfig, guidance: GradientGuidance) -> Result<()> {
    let (key, strength) = match guidance {
        GradientGuidance::Gradient { strength } => ("gradient_guidance.gradient.strength", strength),
        GradientGuidance::Normalized { strength } => ("gradient_guidance.normalized.strength", strength),
    };
    let one = "1 with `gradient_guidance`, which pushes what a single transition leads to";
    ensure(
        recipe,
        [
            Rule::new(key, strength, is_positive(strength), ABOVE_0),
            Rule::new("inner_steps", config.inner_steps, config.inner_steps == 1, one),
        ],
    )?;
    match &config.judge {
        Some(judge) if !is_differentiable(judge) => {
            let expected = "a judge whose scores have a gradient, or no `gradient_guidance`";
            Err(recipe.invalid("method.step_aware.judge", format!("`{judge}`"), expected))
        }
        _ => Ok(()),
    }
}

fn policy_gradient(recipe: &Recipe<Diffusion>, config: &PolicyGradientConfig) -> Result<()> {
    judge(recipe, config.judge.as_ref())?;
    rollout(recipe, &config.rollout, Density::Needed)?;
    reuse(recipe, &config.reuse)?;
    ensure(
        recipe,
        [
            Rule::new(
                "images_per_prompt",
                config.images_per_prompt,
                config.images_per_prompt >= 1,
                AT_LEAST_1,
            ),
            Rule::new(
                "clip_range",
                config.clip_range,
                config.clip_range > 0.0 && config.clip_range < 1.0,
                "a number above 0 and below 1",
            ),
            Rule::new(
                "advantage_clip",
                config.advantage_clip,
                is_positive(config.advantage_clip),
                ABOVE_0,
            ),
        ],
    )?;
    if let AdvantageConfig::PerPrompt { buffer_size, min_count } = config.advantages {
        let expected = "a number from 2 to `buffer_size`: one reward has no deviation";
        let holds = min_count >= 2 && min_count <= buffer_size;
        ensure(
            recipe,
            [Rule::new("advantages.per_prompt.min_count", min_count, holds, expected)],
        )?;
    }
    scores_alone(recipe)
}

fn direct_reward(recipe: &Recipe<Diffusion>, config: &DirectRewardConfig) -> Result<()> {
    let density = if config.divergence.is_some() {
        Density::Needed
    } else {
        Density::Unused
    };
    rollout(recipe, &config.rollout, density)?;
    span(recipe, config.gradient, config.rollout.steps)?;
    let weight = match config.loss {
        RewardLoss::Maximize { weight } => Rule::new("loss.maximize.weight", weight, is_positive(weight), ABOVE_0),
        RewardLoss::Distance { weight, .. } => Rule::new("loss.distance.weight", weight, is_positive(weight), ABOVE_0),
        RewardLoss::Hinge { weight, .. } => Rule::new("loss.hinge.weight", weight, is_positive(weight), ABOVE_0),
    };
    let regularization = config.regularization;
    ensure(
        recipe,
        [
            weight,
            Rule::new(
                "regularization",
                regularization,
                regularization.is_finite() && regularization >= 0.0,
                "a finite number, at least 0",
            ),
        ],
    )?;
    if let Some(judge) = &config.judge
        && !is_differentiable(judge)
    {
        let expected = "a judge whose scores have a gradient; `[method.policy_gradient]` needs none";
        return Err(recipe.invalid("method.direct_reward.judge", format!("`{judge}`"), expected));
    }
    if regularization > 0.0 {
        comparable(recipe)?;
    }
    if let Some(section) = config.divergence {
        divergence(recipe, config, section)?;
    }
    scores_alone(recipe)
}

/// Distributions of steps that are compared with a reference's.
fn divergence(recipe: &Recipe<Diffusion>, config: &DirectRewardConfig, section: StepDivergence) -> Result<()> {
    let alpha = match section.kind {
        Divergence::Alpha(alpha) => alpha,
        Divergence::ReverseKl | Divergence::ForwardKl | Divergence::Js => 0.5,
    };
    ensure(
        recipe,
        [
            Rule::new("divergence.beta", section.beta, is_positive(section.beta), ABOVE_0),
            Rule::new(
                "divergence.kind.alpha",
                alpha,
                alpha > 0.0 && alpha < 1.0,
                "a number above 0 and below 1",
            ),
        ],
    )?;
    let spanned = match config.gradient {
        GradientSpan::All {} | GradientSpan::Last { .. } | GradientSpan::Truncated { .. } => None,
        GradientSpan::LowVariance { .. } => Some("low_variance"),
        GradientSpan::Single { .. } => Some("single"),
    };
    if let Some(name) = spanned {
        let found = format!("`{name}` with `divergence`, and its one step leads to no distribution");
        return Err(recipe.invalid("method.direct_reward.gradient", found, "`all`, `last` or `truncated`"));
    }
    comparable(recipe)?;
    if let ReferenceConfig::Ema { .. } = recipe.reference {
        let found =
            "a reference that changes, where `method.direct_reward.divergence` needs its gradient by the latents";
        return Err(recipe.invalid("reference.ema", found, "`adapter_off`, `frozen` or `checkpoint`"));
    }
    Ok(())
}

/// A judge that can see new images.
fn judge(recipe: &Recipe<Diffusion>, judge: Option<&Judge>) -> Result<()> {
    if !judge.is_some_and(Judge::is_stored) {
        return Ok(());
    }
    let key = format!("method.{}.judge", recipe.method.name());
    Err(recipe.invalid(
        &key,
        "`stored` scores, which new images do not have",
        "a judge that looks at images",
    ))
}

fn span(recipe: &Recipe<Diffusion>, span: GradientSpan, steps: usize) -> Result<()> {
    let last = steps.saturating_sub(1);
    match span {
        GradientSpan::All {} => Ok(()),
        GradientSpan::Last { steps: tail } => ensure(
            recipe,
            [Rule::new(
                "gradient.last.steps",
                tail,
                (1..=steps).contains(&tail),
                "a number from 1 to `rollout.steps`",
            )],
        ),
        GradientSpan::LowVariance { draws } => ensure(
            recipe,
            [Rule::new("gradient.low_variance.draws", draws, draws >= 1, AT_LEAST_1)],
        ),
        GradientSpan::Truncated { mean, deviation } => ensure(
            recipe,
            [
                Rule::new(
                    "gradient.truncated.mean",
                    mean,
                    mean >= 1.0 && mean < steps as f64,
                    "a number from 1 to below `rollout.steps`",
                ),
                Rule::new(
                    "gradient.truncated.deviation",
                    deviation,
                    is_positive(deviation),
                    ABOVE_0,
                ),
            ],
        ),
        GradientSpan::Single { first, last: end } => ensure(
            recipe,
            [
                Rule::new("gradient.single.first", first, first <= end, "a number, at most `last`"),
                Rule::new(
                    "gradient.single.last",
                    end,
                    end <= last,
                    "a number below `rollout.steps`",
                ),
            ],
        ),
    }
}

/// Whether transitions must have a density.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Density {
    Needed,
    Unused,
}

fn rollout(recipe: &Recipe<Diffusion>, config: &RolloutConfig, density: Density) -> Result<()> {
    // Which eta a sampler takes is the sampler's to say; without noise there is no density with any.
    let (eta, expected) = match density {
        Density::Needed
            if matches!(
                config.sampler,
                SamplerKind::Auto | SamplerKind::Ddim | SamplerKind::FlowEuler
            ) =>
        {
            (
                config.eta.is_finite() && config.eta > 0.0,
                "a number above 0: transitions without noise have no density",
            )
        }
        _ => (
            config.eta.is_finite() && config.eta >= 0.0,
            "a finite number, at least 0",
        ),
    };
    one_size(recipe, config)?;
    ensure(
        recipe,
        [
            Rule::new("rollout.steps", config.steps, config.steps >= 1, AT_LEAST_1),
            Rule::new(
                "rollout.guidance_scale",
                config.guidance_scale,
                config.guidance_scale.is_finite() && config.guidance_scale >= 0.0,
                "a finite number, at least 0",
            ),
            Rule::new("rollout.eta", config.eta, eta, expected),
        ],
    )
}

/// One side says the size, or each its own.
fn one_size(recipe: &Recipe<Diffusion>, config: &RolloutConfig) -> Result<()> {
    let sides = [("rollout.height", config.height), ("rollout.width", config.width)];
    for (key, side) in sides {
        let holds = side.is_none() || config.resolution.is_none();
        let expected = "no such key, or no `rollout.resolution`, which says both sides";
        ensure(recipe, [Rule::new(key, side.unwrap_or(0), holds, expected)])?;
    }
    Ok(())
}

fn reuse(recipe: &Recipe<Diffusion>, config: &ReuseConfig) -> Result<()> {
    ensure(
        recipe,
        [
            Rule::new("reuse.updates", config.updates, config.updates >= 1, AT_LEAST_1),
            Rule::new("reuse.passes", config.passes, config.passes >= 1, AT_LEAST_1),
            Rule::new(
                "reuse.fraction",
                config.fraction,
                config.fraction > 0.0 && config.fraction <= 1.0,
                "a number above 0, at most 1",
            ),
        ],
    )
}

/// Objectives of pairs that Gaussian log-densities and a judge's scores are enough for.
fn pairs(recipe: &Recipe<Diffusion>, clip_range: f64) -> Result<()> {
    let (method, objective) = (recipe.method.name(), recipe.objective.name());
    let needs = recipe.objective.requirements();
    let key = format!("objective.{objective}");
    let found = format!("`{objective}` with `[method.{method}]`");
    if needs.kind != Kind::Pairs {
        return Err(recipe.invalid(&key, found, "an objective of pairs"));
    }
    if needs.score != ScoreKind::Any || needs.mismatched || needs.reward_shift || needs.prompt_distances {
        let expected =
            "an objective that log-densities of transitions, of a reference and scores of a judge are enough for";
        return Err(recipe.invalid(&key, found, expected));
    }
    let range = Rule::new(
        "clip_range",
        clip_range,
        (0.0..1.0).contains(&clip_range),
        "a number from 0 (no limit) to below 1",
    );
    ensure(recipe, [range])?;
    if needs.reference {
        return comparable(recipe);
    }
    let expected = "0: without a reference there is no ratio to limit";
    ensure(
        recipe,
        [Rule::new("clip_range", clip_range, clip_range == 0.0, expected)],
    )
}

/// Scores that no other is compared with.
fn scores_alone(recipe: &Recipe<Diffusion>) -> Result<()> {
    if recipe.objective.requirements().kind == Kind::Chosen {
        return Ok(());
    }
    let (method, objective) = (recipe.method.name(), recipe.objective.name());
    Err(recipe.invalid(
        &format!("objective.{objective}"),
        format!("`{objective}` with `[method.{method}]`"),
        "`[objective.sft]`: the loss of a reward is the method's own",
    ))
}

/// References that can be asked about latents that were just sampled.
fn comparable(recipe: &Recipe<Diffusion>) -> Result<()> {
    let name = recipe.reference.name();
    let (found, expected) = match recipe.reference {
        ReferenceConfig::None {} => (
            "nothing to compare with",
            "`adapter_off`, `frozen`, `ema` or `checkpoint`",
        ),
        ReferenceConfig::Cached { .. } => (
            "`cached` scores, which images that are not sampled yet cannot have",
            "`adapter_off`, `frozen`, `ema` or `checkpoint`",
        ),
        _ => return Ok(()),
    };
    Err(recipe.invalid(&format!("reference.{name}"), found, expected))
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

fn ensure<'a>(recipe: &Recipe<Diffusion>, rules: impl IntoIterator<Item = Rule<'a>>) -> Result<()> {
    match rules.into_iter().find(|rule| !rule.holds) {
        None => Ok(()),
        Some(rule) => {
            let key = format!("method.{}.{}", recipe.method.name(), rule.key);
            Err(recipe.invalid(&key, rule.found, rule.expected))
        }
    }
}
