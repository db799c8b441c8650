//! Value-Incentivized Preference Optimization: DPO that leans towards, or away from, what a calibration policy answers.
//!
//! # Paper
//! Cen et al., "Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF", International Conference
//! on Learning Representations 2025, arXiv:2405.19320, Algorithms 1 (optimism) and 2 (pessimism).
//!
//! # Formula
//! ```text
//! h = (log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))
//! c = E_(y ~ calibration) [ log pi(y) - log ref(y) ]
//! L = -log s(beta h) + alpha beta c                   direction = "optimism"
//!     -log s(beta h) - alpha beta c                   direction = "pessimism"
//! ```
//!
//! # Convention
//! Log-probs are summed over tokens. The expectation is estimated on the responses of the pair itself: `calibration` says which of
//! them were drawn from the calibration policy. `chosen` is the offline setting whose term is supervised fine-tuning on the chosen
//! side; `both` is the mean of the two sides, for pairs that were both sampled from the reference and then ordered by a judge.
//! `alpha` multiplies `beta` too; 0 is DPO.
//! The exploration term of SELM (Zhang et al., "Self-Exploring Language Models", arXiv:2405.19332) and that of XPO (Xie et al.,
//! arXiv:2405.21046, without the factor `beta`) are the optimistic form, whose response is one that the reference gave.
//! Reference code: the authors of VPO published none; shenao-zhang/SELM `selm_trainer.py`, `optimistic_dpo_loss`. Differences: SELM
//! scores a third response of the reference, which need not be one of the pair; here it must be.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, at_least_0, positive};
use crate::arithmetic::{logistic, rewarded};
use crate::{ObjectiveOutput, PairLogps, Requirements, Result};

/// Parameters of VPO.
///
/// # Shape
/// Scores, losses and rewards are `(B,)`; see [`Objective::pair_losses`](crate::Objective::pair_losses).
///
/// # Errors
/// [`MissingReference`](crate::Error::MissingReference) without reference scores, [`OutOfRange`](crate::Error::OutOfRange) for a
/// `beta` or `alpha` outside its range.
///
/// # Example
/// ```
/// use diptych_core::{Objective, PairLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// let objective: Objective = serde_json::from_str(
///     r#"{ "vpo": { "beta": 0.1, "alpha": 0.5, "direction": "pessimism", "calibration": "chosen" } }"#,
/// )?;
/// let score = |value: f64| Tensor::new(&[value], &Device::Cpu);
/// let logps = PairLogps::new(score(-40.0)?, score(-42.0)?).with_reference(score(-42.0)?, score(-42.0)?);
/// let loss = objective.pair_losses(&logps)?.losses.to_vec1::<f64>()?[0];
/// assert!((loss - ((-0.2f64).exp().ln_1p() - 0.5 * 0.1 * 2.0)).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vpo {
    /// Strength of the pull towards the reference, > 0; multiplies the log-ratio.
    pub beta: f64,
    /// Factor of the calibration term beside `beta`, >= 0; 0 is DPO. Usual: 0.0001 to 0.01.
    pub alpha: f64,
    /// Whether what the calibration policy answers becomes less or more likely.
    pub direction: VpoDirection,
    /// Which responses of a pair were drawn from the calibration policy.
    pub calibration: VpoCalibration,
}

/// Whether what the calibration policy answers becomes less or more likely under [`Vpo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VpoDirection {
    /// Less: for rounds that collect new data, which should explore what the reference does not say.
    Optimism,
    /// More: for stored data, beyond which nothing is known.
    Pessimism,
}

/// Which responses of a pair were drawn from the calibration policy of [`Vpo`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VpoCalibration {
    /// The chosen one.
    Chosen,
    /// The rejected one.
    Rejected,
    /// Both.
    Both,
}

impl Formula for Vpo {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "vpo",
        title: "Value-Incentivized Preference Optimization",
        paper: "Cen et al., ICLR 2025, arXiv:2405.19320",
        requirements: Requirements::PAIRS.with_reference(),
    };

    fn validate(&self) -> Result<()> {
        positive("vpo", "beta", self.beta)?;
        at_least_0("vpo", "alpha", self.alpha)
    }

    fn pair_losses(&self, logps: &PairLogps) -> Result<ObjectiveOutput> {
        let (chosen, rejected) = logps.logratios("vpo")?;
        let losses = logistic(&((&chosen - &rejected)? * self.beta)?, 0.0)?;
        let losses = (losses + self.calibration_term(&chosen, &rejected)?)?;
        rewarded(losses, self.beta, &chosen, &rejected)
    }
}

impl Vpo {
    /// What is added to DPO, `(B,)`.
    fn calibration_term(&self, chosen: &Tensor, rejected: &Tensor) -> Result<Tensor> {
        let sign = match self.direction {
            VpoDirection::Optimism => 1.0,
            VpoDirection::Pessimism => -1.0,
        };
        let logratios = match self.calibration {
            VpoCalibration::Chosen => chosen.clone(),
            VpoCalibration::Rejected => rejected.clone(),
            VpoCalibration::Both => ((chosen + rejected)? * 0.5)?,
        };
        Ok((logratios * (sign * self.alpha * self.beta))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dpo;
    use crate::testing::{SCORES, assert_near, assert_refused, pair, softplus_neg};

    fn vpo(alpha: f64, direction: VpoDirection, calibration: VpoCalibration) -> Vpo {
        Vpo {
            beta: 0.1,
            alpha,
            direction,
            calibration,
        }
    }

    #[test]
    fn published_arithmetic_by_hand() {
        // Rewards are 0.11 and -0.25.
        for (direction, calibration, term) in [
            (VpoDirection::Optimism, VpoCalibration::Chosen, 0.5 * 0.11),
            (VpoDirection::Pessimism, VpoCalibration::Chosen, -0.5 * 0.11),
            (VpoDirection::Optimism, VpoCalibration::Rejected, -0.5 * 0.25),
            (VpoDirection::Pessimism, VpoCalibration::Both, 0.5 * 0.07),
        ] {
            let expected = [softplus_neg(0.36) + term, 0.11, -0.25];
            assert_near(pair(vpo(0.5, direction, calibration), SCORES), expected);
        }
    }

    #[test]
    fn without_the_term_it_is_dpo() {
        let dpo = Dpo {
            beta: 0.1,
            label_smoothing: 0.0,
        };
        let without = vpo(0.0, VpoDirection::Optimism, VpoCalibration::Both);
        assert_near(pair(without, SCORES), pair(dpo, SCORES));
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let (direction, calibration) = (VpoDirection::Optimism, VpoCalibration::Chosen);
        let without_beta = Vpo {
            beta: 0.0,
            ..vpo(0.1, direction, calibration)
        };
        assert_refused([
            (without_beta, "beta"),
            (vpo(-0.1, direction, calibration), "alpha"),
            (vpo(f64::INFINITY, direction, calibration), "alpha"),
        ]);
    }
}
