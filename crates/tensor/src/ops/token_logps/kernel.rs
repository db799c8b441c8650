//! Forward and backward pass over blocks of the vocabulary, for chunks of rows.
//!
//! The derivative of a log-probability with respect to its row of hidden, `w_target - sum_v p_v w_v` without a cap, does not
//! depend on the gradient of the result. Where it will be needed, the forward pass sums it beside the probabilities, each
//! time relative to the largest logit so far, and the backward pass only scales it.

use std::ops::Range;

use rayon::prelude::*;

use super::TokenLogpsConfig;
use super::sums::{RowSum, add_scaled, all_sums, capped, exponential_slopes, rescale, sum_exponentials};
use crate::ops::kernel::{
    Accumulate, Float, Matrix, MatrixMut, Threads, add_all, chunked_rows, filled_rows, matmul, zeros,
};
use crate::ops::softmax::largest;

/// Words of a block: the logits of a block stay in the cache of the thread that computes them.
const BLOCK: usize = 1024;
/// Tasks at a time, about, each with sums of its own.
const TASKS: usize = 16;
/// Bytes of those sums.
const BUDGET: usize = 32 << 20;
/// Fewest and most rows of a chunk, unless the caller says how many.
const ROWS: [usize; 2] = [32, 256];
/// The operands of one call, contiguous: hidden (N, D), weight (V, D), targets (N).
pub(super) struct Inputs<'a, T> {
    pub(super) config: TokenLogpsConfig,
    pub(super) width: usize,
    pub(super) vocabulary: usize,
    pub(super) hidden: &'a [T],
    pub(super) weight: Weight<'a, T>,
    pub(super) targets: &'a [u32],
}

/// The elements of the weight.
pub(super) enum Weight<'a, T> {
    Wide(&'a [T]),
    /// Of half precision: writes the elements from the given one on in the wide type.
    Half(&'a (dyn Fn(usize, &mut [T]) + Sync)),
}

/// Which sums a forward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sums {
    /// Those of the log-probabilities.
    Logps,
    /// All.
    All,
}

/// Which derivatives a forward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slopes {
    None,
    /// Those with respect to hidden.
    OfHidden,
}

/// What a forward pass leaves.
#[derive(Debug)]
pub(super) struct Forward<T> {
    /// N rows.
    pub(super) rows: Vec<RowSum>,
    /// Derivatives of the log-probabilities with respect to hidden (N, D), where they are wanted.
    pub(super) slopes: Option<Vec<T>>,
}

/// Some consecutive rows.
struct Chunk<'a, T> {
    rows: Range<usize>,
    hidden: &'a [T],
    targets: &'a [u32],
}

/// What one segment of the vocabulary adds to each row of a chunk: with `u` the sums of `e^(z - max) dz/ds w`, or nothing.
struct Part<T> {
    rows: Vec<RowSum>,
    u: Vec<T>,
}

