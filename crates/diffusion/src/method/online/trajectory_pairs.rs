//! Pairs of whole trajectories: the preferred image's every transition against the other's.
//!
//! Yang et al., "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model" (D3PO), CVPR 2024, arXiv:2311.13231.
//! Two trajectories of a prompt begin with the same noise; a judge prefers one of the two images. Images that it likes alike make no
//! pair.

use std::collections::BTreeMap;

use diptych_tensor::Tensor;
use diptych_train::{MicroBatch, StepOutput};

use super::config::RolloutConfig;
use super::kept::{Kept, Move, TransitionPair, nothing};
use super::pair_step::{PairLoss, reward_metrics};
use super::studio::{Dice, Studio, each, joined};
use crate::Result;

/// The method `trajectory_pairs`.
///
/// # Paper
/// D3PO: Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model (arXiv:2311.13231)
#[derive(Debug)]
pub struct TrajectoryPairs {
    pub(super) loss: PairLoss,
}

/// Trajectories of a prompt.
const SIDES: usize = 2;

impl TrajectoryPairs {
    pub(super) fn step(
        &self,
        studio: &Studio,
        kept: &mut Option<Kept<TransitionPair>>,
        batch: &MicroBatch,
    ) -> Result<StepOutput> {
        let mut sampled = None;
        if kept.as_ref().is_none_or(|kept| !kept.serves(batch)) {
            let (fresh, told) = collect(studio, batch)?;
            *kept = Some(fresh);
            sampled = Some(told);
        }
        let Some(kept) = kept else { unreachable_kept() };
        let mut output = self.loss.step(studio, kept, batch)?;
        if let Some(told) = sampled {
            output.weighted.extend(told.weighted);
            output.totals.extend(told.totals);
        }
        Ok(output)
    }
}
