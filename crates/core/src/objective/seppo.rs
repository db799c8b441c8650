//! Semi-Policy Preference Optimization: a sampled image is pushed away or drawn near, by how the winner fares.
//!
//! # Paper
//! Zhang et al., "`SePPO`: Semi-Policy Preference Optimization for Diffusion Alignment", 2024, arXiv:2410.05255, with its
//! Anchor-based Adaptive Flipper.
//!
//! # Formula
//! ```text
//! a = log pi(y_w) - log ref(y_w), b = log pi(y_r) - log ref(y_r)
//! sign = 1 where a >= 0, else -1
//! L = -log s(beta (a - sign b))
//! ```
//!
//! # Convention
//! `y_w` is an image of the data, the anchor, and `y_r` one that the reference sampled: the rejected side of the pair. Where the
//! policy is behind the reference on the anchor, the reference's own image counts as one to learn from and not to avoid. The sign
//! is a constant to the gradient. For diffusion the score is minus one half of the per-image mean squared denoising error:
//! the paper's `beta T w(lambda_t)`, the squared norm and the number of dimensions are folded into `beta` as with
//! [`dpo`](super::dpo). The reference is one of the policies of earlier rounds, drawn at random.
//! Reference code: none of training was released; the formula is that of the paper as its reviewers quote it. Differences: rewards
//! are those of DPO, whatever the sign.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, positive};
use crate::arithmetic::{logistic, rewarded};
use crate::{ObjectiveOutput, PairLogps, Requirements, Result};

/// Parameters of `SePPO`.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::pair_losses`](crate::Objective::pair_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores,
/// [`OutOfRange`](crate::Error::OutOfRange) for a `beta` that is not positive.
///
/// # Example
/// A policy that is behind its reference on the winner gains by any image that the reference made:
/// ```
/// use diptych_core::{Objective, PairLogps, Seppo};
/// use diptych_tensor::{Device, Tensor};
///
/// let score = |value: f32| Tensor::new(&[value], &Device::Cpu);
/// let loss = |sampled: f32| -> Result<f32, Box<dyn std::error::Error>> {
///     let logps = PairLogps::new(score(-12.0)?, score(sampled)?).with_reference(score(-10.0)?, score(-20.0)?);
///     Ok(Objective::from(Seppo { beta: 0.1 }).pair_losses(&logps)?.losses.to_vec1()?[0])
/// };
/// assert!(loss(-19.0)? < loss(-21.0)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seppo {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratios. For diffusion 2000 to 5000, as for DPO.
    pub beta: f64,
}

impl Formula for Seppo {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "seppo",
        title: "Semi-Policy Preference Optimization",
        paper: "Zhang et al., 2024, arXiv:2410.05255",
        requirements: Requirements::PAIRS.with_reference(),
    };

    fn validate(&self) -> Result<()> {
        positive("seppo", "beta", self.beta)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (anchor, sampled) = logps.logratios("seppo")?;
        let signed = (&sampled * signs(&anchor)?)?;
        let losses = logistic(&((&anchor - &signed)? * self.beta)?, 0.0)?;
        rewarded(losses, self.beta, &anchor, &sampled)
    }
}

/// 1 where the policy is not behind its reference on the anchor, else -1; `(B,)`, without a gradient.
fn signs(anchor: &Tensor) -> Result<Tensor> {
    let anchor = anchor.detach();
    let ones = anchor.ones_like()?;
    Ok(anchor.ge(0.0)?.where_cond(&ones, &ones.neg()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dpo;
    use crate::testing::{SCORES, assert_near, assert_refused, pair, softplus_neg};

    #[test]
    fn published_arithmetic_by_hand() {
        // Ahead on the anchor by 1.1: away from the sample, whose log-ratio is -2.5.
        assert_near(pair(Seppo { beta: 0.1 }, SCORES), [softplus_neg(0.36), 0.11, -0.25]);
        // Behind by 0.9: towards it.
        let behind = [-44.0, SCORES[1], SCORES[2], SCORES[3]];
        assert_near(pair(Seppo { beta: 0.1 }, behind), [softplus_neg(-0.34), -0.09, -0.25]);
    }

    #[test]
    fn a_policy_that_is_not_behind_has_the_loss_of_dpo() {
        let dpo = Dpo {
            beta: 0.1,
            label_smoothing: 0.0,
        };
        for chosen in [SCORES[0], SCORES[2]] {
            let scores = [chosen, SCORES[1], SCORES[2], SCORES[3]];
            assert_near(pair(Seppo { beta: 0.1 }, scores), pair(dpo, scores));
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        assert_refused([(Seppo { beta: 0.0 }, "beta")]);
    }
}
