//! Log-probabilities of tokens: projection to the vocabulary, log-softmax and gather in one.
//!
//! ```text
//! z_v  = c tanh(scale h w_v / c) / temperature        without a cap: scale h w_v / temperature
//! logp = z_target - log sum_v e^(z_v)
//! ```
//!
//! N rows, D width, V vocabulary. On the CPU, logits exist for a block of 1024 words and a chunk of rows at a time; for the
//! gradient of the weight they are computed again. Where hidden is tracked, an (N, D) tensor is kept from the forward pass
//! for the backward pass, whose only product of matrices is the gradient of a tracked weight. Memory beside that, the
//! result and the gradients depends neither on N nor on V: about 32 MiB and 1 MiB a thread. On other devices logits exist
//! for a chunk of rows and all words.

mod kernel;
mod op;
mod sums;

use std::sync::{Arc, OnceLock};

use candle_core::{D, DType, Device, Tensor};

use self::kernel::{Slopes, Sums};
use self::op::TokenLogps;
use self::sums::RowSum;
use super::kernel::{Path, path, shape_error};
use super::linear::wide_product;
use super::softmax::log_softmax_composed;
use crate::autograd::checkpoint;
use crate::{Error, Result};

const OP: &str = "token_logps";
/// Bytes of a chunk's logits on devices without a kernel.
const CHUNK_BYTES: usize = 32 << 20;
/// Rows of a chunk there, at least, unless the caller says how many.
const CHUNK_ROWS: usize = 32;

/// What a call of [`token_logps`] does beside its operands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogpsConfig {
    /// Factor of the logits, before the cap; not zero. One in most networks.
    pub logit_scale: f64,
    /// With a cap c above zero, a scaled logit s becomes `c tanh(s / c)` (Gemma Team, arXiv:2408.00118).
    pub softcap: Option<f64>,
    /// Divides the logits, after the cap; above zero.
    pub temperature: f64,
    /// Rows of a chunk, at least one. By default as many as make buffers of 32 MiB, but at least 32; on the CPU at most 256.
    pub chunk_rows: Option<usize>,
}

impl Default for TokenLogpsConfig {
    fn default() -> Self {
        Self {
            logit_scale: 1.0,
            softcap: None,
            temperature: 1.0,
            chunk_rows: None,
        }
    }
}

/// What the distribution of each token looks like, `(N)` each and without gradients. Float tensors have the type of the
/// log-probabilities.
#[derive(Debug, Clone)]
pub struct TokenStatistics {
    /// Entropy `-sum_v p_v log p_v` in nats.
    pub entropy: Tensor,
    /// Logarithm of the collision probability, `log sum_v p_v^2`.
    pub log_collision: Tensor,
    /// Mean over the vocabulary of the logits z.
    pub mean_logit: Tensor,
    /// u8: one where no token has a larger logit than the target.
    pub is_argmax: Tensor,
}

/// Log-probabilities of `targets`, with gradients of `hidden` and `weight`.
///
/// # Shape
/// `hidden` `(N, D)`, `weight` `(V, D)`, `targets` u32 `(N)`, result `(N)`: f32 for half-precision operands, whose products
/// are summed in f32.
///
/// # Errors
/// [`Error::Operand`] for shapes, dtypes or numbers that do not fit, or a target outside the vocabulary.
pub fn token_logps(hidden: &Tensor, weight: &Tensor, targets: &Tensor, config: TokenLogpsConfig) -> Result<Tensor> {
    check(hidden, weight, targets, config)?;
    match path(OP, &[hidden, weight])? {
        Path::Fused | Path::Widened(_) => Ok(fused(hidden, weight, targets, config, Sums::Logps)?.0),
        Path::Composed => chunked_composed(hidden, weight, targets, config),
    }
}

/// [`token_logps`] and what the distributions look like, in the same pass.
///
/// # Errors
/// As [`token_logps`].
pub fn token_logps_and_statistics(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    config: TokenLogpsConfig,
) -> Result<(Tensor, TokenStatistics)> {
    check(hidden, weight, targets, config)?;
    match path(OP, &[hidden, weight])? {
        Path::Fused | Path::Widened(_) => {
            let (logps, rows) = fused(hidden, weight, targets, config, Sums::All)?;
            let statistics = TokenStatistics::of_rows(&rows, weight.dim(0)?, logps.dtype())?;
            Ok((logps, statistics))
        }
        Path::Composed => {
            let logps = chunked_composed(hidden, weight, targets, config)?;
            Ok((logps, chunked_statistics(hidden, weight, targets, config)?))
        }
    }
}

