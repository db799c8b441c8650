//! Samplers: from noise to latents in few steps.
//!
//! A sampler is prepared for a number of steps and then only maps predictions to [`Transition`]s, the distributions of the
//! next latents; the denoiser, guidance and randomness are the caller's ([`crate::generate()`], [`crate::trajectory`]).

mod ddim;
mod ddpm;
mod dpm_solver;
mod euler;
mod euler_ancestral;
mod flow_euler;
mod kind;
pub(crate) mod lcm;
mod noise;
pub(crate) mod prediction;
mod sigmas;
pub(crate) mod spacing;
pub(crate) mod transition;

use diptych_tensor::Tensor;

pub use ddim::{Ddim, FinalLevel};
pub use ddpm::Ddpm;
pub use dpm_solver::DpmSolver;
pub use euler::Euler;
pub use euler_ancestral::EulerAncestral;
pub use flow_euler::FlowEuler;
pub use kind::SamplerKind;
pub use lcm::Lcm;
pub use noise::SamplerNoise;
pub use transition::{History, Transition};

use crate::schedule::NoiseSchedule;
use crate::{Error, Result};

/// What a sampler is prepared for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerConfig {
    /// The sampler.
    pub kind: SamplerKind,
    /// Denoising steps.
    pub num_steps: usize,
    /// Fresh noise in every step of `ddim` (0 to 1; 1 is that of the trained chain) and `flow_euler` (at least 0; flow-GRPO
    /// takes 0.7). With 0 they are deterministic. Other samplers have no such choice and take 0 only.
    pub eta: f64,
    /// Where `ddim` ends.
    pub final_level: FinalLevel,
}

impl SamplerConfig {
    /// So many steps with no fresh noise that the sampler could leave out.
    pub fn new(kind: SamplerKind, num_steps: usize) -> Self {
        Self {
            kind,
            num_steps,
            eta: 0.0,
            final_level: FinalLevel::default(),
        }
    }

    /// Prepares the steps on a noise schedule.
    ///
    /// # Errors
    /// [`Error::Steps`] for a number of steps the schedule cannot serve; [`Error::Sampler`] for a schedule that this sampler
    /// cannot use; [`Error::Setting`] for an `eta` that it cannot.
    pub fn prepare(&self, schedule: &NoiseSchedule) -> Result<Sampler> {
        let kind = self.kind.resolve(schedule);
        self.check_eta(kind)?;
        let name = kind.name();
        let steps = self.num_steps;
        Ok(match kind {
            SamplerKind::Auto | SamplerKind::Ddim => {
                Sampler::Ddim(Ddim::new(schedule.discrete(name)?, steps, self.eta, self.final_level)?)
            }
            SamplerKind::Ddpm => Sampler::Ddpm(Ddpm::new(schedule.discrete(name)?, steps)?),
            SamplerKind::Euler => Sampler::Euler(Euler::new(schedule.discrete(name)?, steps)?),
            SamplerKind::EulerAncestral => {
                Sampler::EulerAncestral(EulerAncestral::new(schedule.discrete(name)?, steps)?)
            }
            SamplerKind::DpmSolverPp2m => Sampler::DpmSolver(DpmSolver::new(schedule.discrete(name)?, steps)?),
            SamplerKind::Lcm => Sampler::Lcm(Lcm::new(schedule.discrete(name)?, steps)?),
            SamplerKind::FlowEuler => Sampler::FlowEuler(FlowEuler::new(schedule.flow(name)?, steps, self.eta)?),
        })
    }

    /// Refuses what [`SamplerConfig::prepare`] would, where the size of the images is not known yet.
    ///
    /// # Errors
    /// As [`SamplerConfig::prepare`].
    pub fn check(&self, schedule: &NoiseSchedule) -> Result<()> {
        self.prepare(&schedule.with_image_tokens(1)).map(|_| ())
    }

