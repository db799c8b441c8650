//! From latents back to noise: DDIM inversion, plain or averaged.
//!
//! Song et al., "Denoising Diffusion Implicit Models" (arXiv:2010.02502), Eq. 14 backwards: with the prediction at the noisier
//! timestep t' of a pair t < t',
//!
//! ```text
//! x0    = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)
//! x_t'  = sqrt(a_t') x0 + sqrt(1 - a_t') eps
//! ```
//!
//! The prediction belongs to `x_t'`, which is not known yet: plain inversion takes it at `x_t`. Garibi et al., "`ReNoise`: Real Image
//! Inversion Through Iterative Noising" (arXiv:2403.14602), section 3.2, repeat the step with the prediction at the last result
//! and average the predictions; SmPO-Diffusion (arXiv:2506.02698) averages two.
//!
//! In a flow the same is Euler's method backwards, `x' = x + (sigma' - sigma) v`.
//!
//! Keys of `scheduler_config.json` mean what they mean to `diffusers.DDIMInverseScheduler`; a missing key takes that class's
//! default.
//!
//! Shape letters: B batch, C channels, Y x X spatial.

use diptych_tensor::Tensor;

use crate::sampler::prediction::{Clipping, Reading};
use crate::sampler::spacing;
use crate::sampler::transition::{joined, row};
use crate::schedule::{DiscreteSchedule, FlowSchedule, NoiseSchedule, TimestepSpacing};
use crate::{Error, Result};

/// Inversion in a fixed number of steps.
#[derive(Debug, Clone)]
pub struct Inversion {
    /// The noisier timestep of each step, cleanest first.
    timesteps: Vec<f32>,
    moves: Vec<Move>,
}

/// From a noise level to the next one up.
#[derive(Debug, Clone, Copy)]
enum Move {
    /// Between two signal shares of a table.
    Table { alpha: f64, next: f64, reading: Reading },
    /// Along the line of a flow.
    Line { sigma_step: f64 },
}

/// Latents on the way to noise.
#[derive(Debug, Clone)]
pub struct Inverted {
    /// (B, C, Y, X).
    pub latents: Tensor,
    /// The timestep that each example has reached, B of them; none where it was not moved, because its bound lies at or below
    /// the first timestep of the grid.
    pub timesteps: Vec<Option<f32>>,
}

