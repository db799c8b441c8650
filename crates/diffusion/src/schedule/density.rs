//! Which noise levels of a flow are trained: the densities of Stable Diffusion 3.
//!
//! Esser et al. (arXiv:2403.03206), section 3.1, with sigma 0 at the image and 1 at the noise:
//!
//! ```text
//! uniform       sigma = u
//! logit_normal  sigma = 1 / (1 + exp(-(mean + std z)))          z standard normal
//! mode          sigma = 1 - u - scale (cos^2(pi u / 2) - 1 + u)   -1 <= scale <= 2 / (pi - 2)
//! ```
//!
//! `diffusers`' scripts read `logit_normal` in the other direction, as a place in a table that begins with noise: their mean is
//! minus this one, as the paper has it.

use diptych_tensor::random::normal_vec;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The density that training noise levels are drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SigmaDensity {
    /// Every level alike.
    Uniform,
    /// Levels whose logit is normal: most of them in the middle.
    LogitNormal(LogitNormal),
    /// A density with its mode in the middle for a positive scale, and at both ends for a negative one.
    Mode(Mode),
}

/// `density.logit_normal`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogitNormal {
    /// Mean of the logit: above 0 more noise.
    pub mean: f64,
    /// Standard deviation of the logit, above 0.
    pub std: f64,
}

impl Default for LogitNormal {
    fn default() -> Self {
        Self { mean: 0.0, std: 1.0 }
    }
}

/// `density.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mode {
    /// How far it is from uniform (0), from -1 to `2 / (pi - 2)`.
    pub scale: f64,
}

impl Default for Mode {
    fn default() -> Self {
        Self { scale: 1.29 }
    }
}

impl Default for SigmaDensity {
    fn default() -> Self {
        Self::LogitNormal(LogitNormal::default())
    }
}

impl SigmaDensity {
    /// Refuses parameters that make no density.
    pub(crate) fn check(&self) -> Result<()> {
        let error = |key, found: f64, expected| {
            Err(Error::Setting {
                key,
                found: found.to_string(),
                expected,
            })
        };
        match *self {
            Self::LogitNormal(LogitNormal { mean, .. }) if !mean.is_finite() => {
                error("density.logit_normal.mean", mean, "a finite number")
            }
            Self::LogitNormal(LogitNormal { std, .. }) if !(std.is_finite() && std > 0.0) => {
                error("density.logit_normal.std", std, "a number above 0")
            }
            Self::Mode(Mode { scale }) if !(-1.0..=2.0 / (std::f64::consts::PI - 2.0)).contains(&scale) => {
                error("density.mode.scale", scale, "-1 to 2 / (pi - 2), about 1.75")
            }
            Self::Uniform | Self::LogitNormal(_) | Self::Mode(_) => Ok(()),
        }
    }

    /// One level, 0 to 1.
    pub fn draw(&self, rng: &mut impl Rng) -> f64 {
        match *self {
            Self::Uniform => rng.random(),
            Self::LogitNormal(LogitNormal { mean, std }) => {
                let normal = f64::from(normal_vec(rng, 1)[0]);
                1.0 / (1.0 + (-std.mul_add(normal, mean)).exp())
            }
            Self::Mode(Mode { scale }) => {
                let u: f64 = rng.random();
                let bump = (std::f64::consts::FRAC_PI_2 * u).cos().powi(2) - 1.0 + u;
                (1.0 - u - scale * bump).clamp(0.0, 1.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use diptych_tensor::random::{Stream, generator};

    use super::*;

    const NUM: u64 = 20_000;

    fn share_below(density: SigmaDensity, bound: f64) -> f64 {
        let draw = |place| density.draw(&mut generator(0, Stream::Timesteps, 1, place));
        (0..NUM).filter(|&place| draw(place) < bound).count() as f64 / NUM as f64
    }

    /// Four standard deviations of a share of 20000 draws are below 0.0142. The shares of `mode` are integrals of its density,
    /// from the inverse of the formula (found by bisection in another program).
    #[test]
    fn draws_have_their_distribution() {
        let logit_normal = SigmaDensity::LogitNormal(LogitNormal { mean: 0.5, std: 2.0 });
        let mode = SigmaDensity::Mode(Mode { scale: 1.29 });
        let cases = [
            (SigmaDensity::Uniform, 0.3, 0.3),
            // The logit of 0.5 is 0: a quarter of a standard deviation below the mean.
            (logit_normal, 0.5, 0.401_294),
            // One standard deviation above the mean: the logistic of 2.5.
            (logit_normal, 0.924_142, 0.841_345),
            (mode, 0.5, 0.5),
            (mode, 0.25, 0.133_627),
            (mode, 0.8, 0.898_452),
        ];
        for (density, bound, expected) in cases {
            let found = share_below(density, bound);
            assert!((found - expected).abs() < 0.0142, "{density:?} {bound}: {found}");
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for density in [
            SigmaDensity::LogitNormal(LogitNormal { mean: 0.0, std: 0.0 }),
            SigmaDensity::LogitNormal(LogitNormal {
                mean: f64::NAN,
                std: 1.0,
            }),
            SigmaDensity::Mode(Mode { scale: 1.8 }),
            SigmaDensity::Mode(Mode { scale: -1.1 }),
        ] {
            assert!(matches!(density.check(), Err(Error::Setting { .. })), "{density:?}");
        }
        assert!(SigmaDensity::default().check().is_ok());
    }
}