    fn check_eta(&self, kind: SamplerKind) -> Result<()> {
        let (is_fitting, expected) = match kind {
            SamplerKind::Auto | SamplerKind::Ddim => ((0.0..=1.0).contains(&self.eta), "0 to 1 for `ddim`"),
            SamplerKind::FlowEuler => (
                self.eta.is_finite() && self.eta >= 0.0,
                "a number, at least 0, for `flow_euler`",
            ),
            SamplerKind::Ddpm
            | SamplerKind::Euler
            | SamplerKind::EulerAncestral
            | SamplerKind::DpmSolverPp2m
            | SamplerKind::Lcm => (self.eta == 0.0, "0: only `ddim` and `flow_euler` have it"),
        };
        if is_fitting {
            return Ok(());
        }
        Err(Error::Setting {
            key: "eta",
            found: self.eta.to_string(),
            expected,
        })
    }
}

/// A sampler prepared for a number of steps.
#[derive(Debug, Clone)]
pub enum Sampler {
    /// See [`Ddpm`].
    Ddpm(Ddpm),
    /// See [`Ddim`].
    Ddim(Ddim),
    /// See [`Euler`].
    Euler(Euler),
    /// See [`EulerAncestral`].
    EulerAncestral(EulerAncestral),
    /// See [`DpmSolver`].
    DpmSolver(DpmSolver),
    /// See [`FlowEuler`].
    FlowEuler(FlowEuler),
    /// See [`Lcm`].
    Lcm(Lcm),
}

/// Calls the same function of whichever sampler it is.
macro_rules! forward {
    ($self:ident, $sampler:ident => $call:expr) => {
        match $self {
            Sampler::Ddpm($sampler) => $call,
            Sampler::Ddim($sampler) => $call,
            Sampler::Euler($sampler) => $call,
            Sampler::EulerAncestral($sampler) => $call,
            Sampler::DpmSolver($sampler) => $call,
            Sampler::FlowEuler($sampler) => $call,
            Sampler::Lcm($sampler) => $call,
        }
    };
}

impl Sampler {
    /// Which sampler it is, never [`SamplerKind::Auto`].
    pub fn kind(&self) -> SamplerKind {
        match self {
            Self::Ddpm(_) => SamplerKind::Ddpm,
            Self::Ddim(_) => SamplerKind::Ddim,
            Self::Euler(_) => SamplerKind::Euler,
            Self::EulerAncestral(_) => SamplerKind::EulerAncestral,
            Self::DpmSolver(_) => SamplerKind::DpmSolverPp2m,
            Self::FlowEuler(_) => SamplerKind::FlowEuler,
            Self::Lcm(_) => SamplerKind::Lcm,
        }
    }

    /// Timesteps given to the denoiser, noisiest first.
    pub fn timesteps(&self) -> Vec<f32> {
        forward!(self, sampler => sampler.timesteps().to_vec())
    }

    /// Number of steps. A schedule with trailing spacing may round to another one than was asked for.
    pub fn num_steps(&self) -> usize {
        forward!(self, sampler => sampler.timesteps().len())
    }

    /// Standard deviation of the latents the first step expects.
    pub fn initial_sigma(&self) -> f64 {
        match self {
            Self::Ddpm(_) | Self::Ddim(_) | Self::DpmSolver(_) | Self::FlowEuler(_) | Self::Lcm(_) => 1.0,
            Self::Euler(euler) => euler.initial_sigma(),
            Self::EulerAncestral(euler) => euler.initial_sigma(),
        }
    }

