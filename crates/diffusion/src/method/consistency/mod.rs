//! Consistency distances: the errors of images under a latent consistency model.
//!
//! Croitoru et al., "Curriculum Direct Preference Optimization for Diffusion and Consistency Models", CVPR 2025, arXiv:2405.13637, the
//! loss for consistency models; Luo et al., "Latent Consistency Models", arXiv:2310.04378, Algorithm 1, for the distance.
//!
//! ```text
//! f(x, t)  = c_out(t) x0(x, t) + c_skip(t) x                  the network's clean image, with the boundary condition of LCMs
//! x_s      = the latents one step of the solver before x_t
//! e        = mean over C, Y, X of sqrt((f(x_t, t) - sg f'(x_s, s))^2 + c^2) - c
//! L        = -log s(-beta_published ((e_w - ref_w) - (e_l - ref_l)))
//! ```
//!
//! `f'` is the reference network for both `e` and its reference in the published code (CroitoruAlin/Curriculum-DPO `utils_train.py`, which
//! is given the reference as its target network); with `target = "own"` it is each network itself, as the distance of a single consistency model has
//! it. Timestep, noise and solver are shared by the two images of a pair.
//!
//! Convention: the score is minus one half of `e`, as for every image here, so that `beta` of `[objective.dpo]` is twice the published script's:
//! its 200 is 400. Clean latents are not clipped.
//!
//! Shape letters: N images, C channels, Y x X spatial.

mod config;
mod prepare;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use diptych_tensor::{DType, Tensor};

pub use config::{ConsistencyConfig, ConsistencySolver, ConsistencyTarget, ImageError, TeacherConfig};

use super::scoring::DenoisingInput;
use crate::pipeline::{Conditioning, Denoiser, Guided};
use crate::sampler::lcm::{Boundary, ORIGINAL_STEPS};
use crate::sampler::prediction::refuse_blind;
use crate::schedule::{DiscreteSchedule, NoiseSchedule, PredictionType, per_example};
use crate::tensors::cast;
use crate::{Error, Result};

/// The recipe key of a method's section.
pub(crate) fn section(method: &str) -> String {
    format!("method.{method}.error.consistency")
}

/// The recipe key of the teacher's pipeline.
pub(crate) fn teacher_key(method: &str) -> String {
    format!("{}.solver.teacher.path", section(method))
}

/// How consistency distances are computed.
#[derive(Debug)]
pub(crate) struct Consistency {
    schedule: DiscreteSchedule,
    boundary: Boundary,
    /// Timesteps between two of the solver's.
    stride: usize,
    huber_c: f64,
    pub(super) target: ConsistencyTarget,
    teacher: Option<Teacher>,
}

/// The diffusion model that solves a step.
#[derive(Debug)]
struct Teacher {
    denoiser: Denoiser,
    guidance_scale: f64,
}

/// N noisy images one step of the solver earlier, and what the network is to agree with there.
#[derive(Debug, Clone)]
pub(super) struct Earlier {
    rule: Arc<Consistency>,
    latents: Tensor,
    timesteps: Vec<f32>,
    /// Clean latents of one network for all; without them each network's own.
    target: Option<Tensor>,
}

/// The steps of the solver, and how far they are apart.
///
/// # Errors
/// [`Error::Recipe`] for a flow, which has no table of timesteps, and for a number of steps that does not divide the table.
pub(crate) fn check_solver(
    config: &ConsistencyConfig,
    method: &str,
    schedule: &NoiseSchedule,
) -> Result<(DiscreteSchedule, usize)> {
    let schedule = match schedule {
        NoiseSchedule::Discrete(schedule) => (**schedule).clone(),
        NoiseSchedule::Flow(_) => {
            return Err(Error::Recipe {
                key: section(method),
                problem: "is for consistency models with a table of timesteps, and this model is a flow".into(),
                hint: "use `error = \"denoising\"`".into(),
            });
        }
    };
    let steps = config.solver_steps.or(schedule.config().original_inference_steps);
    let (steps, len) = (steps.unwrap_or(ORIGINAL_STEPS), schedule.num_train_timesteps());
    if steps == 0 || steps > len || !len.is_multiple_of(steps) {
        return Err(Error::Recipe {
            key: format!("{}.solver_steps", section(method)),
            problem: format!("is {steps}"),
            hint: format!("expected a divisor of {len}, the length of the noise schedule"),
        });
    }
    let stride = len / steps;
    let alphas = schedule.alphas_cumprod().iter().skip(stride - 1).step_by(stride);
    refuse_blind("lcm", &schedule, alphas.map(|&alpha| f64::from(alpha)))?;
    Ok((schedule, stride))
}

