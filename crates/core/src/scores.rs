//! Scores in, losses and rewards out.

use diptych_tensor::{DType, Tensor};

use crate::{Error, Result};

/// Scores of the reference network for the two sides of each pair.
#[derive(Debug, Clone)]
pub struct ReferenceLogps {
    /// Scores of the chosen responses, `(B,)`.
    pub chosen: Tensor,
    /// Scores of the rejected responses, `(B,)`.
    pub rejected: Tensor,
}

/// Scores of a batch of pairs.
///
/// For text a score is the summed log-probability of the response; for image diffusion it is minus one half of the
/// per-image mean squared denoising error, with the timestep and the noise shared by the two sides and the two networks.
///
/// # Shape
/// Every tensor is `(B,)`. Lower precisions than f32 are promoted to f32 before anything is computed.
#[derive(Debug, Clone)]
pub struct PairLogps {
    /// Scores of the chosen responses under the trained network, `(B,)`, differentiable.
    pub policy_chosen: Tensor,
    /// Scores of the rejected responses under the trained network, `(B,)`, differentiable.
    pub policy_rejected: Tensor,
    /// Scores under the reference network; treated as constants. `None` where no reference is kept.
    pub reference: Option<ReferenceLogps>,
}

/// Losses and rewards of a batch of pairs. Nothing is reduced: the training loop does that once.
#[derive(Debug, Clone)]
pub struct ObjectiveOutput {
    /// One loss an example, `(B,)`, f32 (f64 for f64 scores), differentiable.
    pub losses: Tensor,
    /// Implicit rewards of the chosen responses, `(B,)`, detached.
    pub rewards_chosen: Tensor,
    /// Implicit rewards of the rejected responses, `(B,)`, detached.
    pub rewards_rejected: Tensor,
}

/// Scores after the checks: same shape `(B,)`, f32 or f64, reference detached.
pub(crate) struct CheckedLogps {
    pub(crate) policy_chosen: Tensor,
    pub(crate) policy_rejected: Tensor,
    pub(crate) reference: Option<ReferenceLogps>,
}

impl PairLogps {
    /// Scores without a reference network.
    pub fn new(policy_chosen: Tensor, policy_rejected: Tensor) -> Self {
        Self {
            policy_chosen,
            policy_rejected,
            reference: None,
        }
    }

    /// The same scores, compared with a reference network.
    pub fn with_reference(self, chosen: Tensor, rejected: Tensor) -> Self {
        Self {
            reference: Some(ReferenceLogps { chosen, rejected }),
            ..self
        }
    }

    /// Checks shapes and promotes precision.
    pub(crate) fn check(&self) -> Result<CheckedLogps> {
        let batch = batch_len("policy_chosen_logps", &self.policy_chosen)?;
        let same = |name, logps: &Tensor| {
            if batch_len(name, logps)? == batch {
                promote(logps)
            } else {
                let expected = format!("({batch},) as policy_chosen_logps");
                Err(Error::Shape {
                    name,
                    found: logps.dims().to_vec(),
                    expected,
                })
            }
        };
        let reference = match &self.reference {
            Some(reference) => Some(ReferenceLogps {
                chosen: same("reference_chosen_logps", &reference.chosen)?.detach(),
                rejected: same("reference_rejected_logps", &reference.rejected)?.detach(),
            }),
            None => None,
        };
        Ok(CheckedLogps {
            policy_chosen: promote(&self.policy_chosen)?,
            policy_rejected: same("policy_rejected_logps", &self.policy_rejected)?,
            reference,
        })
    }
}

impl CheckedLogps {
    /// Log-ratios policy over reference of the two sides, `(B,)` each.
    pub(crate) fn logratios(&self, objective: &'static str) -> Result<(Tensor, Tensor)> {
        let reference = self.reference.as_ref().ok_or(Error::MissingReference { objective })?;
        let difference =
            |policy: &Tensor, reference: &Tensor| -> diptych_tensor::Result<Tensor> { Ok((policy - reference)?) };
        Ok((
            difference(&self.policy_chosen, &reference.chosen)?,
            difference(&self.policy_rejected, &reference.rejected)?,
        ))
    }
}

/// Number of examples of a vector of scores.
fn batch_len(name: &'static str, logps: &Tensor) -> Result<usize> {
    match logps.dims() {
        [batch] => Ok(*batch),
        dims => Err(Error::Shape {
            name,
            found: dims.to_vec(),
            expected: "(B,): one score an example".to_owned(),
        }),
    }
}

/// The vector in f32, or unchanged in f64. Losses of the order of 1e-3 would vanish in bf16.
pub(crate) fn promote(logps: &Tensor) -> Result<Tensor> {
    let promoted = |dtype| -> diptych_tensor::Result<Tensor> { Ok(logps.to_dtype(dtype)?) };
    Ok(match logps.dtype() {
        DType::F64 => logps.clone(),
        _ => promoted(DType::F32)?,
    })
}

/// [`promote`] after the check that the scores are one an example.
pub(crate) fn check_chosen(policy_chosen: &Tensor) -> Result<Tensor> {
    batch_len("policy_chosen_logps", policy_chosen)?;
    promote(policy_chosen)
}
