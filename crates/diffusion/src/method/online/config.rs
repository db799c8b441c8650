//! `[method.*]` of the methods that sample what they learn from.

use diptych_core::Divergence;
use diptych_eval::Judge;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::pipeline::{DenoiserConfig, SampleSizes};
use crate::sampler::{FinalLevel, SamplerConfig, SamplerKind};

/// How trajectories are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// The sampler: `ddim` for a schedule in discrete time, `flow_euler` for a flow, by default the one of these that fits. Its steps must
    /// add noise where transitions are scored.
    pub sampler: SamplerKind,
    /// Denoising steps.
    pub steps: usize,
    /// Strength of classifier-free guidance, while sampling and in the loss; up to 1: none.
    pub guidance_scale: f64,
    /// How much noise a step adds, for samplers that leave a choice: for `ddim` the share of the trained chain's, up to 1.
    pub eta: f64,
    /// Width and height of the images, pixels; by default what the denoiser was made for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolution: Option<u32>,
    /// Height of the images alone, pixels; contradicts `resolution`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Width of the images alone, pixels; contradicts `resolution`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
}

impl Default for RolloutConfig {
    /// As SPO and D3PO: 20 steps, guidance 5, eta 1.
    fn default() -> Self {
        Self {
            sampler: SamplerKind::Auto,
            steps: 20,
            guidance_scale: 5.0,
            eta: 1.0,
            resolution: None,
            height: None,
            width: None,
        }
    }
}

impl RolloutConfig {
    /// Channels, height and width of the latents.
    ///
    /// # Errors
    /// [`crate::Error::SampleSize`]; [`crate::Error::Config`] where neither these settings nor the denoiser's file say a size.
    pub(crate) fn latent_shape(&self, denoiser: &DenoiserConfig, factor: usize) -> Result<[usize; 3]> {
        let sizes = SampleSizes::of(denoiser, factor);
        let channels = denoiser.latent_channels().0;
        if let Some(side) = sizes.latents("resolution", self.resolution)? {
            return Ok([channels, side, side]);
        }
        let (y, x) = (
            sizes.latents("height", self.height)?,
            sizes.latents("width", self.width)?,
        );
        if let (Some(y), Some(x)) = (y, x) {
            return Ok([channels, y, x]);
        }
        let [own_y, own_x] = denoiser.sample_size()?;
        Ok([channels, y.unwrap_or(own_y), x.unwrap_or(own_x)])
    }

    /// The sampler's settings. It ends as in the published code, so that its last step has a density.
    pub(super) fn sampler(&self) -> SamplerConfig {
        SamplerConfig {
            eta: self.eta,
            final_level: FinalLevel::FirstTimestep,
            ..SamplerConfig::new(self.sampler, self.steps)
        }
    }
}

/// How many optimizer steps are made on what was sampled once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReuseConfig {
    /// Optimizer steps that one pass over the transitions is cut into, at least 1. Each prompt's transitions are shuffled and
    /// dealt out evenly.
    pub updates: u64,
    /// Passes over the transitions, at least 1.
    pub passes: u64,
    /// Share of each prompt's transitions that is trained on, above 0 up to 1; which ones is drawn anew in every pass.
    pub fraction: f64,
}

impl Default for ReuseConfig {
    fn default() -> Self {
        Self {
            updates: 1,
            passes: 1,
            fraction: 1.0,
        }
    }
}

impl ReuseConfig {
    /// Optimizer steps on what was sampled once.
    pub fn updates_per_batch(&self) -> u64 {
        self.updates * self.passes
    }
}

/// `[method.trajectory_pairs]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrajectoryPairsConfig {
    /// Who prefers one of the two images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// How trajectories are sampled.
    pub rollout: RolloutConfig,
    /// How often what was sampled is used.
    pub reuse: ReuseConfig,
    /// The probability ratio of policy and reference is held within `1 ± clip_range`; beyond it there is no gradient. From 0 (no
    /// limit) to below 1.
    pub clip_range: f64,
}

impl Default for TrajectoryPairsConfig {
    fn default() -> Self {
        Self {
            judge: None,
            rollout: RolloutConfig::default(),
            reuse: ReuseConfig {
                updates: 20,
                ..ReuseConfig::default()
            },
            clip_range: 0.1,
        }
    }
}

/// `[method.step_aware]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepAwareConfig {
    /// Who ranks the candidates of a step by the clean images that they promise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// How trajectories are sampled.
    pub rollout: RolloutConfig,
    /// How often what was sampled is used.
    pub reuse: ReuseConfig,
    /// The probability ratio of policy and reference is held within `1 ± clip_range`; beyond it there is no gradient. From 0 (no
    /// limit) to below 1.
    pub clip_range: f64,
    /// Candidates drawn from each latent, 2 to 254.
    pub candidates: u8,
    /// The best and the worst candidate are kept as a pair where the softmax of their two scores differs by more than this,
    /// from 0 to below 1.
    pub threshold: f64,
    /// Steps that are sampled without candidates, from the noisiest one on.
    pub start_step: usize,
    /// Transitions of a candidate, at least 1: all of them are labeled with its rank. SPO has 3 for SDXL.
    pub inner_steps: usize,
    /// Pushes the better candidate of every pair towards what the judge likes: TailorPO-G. Without the section none is pushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_guidance: Option<GradientGuidance>,
    /// Which candidate the trajectory goes on from.
    pub continue_from: Continuation,
}

