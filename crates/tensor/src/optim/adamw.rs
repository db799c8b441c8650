//! AdamW. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101, Algorithm 2;
//! with the arithmetic of PyTorch's `torch.optim.AdamW`.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::moments::{Moments, Update};
use super::state::{StateTensor, check_state};
use crate::{Error, Gradients, Params, Result};

/// Settings of AdamW, the `[optimizer.adamw]` section.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Learning rate, before the schedule.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment; above zero.
    pub eps: f64,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub decayed: Decayed,
    /// Gradients are scaled to at most this global norm; 0 = never.
    pub max_grad_norm: f64,
    /// How the moments are held.
    #[serde(skip_serializing_if = "MomentFormat::is_full")]
    pub state: MomentFormat,
}

/// How moments are held between updates. An update computes in the parameter's precision; only f32 parameters on the CPU may have
/// moments in fewer bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MomentFormat {
    /// In the parameter's precision: 8 bytes an f32 parameter.
    #[default]
    Full,
    /// In bf16, rounded up or down at random so that small changes are kept in the mean: 4 bytes a parameter.
    Bf16,
    /// In eight bits with a scale for each block, by the maps and rules of bitsandbytes' `AdamW8bit`: little more than 2 bytes a
    /// parameter. Parameters of fewer than 4096 elements stay in full precision.
    Int8 {
        /// Elements of a block: 256, as bitsandbytes has now, to 2048, as the paper has; a power of two.
        #[serde(default = "default_block")]
        block: usize,
    },
}

fn default_block() -> usize {
    256
}

impl MomentFormat {
    fn is_full(&self) -> bool {
        *self == Self::Full
    }
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            lr: 1e-4,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            decayed: Decayed::default(),
            max_grad_norm: 1.0,
            state: MomentFormat::Full,
        }
    }
}

/// Which parameters decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decayed {
    /// Every one, as with PyTorch's optimizer alone.
    #[default]
    All,
    /// No biases and no gains of norms, as in transformers' trainers: parameters with at least two dimensions, and `DoRA`'s lengths of rows.
    Matrices,
}

/// How names of trained lengths of rows end, PEFT's `lora_magnitude_vector`.
const ROW_LENGTHS: &str = "magnitude_vector";