/// [`token_logps`] in candle's primitives, with all logits at once.
///
/// # Errors
/// As [`token_logps`].
pub fn token_logps_composed(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    config: TokenLogpsConfig,
) -> Result<Tensor> {
    gathered(&logits_composed(hidden, weight, targets, config)?, targets)
}

/// [`token_logps_and_statistics`] in candle's primitives, with all logits at once.
///
/// # Errors
/// As [`token_logps`].
pub fn token_logps_and_statistics_composed(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    config: TokenLogpsConfig,
) -> Result<(Tensor, TokenStatistics)> {
    let logits = logits_composed(hidden, weight, targets, config)?;
    Ok((gathered(&logits, targets)?, statistics(&logits.detach(), targets)?))
}

impl TokenStatistics {
    fn of_rows(rows: &[RowSum], vocabulary: usize, dtype: DType) -> Result<Self> {
        let tensor = |number: &dyn Fn(&RowSum) -> f64| -> Result<Tensor> {
            let numbers: Vec<f64> = rows.iter().map(number).collect();
            Ok(Tensor::from_vec(numbers, rows.len(), &Device::Cpu)?.to_dtype(dtype)?)
        };
        let is_argmax: Vec<u8> = rows.iter().map(|row| u8::from(row.target >= row.max)).collect();
        Ok(Self {
            entropy: tensor(&RowSum::entropy)?,
            log_collision: tensor(&RowSum::log_collision)?,
            mean_logit: tensor(&|row| row.logits / vocabulary as f64)?,
            is_argmax: Tensor::from_vec(is_argmax, rows.len(), &Device::Cpu)?,
        })
    }

    /// The statistics of all chunks, in their order; at least one.
    fn joined(chunks: &[Self]) -> Result<Self> {
        let join = |part: fn(&Self) -> &Tensor| Tensor::cat(&chunks.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Self {
            entropy: join(|chunk| &chunk.entropy)?,
            log_collision: join(|chunk| &chunk.log_collision)?,
            mean_logit: join(|chunk| &chunk.mean_logit)?,
            is_argmax: join(|chunk| &chunk.is_argmax)?,
        })
    }
}

/// The fused kernel, and what it leaves of each row.
fn fused(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    config: TokenLogpsConfig,
    sums: Sums,
) -> Result<(Tensor, Vec<RowSum>)> {
    let wide = match hidden.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let op = TokenLogps {
        config,
        sums,
        slopes: if hidden.track_op() {
            Slopes::OfHidden
        } else {
            Slopes::None
        },
        targets: targets.to_vec1::<u32>()?,
        left: Arc::new(OnceLock::new()),
    };
    let left = Arc::clone(&op.left);
    let hidden = hidden.to_dtype(wide)?.contiguous()?;
    let logps = hidden.apply_op2(&weight.contiguous()?, op)?;
    let rows = match sums {
        Sums::Logps => Vec::new(),
        Sums::All => left.get().map_or_else(Vec::new, |left| left.rows.clone()),
    };
    Ok((logps, rows))
}

/// First row and rows of each chunk on devices without a kernel; one chunk without rows for no rows.
pub(super) fn row_chunks(
    rows: usize,
    vocabulary: usize,
    config: TokenLogpsConfig,
) -> impl Iterator<Item = (usize, usize)> {
    let len = config
        .chunk_rows
        .unwrap_or_else(|| (CHUNK_BYTES / 4 / vocabulary).max(CHUNK_ROWS));
    (0..rows.max(1))
        .step_by(len)
        .map(move |first| (first, len.min(rows - first)))
}

