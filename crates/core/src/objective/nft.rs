//! Negative-aware Fine-Tuning: supervised learning from right answers, and from wrong ones through what they imply.
//!
//! # Paper
//! Chen et al., "Bridging Supervised Learning and Reinforcement Learning in Math Reasoning", arXiv:2505.18116, the loss of NFT.
//!
//! # Formula
//! ```text
//! R_t = pi(y_t) / ref(y_t), r = pass rate of the prompt
//! L   = -w sum_t log R_t                                                  a right answer
//!       -w negative_weight sum_t log max_v( (1 - r R_t) / (1 - r), epsilon )    a wrong one
//! w   = 1, 1 - r or sqrt((1 - r) / r)                prompt_weight = "uniform", "failure_rate", "normalized"
//! max_v(x, epsilon) has the value of the maximum and the slope of x.
//! ```
//!
//! # Convention
//! The pass rate is the judge's score of every answer to a prompt: the share of the reference's answers to it that are right. It is
//! taken between 0.02 and 0.98. The reference is the network that gave the answers. The slope of `max_v` is that of a negative
//! likelihood even where its value is bounded, so that gradients are not the slopes of the losses there. Losses are sums over
//! tokens. Rewards are the log-ratios.
//! Reference code: `NVlabs/NFT` `dp_actor.py`, `ratio_type = "token"`; `normalize` 0, 1 and 2 are the weights of prompts, and
//! `clamp_negative` is `epsilon`. Differences: there, sums are divided by 1000 and answers added up; a ratio that underflows has
//! an infinite loss. As there, a token that became e^10 times as likely is taken as that.
//! The objective for diffusion of the same name (Zheng et al., "`DiffusionNFT`", arXiv:2509.16117) is another one: it needs the
//! predictions of both networks, not their errors.

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Formula, ObjectiveInfo, at_least_0, in_range};
use crate::arithmetic::{at_most, host};
use crate::{Error, Requirements, ResponsesOutput, Result, UnpairedLogps};

/// Parameters of NFT.
///
/// # Shape
/// Token scores are `(B, T)`; labels, judge's scores, losses and rewards are `(B,)`; see
/// [`Objective::unpaired_losses`](crate::Objective::unpaired_losses).
///
/// # Errors
/// [`Missing`](crate::Error::Missing) without scores token by token or a judge's scores,
/// [`MissingReference`](crate::Error::MissingReference) without those of a reference, [`OutOfRange`](crate::Error::OutOfRange)
/// for a setting outside its range and for a pass rate outside `[0, 1]`.
///
/// # Example
/// ```
/// use diptych_core::{Nft, Objective, Responses, TokenLogps, UnpairedLogps};
/// use diptych_tensor::{Device, Tensor};
///
/// // One right and one wrong answer of two tokens to a prompt that is answered rightly half of the time.
/// let tokens = TokenLogps {
///     policy: Tensor::new(&[[-1.0f64, -1.0], [-1.0, -1.0]], &Device::Cpu)?,
///     reference: Some(Tensor::new(&[[-1.0f64, -2.0], [-1.0, -1.0]], &Device::Cpu)?),
///     mask: Tensor::new(&[[1.0f64, 1.0], [1.0, 1.0]], &Device::Cpu)?,
///     log_collisions: None,
/// };
/// let responses = Responses {
///     reference: Some(Tensor::new(&[-3.0f64, -2.0], &Device::Cpu)?),
///     judge_scores: Some(Tensor::new(&[0.5f64, 0.5], &Device::Cpu)?),
///     ..Responses::new(tokens.policy.sum(1)?)
/// };
/// let logps = UnpairedLogps::new(Responses { tokens: Some(tokens), ..responses }, vec![true, false]);
/// assert_eq!(Objective::from(Nft::default()).unpaired_losses(&logps)?.losses.to_vec1::<f64>()?, [-0.5, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nft {
    /// Factor of the losses of wrong answers, >= 0; 0 is fine-tuning on right answers alone.
    pub negative_weight: f64,
    /// The least likelihood ratio of a wrong answer's implied negative policy, in `(0, 1]`.
    pub epsilon: f64,
    /// What a prompt counts.
    pub prompt_weight: NftPromptWeight,
}

/// What a prompt counts in [`Nft`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NftPromptWeight {
    /// 1.
    Uniform,
    /// The share of its answers that are wrong; on answers of the policy itself the gradient is that of Dr. GRPO.
    #[default]
    FailureRate,
    /// The root of wrong answers over right ones; on answers of the policy itself the gradient is that of GRPO.
    Normalized,
}

