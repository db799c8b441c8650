//! Which training timesteps a sampler visits (Table 2 of arXiv:2305.08891), rounded as `NumPy` rounds: half to even.

use crate::schedule::{SchedulerConfig, TimestepSpacing};
use crate::{Error, Result};

/// Timesteps from noisy to clean, before any rounding of linearly spaced ones.
///
/// # Errors
/// [`Error::Steps`] for 0 or more steps than the training table has, [`Error::Timestep`] when `steps_offset` leaves it.
pub(super) fn timesteps(config: &SchedulerConfig, num_steps: usize, default: TimestepSpacing) -> Result<Vec<f64>> {
    let num_train = config.num_train_timesteps;
    if num_steps == 0 || num_steps > num_train {
        return Err(Error::Steps {
            found: num_steps,
            num_train_timesteps: num_train,
        });
    }
    let timesteps: Vec<f64> = match config.timestep_spacing.unwrap_or(default) {
        TimestepSpacing::Linspace => {
            let last = (num_train - 1) as f64;
            let gaps = (num_steps - 1).max(1) as f64;
            (0..num_steps)
                .rev()
                .map(|i| (i as f64 * (last / gaps)).min(last))
                .collect()
        }
        TimestepSpacing::Leading => {
            let stride = num_train / num_steps;
            let offset = config.steps_offset.unwrap_or(0);
            (0..num_steps).rev().map(|i| (i * stride + offset) as f64).collect()
        }
        TimestepSpacing::Trailing => {
            let stride = num_train as f64 / num_steps as f64;
            // The length of np.arange(num_train, 0, -stride).
            let len = (num_train as f64 / stride).ceil() as usize;
            (0..len)
                .map(|i| (num_train as f64 - i as f64 * stride).round_ties_even() - 1.0)
                .collect()
        }
    };
    match timesteps
        .iter()
        .find(|&&timestep| timestep < 0.0 || timestep > (num_train - 1) as f64)
    {
        Some(&found) => Err(Error::Timestep {
            found,
            expected: format!("0 to {}", num_train - 1),
        }),
        None => Ok(timesteps),
    }
}
