//! Optimizers with state that can be saved, clipping, learning-rate schedules and moving averages.

mod adafactor;
mod adamw;
pub(crate) mod blockwise;
mod clip;
mod ema;
mod moments;
mod rounding;
mod schedule;
mod state;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

pub use adafactor::{Adafactor, AdafactorConfig};
pub use adamw::{AdamW, AdamWConfig, Decayed, MomentFormat};
pub use clip::clip_by_global_norm;
pub use ema::Ema;
pub use schedule::LrSchedule;
pub use state::StateTensor;

use crate::{Gradients, Params, Result};

/// Which optimizer, as the `[optimizer.…]` section of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimizerConfig {
    /// AdamW.
    Adamw(AdamWConfig),
    /// Adafactor.
    Adafactor(AdafactorConfig),
}

impl OptimizerConfig {
    /// The learning rate before the schedule.
    pub fn lr(&self) -> f64 {
        match self {
            Self::Adamw(config) => config.lr,
            Self::Adafactor(config) => config.lr,
        }
    }

    /// Sets the learning rate before the schedule.
    pub fn set_lr(&mut self, lr: f64) {
        match self {
            Self::Adamw(config) => config.lr = lr,
            Self::Adafactor(config) => config.lr = lr,
        }
    }

    /// The global norm that gradients are clipped to; 0 = no clipping.
    pub fn max_grad_norm(&self) -> f64 {
        match self {
            Self::Adamw(config) => config.max_grad_norm,
            Self::Adafactor(config) => config.max_grad_norm,
        }
    }

    /// What the optimizer keeps for these parameters.
    pub fn state_layout(&self, params: &Params) -> Vec<StateTensor> {
        match self {
            Self::Adamw(config) => AdamW::state_layout(params, *config),
            Self::Adafactor(config) => Adafactor::state_layout(params, *config),
        }
    }

    /// Bytes of what it keeps for an f32 parameter of this shape: for programs that count before anything is loaded.
    ///
    /// ```
    /// use diptych_tensor::optim::{AdafactorConfig, OptimizerConfig};
    /// assert_eq!(OptimizerConfig::default().state_bytes(&[512, 1024]), 8 * 512 * 1024);
    /// assert_eq!(OptimizerConfig::Adafactor(AdafactorConfig::default()).state_bytes(&[512, 1024]), 4 * (512 + 1024));
    /// ```
    pub fn state_bytes(&self, dims: &[usize]) -> u64 {
        let layout = match self {
            Self::Adamw(config) => AdamW::layout_of(dims, DType::F32, *config),
            Self::Adafactor(config) => Adafactor::layout_of(dims, DType::F32, *config),
        };
        layout.iter().map(StateTensor::bytes).sum()
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adamw(AdamWConfig::default())
    }
}

/// The optimizer that a configuration names.
#[derive(Debug)]
pub enum Optimizer {
    /// AdamW.
    AdamW(AdamW),
    /// Adafactor.
    Adafactor(Adafactor),
}

impl Optimizer {
    /// An optimizer that has made no update.
    ///
    /// # Errors
    /// When the device cannot allocate, or cannot hold moments as configured.
    pub fn new(params: &Params, config: &OptimizerConfig) -> Result<Self> {
        Ok(match config {
            OptimizerConfig::Adamw(config) => Self::AdamW(AdamW::new(params, *config)?),
            OptimizerConfig::Adafactor(config) => Self::Adafactor(Adafactor::new(params, *config)?),
        })
    }

    /// With the seed of the run, for what is rounded at random.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        match self {
            Self::AdamW(optimizer) => Self::AdamW(optimizer.seeded(seed)),
            Self::Adafactor(optimizer) => Self::Adafactor(optimizer),
        }
    }

    /// Updates every parameter that has a gradient. `lr` is the learning rate of this step, after the schedule.
    ///
    /// # Errors
    /// When a gradient's shape is not its parameter's, or the device fails.
    pub fn step(&mut self, params: &Params, gradients: &Gradients, lr: f64) -> Result<()> {
        match self {
            Self::AdamW(optimizer) => optimizer.step(params, gradients, lr),
            Self::Adafactor(optimizer) => optimizer.step(params, gradients, lr),
        }
    }

    /// Number of updates so far.
    pub fn num_steps(&self) -> u64 {
        match self {
            Self::AdamW(optimizer) => optimizer.num_steps(),
            Self::Adafactor(optimizer) => optimizer.num_steps(),
        }
    }

    /// What it keeps, by the names of [`OptimizerConfig::state_layout`].
    ///
    /// # Errors
    /// When the device cannot copy.
    pub fn state(&self, params: &Params) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Self::AdamW(optimizer) => optimizer.state(params),
            Self::Adafactor(optimizer) => optimizer.state(),
        }
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// [`Error::ParameterNames`](crate::Error::ParameterNames) or [`Error::TensorShape`](crate::Error::TensorShape) when the state is
    /// not that of these parameters.
    pub fn restore(
        params: &Params,
        config: &OptimizerConfig,
        state: &BTreeMap<String, Tensor>,
        num_steps: u64,
    ) -> Result<Self> {
        Ok(match config {
            OptimizerConfig::Adamw(config) => Self::AdamW(AdamW::restore(params, *config, state, num_steps)?),
            OptimizerConfig::Adafactor(config) => {
                Self::Adafactor(Adafactor::restore(params, *config, state, num_steps)?)
            }
        })
    }
}