/// Pass rates beyond leave nothing to learn from the other answers.
const PASS_RATES: [f64; 2] = [0.02, 0.98];

/// The log-ratio beyond which a token counts as no likelier.
const GREATEST_LOG_RATIO: f64 = 10.0;

impl Default for Nft {
    fn default() -> Self {
        Self {
            negative_weight: 1.0,
            epsilon: 1.0,
            prompt_weight: NftPromptWeight::default(),
        }
    }
}

impl Formula for Nft {
    const INFO: ObjectiveInfo = ObjectiveInfo {
        name: "nft",
        title: "Negative-aware Fine-Tuning",
        paper: "Chen et al., arXiv:2505.18116",
        requirements: Requirements::UNPAIRED
            .with_reference()
            .with_tokens()
            .with_judge_scores(),
    };

    fn validate(&self) -> Result<()> {
        at_least_0("nft", "negative_weight", self.negative_weight)?;
        let holds = self.epsilon > 0.0 && self.epsilon <= 1.0;
        in_range(holds, "nft", "epsilon", self.epsilon, "0 < epsilon <= 1")
    }

    fn check_judge_scores(&self, scores: &[f64]) -> Result<()> {
        check_pass_rates(scores)
    }

    fn unpaired_losses(&self, logps: &UnpairedLogps) -> Result<ResponsesOutput> {
        let responses = &logps.responses;
        let tokens = responses.tokens("nft")?;
        let missing = || Error::MissingReference { objective: "nft" };
        let reference = tokens.reference.as_ref().ok_or_else(missing)?;
        let is_real = tokens.mask.gt(0.5)?;
        let log_ratios = (&tokens.policy - reference)?;
        // Whatever stands in the padding, even what is not a number.
        let log_ratios = at_most(
            &is_real.where_cond(&log_ratios, &log_ratios.zeros_like()?)?,
            GREATEST_LOG_RATIO,
        )?;
        let rates = pass_rates(responses.judge_scores("nft")?)?;
        let right = log_ratios.sum(1)?;
        let wrong = self.log_negative_ratios(&log_ratios, &rates)?.sum(1)?;
        let per_label =
            ((right * logps.per_label(1.0, 0.0)?)? + (wrong * logps.per_label(0.0, self.negative_weight)?)?)?;
        Ok(ResponsesOutput {
            losses: (per_label * self.prompt_weights(&rates)?)?.neg()?,
            rewards: responses.logratios("nft")?.detach(),
        })
    }
}

impl Nft {
    /// `log max_v((1 - r R) / (1 - r), epsilon)` of log-ratios `(B, T)` and rates `(B,)`; 0 at the padding, where R is 1.
    fn log_negative_ratios(&self, log_ratios: &Tensor, rates: &Tensor) -> Result<Tensor> {
        let rates = rates.unsqueeze(1)?;
        let failures = rates.affine(-1.0, 1.0)?;
        let ratios = log_ratios
            .exp()?
            .broadcast_mul(&rates)?
            .affine(-1.0, 1.0)?
            .broadcast_div(&failures)?;
        let bounded = ratios.detach().maximum(self.epsilon)?;
        // Exactly 0, with the slope of the ratios: a bound that is added to them would lose its digits beside large ones.
        let slopes = ((&ratios - ratios.detach())? / &bounded)?;
        Ok((bounded.log()? + slopes)?)
    }

    /// What each response's prompt counts, `(B,)`.
    fn prompt_weights(&self, rates: &Tensor) -> Result<Tensor> {
        let failures = rates.affine(-1.0, 1.0)?;
        Ok(match self.prompt_weight {
            NftPromptWeight::Uniform => rates.ones_like()?,
            NftPromptWeight::FailureRate => failures,
            NftPromptWeight::Normalized => (failures / rates)?.sqrt()?,
        })
    }
}

/// The judge's scores as pass rates within [`PASS_RATES`], `(B,)`.
fn pass_rates(judge_scores: &Tensor) -> Result<Tensor> {
    check_pass_rates(&host(judge_scores)?)?;
    Ok(judge_scores.clamp(PASS_RATES[0], PASS_RATES[1])?)
}

