//! What a walk leaves behind.

use diptych_tensor::Tensor;

use crate::sampler::transition::{joined, row};
use crate::{Error, Result};

/// One step of a batch of images.
#[derive(Debug, Clone)]
pub struct Step {
    /// Which step of the sampler, from the noisiest.
    pub step_idx: usize,
    /// Latents before it, (B, C, Y, X).
    pub before: Tensor,
    /// Latents after it, (B, C, Y, X).
    pub after: Tensor,
    /// Log-probabilities of `after`, (B,), under the network that took the step; none where it adds no noise.
    pub log_probs: Option<Tensor>,
}

/// Every step of a batch of images, in order, without a graph.
#[derive(Debug, Clone)]
pub struct Trajectory {
    /// The steps, at least one.
    pub steps: Vec<Step>,
}

/// Decisions to score again: some steps of some images, in any order.
#[derive(Debug, Clone)]
pub struct Decisions {
    /// Place of each decision's image in the batch.
    pub rows: Vec<usize>,
    /// Step of the sampler of each.
    pub step_indices: Vec<usize>,
    /// Latents before, (N, C, Y, X).
    pub before: Tensor,
    /// Latents after, (N, C, Y, X).
    pub after: Tensor,
    /// Log-probabilities under the network that took them, (N,).
    pub log_probs: Tensor,
}

impl Trajectory {
    /// Number of images.
    pub fn batch_size(&self) -> usize {
        self.steps
            .first()
            .and_then(|step| step.before.dims().first().copied())
            .unwrap_or(0)
    }

    /// Clean latents, (B, C, Y, X).
    ///
    /// # Errors
    /// [`Error::Shape`] without a step.
    pub fn latents(&self) -> Result<&Tensor> {
        self.steps.last().map(|step| &step.after).ok_or_else(|| Error::Shape {
            name: "steps".into(),
            found: vec![0],
            expected: vec![1],
        })
    }

    /// Steps whose result has a density, in order.
    pub fn stochastic_steps(&self) -> Vec<usize> {
        self.steps
            .iter()
            .enumerate()
            .filter(|(_, step)| step.log_probs.is_some())
            .map(|(place, _)| place)
            .collect()
    }

    /// The decisions at `(image, step)` places.
    ///
    /// # Errors
    /// [`Error::NoDensity`] for a step that adds no noise; [`Error::Shape`] for a place that is not there.
    pub fn decisions(&self, places: &[(usize, usize)]) -> Result<Decisions> {
        let (mut before, mut after, mut log_probs) = (Vec::new(), Vec::new(), Vec::new());
        for &(image, place) in places {
            let step = self
                .steps
                .get(place)
                .filter(|_| image < self.batch_size())
                .ok_or_else(|| Error::Shape {
                    name: "an (image, step) place".into(),
                    found: vec![image, place],
                    expected: vec![self.batch_size(), self.steps.len()],
                })?;
            let known = step.log_probs.as_ref().ok_or(Error::NoDensity {
                sampler: "of the record",
            })?;
            before.push(row(&step.before, image)?);
            after.push(row(&step.after, image)?);
            log_probs.push(row(known, image)?);
        }
        Ok(Decisions {
            rows: places.iter().map(|&(image, _)| image).collect(),
            step_indices: places.iter().map(|&(_, place)| self.steps[place].step_idx).collect(),
            before: joined(&before)?,
            after: joined(&after)?,
            log_probs: joined(&log_probs)?,
        })
    }

    /// Trajectories of several batches as one.
    pub(super) fn joined(parts: &[Self]) -> Result<Self> {
        let [first, ..] = parts else {
            return Ok(Self { steps: Vec::new() });
        };
        let steps = (0..first.steps.len())
            .map(|place| {
                let own: Vec<&Step> = parts.iter().map(|part| &part.steps[place]).collect();
                let cat =
                    |part: fn(&Step) -> &Tensor| joined(&own.iter().map(|step| part(step).clone()).collect::<Vec<_>>());
                let log_probs: Option<Vec<Tensor>> = own.iter().map(|step| step.log_probs.clone()).collect();
                Ok(Step {
                    step_idx: own[0].step_idx,
                    before: cat(|step| &step.before)?,
                    after: cat(|step| &step.after)?,
                    log_probs: log_probs.map(|log_probs| joined(&log_probs)).transpose()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { steps })
    }
}
