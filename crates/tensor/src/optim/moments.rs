//! The moments of AdamW: how they are held, and one pass that updates them and their parameter.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Tensor, Var, WithDType};
use half::bf16;
use num_traits::Float;
use rayon::prelude::*;

use super::MomentFormat;
use super::blockwise::{SIGNED, UNSIGNED};
use super::rounding::{mixed, rounded, seed};
use super::state::StateTensor;
use crate::ops::kernel::wide;
use crate::{Error, Result};

/// Elements that one task updates: large enough to amortize the task, small enough to stay in cache.
const CHUNK: usize = 16 * 1024;
/// Parameters of fewer elements are not held in eight bits, as in bitsandbytes.
const MIN_INT8: usize = 4096;

/// Both moments of one parameter.
#[derive(Debug)]
pub(super) enum Moments {
    F32(RefCell<Host<f32>>),
    F64(RefCell<Host<f64>>),
    Bf16(RefCell<Host<bf16>>),
    Int8(RefCell<Quantized>),
    /// On a device without a fused kernel.
    Device {
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
    },
}

#[derive(Debug)]
pub(super) struct Host<T> {
    exp_avg: Vec<T>,
    exp_avg_sq: Vec<T>,
}

/// Codes and the largest magnitude of each block.
#[derive(Debug)]
pub(super) struct Quantized {
    block: usize,
    exp_avg: Vec<u8>,
    exp_avg_sq: Vec<u8>,
    absmax: Vec<f32>,
    absmax_sq: Vec<f32>,
}

/// The factors of one update; all are the same for every element.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    /// `1 − lr · weight_decay`.
    pub(super) keep: f64,
    /// `lr / (1 − β1ᵗ)`.
    pub(super) step_size: f64,
    /// `√(1 − β2ᵗ)`.
    pub(super) root_correction: f64,
    pub(super) eps: f64,
    /// Number of this update, from 1.
    pub(super) step: u64,
    /// What numbers are rounded by at random, beside parameter and update.
    pub(super) seed: u64,
}

/// What a parameter's moments are held in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Own,
    Bf16,
    Int8 { block: usize },
}

impl Held {
    fn of(count: usize, format: MomentFormat) -> Self {
        match format {
            MomentFormat::Bf16 => Self::Bf16,
            MomentFormat::Int8 { block } if count >= MIN_INT8 => Self::Int8 { block: block.max(1) },
            MomentFormat::Full | MomentFormat::Int8 { .. } => Self::Own,
        }
    }
}

impl Moments {
    /// The tensors of a parameter's moments, named as parts.
    pub(super) fn layout(dims: &[usize], dtype: DType, format: MomentFormat) -> Vec<StateTensor> {
        let count = dims.iter().product();
        let both = |dtype| ["exp_avg", "exp_avg_sq"].map(|part| StateTensor::new(part, dims, dtype));
        match Held::of(count, format) {
            Held::Own => both(dtype).into(),
            Held::Bf16 => both(DType::BF16).into(),
            Held::Int8 { block } => {
                let scales = ["exp_avg.absmax", "exp_avg_sq.absmax"];
                let scales = scales.map(|part| StateTensor::new(part, &[count.div_ceil(block)], DType::F32));
                both(DType::U8).into_iter().chain(scales).collect()
            }
        }
    }

    pub(super) fn zeros(var: &Var, format: MomentFormat) -> Result<Self> {
        let zeros = Self::layout(var.dims(), var.dtype(), format).into_iter().map(|part| {
            let zeros = match (part.dtype, part.name.as_str()) {
                (DType::U8, "exp_avg") => Tensor::full(SIGNED.zero(), part.dims.as_slice(), var.device())?,
                (DType::U8, _) => Tensor::full(UNSIGNED.zero(), part.dims.as_slice(), var.device())?,
                (dtype, _) => Tensor::zeros(part.dims.as_slice(), dtype, var.device())?,
            };
            Ok((part.name, zeros))
        });
        let zeros: std::collections::BTreeMap<String, Tensor> = zeros.collect::<Result<_>>()?;
        Self::restore(var, format, |part| &zeros[part])
    }