fn check_pass_rates(scores: &[f64]) -> Result<()> {
    let is_rate = |score: &f64| (0.0..=1.0).contains(score);
    match scores.iter().find(|score| !is_rate(score)) {
        None => Ok(()),
        Some(&found) => Err(Error::OutOfRange {
            objective: "nft",
            parameter: "judge_scores",
            found,
            expected: "the share of right answers to the prompt, 0 to 1",
        }),
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::{Device, Var};

    use super::*;
    use crate::testing::assert_refused;
    use crate::{Objective, Responses, TokenLogps};

    /// Two answers of two tokens, the first right, to prompts with these pass rates.
    fn logps(policy: &Tensor, rates: [f64; 2]) -> UnpairedLogps {
        let tokens = TokenLogps {
            policy: policy.clone(),
            reference: Some(Tensor::new(&[[-1.0f64, f64::NAN], [-2.0, -3.0]], &Device::Cpu).unwrap()),
            mask: Tensor::new(&[[1.0f64, 0.0], [1.0, 1.0]], &Device::Cpu).unwrap(),
            log_collisions: None,
        };
        let responses = Responses {
            reference: Some(Tensor::new(&[-1.0f64, -5.0], &Device::Cpu).unwrap()),
            judge_scores: Some(Tensor::new(&rates, &Device::Cpu).unwrap()),
            ..Responses::new((policy * &tokens.mask).unwrap().sum(1).unwrap())
        };
        let responses = Responses {
            tokens: Some(tokens),
            ..responses
        };
        UnpairedLogps::new(responses, vec![true, false])
    }

    fn policy() -> Var {
        Var::new(&[[-0.75f64, -9.0], [-2.5, -2.0]], &Device::Cpu).unwrap()
    }

    #[test]
    fn published_arithmetic_by_hand() {
        let policy = policy();
        let uniform = Nft {
            prompt_weight: NftPromptWeight::Uniform,
            negative_weight: 2.0,
            ..Nft::default()
        };
        let output = Objective::from(uniform)
            .unpaired_losses(&logps(policy.as_tensor(), [0.5, 0.2]))
            .unwrap();
        let negative = |log_ratio: f64| (1.0 - 0.2 * log_ratio.exp()) / 0.8;
        // The second token became likelier: its value is bounded by 1, its slope is not.
        let losses = output.losses.to_vec1::<f64>().unwrap();
        for (found, expected) in losses.iter().zip([-0.25, -2.0 * negative(-0.5).ln()]) {
            assert!((found - expected).abs() < 1e-15, "{losses:?}");
        }
        let gradients = output.losses.sum_all().unwrap().backward().unwrap();
        let found = gradients.get(&policy).unwrap().to_vec2::<f64>().unwrap();
        let slope = |log_ratio: f64, value: f64| 2.0 * 0.25 * log_ratio.exp() / value;
        let expected = [[-1.0, 0.0], [slope(-0.5, negative(-0.5)), slope(1.0, 1.0)]];
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            assert!((found - expected).abs() < 1e-14, "{found} {expected}");
        }
        assert_eq!(output.rewards.to_vec1::<f64>().unwrap(), [0.25, 0.5]);
    }

    #[test]
    fn prompts_that_are_hard_count_more_as_the_setting_says() {
        let policy = policy();
        let losses = |prompt_weight| {
            let nft = Nft {
                prompt_weight,
                ..Nft::default()
            };
            let logps = logps(policy.as_tensor(), [0.2, 0.8]);
            let output = Objective::from(nft).unpaired_losses(&logps).unwrap();
            output.losses.to_vec1::<f64>().unwrap()
        };
        let plain = losses(NftPromptWeight::Uniform);
        for (weighted, weights) in [
            (losses(NftPromptWeight::FailureRate), [0.8, 0.2]),
            (losses(NftPromptWeight::Normalized), [2.0, 0.5]),
        ] {
            for i in 0..2 {
                assert!((weighted[i] - weights[i] * plain[i]).abs() < 1e-15, "{weighted:?}");
            }
        }
    }

    #[test]
    fn pass_rates_at_the_ends_are_finite_and_others_are_refused() {
        let policy = policy();
        let run = |rates| Objective::from(Nft::default()).unpaired_losses(&logps(policy.as_tensor(), rates));
        for rates in [[0.0, 1.0], [1.0, 0.0]] {
            let losses = run(rates).unwrap().losses.to_vec1::<f64>().unwrap();
            assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        }
        for wrong in [-0.1, 1.5, f64::NAN] {
            let error = run([0.5, wrong]).unwrap_err().to_string();
            assert!(error.contains("judge_scores") && error.contains("0 to 1"), "{error}");
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let nft = Nft::default();
        assert_refused([
            (
                Nft {
                    negative_weight: -1.0,
                    ..nft
                },
                "negative_weight",
            ),
            (Nft { epsilon: 0.0, ..nft }, "epsilon"),
            (Nft { epsilon: 1.5, ..nft }, "epsilon"),
        ]);
    }
}
