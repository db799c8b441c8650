//! Adafactor. Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018, arXiv:1804.04235,
//! Algorithms 4 to 6, with the arithmetic of transformers' `Adafactor`.
//!
//! ```text
//! R = b R + (1 - b) mean over columns of (G^2 + eps1)     C = b C + (1 - b) mean over rows of (G^2 + eps1)     b = 1 - t^decay_rate
//! U = G / sqrt(R C / mean R)                              U = U / max(1, rms(U) / clip_threshold)
//! W = W - lr max(eps2, rms(W)) U                          with `scale_parameter`, else W - lr U
//! ```
//!
//! Vectors keep the second moment of each element. The learning rate is always the recipe's: transformers' `relative_step` and
//! `warmup_init` are schedules, and schedules are their own section.

use std::collections::BTreeMap;

use candle_core::{D, DType, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::state::{StateTensor, check_state};
use crate::ops::kernel::sum_of_squares;
use crate::{Error, Gradients, Params, Result};

/// Settings of Adafactor, the `[optimizer.adafactor]` section.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdafactorConfig {
    /// Learning rate, before the schedule; with `scale_parameter` it is multiplied by the size of each parameter.
    pub lr: f64,
    /// Added to the square of a gradient, and the least size of a parameter.
    pub eps: [f64; 2],
    /// Root mean square that an update is reduced to.
    pub clip_threshold: f64,
    /// Power of the number of updates by which old squares lose weight; below zero.
    pub decay_rate: f64,
    /// Decay rate of a mean of updates; without one there is none, and no memory for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    /// Weight decay; multiplied by the learning rate of the parameter.
    pub weight_decay: f64,
    /// Whether the learning rate is multiplied by the root mean square of the parameter.
    pub scale_parameter: bool,
    /// Gradients are scaled to at most this global norm; 0 = never.
    pub max_grad_norm: f64,
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: true,
            max_grad_norm: 0.0,
        }
    }
}

/// Adafactor over a set of parameters: means of rows and columns of squared gradients instead of a moment of each element.
#[derive(Debug)]
pub struct Adafactor {
    config: AdafactorConfig,
    num_steps: u64,
    /// Tensors by parameter and part.
    state: BTreeMap<String, BTreeMap<String, Tensor>>,
}

const ROWS: &str = "exp_avg_sq_row";
const COLUMNS: &str = "exp_avg_sq_col";
const ELEMENTS: &str = "exp_avg_sq";
const MEAN: &str = "exp_avg";

/// The parts of the state of a parameter of this shape.
fn parts(dims: &[usize], dtype: DType, config: AdafactorConfig) -> Vec<StateTensor> {
    let mut parts = match dims {
        [batch @ .., rows, columns] => {
            let of = |len: usize| [batch, &[len]].concat();
            vec![
                StateTensor::new(ROWS, &of(*rows), dtype),
                StateTensor::new(COLUMNS, &of(*columns), dtype),
            ]
        }
        _ => vec![StateTensor::new(ELEMENTS, dims, dtype)],
    };
    parts.extend(config.beta1.map(|_| StateTensor::new(MEAN, dims, dtype)));
    parts
}

impl Adafactor {
    /// Nothing seen yet of any parameter.
    ///
    /// # Errors
    /// When the device cannot allocate.
    pub fn new(params: &Params, config: AdafactorConfig) -> Result<Self> {
        let state = params.iter().map(|(name, var)| {
            let parts = parts(var.dims(), var.dtype(), config).into_iter().map(|part| {
                let zeros = Tensor::zeros(part.dims, part.dtype, var.device())?;
                Ok((part.name, zeros))
            });
            Ok((name.to_owned(), parts.collect::<Result<_>>()?))
        });
        Ok(Self {
            config,
            num_steps: 0,
            state: state.collect::<Result<_>>()?,
        })
    }

    /// Updates every parameter that has a gradient. `lr` is the learning rate of this step, after the schedule.
    ///
    /// # Errors
    /// When a gradient's shape is not its parameter's, or the device fails.
    pub fn step(&mut self, params: &Params, gradients: &Gradients, lr: f64) -> Result<()> {
        self.num_steps += 1;
        let beta2 = 1.0 - (self.num_steps as f64).powf(self.config.decay_rate);
        for (name, var) in params.iter() {
            if let (Some(gradient), Some(state)) = (gradients.get(name), self.state.get_mut(name)) {
                if gradient.dims() != var.dims() {
                    return Err(Error::TensorShape {
                        path: "the gradients".into(),
                        name: name.into(),
                        found: gradient.dims().to_vec(),
                        expected: var.dims().to_vec(),
                    });
                }
                if var.elem_count() > 0 {
                    update(self.config, (lr, beta2), var, &gradient.to_dtype(var.dtype())?, state)?;
                }
            }
        }
        Ok(())
    }

