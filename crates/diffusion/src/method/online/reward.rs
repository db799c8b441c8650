//! What the methods that sample are rewarded by.

use std::fmt::Debug;

use diptych_eval::Judge;
use diptych_tensor::Tensor;

use crate::{Error, Result, images};

/// Rewards images. The judges of recipes do so through [`JudgeReward`]; a program may bring its own to
/// [`prepare_with_reward`](crate::method::prepare_with_reward).
pub trait Reward: Debug + Send + Sync {
    /// What it is called in errors.
    fn name(&self) -> &str;

    /// Whether its rewards have a gradient by the pixels.
    fn is_differentiable(&self) -> bool;

    /// One reward an image, greater is better.
    ///
    /// `timestep` is the noise level that the images were promised at, in the noise schedule's steps; 0 for finished images.
    ///
    /// # Shape
    /// `pixels` (B, 3, Y, X) in `[-1, 1]`, one prompt an image; the result is (B,), differentiable where
    /// [`Reward::is_differentiable`] says so.
    ///
    /// # Errors
    /// What the judge refuses.
    fn rewards(&self, prompts: &[&str], pixels: &Tensor, timestep: f32) -> Result<Tensor>;

    /// Refuses prompts that it does not understand, before anything is sampled.
    ///
    /// # Errors
    /// Its own, naming the prompt.
    fn check_prompts(&self, prompts: &[String]) -> Result<()> {
        let _ = prompts;
        Ok(())
    }
}

/// A judge of images as a reward.
#[derive(Debug)]
pub struct JudgeReward(pub Judge);

impl Reward for JudgeReward {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn is_differentiable(&self) -> bool {
        is_differentiable(&self.0)
    }

    fn rewards(&self, prompts: &[&str], pixels: &Tensor, _timestep: f32) -> Result<Tensor> {
        let prompts: Vec<String> = prompts.iter().map(|&prompt| prompt.to_owned()).collect();
        let scores = self.0.score(&prompts, &images::from_tensor(pixels)?)?;
        let scores: Vec<f32> = scores.into_iter().map(|score| score as f32).collect();
        let tensor = || -> diptych_tensor::Result<Tensor> {
            let len = scores.len();
            Ok(Tensor::from_vec(scores, len, pixels.device())?)
        };
        Ok(tensor()?)
    }

    fn check_prompts(&self, prompts: &[String]) -> Result<()> {
        Ok(self.0.check_prompts(prompts)?)
    }
}

/// Whether a judge's scores have a gradient by the pixels.
pub(super) fn is_differentiable(judge: &Judge) -> bool {
    match judge {
        Judge::Verifier => false,
    }
}

/// Rewards are one number an image.
pub(super) fn checked(reward: &dyn Reward, rewards: Tensor, num_images: usize) -> Result<Tensor> {
    if rewards.dims() == [num_images] {
        return Ok(rewards);
    }
    Err(Error::Shape {
        name: format!("rewards of `{}`", reward.name()),
        found: rewards.dims().to_vec(),
        expected: vec![num_images],
    })
}