impl Inversion {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`] for a number of steps the schedule cannot serve; [`Error::Sampler`] for linear spacing of a table, which
    /// has no inverse grid, and for a flow whose shift depends on a size that is not known.
    pub fn new(schedule: &NoiseSchedule, num_steps: usize) -> Result<Self> {
        match schedule {
            NoiseSchedule::Discrete(schedule) => Self::in_table(schedule, num_steps),
            NoiseSchedule::Flow(schedule) => Self::on_line(schedule, num_steps),
        }
    }

    fn on_line(schedule: &FlowSchedule, num_steps: usize) -> Result<Self> {
        let mut sigmas = schedule.sampling_sigmas(num_steps)?;
        sigmas.reverse();
        let num_train = schedule.config().num_train_timesteps as f32;
        Ok(Self {
            timesteps: sigmas[1..].iter().map(|sigma| sigma * num_train).collect(),
            moves: sigmas
                .windows(2)
                .map(|pair| Move::Line {
                    sigma_step: f64::from(pair[1]) - f64::from(pair[0]),
                })
                .collect(),
        })
    }

    fn in_table(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Leading);
        if spacing == TimestepSpacing::Linspace {
            return Err(Error::Sampler {
                sampler: "ddim_inverse",
                file: config.file.clone(),
                key: "timestep_spacing".into(),
                found: "linspace".into(),
                expected: "leading or trailing".into(),
            });
        }
        let mut timesteps = spacing::timesteps(config, num_steps, spacing)?;
        timesteps.reverse();
        let reading = Reading::new(schedule, Clipping::On);
        let step = |&timestep: &f64| {
            let (alpha, next) = alphas(schedule, timestep as usize, num_steps);
            Move::Table { alpha, next, reading }
        };
        Ok(Self {
            moves: timesteps.iter().map(step).collect(),
            timesteps: timesteps.into_iter().map(|timestep| timestep as f32).collect(),
        })
    }

    /// The noisier timestep of each step, cleanest first: what the denoiser is told.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Latents of the step's noisier timestep.
    ///
    /// # Shape
    /// `prediction`, `latents` and the result (B, C, Y, X).
    ///
    /// # Errors
    /// Tensor operations.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn step(&self, prediction: &Tensor, step_idx: usize, latents: &Tensor) -> diptych_tensor::Result<Tensor> {
        match self.moves[step_idx] {
            Move::Table { alpha, next, reading } => {
                let (clean, noise) = reading.split(prediction, latents, alpha)?;
                Ok(((clean * next.sqrt())? + (noise * (1.0 - next).sqrt())?)?)
            }
            Move::Line { sigma_step } => Ok((latents + (prediction * sigma_step)?)?),
        }
    }

    /// Moves each example towards noise as long as timesteps of the grid are below its own bound in `until`.
    ///
    /// Every step takes `1 + num_renoise` predictions and goes by their mean; 0 is plain DDIM inversion, 1 that of `SmPO`.
    /// `predict` is the network without guidance: it gets latents, the timestep and the places in the batch of the examples that
    /// still move, so that an example's result does not depend on the others'.
    ///
    /// # Shape
    /// `latents` (B, C, Y, X), `until` B entries; what `predict` gets and gives is (b, C, Y, X) with b of its `rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] when the counts differ; those of `predict`.
    pub fn invert(
        &self,
        latents: &Tensor,
        until: &[f32],
        num_renoise: usize,
        mut predict: impl FnMut(&Tensor, f32, &[usize]) -> Result<Tensor>,
    ) -> Result<Inverted> {
        let batch = latents.dims().first().copied().unwrap_or(0);
        if until.len() != batch || batch == 0 {
            return Err(Error::Shape {
                name: "until".into(),
                found: vec![until.len()],
                expected: vec![batch.max(1)],
            });
        }
        let mut rows = (0..batch)
            .map(|place| row(&latents.detach(), place))
            .collect::<diptych_tensor::Result<Vec<_>>>()?;
        let mut reached = vec![None; batch];
        for (step_idx, &timestep) in self.timesteps.iter().enumerate() {
            let moving: Vec<usize> = (0..batch).filter(|&place| timestep < until[place]).collect();
            if moving.is_empty() {
                break;
            }
            let start = joined(&moving.iter().map(|&place| rows[place].clone()).collect::<Vec<_>>())?;
            let next = self.averaged_step(step_idx, &start, num_renoise, |latents| {
                predict(latents, timestep, &moving)
            })?;
            for (own, &place) in moving.iter().enumerate() {
                rows[place] = row(&next, own)?;
                reached[place] = Some(timestep);
            }
        }
        Ok(Inverted {
            latents: joined(&rows)?,
            timesteps: reached,
        })
    }

    fn averaged_step(
        &self,
        step_idx: usize,
        latents: &Tensor,
        num_renoise: usize,
        mut predict: impl FnMut(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut sum = predict(latents)?.detach();
        let mut last = sum.clone();
        for _ in 0..num_renoise {
            last = predict(&self.step(&last, step_idx, latents)?)?.detach();
            sum = added(&sum, &last)?;
        }
        let mean = scaled(&sum, 1.0 / (num_renoise + 1) as f64)?;
        Ok(self.step(&mean, step_idx, latents)?)
    }
}

/// Signal share at the timestep before and at the step's own.
fn alphas(schedule: &DiscreteSchedule, timestep: usize, num_steps: usize) -> (f64, f64) {
    let table = schedule.alphas_cumprod();
    let stride = schedule.num_train_timesteps() / num_steps;
    let first = if schedule.config().set_alpha_to_one.unwrap_or(true) {
        1.0
    } else {
        f64::from(table[0])
    };
    let before = timestep
        .checked_sub(stride)
        .map_or(first, |before| f64::from(table[before]));
    (before, f64::from(table[timestep]))
}

fn added(a: &Tensor, b: &Tensor) -> diptych_tensor::Result<Tensor> {
    Ok((a + b)?)
}

fn scaled(tensor: &Tensor, factor: f64) -> diptych_tensor::Result<Tensor> {
    Ok((tensor * factor)?)
}