    /// Standard deviation of the fresh noise of a step; 0 where it has none.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn std(&self, step_idx: usize) -> f64 {
        match self {
            Self::Ddpm(ddpm) => ddpm.std(step_idx),
            Self::Ddim(ddim) => ddim.std(step_idx),
            Self::EulerAncestral(euler) => euler.std(step_idx),
            Self::FlowEuler(euler) => euler.std(step_idx),
            Self::Lcm(lcm) => lcm.std(step_idx),
            Self::Euler(_) | Self::DpmSolver(_) => 0.0,
        }
    }

    /// Refuses a sampler none of whose steps has a density, where log-probabilities are asked for.
    ///
    /// # Errors
    /// [`Error::NoDensity`].
    pub fn ensure_density(&self) -> Result<()> {
        if (0..self.num_steps()).any(|step_idx| self.std(step_idx) > 0.0) {
            return Ok(());
        }
        Err(Error::NoDensity {
            sampler: self.kind().name(),
        })
    }

    /// Latents as the denoiser expects them at a step.
    ///
    /// # Errors
    /// Tensor operations.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn scale_input(&self, latents: &Tensor, step_idx: usize) -> diptych_tensor::Result<Tensor> {
        match self {
            Self::Euler(euler) => euler.scale_input(latents, step_idx),
            Self::EulerAncestral(euler) => euler.scale_input(latents, step_idx),
            Self::Ddpm(_) | Self::Ddim(_) | Self::DpmSolver(_) | Self::FlowEuler(_) | Self::Lcm(_) => {
                Ok(latents.clone())
            }
        }
    }

    /// The same for latents that stand at different steps, one of `step_indices` each.
    ///
    /// # Errors
    /// [`Error::Shape`] when the counts differ; tensor operations.
    ///
    /// # Panics
    /// As [`Sampler::scale_input`].
    pub fn scale_inputs(&self, latents: &Tensor, step_indices: &[usize]) -> Result<Tensor> {
        let step_idx = uniform(step_indices, latents)?;
        if let Some(step_idx) = step_idx {
            return Ok(self.scale_input(latents, step_idx)?);
        }
        let rows = step_indices
            .iter()
            .enumerate()
            .map(|(row, &step_idx)| self.scale_input(&transition::row(latents, row)?, step_idx))
            .collect::<diptych_tensor::Result<Vec<_>>>()?;
        Ok(transition::joined(&rows)?)
    }

    /// The distribution of the latents after a step, differentiable with respect to `prediction` and `latents`.
    ///
    /// `history` belongs to one trajectory: it starts empty and sees every step in turn.
    ///
    /// # Shape
    /// `prediction` and `latents` are (B, C, Y, X).
    ///
    /// # Errors
    /// Tensor operations.
    ///
    /// # Panics
    /// When `step_idx` is not below the number of steps.
    pub fn transition(
        &self,
        prediction: &Tensor,
        step_idx: usize,
        latents: &Tensor,
        history: &mut History,
    ) -> Result<Transition> {
        let moments = match self {
            Self::Ddpm(ddpm) => ddpm.moments(prediction, step_idx, latents),
            Self::Ddim(ddim) => ddim.moments(prediction, step_idx, latents),
            Self::Euler(euler) => euler.moments(prediction, step_idx, latents),
            Self::EulerAncestral(euler) => euler.moments(prediction, step_idx, latents),
            Self::DpmSolver(solver) => solver.moments(prediction, step_idx, latents, history),
            Self::FlowEuler(euler) => euler.moments(prediction, step_idx, latents),
            Self::Lcm(lcm) => lcm.moments(prediction, step_idx, latents),
        }?;
        Ok(Transition {
            stds: vec![self.std(step_idx); latents.dims().first().copied().unwrap_or(0)],
            mean: moments.mean,
            clean: moments.clean,
        })
    }

    /// The same for states that stand at different steps, one of `step_indices` each.
    ///
    /// # Errors
    /// [`Error::Shape`] when the counts differ; [`Error::Setting`] for a sampler whose steps depend on earlier ones.
    pub fn transitions(&self, prediction: &Tensor, step_indices: &[usize], latents: &Tensor) -> Result<Transition> {
        if let Self::DpmSolver(_) = self {
            return Err(Error::Setting {
                key: "sampler",
                found: self.kind().name().into(),
                expected: "one whose steps depend on nothing but their latents",
            });
        }
        if let Some(step_idx) = uniform(step_indices, latents)? {
            return self.transition(prediction, step_idx, latents, &mut History::default());
        }
        let rows = step_indices
            .iter()
            .enumerate()
            .map(|(row, &step_idx)| {
                let (prediction, latents) = (transition::row(prediction, row)?, transition::row(latents, row)?);
                self.transition(&prediction, step_idx, &latents, &mut History::default())
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Transition::stack(&rows)?)
    }
}

/// The step that all examples stand at, if they stand at one.
fn uniform(step_indices: &[usize], latents: &Tensor) -> Result<Option<usize>> {
    let batch = latents.dims().first().copied().unwrap_or(0);
    match step_indices {
        [first, rest @ ..] if step_indices.len() == batch => {
            Ok(rest.iter().all(|step_idx| step_idx == first).then_some(*first))
        }
        _ => Err(Error::Shape {
            name: "step_indices".into(),
            found: vec![step_indices.len()],
            expected: vec![batch.max(1)],
        }),
    }
}