    /// From the tensors of [`Self::layout`].
    pub(super) fn restore<'a>(var: &Var, format: MomentFormat, part: impl Fn(&str) -> &'a Tensor) -> Result<Self> {
        let held = Held::of(var.elem_count(), format);
        if held != Held::Own && !(var.device().is_cpu() && var.dtype() == DType::F32) {
            return Err(Error::Operand {
                op: "adamw",
                what: "state",
                found: format!(
                    "{format:?} for {:?} parameters on {:?}",
                    var.dtype(),
                    var.device().location()
                ),
                expected: "full precision, except for f32 parameters on the CPU".into(),
            });
        }
        let (exp_avg, exp_avg_sq) = (part("exp_avg"), part("exp_avg_sq"));
        Ok(match held {
            Held::Bf16 => Self::Bf16(RefCell::new(Host::new(exp_avg, exp_avg_sq)?)),
            Held::Int8 { block } => Self::Int8(RefCell::new(Quantized {
                block,
                exp_avg: exp_avg.flatten_all()?.to_vec1()?,
                exp_avg_sq: exp_avg_sq.flatten_all()?.to_vec1()?,
                absmax: part("exp_avg.absmax").to_vec1()?,
                absmax_sq: part("exp_avg_sq.absmax").to_vec1()?,
            })),
            Held::Own => {
                let own = |moment: &Tensor| moment.to_device(var.device())?.to_dtype(var.dtype());
                Self::own(&own(exp_avg)?, &own(exp_avg_sq)?)?
            }
        })
    }

    fn own(exp_avg: &Tensor, exp_avg_sq: &Tensor) -> Result<Self> {
        let host = exp_avg.device().is_cpu();
        Ok(match exp_avg.dtype() {
            DType::F32 if host => Self::F32(RefCell::new(Host::new(exp_avg, exp_avg_sq)?)),
            DType::F64 if host => Self::F64(RefCell::new(Host::new(exp_avg, exp_avg_sq)?)),
            _ => Self::Device {
                exp_avg: exp_avg.clone(),
                exp_avg_sq: exp_avg_sq.clone(),
            },
        })
    }

    /// Parts and their tensors.
    pub(super) fn tensors(&self, var: &Var) -> Result<Vec<(&'static str, Tensor)>> {
        let both = |(exp_avg, exp_avg_sq)| vec![("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)];
        Ok(match self {
            Self::F32(host) => both(host.borrow().tensors(var)?),
            Self::F64(host) => both(host.borrow().tensors(var)?),
            Self::Bf16(host) => both(host.borrow().tensors(var)?),
            Self::Int8(quantized) => {
                let quantized = quantized.borrow();
                let codes = |codes: &[u8]| Tensor::from_slice(codes, var.shape(), var.device());
                let scales = |scales: &[f32]| Tensor::from_slice(scales, scales.len(), var.device());
                vec![
                    ("exp_avg", codes(&quantized.exp_avg)?),
                    ("exp_avg_sq", codes(&quantized.exp_avg_sq)?),
                    ("exp_avg.absmax", scales(&quantized.absmax)?),
                    ("exp_avg_sq.absmax", scales(&quantized.absmax_sq)?),
                ]
            }
            Self::Device { exp_avg, exp_avg_sq } => both((exp_avg.copy()?, exp_avg_sq.copy()?)),
        })
    }

    pub(super) fn apply(&mut self, name: &str, update: Update, var: &Var, gradient: &Tensor) -> Result<()> {
        if gradient.dims() != var.dims() {
            return Err(Error::TensorShape {
                path: "the gradients".into(),
                name: name.into(),
                found: gradient.dims().to_vec(),
                expected: var.dims().to_vec(),
            });
        }
        let gradient = gradient.to_dtype(var.dtype())?.contiguous()?;
        let Self::Device { exp_avg, exp_avg_sq } = self else {
            let fused = Fused {
                update,
                moments: self,
                seed: seed(update.seed, name, update.step),
            };
            return Ok(var.inplace_op2(&gradient, &fused)?);
        };
        let Update {
            beta1,
            beta2,
            keep,
            step_size,
            root_correction,
            eps,
            step: _,
            seed: _,
        } = update;
        *exp_avg = ((&*exp_avg * beta1)? + (&gradient * (1.0 - beta1))?)?;
        *exp_avg_sq = ((&*exp_avg_sq * beta2)? + (gradient.sqr()? * (1.0 - beta2))?)?;
        let denominator = ((exp_avg_sq.sqrt()? / root_correction)? + eps)?;
        let decayed = (var.as_detached_tensor() * keep)?;
        Ok(var.set(&(decayed - ((&*exp_avg / denominator)? * step_size)?)?)?)
    }
}

impl<T: WithDType> Host<T> {
    fn new(exp_avg: &Tensor, exp_avg_sq: &Tensor) -> Result<Self> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1();
        Ok(Self {
            exp_avg: values(exp_avg)?,
            exp_avg_sq: values(exp_avg_sq)?,
        })
    }

    fn tensors(&self, var: &Var) -> Result<(Tensor, Tensor)> {
        let tensor = |values: &[T]| Tensor::from_slice(values, var.shape(), var.device());
        Ok((tensor(&self.exp_avg)?, tensor(&self.exp_avg_sq)?))
    }
}

