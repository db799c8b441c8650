//! Whole distributions of tokens: how far those of two networks are apart, and their likeliest words.
//!
//! ```text
//! z_v  as in token_logps, of either network
//! p    = softmax(z of the other), q = softmax(z of this)
//! D    = sum_v p_v (log p_v - log q_v)
//! ```
//!
//! N rows, D width, V vocabulary. Logits exist for a chunk of rows and all words. For the gradient of a divergence they are dropped and
//! computed again, those of the other network too, whose rows get none.

use candle_core::{D, DType, Tensor};

use super::kernel::shape_error;
use super::log_softmax;
use super::token_logps::{TokenLogpsConfig, row_chunks, wide_logits};
use crate::autograd::checkpoint;
use crate::{Error, Result};

/// What the logits of one network are made of.
#[derive(Debug, Clone)]
pub struct TokenHead {
    /// The states that precede the tokens, (N, D).
    pub hidden: Tensor,
    /// The projection to the vocabulary, (V, D).
    pub weight: Tensor,
    /// Scale, cap and temperature of the logits, and rows of a chunk.
    pub config: TokenLogpsConfig,
}

impl TokenHead {
    /// The same without gradients.
    #[must_use]
    pub fn detach(&self) -> Self {
        Self {
            hidden: self.hidden.detach(),
            weight: self.weight.detach(),
            config: self.config,
        }
    }

    fn sizes(&self) -> Result<(usize, usize)> {
        let sizes = (self.hidden.dim(0)?, self.weight.dim(0)?);
        if sizes.1 == 0 || self.config.chunk_rows == Some(0) {
            return Err(Error::Operand {
                op: "token_head",
                what: "words of the vocabulary and rows of a chunk",
                found: format!("{} and {:?}", sizes.1, self.config.chunk_rows),
                expected: "at least 1 each".to_owned(),
            });
        }
        Ok(sizes)
    }

    /// Log-probabilities of all words in a chunk of rows, f32 for half-precision operands.
    fn logps(&self, first: usize, len: usize) -> Result<Tensor> {
        log_softmax(&self.logits(first, len)?)
    }

    fn logits(&self, first: usize, len: usize) -> Result<Tensor> {
        wide_logits(&self.hidden.narrow(0, first, len)?, &self.weight, self.config)
    }
}

/// `sum_v p_v (log p_v - log q_v)` of every row, with p of `other`, which is constant, and q of `this`, with gradients of its hidden
/// states and its weight.
///
/// # Shape
/// Both heads have N rows and V words; their widths may differ. Result (N): f32 for half-precision operands.
///
/// # Errors
/// [`Error::Operand`] for shapes, dtypes or numbers that do not fit.
pub fn token_divergences(this: &TokenHead, other: &TokenHead) -> Result<Tensor> {
    let ((rows, words), found) = (this.sizes()?, other.sizes()?);
    if found != (rows, words) {
        return Err(Error::Operand {
            op: "token_divergences",
            what: "rows and words of the other network",
            found: format!("{found:?}"),
            expected: format!("{:?}", (rows, words)),
        });
    }
    let other = other.detach();
    let of_chunk = |(first, len): (usize, usize)| {
        let (other, config) = (other.clone(), this.config);
        checkpoint(&[&this.hidden.narrow(0, first, len)?, &this.weight], move |x| {
            let q = log_softmax(&wide_logits(&x[0], &x[1], config)?)?;
            let p = other.logps(first, len)?.to_dtype(q.dtype())?;
            Ok((p.exp()? * (&p - q)?)?.sum(D::Minus1)?)
        })
    };
    let divergences = row_chunks(rows, words, this.config).map(of_chunk);
    Ok(Tensor::cat(&divergences.collect::<Result<Vec<_>>>()?, 0)?)
}

/// The likeliest word of every row, (N) u32, without gradients; of equally likely ones the first. With `other_than`, (N) u32, the
/// likeliest but for the one given there.
///
/// # Errors
/// [`Error::Operand`] for shapes, dtypes or numbers that do not fit, and for a vocabulary of one word where another one is asked for.
pub fn likeliest_tokens(head: &TokenHead, other_than: Option<&Tensor>) -> Result<Tensor> {
    let (head, (rows, words)) = (head.detach(), head.sizes()?);
    if let Some(others) = other_than
        && (others.dims() != [rows] || others.dtype() != DType::U32 || words < 2)
    {
        let expected = format!("({rows},) u32 beside at least 2 words");
        return Err(shape_error(
            "likeliest_tokens",
            "tokens to avoid",
            others.dims(),
            expected,
        ));
    }
    let of_chunk = |(first, len): (usize, usize)| -> Result<Tensor> {
        let mut logits = head.logits(first, len)?;
        if let Some(others) = other_than {
            let at = others.narrow(0, first, len)?.unsqueeze(1)?.contiguous()?;
            let out = Tensor::full(f32::NEG_INFINITY, (len, 1), logits.device())?.to_dtype(logits.dtype())?;
            logits = logits.scatter(&at, &out, 1)?;
        }
        Ok(logits.argmax(D::Minus1)?)
    };
    let tokens = row_chunks(rows, words, head.config).map(of_chunk);
    Ok(Tensor::cat(&tokens.collect::<Result<Vec<_>>>()?, 0)?)
}