/// AdamW over a set of parameters: one pass over parameter, gradient and both moments.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    num_steps: u64,
    seed: u64,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Zero moments for every parameter.
    ///
    /// # Errors
    /// [`Error::Operand`] for an `eps` that is not above zero; when the device cannot allocate, or cannot hold moments as configured.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        check(config)?;
        let moments = params
            .iter()
            .map(|(name, var)| Ok((name.to_owned(), Moments::zeros(var, config.state)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            num_steps: 0,
            seed: 0,
            moments,
        })
    }

    /// With the seed of the run, which moments in bf16 are rounded by.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Updates every parameter that has a gradient. `lr` is the learning rate of this step, after the schedule.
    ///
    /// # Errors
    /// When a gradient's shape is not its parameter's, or the device fails.
    pub fn step(&mut self, params: &Params, gradients: &Gradients, lr: f64) -> Result<()> {
        self.num_steps += 1;
        let AdamWConfig {
            betas: [beta1, beta2],
            eps,
            weight_decay,
            ..
        } = self.config;
        let count = self.num_steps as f64;
        let update = Update {
            beta1,
            beta2,
            keep: 1.0 - lr * weight_decay,
            step_size: lr / (1.0 - beta1.powf(count)),
            root_correction: (1.0 - beta2.powf(count)).sqrt(),
            eps,
            step: self.num_steps,
            seed: self.seed,
        };
        for (name, var) in params.iter() {
            if let (Some(gradient), Some(moments)) = (gradients.get(name), self.moments.get_mut(name)) {
                let decays = match self.config.decayed {
                    Decayed::All => true,
                    Decayed::Matrices => var.rank() >= 2 || name.ends_with(ROW_LENGTHS),
                };
                let keep = if decays { update.keep } else { 1.0 };
                moments.apply(name, Update { keep, ..update }, var, gradient)?;
            }
        }
        Ok(())
    }

    /// Number of updates so far.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// Both moments of every parameter, as `NAME.exp_avg` and `NAME.exp_avg_sq`, in the shapes of the parameters. The scales of moments
    /// in eight bits are beside them, as `NAME.exp_avg.absmax` and `NAME.exp_avg_sq.absmax`, one a block.
    ///
    /// # Errors
    /// When the device cannot copy.
    pub fn state(&self, params: &Params) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, var) in params.iter() {
            if let Some(moments) = self.moments.get(name) {
                let parts = moments.tensors(var)?;
                state.extend(
                    parts
                        .into_iter()
                        .map(|(part, tensor)| (format!("{name}.{part}"), tensor)),
                );
            }
        }
        Ok(state)
    }

    pub(super) fn layout_of(dims: &[usize], dtype: DType, config: AdamWConfig) -> Vec<StateTensor> {
        Moments::layout(dims, dtype, config.state)
    }

    /// The tensors of [`Self::state`], without their values.
    pub fn state_layout(params: &Params, config: AdamWConfig) -> Vec<StateTensor> {
        let of_parameter = |(name, var): (&str, &Var)| {
            let parts = Self::layout_of(var.dims(), var.dtype(), config);
            let name = name.to_owned();
            parts.into_iter().map(move |part| part.of_parameter(&name))
        };
        params.iter().flat_map(of_parameter).collect()
    }

    /// Continues from a saved state.
    ///
    /// # Errors
    /// [`Error::ParameterNames`] or [`Error::TensorShape`] when the state is not that of these parameters, and those of [`Self::new`].
    pub fn restore(
        params: &Params,
        config: AdamWConfig,
        state: &BTreeMap<String, Tensor>,
        num_steps: u64,
    ) -> Result<Self> {
        check(config)?;
        check_state(&Self::state_layout(params, config), state)?;
        let moments = params
            .iter()
            .map(|(name, var)| {
                let moments = Moments::restore(var, config.state, |part| &state[&format!("{name}.{part}")])?;
                Ok((name.to_owned(), moments))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            config,
            num_steps,
            seed: 0,
            moments,
        })
    }
}