/// How far the better candidate of a pair is pushed along the gradient of the judge's score of the clean image that it promises.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GradientGuidance {
    /// `strength` times the gradient.
    Gradient {
        /// Above 0, in latents a unit of the gradient.
        strength: f64,
    },
    /// Along the gradient as far that the mean square of the move is that of `strength` standard deviations of the step, whatever the scale of the
    /// judge's scores.
    Normalized {
        /// Above 0, in standard deviations of the step.
        strength: f64,
    },
}

/// Which candidate a trajectory goes on from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Continuation {
    /// Any, as in SPO.
    #[default]
    Random,
    /// The better one of the pair, where there is a pair, with what it was pushed by.
    Best,
}

impl Default for StepAwareConfig {
    fn default() -> Self {
        Self {
            judge: None,
            rollout: RolloutConfig::default(),
            reuse: ReuseConfig::default(),
            clip_range: 0.1,
            candidates: 4,
            threshold: 0.3,
            start_step: 4,
            inner_steps: 1,
            gradient_guidance: None,
            continue_from: Continuation::default(),
        }
    }
}

/// `[method.policy_gradient]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyGradientConfig {
    /// Who rewards an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// How trajectories are sampled.
    pub rollout: RolloutConfig,
    /// How often what was sampled is used.
    pub reuse: ReuseConfig,
    /// Images of each prompt, at least 1.
    pub images_per_prompt: usize,
    /// The probability ratio to the policy that sampled counts up to `1 ± clip_range`, above 0 and below 1.
    pub clip_range: f64,
    /// Advantages are cut to `± advantage_clip`, above 0.
    pub advantage_clip: f64,
    /// What a reward is compared with.
    pub advantages: AdvantageConfig,
}

impl Default for PolicyGradientConfig {
    fn default() -> Self {
        Self {
            judge: None,
            rollout: RolloutConfig::default(),
            reuse: ReuseConfig::default(),
            images_per_prompt: 1,
            clip_range: 1e-4,
            advantage_clip: 5.0,
            advantages: AdvantageConfig::default(),
        }
    }
}

/// What a reward is compared with to make it an advantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdvantageConfig {
    /// Mean and deviation of what was sampled together.
    Batch {},
    /// Mean and deviation of a prompt's last rewards, once there are enough of them; until then as `batch`.
    PerPrompt {
        /// Rewards remembered of each prompt, at least 2.
        buffer_size: usize,
        /// Rewards that are enough, from 2 to `buffer_size`.
        min_count: usize,
    },
}

impl Default for AdvantageConfig {
    fn default() -> Self {
        Self::PerPrompt {
            buffer_size: 16,
            min_count: 16,
        }
    }
}

/// `[method.direct_reward]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DirectRewardConfig {
    /// Who rewards an image, differentiably.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// How images are sampled; `eta` may be 0.
    pub rollout: RolloutConfig,
    /// Which predictions of the sampler get a gradient.
    pub gradient: GradientSpan,
    /// What a reward is worth.
    pub loss: RewardLoss,
    /// Weight of the mean squared difference between the latents that policy and reference reach by the steps that get a gradient, from
    /// the same latents and with the same noise; at least 0. Above 0 it needs a reference.
    pub regularization: f64,
    /// A cost of every step that gets a gradient, for how far its distribution is from the reference's: ROCM. Without the section there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<StepDivergence>,
}

/// `[method.direct_reward.divergence]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepDivergence {
    /// Weight of the divergence against the reward, above 0. It is that of one component, summed over steps.
    pub beta: f64,
    /// The divergence, as in `[objective.f_dpo]`. The two Kullback-Leibler ones are the same here; `{ alpha = 0.5 }` is 4 times the squared
    /// Hellinger distance.
    pub kind: Divergence,
}

/// Which of the sampler's predictions get a gradient. Those before are taken as they are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GradientSpan {
    /// All: DRaFT.
    All {},
    /// The last ones: DRaFT-K.
    Last {
        /// How many, at least 1 and at most all.
        steps: usize,
    },
    /// The last one, averaged over several draws of noise on the finished latents: DRaFT-LV.
    LowVariance {
        /// Draws, at least 1.
        draws: u8,
    },
    /// From a step on that is drawn from a normal distribution until it is one of `1` to `steps − 1`, anew for every optimizer step: AlignProp.
    Truncated {
        /// Mean of the first step with a gradient.
        mean: f64,
        /// Its standard deviation, above 0.
        deviation: f64,
    },
    /// One step, drawn evenly from `first` to `last` (counted from 0) anew for every optimizer step; the clean image that it promises
    /// is rewarded: ReFL, which has 40 steps, 30 to 39, and no guidance.
    Single {
        /// The first step that may be drawn.
        first: usize,
        /// The last one.
        last: usize,
    },
}

impl Default for GradientSpan {
    fn default() -> Self {
        Self::Last { steps: 1 }
    }
}

/// What is made smaller, for a reward `r`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardLoss {
    /// `−weight · r`.
    Maximize {
        /// Its weight, above 0.
        weight: f64,
    },
    /// `weight · |r − target|`, as AlignProp has it for aesthetic scores (0.01 and 10).
    Distance {
        /// The reward to reach.
        target: f64,
        /// Its weight, above 0.
        weight: f64,
    },
    /// `weight · max(0, target − r)`, as ReFL has it (0.001 and 2).
    Hinge {
        /// The reward that is enough.
        target: f64,
        /// Its weight, above 0.
        weight: f64,
    },
}

impl Default for RewardLoss {
    fn default() -> Self {
        Self::Maximize { weight: 1.0 }
    }
}
