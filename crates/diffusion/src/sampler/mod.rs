//! Samplers: from noise to latents in few steps.
//!
//! A sampler is prepared for a number of steps and then only maps predictions to cleaner latents; the denoiser, guidance
//! and randomness are the caller's ([`crate::generate()`]).

mod ddim;
mod euler;
mod spacing;

use std::fmt;
use std::str::FromStr;

use diptych_tensor::Tensor;
use serde::{Deserialize, Serialize};

pub use ddim::Ddim;
pub use euler::Euler;

use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// Which sampler to use: `"ddim"` or `"euler"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// Deterministic DDIM.
    #[default]
    Ddim,
    /// Euler's method on the probability-flow equation.
    Euler,
}

impl SamplerKind {
    /// Names as written in recipes.
    pub const NAMES: [&'static str; 2] = ["ddim", "euler"];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddim => "ddim",
            Self::Euler => "euler",
        }
    }

    /// Prepares `num_steps` steps on a noise schedule.
    ///
    /// # Errors
    /// [`Error::Steps`] for a number of steps the table cannot serve; [`Error::Sampler`] for a schedule that this sampler
    /// cannot use.
    pub fn prepare(self, schedule: &NoiseSchedule, num_steps: usize) -> Result<Sampler> {
        let schedule = schedule.discrete(self.name())?;
        Ok(match self {
            Self::Ddim => Sampler::Ddim(Ddim::new(schedule, num_steps)?),
            Self::Euler => Sampler::Euler(Euler::new(schedule, num_steps)?),
        })
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    /// # Errors
    /// [`Error::Setting`] for a name that is none of [`SamplerKind::NAMES`].
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ddim" => Ok(Self::Ddim),
            "euler" => Ok(Self::Euler),
            _ => Err(Error::Setting {
                key: "sampler",
                found: name.to_owned(),
                expected: "ddim or euler",
            }),
        }
    }
}

/// A sampler prepared for a number of steps.
#[derive(Debug, Clone)]
pub enum Sampler {
    /// See [`Ddim`].
    Ddim(Ddim),
    /// See [`Euler`].
    Euler(Euler),
}

impl Sampler {
    /// Timesteps given to the denoiser, noisiest first.
    pub fn timesteps(&self) -> Vec<f32> {
        match self {
            Self::Ddim(ddim) => ddim.timesteps(),
            Self::Euler(euler) => euler.timesteps(),
        }
    }

    /// Standard deviation of the latents the first step expects.
    pub fn initial_sigma(&self) -> f64 {
        match self {
            Self::Ddim(_) => 1.0,
            Self::Euler(euler) => euler.initial_sigma(),
        }
    }

    /// Latents as the denoiser expects them at a step.
    ///
    /// # Errors
    /// Tensor operations.
    pub fn scale_input(&self, latents: &Tensor, step_idx: usize) -> diptych_tensor::Result<Tensor> {
        match self {
            Self::Ddim(_) => Ok(latents.clone()),
            Self::Euler(euler) => euler.scale_input(latents, step_idx),
        }
    }

    /// Latents after a step.
    ///
    /// # Shape
    /// `prediction`, `latents` and the result are (B, C, Y, X).
    ///
    /// # Errors
    /// Tensor operations.
    pub fn step(&self, prediction: &Tensor, step_idx: usize, latents: &Tensor) -> diptych_tensor::Result<Tensor> {
        match self {
            Self::Ddim(ddim) => ddim.step(prediction, step_idx, latents),
            Self::Euler(euler) => euler.step(prediction, step_idx, latents),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back_and_serde_agrees() {
        for name in SamplerKind::NAMES {
            let kind: SamplerKind = name.parse().unwrap();
            assert_eq!(kind.to_string(), name);
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        let message = "ddpm".parse::<SamplerKind>().unwrap_err().to_string();
        assert_eq!(message, "`sampler` is ddpm, expected ddim or euler");
    }
}