impl Consistency {
    /// `teacher` is there where the solver asks for one.
    ///
    /// # Errors
    /// As [`check_solver`].
    pub(crate) fn new(
        config: &ConsistencyConfig,
        method: &str,
        schedule: &NoiseSchedule,
        teacher: Option<Denoiser>,
    ) -> Result<Self> {
        let (schedule, stride) = check_solver(config, method, schedule)?;
        let guidance_scale = config.teacher().map_or(1.0, |teacher| teacher.guidance_scale);
        Ok(Self {
            boundary: Boundary::of(&schedule),
            schedule,
            stride,
            huber_c: config.huber_c,
            target: config.target,
            teacher: teacher.map(|denoiser| Teacher {
                denoiser,
                guidance_scale,
            }),
        })
    }

    /// Whether a step of the solver needs to know what the denoiser is told without a prompt.
    pub(crate) fn is_guided(config: &ConsistencyConfig) -> bool {
        config.teacher().is_some_and(|teacher| teacher.guidance_scale > 1.0)
    }

    /// The solver's timesteps at or above the drawn ones.
    pub(super) fn rounded(&self, timesteps: &[f32]) -> Vec<f32> {
        let above = |timestep: f32| ((timestep as usize / self.stride + 1) * self.stride - 1) as f32;
        timesteps.iter().map(|&timestep| above(timestep)).collect()
    }

    /// Whether a timestep is one of the solver's.
    pub(super) fn knows(&self, timestep: u32) -> bool {
        (timestep as usize + 1).is_multiple_of(self.stride)
    }

    /// The same images one step of the solver earlier, without a graph; the target is still each network's own.
    ///
    /// `noisy` are the latents with their noise at timesteps of the solver, `unprompted` is what the denoiser is told of each without a prompt.
    ///
    /// # Errors
    /// [`Error::MissingComponent`] where guidance needs what is not given; the teacher refuses.
    fn earlier(
        self: &Arc<Self>,
        (latents, noise, noisy): (&Tensor, &Tensor, &Tensor),
        timesteps: &[f32],
        conditioning: &Conditioning,
        unprompted: Option<&Conditioning>,
    ) -> Result<Earlier> {
        let stride = self.stride as f32;
        let earlier: Vec<f32> = timesteps.iter().map(|timestep| (timestep - stride).max(0.0)).collect();
        let moved = match &self.teacher {
            None => self.schedule.add_noise(latents, noise, &earlier)?,
            Some(teacher) => {
                let guided = teacher.guided(conditioning, unprompted)?;
                let prediction = guided.predict(noisy, timesteps)?.detach();
                let (clean, noise) = self.split(&prediction, &cast(noisy, guided.dtype())?, timesteps)?;
                self.schedule.add_noise(&clean, &noise, &earlier)?
            }
        };
        Ok(Earlier {
            rule: self.clone(),
            latents: moved.detach(),
            timesteps: earlier,
            target: None,
        })
    }

    /// What a network is asked about N images at timesteps of the solver. `target` may say what all networks are to agree with.
    ///
    /// # Errors
    /// As [`Consistency::earlier`]; what `target` refuses.
    pub(super) fn input(
        self: &Arc<Self>,
        (latents, noise): (&Tensor, &Tensor),
        timesteps: Vec<f32>,
        (conditioning, unprompted): (Conditioning, Option<&Conditioning>),
        target: impl FnOnce(&Earlier, &Conditioning) -> Result<Option<Tensor>>,
    ) -> Result<DenoisingInput> {
        let noisy = self.schedule.add_noise(latents, noise, &timesteps)?;
        let earlier = self.earlier((latents, noise, &noisy), &timesteps, &conditioning, unprompted)?;
        let target = target(&earlier, &conditioning)?;
        let earlier = earlier.with_target(target);
        Ok(DenoisingInput::of_consistency(noisy, earlier, timesteps, conditioning))
    }