impl<T: Float> Inputs<'_, T> {
    fn chunk_rows(&self) -> usize {
        let most = BUDGET / (TASKS * self.width.max(1) * size_of::<T>());
        self.config.chunk_rows.unwrap_or(most.clamp(ROWS[0], ROWS[1]))
    }

    fn chunks(&self) -> Vec<Chunk<'_, T>> {
        let (n, len) = (self.targets.len(), self.chunk_rows());
        let chunk = |first| {
            let rows: Range<usize> = first..n.min(first + len);
            Chunk {
                hidden: &self.hidden[rows.start * self.width..rows.end * self.width],
                targets: &self.targets[rows.clone()],
                rows,
            }
        };
        (0..n).step_by(len).map(chunk).collect()
    }

    fn blocks(&self) -> usize {
        self.vocabulary.div_ceil(BLOCK)
    }

    /// `tanh(s / cap)` is z times this; zero without a cap.
    fn to_tanh(&self) -> f64 {
        self.config.softcap.map_or(0.0, |cap| self.config.temperature / cap)
    }

    /// Derivative of z with respect to the product of hidden and weight where `tanh` is zero.
    fn factor(&self) -> f64 {
        self.config.logit_scale / self.config.temperature
    }

    /// Runs `f` on the weights of some words; `buffer` is long enough for them.
    fn with_weight<R>(&self, first: usize, words: usize, buffer: &mut [T], f: impl FnOnce(&[T]) -> R) -> R {
        let (start, len) = (first * self.width, words * self.width);
        match self.weight {
            Weight::Wide(weight) => f(&weight[start..start + len]),
            Weight::Half(widen) => {
                widen(start, &mut buffer[..len]);
                f(&buffer[..len])
            }
        }
    }

    /// Elements of a buffer for the weights of so many words.
    fn buffer(&self, words: usize) -> usize {
        match self.weight {
            Weight::Wide(_) => 0,
            Weight::Half(_) => words * self.width,
        }
    }

    /// Runs `f` on the logits of a chunk of rows and a block of words, and on the weights of these words.
    fn with_block<R>(&self, chunk: &Chunk<'_, T>, block: usize, f: impl FnOnce(&mut [T], &[T]) -> R) -> R {
        let (rows, first) = (chunk.rows.len(), block * BLOCK);
        let words = BLOCK.min(self.vocabulary - first);
        T::with_scratch(rows * words + self.buffer(words), |scratch| {
            let (logits, buffer) = scratch.split_at_mut(rows * words);
            self.with_weight(first, words, buffer, |weight| {
                let (lhs, rhs) = (
                    Matrix::rows(chunk.hidden, self.width),
                    Matrix::rows(weight, self.width).t(),
                );
                let place = MatrixMut::rows(logits, words);
                let sizes = (rows, words, self.width);
                matmul(sizes, place, Accumulate::Replace, lhs, rhs, Threads::One);
                let config = &self.config;
                match config.softcap {
                    None => rescale(logits, T::of(self.factor())),
                    Some(cap) => capped(logits, T::of(config.logit_scale / cap), T::of(cap / config.temperature)),
                }
                f(logits, weight)
            })
        })
    }

    /// The sums of every row, and the slopes where `slopes` says so.
    pub(super) fn forward(&self, sums: Sums, slopes: Slopes) -> Forward<T> {
        let mut rows = Vec::with_capacity(self.targets.len());
        let mut all = (slopes == Slopes::OfHidden).then(|| vec![T::zero(); self.hidden.len()]);
        let (chunks, segments) = (self.chunks(), TASKS.min(self.blocks()));
        // With few words, several chunks at a time.
        for chunks in chunks.chunks(TASKS / segments) {
            let task = |task: usize| {
                let (chunk, segment) = (&chunks[task / segments], task % segments);
                let blocks = segment * self.blocks() / segments..(segment + 1) * self.blocks() / segments;
                self.part(chunk, blocks, sums, slopes)
            };
            let parts: Vec<Part<T>> = (0..chunks.len() * segments).into_par_iter().map(task).collect();
            for (chunk, parts) in chunks.iter().zip(parts.chunks(segments)) {
                let of_row = |row: usize| parts.iter().fold(RowSum::EMPTY, |sum, part| sum.joined(part.rows[row]));
                let first = rows.len();
                rows.extend((0..chunk.rows.len()).map(of_row));
                if let Some(all) = &mut all {
                    let place = &mut all[chunk.rows.start * self.width..chunk.rows.end * self.width];
                    self.join_slopes(chunk, parts, &rows[first..], place);
                }
            }
        }
        Forward { rows, slopes: all }
    }

    /// What some blocks of words add to each row of a chunk.
    fn part(&self, chunk: &Chunk<'_, T>, blocks: Range<usize>, sums: Sums, slopes: Slopes) -> Part<T> {
        let (rows, width) = (chunk.rows.len(), self.width);
        let mut part = Part {
            rows: vec![RowSum::EMPTY; rows],
            u: match slopes {
                Slopes::None => Vec::new(),
                Slopes::OfHidden => vec![T::zero(); rows * width],
            },
        };
        for block in blocks {
            self.with_block(chunk, block, |logits, weight| {
                let words = logits.len() / rows;
                for (row, logits) in logits.chunks_exact_mut(words).enumerate() {
                    let before = part.rows[row];
                    let target = (chunk.targets[row] as usize).checked_sub(block * BLOCK);
                    let target = target.and_then(|target| logits.get(target)).map_or(0.0, |z| z.double());
                    let max = largest(logits).larger(T::of(before.max));
                    let of_block = self.row_sum(logits, max, sums, slopes);
                    part.rows[row] = before.joined(RowSum { target, ..of_block });
                    let shift = before.max - max.double();
                    if slopes == Slopes::OfHidden && shift < 0.0 {
                        rescale(&mut part.u[row * width..(row + 1) * width], T::of(shift.exp()));
                    }
                }
                if slopes == Slopes::OfHidden {
                    let (lhs, rhs) = (Matrix::rows(logits, words), Matrix::rows(weight, width));
                    let place = MatrixMut::rows(&mut part.u, width);
                    matmul((rows, width, words), place, Accumulate::Add, lhs, rhs, Threads::One);
                }
            });
        }
        part
    }

    /// The sums of a row of logits, without its target; for slopes, replaces z by `e^(z - max) dz/ds`.
    fn row_sum(&self, row: &mut [T], max: T, sums: Sums, slopes: Slopes) -> RowSum {
        let to_tanh = T::of(self.to_tanh());
        let [sum, squares, moments, logits] = match (sums, slopes) {
            (Sums::Logps, Slopes::None) => [sum_exponentials(row, max), T::zero(), T::zero(), T::zero()],
            (Sums::Logps, Slopes::OfHidden) => [exponential_slopes(row, max, to_tanh), T::zero(), T::zero(), T::zero()],
            (Sums::All, Slopes::None) => all_sums(row, max),
            (Sums::All, Slopes::OfHidden) => {
                let sums = all_sums(row, max);
                exponential_slopes(row, max, to_tanh);
                sums
            }
        };
        RowSum {
            max: max.double(),
            sum: sum.double(),
            squares: squares.double(),
            moments: moments.double(),
            logits: logits.double(),
            target: 0.0,
        }
    }

    /// Adds the parts of a chunk: `(dz_target/ds w_target - sum_v p_v dz_v/ds w_v) scale / temperature`.
    fn join_slopes(&self, chunk: &Chunk<'_, T>, parts: &[Part<T>], rows: &[RowSum], place: &mut [T]) {
        let width = self.width;
        chunked_rows(place, width, |first, place| {
            for (i, place) in place.chunks_exact_mut(width).enumerate() {
                let row = first + i;
                let sum = &rows[row];
                for part in parts {
                    let weight = -self.factor() * (part.rows[row].max - sum.max).exp() / sum.sum;
                    add_scaled(&part.u[row * width..(row + 1) * width], T::of(weight), place);
                }
                let tanh = sum.target * self.to_tanh();
                let of_target = self.factor() * (1.0 - tanh * tanh);
                T::with_scratch(self.buffer(1), |buffer| {
                    self.with_weight(chunk.targets[row] as usize, 1, buffer, |weight| {
                        add_scaled(weight, T::of(of_target), place);
                    });
                });
            }
        });
    }

    /// Gradient of the weight for the gradient `dy` of the log-probabilities.
    pub(super) fn weight_gradient(&self, rows: &[RowSum], dy: &[T]) -> Vec<T> {
        let mut dw = zeros(self.vocabulary * self.width);
        if dw.is_empty() {
            return dw;
        }
        let chunks = self.chunks();
        // With few words, several sums over some chunks each.
        let most = BUDGET / (dw.len() * size_of::<T>());
        let parts = (TASKS / self.blocks()).min(most).min(chunks.len()).max(1);
        let sum = |block: usize, part: usize, place: &mut [T]| {
            for chunk in &chunks[part * chunks.len() / parts..(part + 1) * chunks.len() / parts] {
                self.with_block(chunk, block, |logits, _| {
                    let words = place.len() / self.width;
                    self.logit_gradients(chunk, block, (rows, dy), logits);
                    let (lhs, rhs) = (Matrix::rows(logits, words).t(), Matrix::rows(chunk.hidden, self.width));
                    let place = MatrixMut::rows(place, self.width);
                    let sizes = (words, self.width, chunk.rows.len());
                    matmul(sizes, place, Accumulate::Add, lhs, rhs, Threads::One);
                });
            }
        };
        dw.par_chunks_mut(BLOCK * self.width)
            .enumerate()
            .for_each(|(block, place)| {
                if parts == 1 {
                    return sum(block, 0, place);
                }
                let partial = |part| {
                    let mut partial = vec![T::zero(); place.len()];
                    sum(block, part, &mut partial);
                    partial
                };
                let partials: Vec<Vec<T>> = (0..parts).into_par_iter().map(partial).collect();
                place.copy_from_slice(&add_all(partials, place.len()));
            });
        dw
    }

    /// Replaces logits z by the gradients of the products of hidden and weight.
    fn logit_gradients(&self, chunk: &Chunk<'_, T>, block: usize, (rows, dy): (&[RowSum], &[T]), logits: &mut [T]) {
        let words = logits.len() / chunk.rows.len();
        for (i, logits) in logits.chunks_exact_mut(words).enumerate() {
            let row = chunk.rows.start + i;
            let (sum, dy) = (&rows[row], dy[row].double() * self.factor());
            exponential_slopes(logits, T::of(sum.max), T::of(self.to_tanh()));
            rescale(logits, T::of(-dy / sum.sum));
            let target = (chunk.targets[i] as usize).checked_sub(block * BLOCK);
            if let Some(slope) = target.and_then(|target| logits.get_mut(target)) {
                let tanh = sum.target * self.to_tanh();
                *slope += T::of(dy * (1.0 - tanh * tanh));
            }
        }
    }
}

/// Gradient of hidden: the slopes of each row times its gradient.
pub(super) fn hidden_gradient<T: Float>(slopes: &[T], dy: &[T]) -> Vec<T> {
    let width = slopes.len() / dy.len().max(1);
    filled_rows(slopes.len(), width, |first, rows| {
        for (i, dh) in rows.chunks_exact_mut(width).enumerate() {
            let row = first + i;
            add_scaled(&slopes[row * width..(row + 1) * width], dy[row], dh);
        }
    })
}