/// Without `eps`, a parameter whose gradients were all zero would become NaN.
fn check(config: AdamWConfig) -> Result<()> {
    if config.eps > 0.0 && config.eps.is_finite() {
        return Ok(());
    }
    Err(Error::Operand {
        op: "adamw",
        what: "eps",
        found: config.eps.to_string(),
        expected: "a finite number above zero".into(),
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::backward;

    const CONFIG: AdamWConfig = AdamWConfig {
        lr: 0.1,
        betas: [0.9, 0.99],
        eps: 1e-8,
        weight_decay: 0.1,
        decayed: Decayed::All,
        max_grad_norm: 0.0,
        state: MomentFormat::Full,
    };

    fn start() -> Params {
        let mut params = Params::new();
        params
            .insert("w", &Tensor::new(&[1.0f64, -2.0, 0.5], &Device::Cpu).unwrap())
            .unwrap();
        params
    }

    /// A step on Σ w⁴/4, whose gradient is w³.
    fn step(optimizer: &mut AdamW, params: &Params) {
        let loss = (params.get("w").unwrap().powf(4.0).unwrap().sum_all().unwrap() * 0.25).unwrap();
        let gradients = backward(&loss, params).unwrap();
        optimizer.step(params, &gradients, CONFIG.lr).unwrap();
    }

    fn values(params: &Params) -> Vec<f64> {
        params.get("w").unwrap().to_vec1().unwrap()
    }

    /// Expected values: `torch.optim.AdamW` of PyTorch 2 in float64 on the same loss, five steps.
    #[test]
    fn five_steps_equal_pytorch() {
        let params = start();
        let mut optimizer = AdamW::new(&params, CONFIG).unwrap();
        for _ in 0..5 {
            step(&mut optimizer, &params);
        }
        let expected = EXPECTED;
        for (found, expected) in values(&params).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }
    const EXPECTED: [f64; 3] = [0.4983066393182542, -1.4265919637240816, 0.07500356639042713];

    /// Which of them decay: what `Trainer.get_decay_parameter_names` of transformers 5.23 gives for a model of peft with `DoRA`.
    #[test]
    fn of_vectors_only_lengths_of_rows_decay_where_matrices_do() {
        let mut params = Params::new();
        let value = Tensor::new(&[1.0f64], &Device::Cpu).unwrap();
        let names = ["a.bias", "a.lora_magnitude_vector", "a.weight", "norm.weight"];
        for name in names {
            let shape: &[usize] = if name == "a.weight" { &[1, 1] } else { &[1] };
            params.insert(name, &value.reshape(shape).unwrap()).unwrap();
        }
        let config = AdamWConfig {
            decayed: Decayed::Matrices,
            ..CONFIG
        };
        let mut optimizer = AdamW::new(&params, config).unwrap();
        let zero = Tensor::zeros((), candle_core::DType::F64, &Device::Cpu).unwrap();
        let sum = |sum: Tensor, name: &&str| (sum + params.get(name).unwrap().sum_all().unwrap()).unwrap();
        let gradients = backward(&names.iter().fold(zero, sum), &params).unwrap();
        optimizer.step(&params, &gradients, CONFIG.lr).unwrap();
        // The first step takes `lr` from each, and decay a hundredth.
        let is_decayed = |name: &&str| {
            let value: f64 = params.get(name).unwrap().sum_all().unwrap().to_scalar().unwrap();
            (value - 0.89).abs() < 1e-6
        };
        let decayed: Vec<&str> = names.into_iter().filter(is_decayed).collect();
        assert_eq!(decayed, ["a.lora_magnitude_vector", "a.weight"]);
    }

    #[test]
    fn an_eps_of_zero_is_refused() {
        for eps in [0.0, -1e-8, f64::NAN, f64::INFINITY] {
            let refused = AdamW::new(&start(), AdamWConfig { eps, ..CONFIG });
            assert!(matches!(refused, Err(Error::Operand { what: "eps", .. })), "{eps}");
        }
    }

    #[test]
    fn the_device_path_is_the_same_arithmetic() {
        let (fused, composed) = (start(), start());
        let mut optimizers = [&fused, &composed].map(|params| AdamW::new(params, CONFIG).unwrap());
        let zeros = Tensor::zeros(3, candle_core::DType::F64, &Device::Cpu).unwrap();
        optimizers[1].moments.insert(
            "w".into(),
            Moments::Device {
                exp_avg: zeros.clone(),
                exp_avg_sq: zeros,
            },
        );
        for _ in 0..4 {
            step(&mut optimizers[0], &fused);
            step(&mut optimizers[1], &composed);
        }
        for (a, b) in values(&fused).iter().zip(values(&composed)) {
            assert!((a - b).abs() < 1e-14, "{a} {b}");
        }
    }

    #[test]
    fn a_restored_optimizer_continues_bit_for_bit() {
        let params = start();
        let mut optimizer = AdamW::new(&params, CONFIG).unwrap();
        step(&mut optimizer, &params);
        let (state, weights) = (optimizer.state(&params).unwrap(), params.snapshot().unwrap());
        step(&mut optimizer, &params);
        let uninterrupted = values(&params);

        params.load(&weights).unwrap();
        let mut restored = AdamW::restore(&params, CONFIG, &state, 1).unwrap();
        step(&mut restored, &params);
        assert_eq!(values(&params), uninterrupted);
        assert_eq!(restored.num_steps(), 2);

        let mut wrong = state.clone();
        wrong.remove("w.exp_avg");
        assert!(matches!(
            AdamW::restore(&params, CONFIG, &wrong, 1),
            Err(Error::ParameterNames { .. })
        ));
    }
}
