//! `scheduler_config.json`: what is read, what is refused.
//!
//! Every scheduler of `diffusers` that shares the discrete-time training table is accepted: the class only names the
//! sampler its author preferred, and ours is chosen in the recipe. A key that changes the training table or the meaning of
//! the network's output is implemented or refused, never skipped.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::reader::{Reader, parse};
use super::solver::{Obstacles, SolverConfig, VarianceType};
use crate::Result;

/// Scheduler classes whose training table is the one built here.
const CLASSES: [&str; 11] = [
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    LCM_CLASS,
];

/// The one class whose training table has other defaults.
pub(crate) const LCM_CLASS: &str = "LCMScheduler";

/// What the denoiser predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The added noise.
    Epsilon,
    /// `sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) latents` (Salimans and Ho, arXiv:2202.00512, appendix D).
    VPrediction,
    /// The clean latents.
    Sample,
}

/// How betas grow over the training steps.
#[derive(Debug, Clone, PartialEq)]
pub enum BetaSchedule {
    /// Evenly from `beta_start` to `beta_end`.
    Linear,
    /// Square roots evenly spaced (Stable Diffusion).
    ScaledLinear,
    /// Cosine schedule, `squaredcos_cap_v2`.
    SquaredCosine,
    /// The values themselves (`trained_betas`).
    Trained(Vec<f64>),
}

/// How the sampler's timesteps are spread over the training steps (Table 2 of arXiv:2305.08891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// From the first to the last training step, both included.
    Linspace,
    /// Multiples of the stride, from 0 (plus `steps_offset`).
    Leading,
    /// Back from the last training step.
    Trailing,
}

/// Sigma after the last Euler step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalSigma {
    /// No noise left.
    Zero,
    /// The smallest sigma of the training table.
    SigmaMin,
}

/// Contents of `scheduler_config.json`. `None` means that the file leaves the key out: the sampler then uses its own
/// class's default, as `from_config` does.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// File the values came from, named in errors.
    pub file: PathBuf,
    /// `_class_name` as written.
    pub class_name: String,
    /// Number of training steps.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// How betas grow.
    pub beta_schedule: BetaSchedule,
    /// What the network predicts.
    pub prediction_type: PredictionType,
    /// Whether the table is rescaled to end without signal.
    pub rescale_betas_zero_snr: bool,
    /// Whether DDIM clips the predicted clean latents.
    pub clip_sample: Option<bool>,
    /// Bound of that clipping.
    pub clip_sample_range: Option<f64>,
    /// Whether the signal share "before step 0" is 1, instead of that of step 0.
    pub set_alpha_to_one: Option<bool>,
    /// Added to every timestep with leading spacing.
    pub steps_offset: Option<usize>,
    /// Spread of the sampler's timesteps.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Sigma after the last Euler step.
    pub final_sigma: Option<FinalSigma>,
    /// Variance of the ancestral sampler.
    pub variance_type: Option<VarianceType>,
    /// Steps that a latent consistency model was distilled on.
    pub original_inference_steps: Option<usize>,
    /// What timesteps are multiplied by in the boundary condition of a latent consistency model.
    pub timestep_scaling: Option<f64>,
    /// Keys of the multistep solver.
    pub solver: SolverConfig,
    /// Keys that only unimplemented variants of samplers understand.
    pub(crate) obstacles: Obstacles,
}

impl SchedulerConfig {
    /// Reads `scheduler_config.json`; `path` is the file or its folder.
    ///
    /// # Errors
    /// The file is missing or is not JSON; a value is of the wrong type or not implemented (file, key, found, expected).
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let (file, value) = parse(path.as_ref())?;
        Self::from_value(&file, &value)
    }

    /// The same from parsed JSON; `file` is only named in errors.
    ///
    /// # Errors
    /// As [`SchedulerConfig::read`].
    pub fn from_value(file: &Path, value: &Value) -> Result<Self> {
        let reader = Reader::new(file, value)?;
        reader.reject_unimplemented()?;
        let trained_betas = reader.numbers("trained_betas")?;
        let num_train_timesteps = match &trained_betas {
            Some(betas) => {
                if let Some(count) = reader
                    .count("num_train_timesteps")?
                    .filter(|&count| count != betas.len())
                {
                    let expected = format!("{}, the length of `trained_betas`", betas.len());
                    return Err(reader.error("num_train_timesteps", count.to_string(), expected));
                }
                betas.len()
            }
            None => reader.count("num_train_timesteps")?.unwrap_or(1000),
        };
        if num_train_timesteps == 0 {
            return Err(reader.error("num_train_timesteps", "0", "at least 1"));
        }
        let class_name = reader.class_name()?;
        let (first_beta, last_beta, growth) = if class_name == LCM_CLASS {
            (0.00085, 0.012, BetaSchedule::ScaledLinear)
        } else {
            (0.0001, 0.02, BetaSchedule::Linear)
        };
        Ok(Self {
            class_name,
            num_train_timesteps,
            beta_start: reader.beta("beta_start")?.unwrap_or(first_beta),
            beta_end: reader.beta("beta_end")?.unwrap_or(last_beta),
            beta_schedule: match trained_betas {
                Some(betas) => BetaSchedule::Trained(betas),
                None => reader.beta_schedule()?.unwrap_or(growth),
            },
            prediction_type: reader.prediction_type()?,
            rescale_betas_zero_snr: reader.flag("rescale_betas_zero_snr")?.unwrap_or(false),
            clip_sample: reader.flag("clip_sample")?,
            clip_sample_range: reader.number("clip_sample_range")?,
            set_alpha_to_one: reader.flag("set_alpha_to_one")?,
            steps_offset: reader.count("steps_offset")?,
            timestep_spacing: reader.timestep_spacing()?,
            final_sigma: reader.final_sigma()?,
            variance_type: reader.variance_type()?,
            original_inference_steps: reader.count("original_inference_steps")?,
            timestep_scaling: reader.number("timestep_scaling")?,
            solver: reader.solver()?,
            obstacles: reader.obstacles(),
            file: file.to_path_buf(),
        })
    }
}

