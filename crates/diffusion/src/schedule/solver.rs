//! Keys of `scheduler_config.json` that only some samplers understand.

use std::path::Path;

use serde_json::Value;

use super::reader::Reader;
use crate::{Error, Result};

/// Keys of `DPMSolverMultistepScheduler`, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SolverConfig {
    /// Order of the solver, 1 or 2.
    pub order: usize,
    /// How the second-order term is weighted.
    pub kind: SolverKind,
    /// Whether the last of few steps is of first order.
    pub lower_order_final: bool,
    /// Whether the last step is always of first order.
    pub euler_at_final: bool,
    /// Whether sigmas are spread as Karras et al. do.
    pub use_karras_sigmas: bool,
}

/// How the second-order term of a solver is weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SolverKind {
    /// By the midpoint rule.
    Midpoint,
    /// By Heun's rule.
    Heun,
}

/// Variance of the ancestral sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VarianceType {
    /// That of the posterior given the clean latents.
    FixedSmall,
    /// The same, computed by its logarithm.
    FixedSmallLog,
    /// That of the forward step.
    FixedLarge,
}

/// A key that keeps a sampler from being used with this file, if there is one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Obstacle(Option<(String, String, String)>);

impl Obstacle {
    /// # Errors
    /// [`Error::Sampler`] if there is one.
    pub(crate) fn refuse(&self, sampler: &'static str, file: &Path) -> Result<()> {
        match self.0.clone() {
            None => Ok(()),
            Some((key, found, expected)) => Err(Error::Sampler {
                sampler,
                file: file.to_path_buf(),
                key,
                found,
                expected,
            }),
        }
    }
}

/// What keeps samplers from being used.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Obstacles {
    pub(crate) ddpm: Obstacle,
    pub(crate) euler: Obstacle,
    pub(crate) solver: Obstacle,
}

impl Reader<'_> {
    pub(super) fn solver(&self) -> Result<SolverConfig> {
        Ok(SolverConfig {
            order: self.count("solver_order")?.unwrap_or(2),
            kind: match self.text("solver_type")?.as_deref() {
                Some("heun") => SolverKind::Heun,
                _ => SolverKind::Midpoint,
            },
            lower_order_final: self.flag("lower_order_final")?.unwrap_or(true),
            euler_at_final: self.flag("euler_at_final")?.unwrap_or(false),
            use_karras_sigmas: self.flag("use_karras_sigmas")?.unwrap_or(false),
        })
    }

    /// The variance where it is one of those implemented; [`Reader::obstacles`] refuses the others.
    pub(super) fn variance_type(&self) -> Result<Option<VarianceType>> {
        Ok(match self.text("variance_type")?.as_deref() {
            Some("fixed_small") => Some(VarianceType::FixedSmall),
            Some("fixed_small_log") => Some(VarianceType::FixedSmallLog),
            Some("fixed_large") => Some(VarianceType::FixedLarge),
            _ => None,
        })
    }

    pub(super) fn obstacles(&self) -> Obstacles {
        let off = [Value::Bool(false)];
        let linear = [Value::from("linear")];
        let discrete = [Value::from("discrete")];
        let orders = [Value::from(2), Value::from(1)];
        let plus_plus = [Value::from("dpmsolver++")];
        // diffusers takes the last three, which are names of another solver, for the first.
        let rules = ["midpoint", "heun", "logrho", "bh1", "bh2"].map(Value::from);
        let variances = ["fixed_small", "fixed_small_log", "fixed_large"].map(Value::from);
        Obstacles {
            ddpm: self.obstacle(&[("variance_type", &variances)]),
            euler: self.obstacle(&[
                ("use_karras_sigmas", &off),
                ("use_exponential_sigmas", &off),
                ("use_beta_sigmas", &off),
                ("interpolation_type", &linear),
                ("timestep_type", &discrete),
            ]),
            solver: self.obstacle(&[
                ("solver_order", &orders),
                ("algorithm_type", &plus_plus),
                ("solver_type", &rules),
                ("use_lu_lambdas", &off),
                ("use_exponential_sigmas", &off),
                ("use_beta_sigmas", &off),
                ("use_dynamic_shifting", &off),
                ("lambda_min_clipped", &[]),
            ]),
        }
    }

    /// The first key whose value is none of those accepted.
    fn obstacle(&self, accepted: &[(&str, &[Value])]) -> Obstacle {
        Obstacle(accepted.iter().find_map(|(key, accepted)| {
            let found = self.get(key)?;
            let expected = accepted.first().map_or_else(|| "null".to_owned(), Value::to_string);
            (!accepted.contains(found)).then(|| ((*key).to_owned(), found.to_string(), expected))
        }))
    }
}
