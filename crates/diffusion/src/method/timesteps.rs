//! `[method.*.timesteps]`: which noise levels are trained.

use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::schedule::{FlowShift, NoiseSchedule, SigmaDensity, shifted};
use crate::{Error, Result};

/// Which noise levels are trained: a range in discrete time, a density in a flow. What belongs to the other is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimestepConfig {
    /// Discrete time: the least noisy one.
    pub min: u32,
    /// Discrete time: one past the noisiest; by default the length of the noise schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Flow: the density of sigmas, before they are shifted; by default `logit_normal` with mean 0 and deviation 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<SigmaDensity>,
    /// Flow: the factor that drawn sigmas are shifted by, above 0; by default the one of `scheduler_config.json`, or 1 where
    /// that one follows the image's size, as in the published training scripts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
}

impl TimestepConfig {
    /// How timesteps are drawn on a noise schedule.
    ///
    /// # Errors
    /// [`Error::Recipe`] when the range is empty or leaves the schedule, or for a setting of the other kind of schedule;
    /// [`Error::Setting`] for a density out of its range.
    pub(crate) fn resolve(self, method: &str, schedule: &NoiseSchedule) -> Result<TimestepDraw> {
        match schedule {
            NoiseSchedule::Discrete(schedule) => self.discrete(method, schedule.num_train_timesteps()),
            NoiseSchedule::Flow(schedule) => {
                let of_file = match schedule.config().shift {
                    FlowShift::Static(factor) => factor,
                    FlowShift::Dynamic(_) => 1.0,
                };
                self.flow(method, of_file, schedule.config().num_train_timesteps)
            }
        }
    }

    fn discrete(self, method: &str, num_train_timesteps: usize) -> Result<TimestepDraw> {
        for (key, is_given) in [("density", self.density.is_some()), ("shift", self.shift.is_some())] {
            if is_given {
                return Err(Error::Recipe {
                    key: format!("method.{method}.timesteps.{key}"),
                    problem: "is for flow-matching models, and this one has a table of timesteps".into(),
                    hint: "use `min` and `max`".into(),
                });
            }
        }
        let end = num_train_timesteps as u32;
        let max = self.max.unwrap_or(end);
        if self.min < max && max <= end {
            return Ok(TimestepDraw::Uniform(self.min..max));
        }
        Err(Error::Recipe {
            key: format!("method.{method}.timesteps"),
            problem: format!("is {} to {max}", self.min),
            hint: format!("expected 0 <= min < max <= {end}, the length of the noise schedule"),
        })
    }

    fn flow(self, method: &str, shift_of_file: f64, num_train_timesteps: usize) -> Result<TimestepDraw> {
        for (key, is_given) in [("min", self.min != 0), ("max", self.max.is_some())] {
            if is_given {
                return Err(Error::Recipe {
                    key: format!("method.{method}.timesteps.{key}"),
                    problem: "is for models with a table of timesteps, and this one is a flow".into(),
                    hint: "use `density` and `shift`".into(),
                });
            }
        }
        let shift = self.shift.unwrap_or(shift_of_file);
        if !(shift.is_finite() && shift > 0.0) {
            return Err(Error::Recipe {
                key: format!("method.{method}.timesteps.shift"),
                problem: format!("is {shift}"),
                hint: "expected a number above 0".into(),
            });
        }
        let density = self.density.unwrap_or_default();
        density.check()?;
        Ok(TimestepDraw::Flow {
            density,
            shift,
            num_train_timesteps,
        })
    }
}

/// How timesteps are drawn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TimestepDraw {
    /// Each of a range alike.
    Uniform(Range<u32>),
    /// From a density over the line.
    Flow {
        density: SigmaDensity,
        shift: f64,
        num_train_timesteps: usize,
    },
}

impl TimestepDraw {
    /// One timestep, as the denoiser is told it.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> f32 {
        match self {
            Self::Uniform(range) => rng.random_range(range.clone()) as f32,
            Self::Flow {
                density,
                shift,
                num_train_timesteps,
            } => {
                let num_train = *num_train_timesteps as f64;
                (shifted(density.draw(rng), *shift) * num_train).clamp(0.0, num_train) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::random::{Stream, generator};

    use super::*;

    fn schedule(json: &serde_json::Value) -> NoiseSchedule {
        NoiseSchedule::from_value("scheduler_config.json".as_ref(), json).unwrap()
    }

    fn read(toml: &str) -> TimestepConfig {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn settings_of_the_other_kind_of_schedule_are_refused() {
        let flow = schedule(&serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}));
        let discrete = schedule(&serde_json::json!({}));
        let cases = [
            (&flow, "min = 10", "timesteps.min"),
            (&flow, "max = 500", "timesteps.max"),
            (&flow, "shift = 0.0", "timesteps.shift"),
            (&flow, "density.logit_normal.std = 0.0", "std"),
            (&discrete, "density = \"uniform\"", "timesteps.density"),
            (&discrete, "density.mode.scale = 0.5", "timesteps.density"),
            (&discrete, "shift = 2.0", "timesteps.shift"),
            (&discrete, "max = 1001", "timesteps"),
        ];
        for (schedule, toml, key) in cases {
            let error = read(toml).resolve("sft", schedule).unwrap_err();
            assert!(error.is_configuration() && error.to_string().contains(key), "{error}");
        }
        assert!(toml::from_str::<TimestepConfig>("densty = \"uniform\"").is_err());
    }

    /// The median of a shifted density is the shifted median.
    #[test]
    fn sigmas_are_shifted_as_the_file_says_or_the_recipe() {
        let file = serde_json::json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0});
        for (toml, median) in [("", 750.0), ("shift = 1.0", 500.0), ("density = \"uniform\"", 750.0)] {
            let draw = read(toml).resolve("sft", &schedule(&file)).unwrap();
            let num = 4000;
            let below = (0..num)
                .filter(|&place| draw.draw(&mut generator(0, Stream::Timesteps, 1, place)) < median)
                .count();
            // Four standard deviations of half of 4000 draws.
            assert!((below as f64 - 2000.0).abs() < 127.0, "{toml}: {below}");
        }
    }
}