/// [`token_logps_composed`] chunk by chunk, whose logits are dropped and computed again in the backward pass.
fn chunked_composed(hidden: &Tensor, weight: &Tensor, targets: &Tensor, config: TokenLogpsConfig) -> Result<Tensor> {
    let of_chunk = |(first, len)| {
        let (hidden, targets) = (hidden.narrow(0, first, len)?, targets.narrow(0, first, len)?);
        checkpoint(&[&hidden, weight], move |x| {
            token_logps_composed(&x[0], &x[1], &targets, config)
        })
    };
    let logps = row_chunks(hidden.dim(0)?, weight.dim(0)?, config).map(of_chunk);
    Ok(Tensor::cat(&logps.collect::<Result<Vec<_>>>()?, 0)?)
}

fn chunked_statistics(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    config: TokenLogpsConfig,
) -> Result<TokenStatistics> {
    let (hidden, weight) = (hidden.detach(), weight.detach());
    let of_chunk = |(first, len)| {
        let (hidden, targets) = (hidden.narrow(0, first, len)?, targets.narrow(0, first, len)?);
        statistics(&logits_composed(&hidden, &weight, &targets, config)?, &targets)
    };
    let statistics = row_chunks(hidden.dim(0)?, weight.dim(0)?, config).map(of_chunk);
    TokenStatistics::joined(&statistics.collect::<Result<Vec<_>>>()?)
}

/// The statistics of detached logits.
fn statistics(logits: &Tensor, targets: &Tensor) -> Result<TokenStatistics> {
    let rows = logits.dim(0)?;
    if rows == 0 {
        let empty = Tensor::zeros(0, logits.dtype(), logits.device())?;
        return Ok(TokenStatistics {
            entropy: empty.clone(),
            log_collision: empty.clone(),
            mean_logit: empty.clone(),
            is_argmax: empty.to_dtype(DType::U8)?,
        });
    }
    let all = log_softmax_composed(logits)?;
    let of_target = logits.gather(&targets.unsqueeze(1)?.contiguous()?, 1)?.squeeze(1)?;
    Ok(TokenStatistics {
        entropy: (all.exp()? * &all)?.sum(D::Minus1)?.neg()?,
        log_collision: log_sum_exp(&(&all * 2.0)?)?,
        mean_logit: logits.mean(D::Minus1)?,
        is_argmax: of_target.ge(&logits.max(D::Minus1)?)?,
    })
}

fn log_sum_exp(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?;
    let sum = x.broadcast_sub(&max)?.exp()?.sum(D::Minus1)?;
    Ok((sum.log()? + max.squeeze(D::Minus1)?)?)
}

/// The logits z, f32 for half-precision operands.
fn logits_composed(hidden: &Tensor, weight: &Tensor, targets: &Tensor, config: TokenLogpsConfig) -> Result<Tensor> {
    check(hidden, weight, targets, config)?;
    let (hidden, weight) = widened(hidden, weight)?;
    shaped(hidden.matmul(&weight.t()?)?, config)
}

/// The logits z without a gradient of a frozen operand, f32 for half-precision operands.
pub(super) fn wide_logits(hidden: &Tensor, weight: &Tensor, config: TokenLogpsConfig) -> Result<Tensor> {
    check_operands(hidden, weight, config)?;
    let hidden = hidden.contiguous()?.to_dtype(wide_type(hidden))?;
    shaped(wide_product(&hidden, weight)?, config)
}

