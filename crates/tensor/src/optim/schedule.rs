//! Learning-rate schedules, with the formulas of transformers' `get_*_schedule_with_warmup`.

use serde::{Deserialize, Serialize};

/// How the learning rate moves; `warmup_steps` is a linear rise from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LrSchedule {
    /// Constant after the warm-up.
    Constant {
        /// Optimizer steps of linear rise.
        #[serde(default)]
        warmup_steps: u64,
    },
    /// Linear fall to 0 at the last step.
    Linear {
        /// Optimizer steps of linear rise.
        #[serde(default)]
        warmup_steps: u64,
    },
    /// Half a cosine, down to 0 at the last step.
    Cosine {
        /// Optimizer steps of linear rise.
        #[serde(default)]
        warmup_steps: u64,
    },
}

impl Default for LrSchedule {
    fn default() -> Self {
        Self::Constant { warmup_steps: 0 }
    }
}

impl LrSchedule {
    /// Optimizer steps of linear rise.
    pub fn warmup_steps(&self) -> u64 {
        let (Self::Constant { warmup_steps } | Self::Linear { warmup_steps } | Self::Cosine { warmup_steps }) = *self;
        warmup_steps
    }

    /// What the learning rate is multiplied by when `done` of `total` optimizer steps are complete, in `[0, 1]`.
    pub fn factor(&self, done: u64, total: u64) -> f64 {
        let warmup_steps = self.warmup_steps();
        if done < warmup_steps {
            return done as f64 / warmup_steps.max(1) as f64;
        }
        let rest = total.saturating_sub(warmup_steps).max(1) as f64;
        let progress = ((done - warmup_steps) as f64 / rest).min(1.0);
        match self {
            Self::Constant { .. } => 1.0,
            Self::Linear { .. } => 1.0 - progress,
            Self::Cosine { .. } => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from transformers' schedules with 4 warm-up steps of 12, at steps 0, 2, 4, 8, 12.
    #[test]
    fn factors_are_those_of_transformers() {
        let at = |schedule: LrSchedule| [0, 2, 4, 8, 12].map(|done| schedule.factor(done, 12));
        let close =
            |found: [f64; 5], expected: [f64; 5]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(
            at(LrSchedule::Constant { warmup_steps: 4 }),
            [0., 0.5, 1., 1., 1.]
        ));
        assert!(close(
            at(LrSchedule::Linear { warmup_steps: 4 }),
            [0., 0.5, 1., 0.5, 0.]
        ));
        assert!(close(
            at(LrSchedule::Cosine { warmup_steps: 4 }),
            [0., 0.5, 1., 0.5, 0.]
        ));
        assert!((LrSchedule::Cosine { warmup_steps: 0 }.factor(3, 12) - 0.853_553_390_593_273_8).abs() < 1e-12);
    }
}