    /// Number of updates so far.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// Means of squares as `NAME.exp_avg_sq_row` and `NAME.exp_avg_sq_col`, of vectors as `NAME.exp_avg_sq`; with `beta1` also
    /// `NAME.exp_avg`.
    ///
    /// # Errors
    /// When the device cannot copy.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        for (name, parts) in &self.state {
            for (part, tensor) in parts {
                all.insert(format!("{name}.{part}"), tensor.copy()?);
            }
        }
        Ok(all)
    }

    pub(super) fn layout_of(dims: &[usize], dtype: DType, config: AdafactorConfig) -> Vec<StateTensor> {
        parts(dims, dtype, config)
    }

    /// The tensors of [`Self::state`], without their values.
    pub fn state_layout(params: &Params, config: AdafactorConfig) -> Vec<StateTensor> {
        let of_parameter = |(name, var): (&str, &Var)| {
            let name = name.to_owned();
            Self::layout_of(var.dims(), var.dtype(), config)
                .into_iter()
                .map(move |part| part.of_parameter(&name))
        };
        params.iter().flat_map(of_parameter).collect()
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// [`Error::ParameterNames`] or [`Error::TensorShape`] when the state is not that of these parameters.
    pub fn restore(
        params: &Params,
        config: AdafactorConfig,
        saved: &BTreeMap<String, Tensor>,
        num_steps: u64,
    ) -> Result<Self> {
        check_state(&Self::state_layout(params, config), saved)?;
        let state = params.iter().map(|(name, var)| {
            let parts = parts(var.dims(), var.dtype(), config).into_iter().map(|part| {
                let tensor = &saved[&format!("{name}.{}", part.name)];
                Ok((part.name, tensor.to_device(var.device())?.to_dtype(part.dtype)?))
            });
            Ok((name.to_owned(), parts.collect::<Result<_>>()?))
        });
        Ok(Self {
            config,
            num_steps,
            state: state.collect::<Result<_>>()?,
        })
    }
}

/// Root mean square of all elements.
fn rms(x: &Tensor) -> Result<f64> {
    Ok((sum_of_squares(x)? / x.elem_count() as f64).sqrt())
}

fn update(
    config: AdafactorConfig,
    (lr, beta2): (f64, f64),
    var: &Var,
    gradient: &Tensor,
    state: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let value = var.as_detached_tensor();
    let lr = if config.scale_parameter {
        lr * config.eps[1].max(rms(&value)?)
    } else {
        lr
    };
    let square = (gradient.sqr()? + config.eps[0])?;
    let mut moved = |part: &str, new: &Tensor| -> Result<Tensor> {
        let Some(old) = state.get_mut(part) else {
            return Err(Error::ParameterNames {
                what: "updating with Adafactor",
                missing: vec![part.into()],
                unknown: Vec::new(),
            });
        };
        *old = ((&*old * beta2)? + (new * (1.0 - beta2))?)?;
        Ok(old.clone())
    };
    let step = if var.rank() >= 2 {
        let rows = moved(ROWS, &square.mean(D::Minus1)?)?;
        let columns = moved(COLUMNS, &square.mean(D::Minus2)?)?;
        let rows = rows.broadcast_div(&rows.mean_keepdim(D::Minus1)?)?.sqrt()?.recip()?;
        let columns = columns.sqrt()?.recip()?;
        gradient
            .broadcast_mul(&rows.unsqueeze(D::Minus1)?)?
            .broadcast_mul(&columns.unsqueeze(var.rank() - 2)?)?
    } else {
        (gradient / moved(ELEMENTS, &square)?.sqrt()?)?
    };
    let step = (&step * (lr / (rms(&step)? / config.clip_threshold).max(1.0)))?;
    let step = match config.beta1 {
        None => step,
        Some(beta1) => match state.get_mut(MEAN) {
            Some(mean) => {
                *mean = ((&*mean * beta1)? + (step * (1.0 - beta1))?)?;
                mean.clone()
            }
            None => step,
        },
    };
    let decayed = if config.weight_decay == 0.0 {
        value
    } else {
        (value * (1.0 - config.weight_decay * lr))?
    };
    Ok(var.set(&(decayed - step)?)?)
}
