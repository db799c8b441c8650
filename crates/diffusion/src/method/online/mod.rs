//! Methods that sample what they learn from, under the policy as it is.
//!
//! | section | what is learned from | papers |
//! |---|---|---|
//! | `trajectory_pairs` | two trajectories a prompt, of which a judge prefers one | D3PO |
//! | `step_aware` | candidates for each step, ranked by the images that they promise | SPO, TailorPO |
//! | `policy_gradient` | trajectories and their rewards | DDPO |
//! | `direct_reward` | the gradient of a reward through the sampler | DRaFT, AlignProp, ReFL, ROCM |
//!
//! Records are prompts. What is sampled for those of an optimizer step is a function of the parameters at that time, the seed, the step and
//! the place in the batch; it is kept for as many updates as the section asks for, and written into checkpoints made between them.

mod advantages;
mod checks;
mod config;
mod direct_reward;
mod kept;
mod pair_step;
mod policy_gradient;
mod prepare;
mod reward;
mod reward_guidance;
mod step_aware;
mod studio;
#[cfg(test)]
mod tests;
mod trajectory_pairs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use diptych_tensor::{Params, Tensor, Weights};
use diptych_train::{Method, MicroBatch, StepOutput, Weighted};

pub(crate) use checks::validate;
pub use config::{
    AdvantageConfig, Continuation, DirectRewardConfig, GradientGuidance, GradientSpan, PolicyGradientConfig,
    ReuseConfig, RewardLoss, RolloutConfig, StepAwareConfig, StepDivergence, TrajectoryPairsConfig,
};
pub(super) use prepare::check_reward;
pub(crate) use prepare::judge_files;
pub use reward::{JudgeReward, Reward};

use direct_reward::DirectReward;
use kept::{Kept, TransitionPair};
use pair_step::PairLoss;
use policy_gradient::PolicyGradient;
use studio::Studio;

use super::reference::save_state;
use super::showcase::Showcase;
use super::trained::TrainedDenoiser;
use crate::{Error, Result};

/// A method that samples what it learns from.
///
/// # Paper
/// - D3PO: Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model (arXiv:2311.13231)
/// - SPO: Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference Optimization (arXiv:2406.04314)
/// - TailorPO: Refining Alignment Framework for Diffusion Models with Intermediate-Step Preference Ranking (arXiv:2502.01667)
/// - DDPO: Training Diffusion Models with Reinforcement Learning (arXiv:2305.13301)
/// - DRaFT: Directly Fine-Tuning Diffusion Models on Differentiable Rewards (arXiv:2309.17400)
/// - AlignProp: Aligning Text-to-Image Diffusion Models with Reward Backpropagation (arXiv:2310.03739)
/// - ROCM: RLHF on consistency models (arXiv:2503.06171)
/// - ReFL: ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation (arXiv:2304.05977)
#[derive(Debug)]
pub struct Online {
    studio: Studio,
    way: Way,
    showcase: Option<Showcase>,
}

/// How it learns.
#[derive(Debug)]
enum Way {
    Pairs(PairWay),
    PolicyGradient(PolicyGradient),
    DirectReward(DirectReward),
}

/// Learning from pairs of transitions.
#[derive(Debug)]
struct PairWay {
    source: PairSource,
    loss: PairLoss,
    kept: Mutex<Option<Kept<TransitionPair>>>,
}

/// Where pairs come from.
#[derive(Debug, Clone)]
enum PairSource {
    Trajectories,
    Candidates(Box<StepAwareConfig>),
}

/// What was sampled, and what is to be logged about it.
struct Collected<R> {
    kept: Kept<R>,
    weighted: BTreeMap<&'static str, Weighted>,
    totals: BTreeMap<&'static str, f64>,
}

impl Online {
    pub(crate) fn policy(&self) -> &TrainedDenoiser {
        &self.studio.policy
    }

    /// Everything that lasts from one step to the next.
    fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        match &self.way {
            Way::Pairs(way) => way.kept().as_ref().map_or(Ok(BTreeMap::new()), Kept::tensors),
            Way::PolicyGradient(way) => way.tensors(),
            Way::DirectReward(_) => Ok(BTreeMap::new()),
        }
    }
}

impl PairWay {
    fn kept(&self) -> MutexGuard<'_, Option<Kept<TransitionPair>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, studio: &Studio, batch: &MicroBatch) -> Result<StepOutput> {
        let mut kept = self.kept();
        if let Some(kept) = kept.as_ref().filter(|kept| kept.serves(batch)) {
            return self.loss.step(studio, kept, batch);
        }
        let collected = match &self.source {
            PairSource::Trajectories => trajectory_pairs::collect(studio, batch)?,
            PairSource::Candidates(config) => step_aware::collect(studio, config, batch)?,
        };
        let mut output = self.loss.step(studio, kept.insert(collected.kept), batch)?;
        output.weighted.extend(collected.weighted);
        output.totals.extend(collected.totals);
        Ok(output)
    }
}

impl Method for Online {
    type Error = Error;

    fn params(&self) -> &Params {
        &self.studio.policy.params
    }

    fn num_records(&self) -> usize {
        self.studio.prompts.texts.len()
    }

    fn record_id(&self, index: usize) -> String {
        self.studio.prompts.ids[index].clone()
    }

    fn updates_per_batch(&self) -> u64 {
        match &self.way {
            Way::Pairs(way) => way.loss.reuse.updates_per_batch(),
            Way::PolicyGradient(way) => way.config.reuse.updates_per_batch(),
            Way::DirectReward(_) => 1,
        }
    }

    fn step(&self, batch: &MicroBatch) -> Result<StepOutput> {
        match &self.way {
            Way::Pairs(way) => way.step(&self.studio, batch),
            Way::PolicyGradient(way) => way.step(&self.studio, batch),
            Way::DirectReward(way) => way.step(&self.studio, batch),
        }
    }

    fn after_step(&self, step: u64) -> Result<()> {
        self.studio.reference.after_step(self.params(), step)?;
        if step.is_multiple_of(self.updates_per_batch()) {
            match &self.way {
                Way::Pairs(way) => *way.kept() = None,
                Way::PolicyGradient(way) => way.forget(),
                Way::DirectReward(_) => {}
            }
        }
        Ok(())
    }

    fn save_state(&self, path: &Path) -> Result<bool> {
        let mut tensors = self.tensors()?;
        tensors.extend(self.studio.reference.state()?);
        save_state(path, &tensors)
    }

    fn load_state(&self, path: &Path) -> Result<()> {
        let weights = Weights::open(path)?;
        self.studio.reference.restore(&weights)?;
        match &self.way {
            Way::Pairs(way) => *way.kept() = Kept::read(&weights, self.studio.device())?,
            Way::PolicyGradient(way) => way.restore(&self.studio, &weights)?,
            Way::DirectReward(_) => {}
        }
        Ok(())
    }

    fn save(&self, directory: &Path) -> Result<()> {
        self.studio.policy.save(directory)
    }

    fn save_final(&self, directory: &Path) -> Result<()> {
        self.studio.policy.save_final(directory)
    }

    fn load(&self, directory: &Path) -> Result<()> {
        self.studio.policy.restore(directory)
    }

    fn sample(&self, stem: &Path) -> Result<Option<PathBuf>> {
        self.showcase
            .as_ref()
            .map(|showcase| showcase.write(&self.studio.policy, stem))
            .transpose()
    }
}
