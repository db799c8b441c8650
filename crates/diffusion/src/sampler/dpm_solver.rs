//! DPM-Solver++ of second order, multistep, for the data prediction.
//!
//! Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (arXiv:2211.01095),
//! Algorithm 2. With `alpha = 1 / sqrt(1 + s^2)`, `sigma = s alpha`, `lambda = ln(alpha / sigma)`, `h = lambda' - lambda`:
//!
//! ```text
//! D    = (lambda' - lambda) / (lambda - lambda_before) (x0 - x0_before)
//! x'   = sigma' / sigma x - alpha' (e^-h - 1) x0 - 1/2 alpha' (e^-h - 1) D        midpoint
//!                                              + alpha' ((e^-h - 1) / h + 1) D    heun
//! ```
//!
//! The first step, and the last one as `lower_order_final`, `euler_at_final` and `final_sigmas_type` say, are of first order
//! (D = 0). Keys of `scheduler_config.json` mean what they mean to `diffusers.DPMSolverMultistepScheduler`; a missing key takes
//! that class's default.

use diptych_tensor::Tensor;

use super::prediction::Reading;
use super::sigmas::{interpolate, training_sigmas};
use super::spacing;
use super::transition::{History, Moments};
use crate::Result;
use crate::schedule::{BetaSchedule, DiscreteSchedule, FinalSigma, SolverKind};

/// Exponent of Karras et al.'s sigmas (arXiv:2206.00364, Eq. 5).
const KARRAS_RHO: f64 = 7.0;

/// Below this many steps the last one falls to first order by default.
const FEW_STEPS: usize = 15;

/// The multistep solver for a fixed number of steps.
#[derive(Debug, Clone)]
pub struct DpmSolver {
    timesteps: Vec<f32>,
    /// One more than `timesteps`, in the variance-exploding parameterization.
    sigmas: Vec<f64>,
    kind: SolverKind,
    order: usize,
    /// Whether the last step is of first order.
    lowers_last: bool,
    reading: Reading,
}

impl DpmSolver {
    /// Prepares `num_steps` steps.
    ///
    /// # Errors
    /// [`Error::Steps`](crate::Error::Steps) for a number of steps the table cannot serve;
    /// [`Error::Sampler`](crate::Error::Sampler) for an unimplemented variant.
    pub fn new(schedule: &DiscreteSchedule, num_steps: usize) -> Result<Self> {
        let config = schedule.config();
        config.obstacles.solver.refuse("dpm_solver_pp_2m", &config.file)?;
        let table = training_sigmas(schedule);
        let spaced = spacing::solver_timesteps(config, num_steps)?;
        let (timesteps, mut sigmas) = if config.solver.use_karras_sigmas {
            let sigmas = karras(&table, num_steps);
            let is_rounded = config.beta_schedule != BetaSchedule::SquaredCosine;
            let timesteps = sigmas
                .iter()
                .map(|&sigma| {
                    let timestep = timestep_of(&table, sigma);
                    if is_rounded {
                        timestep.round_ties_even()
                    } else {
                        timestep.floor()
                    }
                })
                .collect::<Vec<f64>>();
            (timesteps, sigmas)
        } else {
            let sigmas = spaced
                .iter()
                .map(|&timestep| interpolate(&table, timestep as f32))
                .collect();
            (spaced, sigmas)
        };
        let final_sigma = config.final_sigma.unwrap_or(FinalSigma::Zero);
        sigmas.push(match final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => table[0],
        });
        let is_few = timesteps.len() < FEW_STEPS;
        Ok(Self {
            lowers_last: config.solver.euler_at_final
                || (config.solver.lower_order_final && is_few)
                || final_sigma == FinalSigma::Zero,
            timesteps: timesteps.into_iter().map(|timestep| timestep as f32).collect(),
            sigmas: sigmas.into_iter().map(|sigma| f64::from(sigma as f32)).collect(),
            kind: config.solver.kind,
            order: config.solver.order,
            reading: Reading {
                prediction_type: config.prediction_type,
                // This class has no such key.
                clip: None,
            },
        })
    }

    /// Timesteps given to the denoiser, noisiest first.
    pub fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    /// Scales of signal and noise, and half the log of the signal-to-noise ratio.
    fn level(&self, step_idx: usize) -> (f64, f64, f64) {
        let sigma = self.sigmas[step_idx];
        let alpha = 1.0 / sigma.mul_add(sigma, 1.0).sqrt();
        (alpha, sigma * alpha, -sigma.ln())
    }

    pub(super) fn moments(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
        history: &mut History,
    ) -> diptych_tensor::Result<Moments> {
        let (alpha, sigma, lambda) = self.level(step_idx);
        let (next_alpha, next_sigma, next_lambda) = self.level(step_idx + 1);
        let (clean, _) = self.reading.split(prediction, latents, alpha * alpha)?;
        let before = history.previous_clean.replace(clean.clone());
        let h = next_lambda - lambda;
        let decay = (-h).exp_m1();
        let mut mean = ((latents * (next_sigma / sigma))? - (&clean * (next_alpha * decay))?)?;
        let is_lowered = self.lowers_last && step_idx + 1 == self.timesteps.len();
        if let Some(before) = before.filter(|_| self.order == 2 && step_idx > 0 && !is_lowered) {
            let (_, _, lambda_before) = self.level(step_idx - 1);
            let slope = ((&clean - before)? * (h / (lambda - lambda_before)))?;
            let factor = match self.kind {
                SolverKind::Midpoint => -0.5 * next_alpha * decay,
                SolverKind::Heun => next_alpha * (decay / h + 1.0),
            };
            mean = (mean + (slope * factor)?)?;
        }
        Ok(Moments { mean, clean })
    }
}

/// Sigmas whose seventh roots are evenly spread over the table.
fn karras(table: &[f64], num_steps: usize) -> Vec<f64> {
    let root = |sigma: f64| sigma.powf(1.0 / KARRAS_RHO);
    let (max, min) = (root(table[table.len() - 1]), root(table[0]));
    let gaps = (num_steps - 1).max(1) as f64;
    (0..num_steps)
        .map(|i| (max + i as f64 / gaps * (min - max)).powf(KARRAS_RHO))
        .collect()
}

/// The fractional timestep of a sigma, interpolated in its logarithm; `table` grows.
fn timestep_of(table: &[f64], sigma: f64) -> f64 {
    // The table's logarithms are single there: a level at an entry lies a little above or below it, which rounding sees.
    let log = |entry: f64| f64::from((entry as f32).ln());
    let log_sigma = sigma.max(1e-10).ln();
    let above = table.partition_point(|&entry| log(entry) <= log_sigma);
    let below = above.saturating_sub(1).min(table.len().saturating_sub(2));
    let Some(&next) = table.get(below + 1) else { return 0.0 };
    let (low, high) = (log(table[below]), log(next));
    let share = ((log_sigma - low) / (high - low)).clamp(0.0, 1.0);
    below as f64 + share
}