    /// The network's consistency function of N noisy latents, (N, C, Y, X), differentiable.
    fn clean(
        &self,
        denoiser: &Denoiser,
        noisy: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
    ) -> Result<Tensor> {
        let prediction = denoiser.predict(noisy, timesteps, conditioning)?;
        let dtype = match prediction.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let (prediction, noisy) = (cast(&prediction, dtype)?, cast(noisy, dtype)?);
        let (clean, _) = self.split(&prediction, &noisy, timesteps)?;
        let scales = timesteps
            .iter()
            .map(|&timestep| self.boundary.scales(f64::from(timestep)));
        let (skip, out): (Vec<f64>, Vec<f64>) = scales.unzip();
        sum(&[(&clean, out), (&noisy, skip)])
    }

    /// Clean latents and noise of a prediction at each row's own timestep.
    fn split(&self, prediction: &Tensor, noisy: &Tensor, timesteps: &[f32]) -> Result<(Tensor, Tensor)> {
        let alphas: Vec<f64> = timesteps
            .iter()
            .map(|&timestep| Ok(f64::from(self.schedule.alpha_cumprod(timestep)?)))
            .collect::<Result<_>>()?;
        let each = |scale: fn(f64, f64) -> f64| -> Vec<f64> {
            alphas
                .iter()
                .map(|alpha| scale(alpha.sqrt(), (1.0 - alpha).sqrt()))
                .collect()
        };
        Ok(match self.schedule.prediction_type() {
            PredictionType::Epsilon => {
                let clean = sum(&[
                    (noisy, each(|signal, _| 1.0 / signal)),
                    (prediction, each(|signal, noise| -noise / signal)),
                ])?;
                (clean, prediction.clone())
            }
            PredictionType::Sample => {
                let noise = sum(&[
                    (noisy, each(|_, noise| 1.0 / noise)),
                    (prediction, each(|signal, noise| -signal / noise)),
                ])?;
                (prediction.clone(), noise)
            }
            PredictionType::VPrediction => (
                sum(&[(noisy, each(|signal, _| signal)), (prediction, each(|_, noise| -noise))])?,
                sum(&[(prediction, each(|signal, _| signal)), (noisy, each(|_, noise| noise))])?,
            ),
        })
    }

    /// Pseudo-Huber distances of N clean latents to what they are to agree with, (N,).
    fn distances(&self, clean: &Tensor, target: &Tensor) -> diptych_tensor::Result<Tensor> {
        let squares = ((clean - target)?.sqr()? + self.huber_c * self.huber_c)?;
        Ok((squares.sqrt()?.flatten_from(1)?.mean(1)? - self.huber_c)?)
    }
}

impl Teacher {
    fn guided(&self, conditioning: &Conditioning, unprompted: Option<&Conditioning>) -> Result<Guided<&Denoiser>> {
        if self.guidance_scale <= 1.0 {
            return Ok(Guided::unguided(&self.denoiser, conditioning.clone()));
        }
        let unprompted = unprompted.ok_or(Error::MissingComponent {
            action: "the teacher's guidance",
            component: "text_encoder",
        })?;
        Guided::new(&self.denoiser, unprompted, conditioning, self.guidance_scale)
    }
}

impl Earlier {
    /// What a network would have the others agree with, (N, C, Y, X), without a graph.
    pub(super) fn clean_of(&self, denoiser: &Denoiser, conditioning: &Conditioning) -> Result<Tensor> {
        let clean = self
            .rule
            .clean(denoiser, &self.latents, &self.timesteps, conditioning)?;
        Ok(clean.detach())
    }

    /// The same with one target for all networks, where there is one.
    fn with_target(self, target: Option<Tensor>) -> Self {
        Self { target, ..self }
    }

    /// Consistency distances of a network, (N,), differentiable.
    pub(super) fn errors(
        &self,
        denoiser: &Denoiser,
        noisy: &Tensor,
        timesteps: &[f32],
        conditioning: &Conditioning,
    ) -> Result<Tensor> {
        let target = match &self.target {
            Some(target) => target.clone(),
            None => self.clean_of(denoiser, conditioning)?,
        };
        let clean = self.rule.clean(denoiser, noisy, timesteps, conditioning)?;
        Ok(self.rule.distances(&clean, &target)?)
    }
}

/// The sum of two tensors, each with one factor a row.
fn sum(parts: &[(&Tensor, Vec<f64>); 2]) -> Result<Tensor> {
    let [(a, of_a), (b, of_b)] = parts;
    let (of_a, of_b) = (per_example(of_a.clone(), a)?, per_example(of_b.clone(), b)?);
    let add = || -> diptych_tensor::Result<Tensor> { Ok((a.broadcast_mul(&of_a)? + b.broadcast_mul(&of_b)?)?) };
    Ok(add()?)
}
