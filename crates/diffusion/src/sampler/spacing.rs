//! Which training timesteps a sampler visits (Table 2 of arXiv:2305.08891), rounded as `NumPy` rounds: half to even.

use crate::schedule::{SchedulerConfig, TimestepSpacing};
use crate::{Error, Result};

/// Timesteps from noisy to clean, before any rounding of linearly spaced ones.
///
/// # Errors
/// [`Error::Steps`] for 0 or more steps than the training table has, [`Error::Timestep`] when `steps_offset` leaves it.
pub(crate) fn timesteps(config: &SchedulerConfig, num_steps: usize, default: TimestepSpacing) -> Result<Vec<f64>> {
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
    inside(config, timesteps)
}

/// Timesteps of the multistep solver, which leaves out the cleanest of one more than it is asked for.
///
/// # Errors
/// As [`timesteps`].
pub(crate) fn solver_timesteps(config: &SchedulerConfig, num_steps: usize) -> Result<Vec<f64>> {
    let num_train = config.num_train_timesteps;
    let spacing = config.timestep_spacing.unwrap_or(TimestepSpacing::Linspace);
    let last = (num_train - 1) as f64;
    let places = || (1..=num_steps).rev();
    let spaced: Vec<f64> = match spacing {
        TimestepSpacing::Trailing => return timesteps(config, num_steps, spacing),
        _ if num_steps == 0 || num_steps > num_train => return timesteps(config, num_steps, spacing),
        TimestepSpacing::Linspace => places()
            .map(|i| (i as f64 * (last / num_steps as f64)).min(last).round_ties_even())
            .collect(),
        TimestepSpacing::Leading => {
            let stride = num_train / (num_steps + 1);
            let offset = config.steps_offset.unwrap_or(0);
            places().map(|i| (i * stride + offset) as f64).collect()
        }
    };
    inside(config, spaced)
}

/// Refuses timesteps that an offset has moved out of the table.
fn inside(config: &SchedulerConfig, timesteps: Vec<f64>) -> Result<Vec<f64>> {
    let last = config.num_train_timesteps - 1;
    let outside = |&&timestep: &&f64| timestep < 0.0 || timestep > last as f64;
    match timesteps.iter().find(outside) {
        Some(&found) => Err(Error::Timestep {
            found,
            expected: format!("0 to {last}"),
        }),
        None => Ok(timesteps),
    }
}