struct Fused<'a> {
    update: Update,
    moments: &'a Moments,
    seed: u64,
}

impl InplaceOp2 for Fused<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        parameter_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (Some((p0, p1)), Some((g0, g1))) = (
            parameter_layout.contiguous_offsets(),
            gradient_layout.contiguous_offsets(),
        ) else {
            candle_core::bail!("adamw: parameter and gradient must be contiguous");
        };
        let update = self.update;
        match (parameter, gradient, self.moments) {
            (CpuStorage::F32(p), CpuStorage::F32(g), Moments::F32(host)) => {
                update.run(&mut p[p0..p1], &g[g0..g1], &mut host.borrow_mut());
            }
            (CpuStorage::F64(p), CpuStorage::F64(g), Moments::F64(host)) => {
                update.run(&mut p[p0..p1], &g[g0..g1], &mut host.borrow_mut());
            }
            (CpuStorage::F32(p), CpuStorage::F32(g), Moments::Bf16(host)) => {
                update.run_bf16(&mut p[p0..p1], &g[g0..g1], &mut host.borrow_mut(), self.seed);
            }
            (CpuStorage::F32(p), CpuStorage::F32(g), Moments::Int8(quantized)) => {
                update.run_int8(&mut p[p0..p1], &g[g0..g1], &mut quantized.borrow_mut());
            }
            _ => candle_core::bail!("adamw: parameter, gradient and moments differ in precision"),
        }
        Ok(())
    }
}

/// The factors of an [`Update`] in the precision that computes.
#[derive(Clone, Copy)]
struct Factors<T> {
    beta1: T,
    beta2: T,
    new1: T,
    new2: T,
    keep: T,
    step_size: T,
    root_correction: T,
    eps: T,
}

impl<T: Float> Factors<T> {
    /// Updates moments and parameter.
    #[expect(
        clippy::inline_always,
        reason = "the body of a loop that is compiled for several CPU features"
    )]
    #[inline(always)]
    fn apply(self, p: &mut T, g: T, m: &mut T, v: &mut T) {
        *m = self.beta1 * *m + self.new1 * g;
        *v = self.beta2 * *v + self.new2 * g * g;
        *p = *p * self.keep - self.step_size * *m / (v.sqrt() / self.root_correction + self.eps);
    }
}

wide! {
    fn update<T: Float>(factors: Factors<T>, parameter: &mut [T], gradient: &[T], exp_avg: &mut [T], exp_avg_sq: &mut [T]) {
        let elements = parameter.iter_mut().zip(gradient).zip(exp_avg).zip(exp_avg_sq);
        for (((p, &g), m), v) in elements {
            factors.apply(p, g, m, v);
        }
    }
}