impl Reader<'_> {
    fn class_name(&self) -> Result<String> {
        let name = self.text("_class_name")?.unwrap_or_else(|| "DDPMScheduler".to_owned());
        if CLASSES.contains(&name.as_str()) {
            Ok(name)
        } else {
            Err(self.error("_class_name", format!("{name:?}"), CLASSES.join(", ")))
        }
    }

    fn beta_schedule(&self) -> Result<Option<BetaSchedule>> {
        #[derive(Clone, Copy)]
        enum Word {
            Linear,
            ScaledLinear,
            SquaredCosine,
        }
        let choices = [
            ("linear", Word::Linear),
            ("scaled_linear", Word::ScaledLinear),
            ("squaredcos_cap_v2", Word::SquaredCosine),
        ];
        Ok(self.choice("beta_schedule", &choices)?.map(|word| match word {
            Word::Linear => BetaSchedule::Linear,
            Word::ScaledLinear => BetaSchedule::ScaledLinear,
            Word::SquaredCosine => BetaSchedule::SquaredCosine,
        }))
    }

    fn prediction_type(&self) -> Result<PredictionType> {
        let choices = [
            ("epsilon", PredictionType::Epsilon),
            ("v_prediction", PredictionType::VPrediction),
            ("sample", PredictionType::Sample),
        ];
        Ok(self
            .choice("prediction_type", &choices)?
            .unwrap_or(PredictionType::Epsilon))
    }

    fn timestep_spacing(&self) -> Result<Option<TimestepSpacing>> {
        let choices = [
            ("linspace", TimestepSpacing::Linspace),
            ("leading", TimestepSpacing::Leading),
            ("trailing", TimestepSpacing::Trailing),
        ];
        self.choice("timestep_spacing", &choices)
    }

    fn final_sigma(&self) -> Result<Option<FinalSigma>> {
        self.choice(
            "final_sigmas_type",
            &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::SigmaMin)],
        )
    }

    /// Keys that change what the network predicts or how its output is read, in ways not implemented.
    fn reject_unimplemented(&self) -> Result<()> {
        for key in ["thresholding", "use_flow_sigmas"] {
            if self.flag(key)? == Some(true) {
                return Err(self.error(key, "true", "false (not implemented)"));
            }
        }
        if let Some(word) = self.text("variance_type")?.filter(|word| word.starts_with("learned")) {
            return Err(self.error("variance_type", format!("{word:?}"), "a fixed variance"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<SchedulerConfig> {
        SchedulerConfig::from_value(Path::new("scheduler_config.json"), &serde_json::from_str(json).unwrap())
    }

    #[test]
    fn reads_the_stable_diffusion_file() {
        let config = read(
            r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule":
            "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": false,
            "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#,
        )
        .unwrap();
        assert_eq!(config.beta_schedule, BetaSchedule::ScaledLinear);
        assert_eq!(config.prediction_type, PredictionType::Epsilon);
        assert_eq!((config.set_alpha_to_one, config.steps_offset), (Some(false), Some(1)));
        assert_eq!(config.timestep_spacing, None);
    }

    #[test]
    fn refuses_by_name_what_is_not_implemented() {
        let cases = [
            (r#"{"beta_schedule": "sigmoid"}"#, "beta_schedule", "scaled_linear"),
            (
                r#"{"prediction_type": "flow_prediction"}"#,
                "prediction_type",
                "v_prediction",
            ),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#,
                "_class_name",
                "PNDMScheduler",
            ),
            (r#"{"thresholding": true}"#, "thresholding", "false"),
            (r#"{"variance_type": "learned_range"}"#, "variance_type", "fixed"),
            (r#"{"beta_start": 0.0}"#, "beta_start", "above 0"),
            (r#"{"beta_start": -0.1}"#, "beta_start", "above 0"),
            (r#"{"beta_end": 1.0}"#, "beta_end", "below 1"),
            (r#"{"beta_end": 12}"#, "beta_end", "below 1"),
            (r#"{"trained_betas": [0.1, 1.5]}"#, "trained_betas", "from 0 to 1"),
            (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps", "at least 1"),
            (
                r#"{"num_train_timesteps": "many"}"#,
                "num_train_timesteps",
                "whole number",
            ),
            ("[1]", "whole file", "an object"),
        ];
        for (json, key, expected) in cases {
            let message = read(json).unwrap_err().to_string();
            assert!(message.contains("scheduler_config.json"), "{message}");
            assert!(message.contains(key) && message.contains(expected), "{message}");
        }
    }
}
