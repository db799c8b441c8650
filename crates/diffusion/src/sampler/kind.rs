//! Names of samplers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Sampler, SamplerConfig};
use crate::schedule::{LCM_CLASS, NoiseSchedule};
use crate::{Error, Result};

/// Which sampler to use, by its name in recipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SamplerKind {
    /// The one that the pipeline's scheduler is made for: `flow_euler` for a flow, `lcm` for a latent consistency model, else
    /// `ddim`.
    #[default]
    Auto,
    /// Ancestral sampling of the Markov chain that was trained.
    Ddpm,
    /// DDIM, deterministic unless `eta` is above 0.
    Ddim,
    /// Euler's method on the probability-flow equation.
    Euler,
    /// Euler's method with fresh noise in every step.
    EulerAncestral,
    /// DPM-Solver++ of second order, multistep.
    #[serde(rename = "dpm_solver_pp_2m")]
    DpmSolverPp2m,
    /// Euler's method on the line of a flow, deterministic unless `eta` is above 0.
    FlowEuler,
    /// Multistep sampling of a latent consistency model.
    Lcm,
}

impl SamplerKind {
    /// Names as written in recipes.
    pub const NAMES: [&'static str; 8] = [
        "auto",
        "ddpm",
        "ddim",
        "euler",
        "euler_ancestral",
        "dpm_solver_pp_2m",
        "flow_euler",
        "lcm",
    ];

    const ALL: [Self; 8] = [
        Self::Auto,
        Self::Ddpm,
        Self::Ddim,
        Self::Euler,
        Self::EulerAncestral,
        Self::DpmSolverPp2m,
        Self::FlowEuler,
        Self::Lcm,
    ];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_ancestral",
            Self::DpmSolverPp2m => "dpm_solver_pp_2m",
            Self::FlowEuler => "flow_euler",
            Self::Lcm => "lcm",
        }
    }

    /// The sampler that [`SamplerKind::Auto`] stands for on a schedule; any other is itself.
    #[must_use]
    pub fn resolve(self, schedule: &NoiseSchedule) -> Self {
        match (self, schedule) {
            (Self::Auto, NoiseSchedule::Flow(_)) => Self::FlowEuler,
            (Self::Auto, NoiseSchedule::Discrete(table)) if table.config().class_name == LCM_CLASS => Self::Lcm,
            (Self::Auto, NoiseSchedule::Discrete(_)) => Self::Ddim,
            (kind, _) => kind,
        }
    }

    /// Prepares `num_steps` steps on a noise schedule, with no more randomness than the sampler needs.
    ///
    /// # Errors
    /// As [`SamplerConfig::prepare`].
    pub fn prepare(self, schedule: &NoiseSchedule, num_steps: usize) -> Result<Sampler> {
        SamplerConfig::new(self, num_steps).prepare(schedule)
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
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| Error::Setting {
                key: "sampler",
                found: name.to_owned(),
                expected: "auto, ddpm, ddim, euler, euler_ancestral, dpm_solver_pp_2m, flow_euler or lcm",
            })
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
        let message = "heun".parse::<SamplerKind>().unwrap_err().to_string();
        for name in SamplerKind::NAMES {
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn auto_follows_the_scheduler_class() {
        let schedule = |class: &str| {
            let json = serde_json::json!({"_class_name": class});
            NoiseSchedule::from_value("scheduler_config.json".as_ref(), &json).unwrap()
        };
        for (class, kind) in [
            ("PNDMScheduler", SamplerKind::Ddim),
            ("EulerDiscreteScheduler", SamplerKind::Ddim),
            ("LCMScheduler", SamplerKind::Lcm),
            ("FlowMatchEulerDiscreteScheduler", SamplerKind::FlowEuler),
        ] {
            assert_eq!(SamplerKind::Auto.resolve(&schedule(class)), kind);
            assert_eq!(SamplerKind::Euler.resolve(&schedule(class)), SamplerKind::Euler);
        }
    }
}