impl Update {
    fn factors<T: Float>(self) -> Factors<T> {
        let of = |value: f64| T::from(value).unwrap_or_else(T::nan);
        Factors {
            beta1: of(self.beta1),
            beta2: of(self.beta2),
            new1: of(1.0 - self.beta1),
            new2: of(1.0 - self.beta2),
            keep: of(self.keep),
            step_size: of(self.step_size),
            root_correction: of(self.root_correction),
            eps: of(self.eps),
        }
    }

    fn run<T: Float + Send + Sync>(self, parameter: &mut [T], gradient: &[T], host: &mut Host<T>) {
        let factors = self.factors::<T>();
        parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(host.exp_avg.par_chunks_mut(CHUNK))
            .zip(host.exp_avg_sq.par_chunks_mut(CHUNK))
            .for_each(|(((parameter, gradient), exp_avg), exp_avg_sq)| {
                update(factors, parameter, gradient, exp_avg, exp_avg_sq);
            });
    }

    fn run_bf16(self, parameter: &mut [f32], gradient: &[f32], host: &mut Host<bf16>, seed: u64) {
        let factors = self.factors::<f32>();
        let chunks = parameter.par_chunks_mut(CHUNK).zip(gradient.par_chunks(CHUNK));
        let chunks = chunks.zip(host.exp_avg.par_chunks_mut(CHUNK));
        let chunks = chunks.zip(host.exp_avg_sq.par_chunks_mut(CHUNK)).enumerate();
        chunks.for_each(|(chunk, (((parameter, gradient), exp_avg), exp_avg_sq))| {
            let elements = parameter.iter_mut().zip(gradient).zip(exp_avg).zip(exp_avg_sq);
            for (i, (((p, &g), held_m), held_v)) in elements.enumerate() {
                let (mut m, mut v) = (held_m.to_f32(), held_v.to_f32());
                factors.apply(p, g, &mut m, &mut v);
                let random = mixed(seed.wrapping_add((chunk * CHUNK + i) as u64));
                *held_m = rounded(m, random as u16);
                *held_v = rounded(v, (random >> 16) as u16);
            }
        });
    }

    fn run_int8(self, parameter: &mut [f32], gradient: &[f32], held: &mut Quantized) {
        let (factors, block) = (self.factors::<f32>(), held.block);
        let (signed, unsigned) = (&*SIGNED, &*UNSIGNED);
        let blocks = parameter.par_chunks_mut(block).zip(gradient.par_chunks(block));
        let blocks = blocks.zip(
            held.exp_avg
                .par_chunks_mut(block)
                .zip(held.exp_avg_sq.par_chunks_mut(block)),
        );
        let blocks = blocks.zip(held.absmax.par_iter_mut().zip(held.absmax_sq.par_iter_mut()));
        let few = (CHUNK / block).max(1);
        blocks.with_min_len(few).for_each_init(
            || (vec![0f32; block], vec![0f32; block]),
            |(m, v), (((parameter, gradient), (codes, codes_sq)), (absmax, absmax_sq))| {
                let (m, v) = (&mut m[..parameter.len()], &mut v[..parameter.len()]);
                for ((m, &code), (v, &code_sq)) in m.iter_mut().zip(&*codes).zip(v.iter_mut().zip(&*codes_sq)) {
                    *m = signed.value(code) * *absmax;
                    *v = unsigned.value(code_sq) * *absmax_sq;
                }
                let elements = parameter.iter_mut().zip(gradient).zip(m.iter_mut().zip(v.iter_mut()));
                for ((p, &g), (m, v)) in elements {
                    factors.apply(p, g, m, v);
                }
                let largest = |moment: &[f32]| moment.iter().fold(0f32, |most, x| most.max(x.abs()));
                (*absmax, *absmax_sq) = (largest(m), largest(v));
                // A block of zeros has no scale: its codes are those of zero.
                let reciprocal = |absmax: f32| if absmax > 0.0 { 1.0 / absmax } else { 0.0 };
                let (scale, scale_sq) = (reciprocal(*absmax), reciprocal(*absmax_sq));
                for ((&m, code), (&v, code_sq)) in m.iter().zip(codes).zip(v.iter().zip(codes_sq)) {
                    *code = signed.code_of_sign(m * scale);
                    *code_sq = unsigned.code(v * scale_sq);
                }
            },
        );
    }
}