/// The type that hidden states are multiplied in.
fn wide_type(hidden: &Tensor) -> DType {
    match hidden.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

fn widened(hidden: &Tensor, weight: &Tensor) -> Result<(Tensor, Tensor)> {
    let wide = wide_type(hidden);
    Ok((
        hidden.contiguous()?.to_dtype(wide)?,
        weight.contiguous()?.to_dtype(wide)?,
    ))
}

/// Scale, cap and temperature.
fn shaped(products: Tensor, config: TokenLogpsConfig) -> Result<Tensor> {
    let logits = (products * config.logit_scale)?;
    let logits = match config.softcap {
        None => logits,
        Some(cap) => ((logits / cap)?.tanh()? * cap)?,
    };
    Ok((logits / config.temperature)?)
}

fn gathered(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = targets.unsqueeze(1)?.contiguous()?;
    Ok(log_softmax_composed(logits)?.gather(&targets, 1)?.squeeze(1)?)
}

fn check(hidden: &Tensor, weight: &Tensor, targets: &Tensor, config: TokenLogpsConfig) -> Result<()> {
    let (rows, vocabulary) = check_operands(hidden, weight, config)?;
    if targets.dtype() != DType::U32 {
        return operand("dtype of targets", format!("{:?}", targets.dtype()), "U32".into());
    }
    if targets.dims() != [rows] {
        return Err(shape_error(OP, "shape of targets", targets.dims(), format!("[{rows}]")));
    }
    let largest = targets.flatten_all()?.to_vec1::<u32>()?.into_iter().max();
    match largest.filter(|&largest| largest as usize >= vocabulary) {
        Some(largest) => operand("target", largest.to_string(), format!("an index below {vocabulary}")),
        None => Ok(()),
    }
}

fn operand<T>(what: &'static str, found: String, expected: String) -> Result<T> {
    Err(Error::Operand {
        op: OP,
        what,
        found,
        expected,
    })
}

/// Rows and words of operands that fit.
fn check_operands(hidden: &Tensor, weight: &Tensor, config: TokenLogpsConfig) -> Result<(usize, usize)> {
    let &[rows, width] = hidden.dims() else {
        return Err(shape_error(OP, "shape of hidden", hidden.dims(), "(N, D)"));
    };
    let vocabulary = match weight.dims() {
        &[vocabulary, inputs] if inputs == width && vocabulary > 0 => vocabulary,
        dims => return Err(shape_error(OP, "shape of weight", dims, format!("(V, {width})"))),
    };
    if !(config.logit_scale != 0.0 && config.logit_scale.is_finite()) {
        return operand(
            "logit scale",
            config.logit_scale.to_string(),
            "a finite number, not zero".into(),
        );
    }
    if let Some(cap) = config.softcap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
        return operand("softcap", cap.to_string(), "a finite number above zero".into());
    }
    if !(config.temperature > 0.0 && config.temperature.is_finite()) {
        return operand(
            "temperature",
            config.temperature.to_string(),
            "a finite number above zero".into(),
        );
    }
    if config.chunk_rows == Some(0) {
        return operand("chunk of rows", "0".into(), "at least one row".into());
    }
    Ok((rows, vocabulary))
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn numbers(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).and_then(|x| x.flatten_all()?.to_vec1()).unwrap()
    }

    fn assert_close(found: &Tensor, expected: &Tensor) {
        assert_eq!(found.dims(), expected.dims());
        for (found, expected) in numbers(found).iter().zip(numbers(expected)) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
    }

    /// The path of other devices, which tests on a CPU do not take by themselves.
    #[test]
    fn chunks_of_composed_logits_are_all_logits() {
        let wave = |shape: (usize, usize)| {
            let data = (0..shape.0 * shape.1)
                .map(|i| (i as f64 * 0.7).sin())
                .collect::<Vec<f64>>();
            Var::from_tensor(&Tensor::from_vec(data, shape, &Device::Cpu).unwrap()).unwrap()
        };
        let (hidden, weight) = (wave((7, 3)), wave((11, 3)));
        let targets = Tensor::arange(0u32, 7, &Device::Cpu).unwrap();
        let config = TokenLogpsConfig {
            softcap: Some(2.0),
            chunk_rows: Some(3),
            ..TokenLogpsConfig::default()
        };
        let chunked = chunked_composed(&hidden, &weight, &targets, config).unwrap();
        let (whole, expected) = token_logps_and_statistics_composed(&hidden, &weight, &targets, config).unwrap();
        assert_close(&chunked, &whole);
        let [found, exact] = [chunked, whole].map(|logps| logps.sqr().unwrap().sum_all().unwrap().backward().unwrap());
        for var in [&hidden, &weight] {
            assert_close(found.get(var).unwrap(), exact.get(var).unwrap());
        }
        let found = chunked_statistics(&hidden, &weight, &targets, config).unwrap();
        assert_close(&found.entropy, &expected.entropy);
        assert_close(&found.log_collision, &expected.log_collision);
        assert_close(&found.mean_logit, &expected.mean_logit);
        assert_eq!(numbers(&found.is_argmax), numbers(&expected.is_argmax));
        assert_eq!(row_chunks(0, 11, config).collect::<Vec<_>>(), [(0, 0)]);
    }
}
