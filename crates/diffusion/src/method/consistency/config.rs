//! `[method.offline_pairs.error.*]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the score of an image is minus one half of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageError {
    /// The mean squared error of the denoiser's answer.
    #[default]
    Denoising,
    /// How far the network is from giving the same clean image at two noise levels, for latent consistency models.
    Consistency(ConsistencyConfig),
}

impl ImageError {
    /// The section of consistency distances, where they are meant.
    pub fn consistency(&self) -> Option<&ConsistencyConfig> {
        match self {
            Self::Denoising => None,
            Self::Consistency(config) => Some(config),
        }
    }
}

/// `[method.offline_pairs.error.consistency]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsistencyConfig {
    /// Differences well below it count squared, those above as they are; above 0. The published script has 0.001.
    pub huber_c: f64,
    /// Timesteps of the solver, of which each image's is drawn, at least 1 and a divisor of the schedule's length; by default
    /// `original_inference_steps` of `scheduler_config.json`, else 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver_steps: Option<usize>,
    /// How the less noisy latents come about.
    pub solver: ConsistencySolver,
    /// Whose clean image at the less noisy latents is the one to agree with.
    pub target: ConsistencyTarget,
}

impl Default for ConsistencyConfig {
    fn default() -> Self {
        Self {
            huber_c: 1e-3,
            solver_steps: None,
            solver: ConsistencySolver::default(),
            target: ConsistencyTarget::default(),
        }
    }
}

impl ConsistencyConfig {
    /// The section of the teacher, where there is one.
    pub fn teacher(&self) -> Option<&TeacherConfig> {
        match &self.solver {
            ConsistencySolver::Data => None,
            ConsistencySolver::Teacher(teacher) => Some(teacher),
        }
    }
}

/// From noisy latents to those one step of the solver before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsistencySolver {
    /// The same image with the same noise at the earlier timestep, which needs no other network (consistency training).
    #[default]
    Data,
    /// A DDIM step of the diffusion model that the policy was distilled from, with guidance (consistency distillation).
    Teacher(TeacherConfig),
}

/// `[method.offline_pairs.error.consistency.solver.teacher]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// The teacher's pipeline, of which the denoiser is read.
    pub path: PathBuf,
    /// Strength of its guidance, at least 0; up to 1: none. The published script draws 1 plus a number from 5 to 15 for every pair and
    /// tells it to the policy, whose network must take it as an input.
    #[serde(default = "TeacherConfig::guidance_scale")]
    pub guidance_scale: f64,
}

impl TeacherConfig {
    fn guidance_scale() -> f64 {
        8.5
    }
}

/// Whose clean image at the less noisy latents is the one to agree with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsistencyTarget {
    /// The reference's, for policy and reference, as in the published script.
    #[default]
    Reference,
    /// Each network's own, without a gradient.
    Own,
}
